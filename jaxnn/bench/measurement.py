"""One program, everything about it: how long a call takes, what compiling took, what it holds."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxnn.bench import display, guards, probes, profiling, roofline, statistics, timing, work
from jaxnn.bench.case import Case, Donate
from jaxnn.bench.compilation import Compile, Program, build
from jaxnn.bench.roofline import Roofline
from jaxnn.bench.statistics import Interval, Outliers
from jaxnn.bench.timing import Arm, Block
from jaxnn.bench.work import Work
from jaxnn.typing import Array


@dataclass(frozen=True)
class Measurement:
    """What `measure` found.

    Attributes:
        name: The case's name.
        median_s: Median over blocks of the mean wall seconds a call.
        interval: Its interval, seconds, which holds although it was looked at several times.
        cpu_s: Median process CPU seconds a call, all threads.
        dispatch_s: Median seconds until a call returns, before its outputs are ready.
        quantiles: 5, 25, 50, 75 and 95 % of single calls, wall seconds.
        outliers: Of single calls.
        compile: Trace, lower and compile seconds, executable size, retraces.
        work: FLOPs, bytes, memory, collectives.
        blocks: Raw samples.
        precise: The interval is as narrow as was asked for.
        drift: The second half differs from the first.
        notes: What a reader should know.
        roofline: Its shares of the machine's peaks, where they were asked for.
    """

    name: str
    median_s: float
    interval: Interval
    cpu_s: float
    dispatch_s: float
    quantiles: tuple[float, ...]
    outliers: Outliers
    compile: Compile
    work: Work
    blocks: tuple[Block, ...]
    precise: bool
    drift: bool
    notes: tuple[str, ...] = ()
    roofline: Roofline | None = None

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return display.as_html(self.text())

    def text(self) -> str:
        """The block that a person reads."""
        factor, _ = display.seconds(self.median_s)
        times = f"{display.duration_interval(self.median_s, self.interval)} wall"
        parts = [self.compile.trace_s, self.compile.lower_s, self.compile.compile_s]
        second = [f"compile {'+'.join(display.digits(1e3 * s) for s in parts)} ms", f"retraces {self.compile.retraces}"]
        if self.compile.executable_bytes is not None:
            second.append(f"executable {display.amount(self.compile.executable_bytes, 'B')}")
        if self.compile.persistent not in ("unasked", "off"):
            second.append(f"persistent cache {self.compile.persistent}")
        cpu, dispatch = display.digits(self.cpu_s * factor), display.digits(self.dispatch_s * factor)
        lines = [f"{self.name}   {times} | cpu {cpu} | dispatch {dispatch}", " " + "  ".join(second)]
        if parts := self.work.lines():
            lines.append(" " + "  ".join(parts))
        if self.roofline is not None:
            lines.append(f" {self.roofline}")
        extra = list(self.notes)
        if self.outliers.total:
            calls = sum(len(block.calls_ns) for block in self.blocks)
            extra.append(f"outliers {self.outliers.total} of {calls} calls ({self.outliers.high_severe} severe)")
        if self.drift:
            extra.append("DRIFT: the second half differs from the first")
        if not math.isfinite(self.interval.half):
            extra.append("no interval: too few blocks, or the machine's speed wanders; raise max_seconds")
        elif not self.precise:
            extra.append("interval wider than asked for")
        return "\n".join(lines + [f" {line}" for line in extra])


def measure(
    name: str,
    step: Callable,
    *,
    args: tuple | Callable[[Array], tuple],
    donate: Donate = None,
    precision: float = 0.01,
    max_seconds: float = 5.0,
    level: float = 0.95,
    seed: int = 0,
    ask_cache: bool = False,
    peaks: bool = False,
    device_time: bool = False,
    block_s: float = timing.BLOCK_S,
) -> Measurement:
    """Measures one program: compile time from cold caches, then the time of a call until its interval is narrow.

    Args:
        name: What the result is called.
        step: Traceable function; bench compiles it itself.
        args: Tuple of pytrees of arrays on the device, or a function of a typed key that makes it.
        donate: See `Case`.
        precision: Stop when half the interval is below this part of the median.
        max_seconds: Stop after this long, precise or not (the result says which).
        level: Of the interval.
        seed: Of the arguments' key and of the order of slots.
        ask_cache: Also find out whether jax's persistent cache has the program.
        peaks: Also run probes of the machine's peaks in turns with the step, and say which limit it runs against.
        device_time: Also profile some calls afterwards; a note tells the devices' own time beside the wall's, and on
            several devices the slowest and the skew.
        block_s: Length of a timed block, seconds.

    Raises:
        TypeError: If the arguments are no tuple.
        BenchError: A pitfall; the message names the culprit.
    """
    program = build(Case(name, step, args, donate), seed, ask_cache)
    rng = np.random.default_rng(seed)
    arms = [Arm(name, program, rng)]
    probed = []
    if peaks:
        dtype = work.of(program.traced, program.compiled).dtype or "float32"
        probed = [probes.product(dtype), probes.copy()]
        arms += [Arm(probe.case.name, build(probe.case), rng) for probe in probed]
    rounds: list[list[Block]] = []
    with guards.frozen_gc(), display.live(name) as show:
        timing.warm(arms, block_s)
        start, look, sizes = time.perf_counter(), 0, statistics.look_sizes(len(arms))
        due, precise = next(sizes), False
        for blocks in timing.rounds(arms, rng):
            rounds.append(blocks)
            final = time.perf_counter() - start > max_seconds
            if len(rounds) < due and not final:
                continue
            due, look = next(sizes), look + 1
            x = timing.seconds(rounds, "wall")
            median = float(np.median(x[0]))
            interval = statistics.median_interval(x[0], 1 - statistics.spent(look, 1 - level), seed)
            precise = interval.half <= precision * median
            show(f"{display.duration_interval(median, interval)}  {len(rounds)} blocks")
            if precise or final:
                break
    interval = dataclasses.replace(interval, level=level)
    found = None
    if probed:
        done = work.of(program.traced, program.compiled, program.args)
        found = roofline.attribute(name, done, x[0], (probed[0], x[1]), (probed[1], x[2]))
    result = summarise(name, program, [row[0] for row in rounds], interval, precise, found)
    if not device_time:
        return result
    return dataclasses.replace(result, notes=(*result.notes, str(profiling.of_program(program))))


def summarise(
    name: str,
    program: Program,
    blocks: list[Block],
    interval: Interval,
    precise: bool,
    roofline: Roofline | None = None,
) -> Measurement:
    """A `Measurement` from one arm's raw blocks."""
    wall = np.array([block.seconds("wall") for block in blocks])
    calls = np.concatenate([block.calls_ns for block in blocks]) * 1e-9
    dispatch = np.concatenate([block.dispatch_ns for block in blocks]) * 1e-9
    notes = list(program.notes)
    if any(block.major_faults for block in blocks):
        notes.append(f"{sum(block.major_faults for block in blocks)} page faults read from disk")
    return Measurement(
        name=name,
        median_s=float(np.median(wall)),
        interval=interval,
        cpu_s=float(np.median([block.seconds("cpu") for block in blocks])),
        dispatch_s=float(np.median(dispatch)),
        quantiles=tuple(float(q) for q in np.quantile(calls, [0.05, 0.25, 0.5, 0.75, 0.95])),
        outliers=statistics.outliers(calls),
        compile=program.compile,
        work=work.of(program.traced, program.compiled, program.args),
        blocks=tuple(blocks),
        precise=precise,
        drift=statistics.drifts(wall),
        notes=tuple(notes),
        roofline=roofline,
    )


@dataclass(frozen=True)
class Failure:
    """A case that could not be measured.

    Attributes:
        name: The case's name.
        error: The exception's type.
        message: Its message.
    """

    name: str
    error: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}   FAILED {self.error}: {self.message}"


def measure_all(cases: Iterable[Case], **options: Any) -> list[Measurement | Failure]:
    """`measure` for each case; one that fails is reported in its place, and the others go on.

    Args:
        cases: What to measure.
        **options: As for `measure`.
    """
    found: list[Measurement | Failure] = []
    for case in cases:
        try:
            found.append(measure(case.name, case.function, args=case.args, donate=case.donate, **options))
        except Exception as error:  # whatever tracing a stranger's function raises
            found.append(Failure(case.name, type(error).__name__, str(error)))
    return found
