"""From example ids to placed batches: masks, slices of a process, and a thread that works ahead of the device."""

import collections
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np

from jaxnn.data.bucketing import batch_length
from jaxnn.data.transforms import take_at
from jaxnn.tree import describe
from jaxnn.typing import HostArray, Source

_IDS_AT_ONCE = 64  # steps whose ids are computed in one call: one call costs as much as some thousand ids
_JOIN_S = 30.0


def host_batch(
    source: Source, ids: HostArray, step: int = 0, part: tuple[int, int] = (0, 1), length: int | None = None
) -> dict[str, HostArray]:
    """The batch of `ids`, or a process's part of it, with what tells padding and examples apart.

    A row of padding holds example 0 of the source: valid data, so that nothing in a model overflows on it, and the same
    data whatever the number of processes.

    Args:
        source: Where the examples are.
        ids: Global example ids [B], -1 for padding.
        step: The data step, for sources that draw random transforms (those with a true `takes_step`).
        part: (index, count): which of so many equal contiguous parts of the rows is read.
        length: Of a source whose examples differ in length: what to pad to. By default what the longest of all `ids`
            needs, so that the parts of a batch are of one length.

    Returns:
        What `source.take` gives, "mask" float32 [B] (0 for padding) and "index" int32 [B] (the id; 0 for padding), B
        being the rows of the part.

    Raises:
        ValueError: If the rows do not divide into the parts, an id is not in [-1, len(source)), the source uses a
            reserved name, or an array has another length.
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
        raise ValueError(
            f"data.host_batch: ids {describe(ids)}. Tried: one row of example ids. Give integers [B], B >= 1."
        )
    if int(ids.min()) < -1 or int(ids.max()) >= len(source):
        raise ValueError(
            f"data.host_batch: ids from {ids.min()} to {ids.max()} for {len(source)} examples. Tried: -1 as padding. "
            f"Give ids in [-1, {len(source)})."
        )
    length = batch_length(source, ids) if length is None else length
    ids = process_slice(ids, *part)
    index = np.maximum(ids, 0)
    batch = dict(take_at(source, index, step, length))
    for name, array in batch.items():
        if name in ("mask", "index"):
            raise ValueError(
                f"data.host_batch: {type(source).__name__}.take gives the reserved name {name!r}. Rename it."
            )
        if array.shape[:1] != ids.shape:
            raise ValueError(
                f"data.host_batch: {type(source).__name__}.take gave {name!r} {describe(array)} for {len(ids)} ids. "
                f"Give every array a leading axis of {len(ids)}."
            )
    batch["mask"] = (ids >= 0).astype(np.float32)
    # Ids only tell examples apart for random keys, where the low 31 bits do.
    batch["index"] = (index & 0x7FFFFFFF).astype(np.int32)
    return batch


def process_slice(ids: HostArray, process_index: int, process_count: int) -> HostArray:
    """The contiguous rows of the global batch `ids` [B, ...] that one of `process_count` processes reads.

    Raises:
        ValueError: If the batch does not divide, or there is no such process.
    """
    if process_count < 1 or not 0 <= process_index < process_count:
        raise ValueError(f"data.process_slice: process {process_index} of {process_count}. Give 0 <= index < count.")
    if len(ids) % process_count:
        raise ValueError(
            f"data.process_slice: a global batch of {len(ids)} examples over {process_count} processes. Tried: equal "
            f"contiguous slices. Give a batch size that is a multiple of {process_count}."
        )
    rows = len(ids) // process_count
    return ids[process_index * rows : (process_index + 1) * rows]


class Loader:
    """Batches of the data steps [start, stop), built and placed by a thread that stays up to `depth` steps ahead.

    An iterator of (data_step, placed batch). Every batch is made of fresh arrays: a device may alias a host array that
    was placed on it, so a reused buffer would change a batch under a running step. Use it in a `with` statement, or
    call `close`.

    Attributes:
        wait_s: Seconds the consumer has waited for batches so far.
    """

    def __init__(
        self,
        source: Source,
        ids: Callable[[int, int], HostArray],
        place: Callable[[dict[str, HostArray]], Any],
        *,
        start: int,
        stop: int,
        depth: int = 2,
        process_index: int = 0,
        process_count: int = 1,
        check: Callable[[dict[str, HostArray], int], None] | None = None,
    ):
        """Starts the thread.

        Args:
            source: Where the examples are.
            ids: `ids(data_step, count)` -> int64 [count, B], global example ids, -1 for padding; usually
                `bucketing.epoch_order(source, seed, B)`.
            place: Puts a host batch on the devices: a strategy's `put_batch`.
            start: First data step.
            stop: One past the last data step.
            depth: Batches held ready; each costs a batch of device memory.
            process_index: This process; it reads its contiguous rows of the global batch.
            process_count: Processes that share the global batch.
            check: `check(batch, data_step)` looks at each host batch; what it raises, the consumer gets in its place.

        Raises:
            ValueError: If `depth` is not positive, a step is negative or there is no such process.
        """
        if depth < 1:
            raise ValueError(f"data.Loader: depth is {depth}. Tried: batches held ready. Give at least 1.")
        if not 0 <= start <= stop:
            raise ValueError(
                f"data.Loader: data steps [{start}, {stop}). Tried: a range of steps. Give 0 <= start <= stop."
            )
        process_slice(np.zeros(process_count, np.int64), process_index, process_count)
        self.wait_s = 0.0
        part = (process_index, process_count)

        def make(row: HostArray, step: int) -> Any:
            batch = host_batch(source, row, step, part)
            if check is not None:
                check(batch, step)
            return place(batch)

        self._make = make
        self._ids, self._start, self._stop, self._depth = ids, start, stop, depth
        self._ready: collections.deque[tuple[int, Any]] = collections.deque()
        self._changed = threading.Condition()
        self._closed = self._finished = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="jaxnn-loader", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for first in range(self._start, self._stop, _IDS_AT_ONCE):
                rows = self._ids(first, min(_IDS_AT_ONCE, self._stop - first))
                for step, row in enumerate(rows, first):
                    with self._changed:
                        self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
                        if self._closed:
                            return
                    batch = self._make(row, step)
                    with self._changed:
                        self._ready.append((step, batch))
                        self._changed.notify_all()
        except BaseException as error:  # raised again in the consumer, whatever it is
            self._error = error
        finally:
            with self._changed:
                self._finished = True
                self._changed.notify_all()

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return self

    def __next__(self) -> tuple[int, Any]:
        began = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._finished or self._closed)
            self.wait_s += time.perf_counter() - began
            if self._closed:
                raise StopIteration
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
        if self._error is not None:
            raise self._error  # with the thread's traceback, which the exception carries
        raise StopIteration

    def close(self) -> None:
        """Stops and joins the thread and drops the batches it held; iteration ends. Calling it twice does nothing.

        A thread that is still inside the source or `place` after 30 s is left behind, with a warning that says so.
        """
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            warnings.warn(
                f"data.Loader: the thread has not come back from the source or from placing a batch for {_JOIN_S:.0f} "
                "s; it is left behind and ends with the process.",
                RuntimeWarning,
                stacklevel=2,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
