"""Ctrl-C and SIGTERM as requests that a loop grants between two dispatches."""

import contextlib
import signal
import threading
from typing import Any, Self

from jaxnn import parallel


class Signals:
    """While open, the first SIGINT or SIGTERM asks for an orderly end; the second interrupts at once.

    Only the main thread may set handlers: in another one nothing changes, and signals go where they went. A signal that
    is ignored stays so: whoever put the process behind a shell's `&` does not mean it with a Ctrl-C.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        # Several processes grant the request together, once all have heard of it (`train.together`).
        self.noticed: int | None = None
        self._alone = parallel.process_count() == 1
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is signal.SIG_IGN:
                    continue
                # A subinterpreter's main thread may not set any either.
                with contextlib.suppress(ValueError):
                    self._old[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, _: Any) -> None:
        if self.noticed is not None:
            self.__exit__()
            raise KeyboardInterrupt
        self.noticed = number
        if self._alone:
            self.received = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            # None stands for a handler that was not set from Python, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._old = {}
