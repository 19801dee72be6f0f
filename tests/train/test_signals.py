"""Signals as requests: the first is kept, the second interrupts, and whatever was set before is set again."""

import signal
import subprocess
import sys
import threading

import pytest

from jaxnn.train.signals import Signals


@pytest.fixture(autouse=True)
def restored():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    found = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert found == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_a_request_and_the_second_interrupts(number):
    before = signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        assert signals.received is None
        signal.raise_signal(number)
        assert signals.received == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        # The handlers are the old ones from here on: a third is not swallowed.
        assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_of_the_caller_s_comes_back():
    before, seen = signal.getsignal(signal.SIGTERM), []
    signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    with Signals():
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert seen == [signal.SIGTERM]
    signal.signal(signal.SIGTERM, before)


def test_a_handler_that_was_not_set_from_python_becomes_the_default(monkeypatch):
    before, calls, real = signal.getsignal(signal.SIGTERM), [], signal.signal

    def foreign(number, handler):
        calls.append((number, handler))
        old = real(number, handler)
        return None if number == signal.SIGTERM and len(calls) == 2 else old

    monkeypatch.setattr(signal, "signal", foreign)
    with Signals():
        pass
    assert calls[-1] == (signal.SIGTERM, signal.SIG_DFL)
    real(signal.SIGTERM, before)


def test_where_no_handler_may_be_set_nothing_happens(monkeypatch):
    def refused(*_):
        raise ValueError("signal only works in main thread of the main interpreter")

    monkeypatch.setattr(signal, "signal", refused)
    with Signals() as signals:
        assert signals.received is None


def test_in_another_thread_nothing_changes():
    before, inside = signal.getsignal(signal.SIGINT), []

    def work():
        with Signals():
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


IGNORING = """
import signal
from jaxnn.train.signals import Signals

with Signals() as signals:
    signal.raise_signal(signal.SIGINT)
    print(signals.received, signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
    signal.raise_signal(signal.SIGTERM)
    print(signal.Signals(signals.received).name)
print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
"""


def test_what_a_process_ignores_from_its_start_stays_ignored():
    """A shell starts what stands behind & so: a Ctrl-C for another process of the terminal is not for this one."""
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", IGNORING]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shown.stdout.split() == ["None", "True", "SIGTERM", "True"], shown.stderr
