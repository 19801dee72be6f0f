"""Two files of results against each other, for what that is worth.

Times that were not measured in turns differ by 8 % (one standard deviation) on a quiet machine and by half on a busy
one, although the programs are the same. So a difference counts only where it is beyond two such deviations, and what
lies within is inconclusive, unless the programs are the same to the letter.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxnn.bench import display
from jaxnn.bench.guards import BenchError
from jaxnn.bench.measurement import Measurement
from jaxnn.bench.schema import Results
from jaxnn.bench.statistics import Interval

WANDERS = 0.17  # log-ratio: two standard deviations of stored against fresh times of one program, machine quiet


@dataclass(frozen=True)
class StoredRow:
    """One case in both files.

    Attributes:
        name: Of the case.
        verdict: "regress", "improve", "ok" (the same program) or "inconclusive".
        ratio: Second over first, medians.
        interval: Of the ratio, widened by what a machine wanders between two runs.
        same: The programs and the compiler are the same.
    """

    name: str
    verdict: str
    ratio: float
    interval: Interval
    same: bool


@dataclass(frozen=True)
class StoredComparison:
    """What `compare_stored` found.

    Attributes:
        rows: By the name of the case.
        only: Names that only one file has.
    """

    rows: Mapping[str, StoredRow]
    only: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """The worst of the rows'."""
        order = ("regress", "inconclusive", "improve", "ok")
        return min((row.verdict for row in self.rows.values()), key=order.index)

    def __str__(self) -> str:
        return self.text(display.is_terminal())

    def text(self, colour: bool = False) -> str:
        """A line a case, and what to do about the inconclusive ones."""
        width = max(len(name) for name in self.rows)
        lines = [
            f"{row.name:{width}}  {display.percent(row.ratio, row.interval)} -> {display.verdict(row.verdict, colour)}"
            + (" (the same program)" if row.same else "")
            for row in self.rows.values()
        ]
        lines += [f"{name:{width}}  in one file only" for name in self.only]
        if self.verdict == "inconclusive":
            lines.append(
                "Times of two sessions wander by 8 % and more. `jaxnn bench compare REVISION REVISION`, or `gate` with "
                "a recorded program, run both in turns."
            )
        return "\n".join(lines)


def compare_stored(base: Results, head: Results, other_device: bool = False) -> StoredComparison:
    """Compares the measurements of two files by their names.

    Args:
        base: From `load`.
        head: From `load`.
        other_device: Compare although they were measured on different devices.

    Raises:
        BenchError: If the devices differ, or no name is in both.
    """
    devices = [str(results.environment["device"]) for results in (base, head)]
    if devices[0] != devices[1] and not other_device:
        raise BenchError(
            f"bench.compare: the first file was measured on {devices[0]}, the second on {devices[1]}. Say "
            "--other-device to compare them all the same."
        )
    before, after = (
        {name: m for name, m in results.measurements().items() if name != "A/A"} for results in (base, head)
    )
    both = [name for name in before if name in after]
    if not both:
        raise BenchError(
            f"bench.compare: no case is in both files. The first has {[*before][:6]}, the second {[*after][:6]}."
        )
    compiler = all(base.environment.get(k) == head.environment.get(k) for k in ("jaxlib", "xla_flags", "device"))
    rows = {name: _row(name, before[name], after[name], compiler) for name in both}
    return StoredComparison(rows, tuple(name for name in [*before, *after] if name not in both))


def _row(name: str, base: Measurement, head: Measurement, compiler: bool) -> StoredRow:
    ratio = head.median_s / base.median_s
    if math.isfinite(base.interval.half) and math.isfinite(head.interval.half) and base.interval.low > 0:
        widened = math.exp(WANDERS)
        interval = Interval(
            head.interval.low / base.interval.high / widened, head.interval.high / base.interval.low * widened
        )
    else:
        interval = Interval(0.0, math.inf)
    same = compiler and base.compile.program == head.compile.program
    verdict = "inconclusive"
    if same:
        verdict = "ok"
    elif interval.low > 1:
        verdict = "regress"
    elif interval.high < 1:
        verdict = "improve"
    return StoredRow(name, verdict, ratio, interval, same)
