"""Engines: what drives a state through data steps. One keeps the data on the device, the other streams it.

Both deliver the sums of steps in order and late, so that the device always has work queued, and both can be asked to
stop between dispatches.
"""

import collections
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from jaxnn import parallel, tree
from jaxnn.core import State, step as core_step
from jaxnn.data import Loader, epoch_order, host_batch, order
from jaxnn.data.bucketing import batch_length, batch_lengths
from jaxnn.typing import Mean, Resident, Source, Strategy

Deliver = Callable[[int, dict[str, Mean]], None]  # (first data step, sums with leaves [k])
DISPATCH_S = 0.25  # a dispatch aims at this long: short enough for Ctrl-C and a live display, long against its overhead
QUEUE_S = 0.25  # work that is queued on the device ahead of what was delivered, beyond one dispatch
MOST_AHEAD = 16  # dispatches in flight at most; unbounded queues of collectives deadlock on forced host devices
IDS_AHEAD = 65536  # example ids drawn in one call: it costs as much as 10,000 of them, and its arrays fit a cache
RESERVED = ("mask", "index")
_debug_runs = itertools.count()


class Engine(Protocol):
    """Drives a state; see `ResidentEngine` and `StreamingEngine`."""

    state: State
    data_step: int
    steps: int  # done by this engine, and in how many dispatches
    dispatches: int
    traced: list[str]  # the batches that the step was traced for, where they are streamed
    apart: bool  # whether each process reads its own part of the data
    refused: Exception | None  # why this one, of several, has no batch to go on with

    @property
    def wait_s(self) -> float:
        """Seconds spent waiting for data."""
        ...

    def advance(self, target: int, interrupted: Callable[[], bool]) -> None:
        """Runs to data step `target`, or until `interrupted()` between two dispatches."""
        ...

    def drain(self) -> None:
        """Delivers everything that is outstanding."""
        ...

    def pace(self, per_step: float) -> None:
        """Sizes dispatches for steps of so many seconds; several processes must do so alike, not each by its clock."""
        ...

    def move(self, state: State, data_step: int) -> None:
        """Goes on from another state at another data step."""
        ...

    def close(self) -> None:
        """Releases threads."""
        ...

    def program(self) -> str:
        """The text of the optimized program; compiles it once more."""
        ...


