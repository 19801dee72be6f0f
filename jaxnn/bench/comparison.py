"""Two programs or more, in turns in one process, until an interval is narrow enough for a verdict.

The first program is compiled twice. Its second copy is a control: what the two copies differ by (A/A) is what this
machine makes of no difference at all. It chooses the clock, and widens the intervals where it is clear of zero. A
candidate is compared with the mean of both copies in the same round, a contrast that their difference is
uncorrelated with, so the choice of the clock does not favour a verdict.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np

from jaxnn.bench import display, guards, statistics, timing
from jaxnn.bench.case import Case, Donate
from jaxnn.bench.compilation import Program, build
from jaxnn.bench.measurement import Measurement, summarise
from jaxnn.bench.statistics import Interval
from jaxnn.bench.timing import Arm, Block
from jaxnn.typing import Array

_WORST = ("regress", "inconclusive", "improve", "ok")
_CPU_SHARE = 0.8  # below this, an undisturbed step waits, and CPU time would not see what it waits for
_CPU_GAIN = 0.7  # CPU time is chosen only where the control is this much narrower by it


@dataclass(frozen=True)
class Estimate:
    """A ratio of times with its interval.

    Attributes:
        ratio: exp(median log-ratio); above 1 is slower than the base.
        interval: Of the ratio.
    """

    ratio: float
    interval: Interval

    def __str__(self) -> str:
        return display.percent(self.ratio, self.interval)


@dataclass(frozen=True)
class Row:
    """One candidate against the base."""

    name: str
    verdict: str
    estimate: Estimate
    wall: Estimate
    cpu: Estimate
    drift: bool
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        base: Name of the first program.
        rows: One for each other program, by name.
        aa: The control: the base against its own copy, by the clock that was chosen.
        clock: "wall" or "cpu", chosen by the spread of the control alone.
        tolerance: A slowdown up to this is not one.
        rounds: How many rounds were run.
        seconds: How long they took, without compiling.
        measurements: Every arm by itself; "A/A" is the base's copy.
    """

    base: str
    rows: Mapping[str, Row]
    aa: Estimate
    clock: str
    tolerance: float
    rounds: int
    seconds: float
    measurements: Mapping[str, Measurement]

    @property
    def verdict(self) -> str:
        """The worst of the rows': "regress", "inconclusive", "improve", "ok"."""
        return min((row.verdict for row in self.rows.values()), key=_WORST.index)

    @property
    def ratio(self) -> float:
        """Of the only candidate."""
        return self._only().estimate.ratio

    @property
    def interval(self) -> Interval:
        """Of the only candidate's ratio."""
        return self._only().estimate.interval

    def _only(self) -> Row:
        if len(self.rows) != 1:
            raise ValueError(
                f"bench.Comparison: there are {len(self.rows)} candidates; use .rows[name] of {[*self.rows]}."
            )
        return next(iter(self.rows.values()))

    def __str__(self) -> str:
        return self.text(display.is_terminal())

    def _repr_html_(self) -> str:
        return display.as_html(self.text())

    def text(self, colour: bool = False) -> str:
        """One block a program, and a line with the verdict for each candidate."""
        lines = [self.measurements[self.base].text()]
        for name, row in self.rows.items():
            lines.append(self.measurements[name].text())
            end = f" ({row.reason})" if row.reason else ""
            lines.append(
                f" vs {self.base} {row.estimate}  A/A {self.aa}  clock={self.clock}  {self.rounds} rounds -> "
                f"{display.verdict(row.verdict, colour)} (tol {100 * self.tolerance:g}%){end}"
            )
        return "\n".join(lines)


def compare(
    functions: Mapping[str, Callable | Case],
    *,
    args: tuple | Callable[[Array], tuple] = (),
    donate: Donate = None,
    tolerance: float = 0.03,
    level: float = 0.95,
    max_seconds: float = 6.0,
    seed: int = 0,
    block_s: float = timing.BLOCK_S,
) -> Comparison:
    """Compares programs in turns until each has a verdict or the time is up; the first is the base.

    Args:
        functions: Name -> traceable function, or a `Case` with arguments of its own.
        args: As for `measure`; every function is given the same.
        donate: See `Case`.
        tolerance: A slowdown up to this is "ok", as a ratio.
        level: The chance that all reported intervals cover, looks and rows together.
        max_seconds: Stop after this long; a row that has no verdict then is "inconclusive".
        seed: Of the arguments' key, the order of slots and the bootstrap.
        block_s: Length of a timed block, seconds.

    Raises:
        TypeError: If the arguments are no tuple.
        BenchError: A pitfall; the message names the culprit.
    """
    if len(functions) < 2:
        raise guards.BenchError(f"bench.compare: needs a base and a candidate, got {[*functions]}.")
    if not 0 < tolerance < 1:
        raise guards.BenchError(f"bench.compare: tolerance={tolerance} is no ratio. Write 0.03 for 3 %.")
    cases = [f if isinstance(f, Case) else Case(name, f, args, donate) for name, f in functions.items()]
    programs = [build(case, seed) for case in cases]
    programs.append(build(cases[0], seed) if guards.on("separate") else programs[0])
    return run(list(functions), programs, tolerance, level, max_seconds, seed, block_s)


