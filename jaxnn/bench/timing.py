"""Slots and rounds: which arm runs when, and what is written down about it.

A round gives every arm one slot, in an order drawn from a Latin square, so that over a few rounds each arm stood in
each place equally often. A slot is one untimed call, which brings the arm's code and data back into the caches, and a
block of timed calls. Everything about a block is kept raw; what to believe is decided later.
"""

import contextlib
import os
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxnn import tree
from jaxnn.bench import guards
from jaxnn.bench.case import copies
from jaxnn.bench.compilation import Program

BLOCK_S = 0.010  # a block this long has 10,000 ticks of the clock and still sits between two disturbances
_MAX_CALLS = 200
_COPY_BYTES = 256 << 20  # of fresh donated arguments that a block may hold at once
_MOVE_BYTES = 64 << 20  # arguments up to this size are put somewhere else now and then
_MOVE_EVERY = 3


@dataclass(frozen=True)
class Block:
    """One timed block of one arm, raw.

    Attributes:
        arm: Number of the arm.
        round: Number of the round.
        position: Which slot of the round, from 0.
        calls_ns: Wall time of each call until all its outputs were ready.
        dispatch_ns: Wall time of each call until it returned.
        cpu_ns: Process CPU time of the block, all threads.
        minor_faults: Page faults without input or output.
        major_faults: Page faults that read from disk.
        preempted: Involuntary context switches.
        load: System load over the last minute; -1.0 where unknown.
        traces: Traces and compilations seen in the block; 0, or an error was raised.
    """

    arm: int
    round: int
    position: int
    calls_ns: tuple[int, ...]
    dispatch_ns: tuple[int, ...]
    cpu_ns: int
    minor_faults: int
    major_faults: int
    preempted: int
    load: float
    traces: int = 0

    def seconds(self, clock: str) -> float:
        """Mean seconds a call by the "wall" or "cpu" clock."""
        return (self.cpu_ns if clock == "cpu" else sum(self.calls_ns)) * 1e-9 / len(self.calls_ns)


