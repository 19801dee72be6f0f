"""What a curve of reported values says: whether it fell, still falls, rose again."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEAST = 8  # rows: with fewer, thirds of a curve are single values, and nothing tells a slope from noise
CLEARLY = 3.0  # standard errors: one false alarm in several hundred curves
A_LITTLE = 0.02  # of the value: a slower fall than 2 % in a quarter of the run is none that people wait for
MUCH = 0.1  # of the value in a quarter of the run: a curve is flat if it surely fell by less


@dataclasses.dataclass(frozen=True)
class Curve:
    """A reported value over a run, from the rows that cover whole log windows.

    Attributes:
        values: In order [n]; finite up to the last at most.
        first: At the beginning: the mean of the first tenth of the rows.
        middle: Around the middle.
        last: At the end: the mean of the last quarter of the rows.
        end: The mean of the last tenth.
        best: The smallest value of a running mean over a tenth of the rows.
        noise: Standard deviation around a line through the last quarter.
        falling: Whether it clearly still fell in the last quarter, as against the one before.
        flat: Whether it clearly did not. Where the values are too noisy, neither.
    """

    values: np.ndarray
    first: float
    middle: float
    last: float
    end: float
    best: float
    noise: float
    falling: bool
    flat: bool

    @property
    def late_share(self) -> float:
        """Which part of the whole fall the second half brought: 1/2 of a straight line, near 0 once learned."""
        fall = self.first - self.end
        return float((self.middle - self.end) / fall) if fall > 0 else 0.0


def column(history: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """The reported values of a name [n], without a last row that covers less than a window."""
    return np.array([row[name] for row in history if name in row and not row.get("partial")], np.float64)


def curve(history: Sequence[Mapping[str, Any]], name: str) -> Curve | None:
    """The curve of a name, of its values while they were finite; None of too few of them."""
    values = column(history, name)
    finite = np.isfinite(values)
    values = values if finite.all() else values[: int(np.argmin(finite))]
    n = len(values)
    if n < LEAST:
        return None
    tenth, quarter = max(1, n // 10), n // 4
    late, before = values[-quarter:], values[-2 * quarter : -quarter]
    noise = (_noise(late) ** 2 + _noise(before) ** 2) ** 0.5
    fall, doubt = before.mean() - late.mean(), CLEARLY * noise / quarter**0.5
    smooth = np.convolve(values, np.full(tenth, 1 / tenth), "valid")
    around = values[n // 2 - max(1, tenth // 2) : n // 2 + max(1, tenth // 2)]
    return Curve(
        values=values,
        first=float(values[:tenth].mean()),
        middle=float(around.mean()),
        last=float(late.mean()),
        end=float(values[-tenth:].mean()),
        best=float(smooth.min()),
        noise=_noise(late),
        falling=bool(fall > max(doubt, A_LITTLE * abs(before.mean()))),
        flat=bool(fall + doubt < MUCH * abs(before.mean())),
    )


def _noise(values: np.ndarray) -> float:
    """Standard deviation around a line."""
    if len(values) < 3:
        return 0.0
    x = np.arange(len(values), dtype=np.float64)
    rest = values - np.polyval(np.polyfit(x, values, 1), x)
    return float(np.sqrt(np.sum(rest**2) / (len(values) - 2)))


def rises_again(values: np.ndarray, by: float) -> tuple[int, float, float] | None:
    """Where a held-out curve was best, its value there and at its end, if it clearly rose since; else None.

    Args:
        values: [n], the smaller the better; a single low value does not count as the best, its neighbours' median does.
        by: Rise over the best, as a part of it.
    """
    if len(values) < 4 or not np.isfinite(values).all():
        return None
    medians = np.array([np.median(values[max(0, i - 1) : i + 2]) for i in range(len(values))])
    at = int(np.argmin(medians))
    end = float(np.median(values[-min(3, len(values) // 3 + 1) :]))
    best = float(medians[at])
    return (at, best, end) if at < len(values) - 2 and end > best + by * abs(best) else None