def scalars(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step with only its scalar sums: a confusion matrix is for evaluation, not for every step."""

    def scalar_step(state: State, batch: Any) -> tuple[State, dict[str, Mean]]:
        state, sums = step(state, batch)
        return state, {name: mean for name, mean in sums.items() if np.ndim(mean.sum) == 0}

    return scalar_step


def _traced_once(program: Callable[..., Any], debug: bool, lengths: int = 1) -> Callable[..., Any]:
    """In debug runs the program, failing when it is traced again: something about its arguments would be changing.

    `lengths` is how many a batch may have.
    """
    if not debug:
        return program
    import chex  # 20 ms that only debug runs need

    @functools.wraps(program)
    def once(*arguments: Any) -> Any:
        return program(*arguments)

    # chex counts by name and call stack: a second run in a loop must not count as a second trace of the first.
    once.__name__ = f"{program.__name__}_{next(_debug_runs)}"
    return chex.assert_max_traces(once, n=lengths)


def _noted(step: Callable[..., Any], traced: list[str]) -> Callable[..., Any]:
    """The step, which writes down the batches that it is traced for: more than one, and it is compiled again."""

    @functools.wraps(step)
    def noted(state: State, batch: Any) -> Any:
        traced.append(", ".join(f"{name} {tree.describe(x)}" for name, x in batch.items() if name not in RESERVED))
        return step(state, batch)

    return noted


class ResidentEngine:
    """Many steps a dispatch over data that lives on the device; only example ids travel.

    Args:
        step: The traceable step.
        sums: Shapes of the step's sums.
        resident: The data.
        state: Where to begin, placed.
        data_step: Likewise.
        ids: `ids(data_step, count) -> [count, B]`.
        k_max: Steps a dispatch at most; a property of the compiled program.
        strategy: Where it runs.
        deliver: Takes the sums.
        debug: Whether to fail when the program is traced a second time.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        sums: Any,
        resident: Resident,
        state: State,
        data_step: int,
        ids: Callable[[int, int], np.ndarray],
        k_max: int,
        strategy: Strategy,
        deliver: Deliver,
        debug: bool = False,
    ):
        self._chunk: Any = strategy.compile(_traced_once(core_step.make_chunk(step, resident, sums, k_max), debug))
        self._arrays = strategy.put_shared(resident.arrays)
        self._ids, self._k_max, self._strategy, self._deliver = ids, k_max, strategy, deliver
        self._pending: collections.deque[tuple[int, int, Any]] = collections.deque()
        self._length = self._ahead = 1  # steps in the next dispatch; dispatches in flight
        self._delivered_at: float | None = None
        self._alone = parallel.process_count() == 1
        self.state, self.data_step = state, data_step
        self.steps = self.dispatches = 0
        self.traced: list[str] = []
        self.apart = False
        self.refused: Exception | None = None

    @property
    def wait_s(self) -> float:
        return 0.0

    def advance(self, target: int, interrupted: Callable[[], bool]) -> None:
        while self.data_step < target and not interrupted():
            k = min(target - self.data_step, self._length, self._k_max)
            ids = self._ids(self.data_step, k)
            rows = np.full((self._k_max, ids.shape[1]), -1, np.int32)  # fresh: the device may alias it
            rows[:k] = ids
            self.state, report = self._chunk(self.state, self._arrays, self._strategy.put_rows(rows), np.int32(k))
            self._pending.append((self.data_step, k, report))
            self.data_step += k
            self.steps += k
            self.dispatches += 1
            if len(self._pending) > self._ahead:
                self._pop(len(self._pending) - 1)
                parallel.beat(self.data_step)

    def _pop(self, count: int) -> None:
        """Delivers the oldest `count` dispatches, and sizes the next ones by how long these took."""
        items = [self._pending.popleft() for _ in range(count)]
        host = jax.device_get([report for _, _, report in items])
        now = time.perf_counter()
        if self._delivered_at is not None and items and self._alone:
            took = max(now - self._delivered_at, 1e-9)  # a coarse clock may stand still
            self.pace(took / sum(k for _, k, _ in items))
        self._delivered_at = now
        if items:  # at once: a clock between them would tell of steps that took no time
            parts = [jax.tree.map(lambda x, k=k: x[:k], sums) for (_, k, _), sums in zip(items, host, strict=True)]
            self._deliver(items[0][0], jax.tree.map(lambda *xs: np.concatenate(xs) if len(xs) > 1 else xs[0], *parts))

    def pace(self, per_step: float) -> None:
        self._length = max(1, min(8 * self._length, int(DISPATCH_S / per_step), self._k_max))
        self._ahead = max(1, min(MOST_AHEAD, int(QUEUE_S / (per_step * self._length))))  # of that length

    def drain(self) -> None:
        self._pop(len(self._pending))
        parallel.beat(self.data_step)
        self._delivered_at = None  # what comes before the next dispatch is not its time

    def move(self, state: State, data_step: int) -> None:
        self.state, self.data_step = state, data_step

    def close(self) -> None:
        pass

    def program(self) -> str:
        rows = self._strategy.put_rows(np.full((self._k_max, self._ids(0, 1).shape[1]), -1, np.int32))
        return self._chunk.lower(self.state, self._arrays, rows, np.int32(0)).compile().as_text()