class Arm:
    """One program in a session: its arguments in their present place, and how many calls make a block."""

    def __init__(self, name: str, program: Program, rng: np.random.Generator):
        self.name = name
        self.program = program
        self.calls = 1
        self._rng = rng
        self._args = program.args
        self._rounds = 0

    def calibrate(self, block_s: float) -> float:
        """Chooses the number of calls in a block from a few calls; returns the seconds of one."""
        self.calls = 3
        step_s = 1e-9 * min(min(run_block(self, 0, 0, 0).calls_ns) for _ in range(2))  # the least disturbed
        self.calls = int(np.clip(round(block_s / max(step_s, 1e-7)), 1, _MAX_CALLS))
        if self.program.flow.donated and not self.program.flow.threaded:
            size = sum(tree.nbytes(self.program.args[i]) for i in self.program.flow.donated)
            self.calls = max(1, min(self.calls, _COPY_BYTES // max(size, 1) - 1))
        return step_s

    def arguments(self) -> list[tuple]:
        """Arguments of the untimed call and of each timed one; only the first where outputs are threaded."""
        plan = self.program.flow
        if guards.on("placement") and self._rounds % _MOVE_EVERY == 0 and tree.nbytes(self.program.args) <= _MOVE_BYTES:
            self._move()
        self._rounds += 1
        if plan.threaded or not plan.donated:
            return [copies(self._args, plan.donated)]
        return [copies(self._args, plan.donated) for _ in range(self.calls + 1)]

    def _move(self) -> None:
        """Copies the arguments to other addresses: the old ones are held, and a hole of random size is left."""
        hole = jax.device_put(np.zeros(int(self._rng.integers(1, 1 << 18)), np.int8))
        self._args = copies(self.program.args, tuple(range(len(self.program.args))))
        hole.block_until_ready()


def run_block(arm: Arm, round_number: int, position: int, number: int) -> Block:
    """One slot: fresh arguments, one untimed call, a block of timed calls.

    Raises:
        BenchError: If anything was traced or compiled while the clock ran, or an argument was copied from the host.
    """
    program, plan, calls = arm.program, arm.program.flow, arm.calls
    call, sync = program.call, guards.on("sync")
    supply = arm.arguments()
    args = supply[0]
    out, done, returned = None, [], []
    clock = time.perf_counter_ns
    with guards.watch() as seen, _no_transfers(program.case.name):
        if guards.on("rewarm"):
            out = jax.block_until_ready(call(*args))
            args = plan.following(args, out) if plan.threaded else args
        if guards.on("aot"):
            seen.traces.clear()
            seen.compiles.clear()
        usage, cpu = resource.getrusage(resource.RUSAGE_SELF), time.process_time_ns()
        for index in range(calls):
            if len(supply) > 1:
                args = supply[index + 1]
                supply[index + 1] = ()
            start = clock()
            out = call(*args)
            back = clock()
            if sync:
                jax.block_until_ready(out)
            end = clock()
            returned.append(back - start)
            done.append(end - start)
            if plan.threaded:
                args = plan.following(args, out)
        cpu_end, after = time.process_time_ns(), resource.getrusage(resource.RUSAGE_SELF)
        jax.block_until_ready(out)
    guards.check_silent(program.case.name, seen)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0
    return Block(
        arm=number,
        round=round_number,
        position=position,
        calls_ns=tuple(done),
        dispatch_ns=tuple(returned),
        cpu_ns=cpu_end - cpu,
        minor_faults=after.ru_minflt - usage.ru_minflt,
        major_faults=after.ru_majflt - usage.ru_majflt,
        preempted=after.ru_nivcsw - usage.ru_nivcsw,
        load=load,
        traces=len(seen.traces) + len(seen.compiles),
    )


@contextlib.contextmanager
def _no_transfers(name: str) -> Iterator[None]:
    """Makes an implicit copy from the host an error that says whose it was."""
    if not guards.on("transfers"):
        yield
        return
    try:
        with jax.transfer_guard("disallow"):
            yield
    except jax.errors.JaxRuntimeError as error:
        if "Disallowed" not in str(error):
            raise
        raise guards.BenchError(
            f"bench: {name}: a call copied an argument from the host: {str(error).splitlines()[0]}. "
            "Put every argument on the device in args=, with the sharding that the step wants."
        ) from error


def latin_rounds(arms: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Orders of the arms, round after round: randomised Latin squares, one after the other."""
    while True:
        symbols, rows = rng.permutation(arms), rng.permutation(arms)
        for row in rows:
            order = [int(symbols[(row + column) % arms]) for column in range(arms)]
            yield order if guards.on("order") else list(range(arms))


def rounds(arms: Sequence[Arm], rng: np.random.Generator) -> Iterator[list[Block]]:
    """Round after round of one block an arm, in the arms' order, until the caller stops."""
    for number, order in enumerate(latin_rounds(len(arms), rng)):
        blocks = {arm: run_block(arms[arm], number, position, arm) for position, arm in enumerate(order)}
        yield [blocks[arm] for arm in range(len(arms))]


def warm(arms: Sequence[Arm], block_s: float) -> list[float]:
    """Chooses every arm's calls a block; arms share the number where their steps are within a factor of two.

    Returns:
        Seconds of one call of each arm, roughly.
    """
    steps = [arm.calibrate(block_s) for arm in arms]
    if max(steps) < 2 * min(steps):
        calls = min(arm.calls for arm in arms)
        for arm in arms:
            arm.calls = calls
    return steps


def seconds(blocks: Sequence[Sequence[Block]], clock: str) -> np.ndarray:
    """Seconds a call [arms, rounds] by a clock."""
    return np.array([[block.seconds(clock) for block in row] for row in blocks]).T