def run(
    names: list[str],
    programs: list[Program],
    tolerance: float,
    level: float,
    max_seconds: float,
    seed: int,
    block_s: float = timing.BLOCK_S,
) -> Comparison:
    """`compare` for programs that are compiled already; the last is the copy of the first."""
    rng = np.random.default_rng(seed)
    arms = [Arm(name, program, rng) for name, program in zip([*names, "A/A"], programs, strict=True)]
    rounds: list[list[Block]] = []
    with guards.frozen_gc(), display.live(" vs ".join(names)) as show:
        timing.warm(arms, block_s)
        start, look, sizes = time.perf_counter(), 0, statistics.look_sizes(len(arms))
        due = next(sizes)
        for blocks in timing.rounds(arms, rng):
            rounds.append(blocks)
            elapsed = time.perf_counter() - start
            final = elapsed > max_seconds
            if len(rounds) < due and not final:
                continue
            due, look = next(sizes), look + 1
            by_clock = {clock: timing.seconds(rounds, clock) for clock in ("wall", "cpu")}
            rows, aa, clock = judge(names, by_clock, tolerance, 1 - level, look, final, seed)
            show("  ".join(f"{row.name} {row.estimate} {row.verdict}" for row in rows) + f"  {len(rounds)} rounds")
            if final or all(row.verdict != "inconclusive" for row in rows):
                break
    seconds = time.perf_counter() - start
    measurements = {}
    for index, arm in enumerate(arms):
        own = [row[index] for row in rounds]
        interval = statistics.median_interval(np.array([b.seconds("wall") for b in own]), level, seed)
        measurements[arm.name] = summarise(arm.name, arm.program, own, interval, True)
    result = {row.name: row for row in rows}
    return Comparison(names[0], result, aa, clock, tolerance, len(rounds), seconds, measurements)


def contrasts(seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-ratios a round: of each candidate to the mean of both copies of the base, and of the copies to each other.

    Args:
        seconds: [arms, rounds]; the base first, its copy last.

    Returns:
        [candidates, rounds], [rounds].
    """
    logs = np.log(seconds)
    return logs[1:-1] - (logs[0] + logs[-1]) / 2, logs[-1] - logs[0]


def choose_clock(by_clock: Mapping[str, np.ndarray], level: float, seed: int) -> str:
    """The clock by which the control is narrower: CPU time must be clearly so, and the step must not be waiting.

    Whether a step waits is seen in each arm's rounds with the most CPU time a second of wall time: those were left
    alone by the rest of the machine.
    """
    if jax.default_backend() != "cpu":
        return "wall"
    wall, cpu = by_clock["wall"], by_clock["cpu"]
    for arm in range(len(wall)):
        if np.quantile(cpu[arm] / wall[arm], 0.9) < _CPU_SHARE:
            return "wall"
    half = {c: statistics.median_interval(contrasts(by_clock[c])[1], level, seed).half for c in by_clock}
    return "cpu" if half["cpu"] < _CPU_GAIN * half["wall"] else "wall"


def judge(
    names: list[str],
    by_clock: Mapping[str, np.ndarray],
    tolerance: float,
    alpha: float,
    look: int,
    final: bool,
    seed: int,
) -> tuple[list[Row], Estimate, str]:
    """The rows, the control and the clock at one look.

    Args:
        names: Of the base and the candidates.
        by_clock: "wall" and "cpu" -> seconds a call [arms, rounds].
        tolerance: As a ratio.
        alpha: Chance of a miss to spend on all looks and rows.
        look: Number of the look, from 1.
        final: There will be no other.
        seed: Of the bootstrap.
    """
    level = 1 - statistics.spent(look, alpha / (len(names) - 1))
    clock = choose_clock(by_clock, 0.95, seed)
    logs = {c: contrasts(by_clock[c]) for c in by_clock}
    control = statistics.median_interval(logs[clock][1], 0.95, seed)
    offset = float(np.median(logs[clock][1]))
    bias = 0.0 if 0.0 in control else abs(offset)
    rows = []
    for index, name in enumerate(names[1:]):
        found = {}
        for c in by_clock:
            x = logs[c][0][index]
            found[c] = float(np.median(x)), statistics.median_interval(x, level, seed).widened(bias)
        estimate, interval = found[clock]
        verdict, reason = statistics.decide(estimate, interval, tolerance, final), ""
        drift = statistics.drifts(logs[clock][0][index])
        if final and len(logs[clock][1]) < 9:
            reason = "too few rounds in the time: raise max_seconds"
        if bias > np.log1p(tolerance) / 2:
            verdict, reason = "inconclusive", "the control differs from the base: the machine is not steady"
        elif verdict == "ok" and clock == "cpu" and found["wall"][1].low > np.log1p(tolerance):
            verdict, reason = "inconclusive", "slower by the wall clock, not in CPU time"
        elif drift and verdict in ("ok", "inconclusive"):
            verdict, reason = "inconclusive", "the ratio drifts"
        both = {
            c: Estimate(float(np.exp(e)), dataclasses.replace(i, level=1 - alpha).exp()) for c, (e, i) in found.items()
        }
        rows.append(Row(name, verdict, both[clock], both["wall"], both["cpu"], drift, reason))
    return rows, Estimate(float(np.exp(offset)), control.exp()), clock