class StreamingEngine:
    """One step a dispatch over batches that a thread builds and places ahead of the device.

    Args as in `ResidentEngine`; `stop` is the last data step, `source` where batches come from, `check` what looks at
    each of them before it is placed.

    One of several processes that cannot read its part, or may not use it, goes on without: the others would wait for it
    in the step for ever. Its examples weigh NaN from there, so that nothing comes of these steps, until whoever drives
    the engines makes all of them raise what is `refused`.
    """

    MOST = 32  # dispatches in flight; unbounded queues of collectives deadlock on forced host devices

    def __init__(
        self,
        step: Callable[..., Any],
        source: Source,
        state: State,
        data_step: int,
        stop: int,
        ids: Callable[[int, int], np.ndarray],
        strategy: Strategy,
        deliver: Deliver,
        debug: bool = False,
        check: Callable[[Any, int], None] | None = None,
    ):
        self.traced: list[str] = []
        self.steps = self.dispatches = 0
        most = max(1, len(batch_lengths(source)))
        self._step: Any = strategy.compile_step(_traced_once(_noted(step, self.traced), debug, most))
        row = ids(0, 1)[0]  # here: later the loader's thread draws
        self._example = lambda: strategy.put_batch(host_batch(source, row))
        part, parts = strategy.part
        self._source, self._ids, self._strategy = source, ids, strategy
        self.apart = True
        self.refused: Exception | None = None
        self._open = functools.partial(
            Loader, source, ids, strategy.put_part, stop=stop, process_index=part, process_count=parts, check=check
        )
        self._alone = parallel.process_count() == 1
        self._ahead = 2  # dispatches in flight, where several processes must deliver alike
        self._loader: Loader | None = None
        self._deliver = deliver
        self._pending: collections.deque[tuple[int, Any]] = collections.deque()
        self._delivered_at = time.perf_counter()
        self._waited = 0.0
        self.state, self.data_step = state, data_step

    @property
    def wait_s(self) -> float:
        return self._waited + (self._loader.wait_s if self._loader else 0.0)

    def advance(self, target: int, interrupted: Callable[[], bool]) -> None:
        while self.data_step < target and not interrupted():
            self.state, sums = self._step(self.state, self._batch())
            self._pending.append((self.data_step, sums))
            self.data_step += 1
            self.steps += 1
            self.dispatches += 1
            late = self._alone and time.perf_counter() - self._delivered_at > QUEUE_S
            if late or len(self._pending) >= (self.MOST if self._alone else self._ahead + 2):
                self._pop(len(self._pending) - 2)
                parallel.beat(self.data_step)

    def _batch(self) -> Any:
        """The batch of this data step, placed."""
        if self.refused is None:
            if self._loader is None:
                self._loader = self._open(start=self.data_step)
            try:
                return next(self._loader)[1]
            except (TypeError, ValueError) as error:
                if self._alone:
                    raise
                self.refused = error
        ids = self._ids(self.data_step, 1)[0]  # the loader's thread has ended
        nobody, length = np.full_like(ids, -1), batch_length(self._source, ids)
        batch = host_batch(self._source, nobody, self.data_step, self._strategy.part, length)
        return self._strategy.put_part(batch | {"mask": np.full_like(batch["mask"], np.nan)})

    def _pop(self, count: int) -> None:
        if count < 1:
            return
        items = [self._pending.popleft() for _ in range(count)]
        host = jax.device_get([sums for _, sums in items])
        self._delivered_at = time.perf_counter()
        self._deliver(items[0][0], jax.tree.map(lambda *xs: np.stack(xs), *host))

    def drain(self) -> None:
        self._pop(len(self._pending))
        parallel.beat(self.data_step)

    def pace(self, per_step: float) -> None:
        self._ahead = max(1, min(self.MOST - 2, int(QUEUE_S / per_step)))

    def move(self, state: State, data_step: int) -> None:
        self.close()
        self.state, self.data_step = state, data_step

    def program(self) -> str:
        return self._step.lower(self.state, self._example()).compile().as_text()

    def close(self) -> None:
        if self._loader is not None:
            self._waited += self._loader.wait_s
            self._loader.close()
            self._loader = None


def resident_data(source: Source, devices: tuple[jax.Device, ...]) -> Resident | None:
    """The source's resident form where it fits on every device with room to spare: a quarter of an accelerator's
    memory,
    or 1 GiB of a host's over all its forced devices."""
    resident = source.resident()
    if resident is None:
        return None
    size = sum(x.nbytes for x in jax.tree.leaves(resident.arrays))
    if devices[0].platform == "cpu":
        here = [d for d in devices if d.process_index == devices[0].process_index]
        return resident if size * len(here) <= 2**30 else None
    stats = next((d for d in devices if d.process_index == parallel.process_index()), devices[0]).memory_stats() or {}
    return resident if size <= stats.get("bytes_limit", 2**32) // 4 else None


class Order:
    """`order(data_step, count) -> ids [count, B]` of a run: arithmetic, drawn ahead in blocks; one thread's."""

    def __init__(self, seed: int, source: Source, batch_size: int):
        self._draw = epoch_order(source, seed, batch_size)
        self._block = max(1, IDS_AHEAD // batch_size)
        self._epoch = order.steps_per_epoch(len(source), batch_size)
        self._first = 0
        self._rows = np.zeros((0, batch_size), np.int64)

    def __call__(self, data_step: int, count: int) -> np.ndarray:
        at = data_step - self._first
        if 0 <= at <= at + count <= len(self._rows):
            return self._rows[at : at + count]
        held = self._rows[at:] if 0 <= at < len(self._rows) else self._rows[:0]
        self._first = data_step + len(held)
        # Blocks end where epochs do, if they can: these are drawn fastest whole.
        stop = self._first + self._block
        stop = max(data_step + count, stop - stop % self._epoch if stop % self._epoch < self._block else stop)
        self._rows = self._draw(self._first, stop - self._first)
        rest = self._rows[: count - len(held)]
        return np.concatenate([held, rest]) if len(held) else rest
