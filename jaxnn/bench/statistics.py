"""Medians with intervals that hold: for autocorrelated, heavy-tailed noise, and although we look again and again.

The estimate of a comparison is the median over rounds of paired log-ratios. Its interval is the hull of two: order
statistics by the sign test, whose count of rounds is first reduced by the autocorrelation of their signs; and a
moving-block bootstrap. Nothing is assumed about the distribution, and nothing is dropped.

Looking early. A verdict is sought after 21, 33, 48, ... rounds. Look j = 1, 2, ... uses alpha / (j (j + 1)); these add
up to alpha however many looks there are, so that by the union bound the chance that the interval of any look misses the
truth is at most alpha. Several rows share alpha equally (Bonferroni).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 400


@dataclass(frozen=True)
class Interval:
    """A closed interval and the probability with which such an interval covers the truth."""

    low: float
    high: float
    level: float = 0.95

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    @property
    def half(self) -> float:
        """Half its width."""
        return (self.high - self.low) / 2

    def hull(self, other: "Interval") -> "Interval":
        """The smallest interval that contains both; the lower of the two levels."""
        return Interval(min(self.low, other.low), max(self.high, other.high), min(self.level, other.level))

    def widened(self, by: float) -> "Interval":
        """Moved outward by `by` on both sides."""
        return Interval(self.low - by, self.high + by, self.level)

    def exp(self) -> "Interval":
        """Of a log-ratio: the interval of the ratio."""
        return Interval(math.exp(self.low), math.exp(self.high), self.level)

    def scaled(self, factor: float) -> "Interval":
        """Times a positive factor."""
        return Interval(self.low * factor, self.high * factor, self.level)

    def __str__(self) -> str:
        return f"[{self.low:.4g}, {self.high:.4g}]"


def effective_size(x: np.ndarray) -> float:
    """How many independent rounds `x` [n] is worth for a median: n / (1 + 2 sum of its signs' autocorrelations).

    The sum is the larger of two: over lags up to the first that is not clear of noise, and of a geometric decay from
    the first lag, which needs less data. 1 <= result <= n.
    """
    n = len(x)
    signs = np.sign(x - np.median(x))
    variance = float(np.mean(signs * signs))
    if n < 8 or variance == 0:
        return float(n)
    total, noise = 0.0, 0.5 / math.sqrt(n)
    for lag in range(1, n // 3):
        rho = float(np.mean(signs[:-lag] * signs[lag:])) / variance
        if rho < noise:
            break
        rho = min(0.95, rho + (1 + 3 * rho) / n)  # estimated about the sample's own median, it is that much too low
        total = max(total + rho, rho / (1 - rho) if lag == 1 else 0.0)
    return max(1.0, n / (1 + 2 * total))


def _tail(n: int) -> np.ndarray:
    """P(Binomial(n, 1/2) <= k) for k = 0 .. n."""
    k = np.arange(n + 1)
    gamma = np.array([math.lgamma(i + 1) for i in range(n + 1)])
    return np.cumsum(np.exp(gamma[n] - gamma[k] - gamma[n - k] - n * math.log(2)))


def sign_interval(x: np.ndarray, level: float) -> Interval:
    """Order-statistic interval of the median of `x` [n] (the sign test inverted), its n reduced by autocorrelation.

    Unbounded where there are too few rounds for the level.
    """
    ordered, n = np.sort(x), len(x)
    worth = int(effective_size(x))
    ranks = np.flatnonzero(_tail(worth) <= (1 - level) / 2)
    if not len(ranks):
        return Interval(-math.inf, math.inf, level)
    rank = int((ranks[-1] + 1) * n / worth)  # from 1: the rank-th smallest and largest bound the median
    return Interval(float(ordered[rank - 1]), float(ordered[n - rank]), level)


def bootstrap_interval(x: np.ndarray, level: float, rng: np.random.Generator) -> Interval:
    """Percentile interval of the median of `x` [n] from moving blocks of about sqrt(n) rounds."""
    n = len(x)
    length = max(1, round(math.sqrt(n)))
    starts = rng.integers(0, n - length + 1, (_RESAMPLES, math.ceil(n / length)))
    index = (starts[:, :, None] + np.arange(length)).reshape(_RESAMPLES, -1)[:, :n]
    medians = np.median(x[index], axis=1)
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level)


def median_interval(x: np.ndarray, level: float, seed: int = 0) -> Interval:
    """An interval of the median of `x` [n]: the hull of the sign test's and the block bootstrap's."""
    sign = sign_interval(x, level)
    return sign.hull(bootstrap_interval(x, level, np.random.default_rng(seed))) if math.isfinite(sign.low) else sign


def spent(look: int, alpha: float) -> float:
    """The part of `alpha` that look number `look` (from 1) may use: alpha / (look (look + 1))."""
    return alpha / (look * (look + 1))


def look_sizes(multiple: int = 3) -> Iterator[int]:
    """After how many rounds to look: from 21, half as many again each time, in whole Latin squares."""
    n = 21
    while True:
        yield math.ceil(n / multiple) * multiple
        n = math.ceil(n * 1.5)


def decide(estimate: float, interval: Interval, tolerance: float, final: bool) -> str:
    """The verdict on a log-ratio.

    "regress" where the whole interval lies above the tolerance, "improve" where it lies below minus the tolerance, "ok"
    where it lies between. At the last look, which must say something, two rules are relaxed: "regress" (or "improve")
    where the estimate is beyond the tolerance and the interval clear of half of it, and "ok" where the interval's upper
    end is below the tolerance, whatever the lower.

    Args:
        estimate: Median log-ratio.
        interval: Its interval.
        tolerance: As a ratio, 0.03 for 3 %.
        final: There will be no other look.

    Returns:
        "regress", "improve", "ok" or "inconclusive".
    """
    bound = math.log1p(tolerance)
    if interval.low > bound:
        return "regress"
    if interval.high < -bound:
        return "improve"
    if interval.low > -bound and interval.high < bound:
        return "ok"
    if final and estimate > bound and interval.low > bound / 2:
        return "regress"
    if final and estimate < -bound and interval.high < -bound / 2:
        return "improve"
    if final and interval.high < bound:
        return "ok"
    return "inconclusive"


@dataclass(frozen=True)
class Outliers:
    """How many values lie beyond Tukey's fences: 1.5 (mild) and 3 (severe) quartile distances; none is dropped."""

    low_severe: int
    low_mild: int
    high_mild: int
    high_severe: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.low_severe + self.low_mild + self.high_mild + self.high_severe


def outliers(x: np.ndarray) -> Outliers:
    """Classifies the values of `x` [n] by Tukey's fences."""
    first, third = np.quantile(x, [0.25, 0.75])
    spread = third - first
    low = [int(np.sum(x < first - factor * spread)) for factor in (1.5, 3)]
    high = [int(np.sum(x > third + factor * spread)) for factor in (1.5, 3)]
    return Outliers(low[1], low[0] - low[1], high[0] - high[1], high[1])


def drifts(x: np.ndarray, level: float = 0.999) -> bool:
    """Whether the second half of `x` [n] has another median than the first: their intervals do not touch.

    Each half's straight line is taken out before its interval, or a steady drift would pass for correlated noise.
    """
    if len(x) < 24:
        return False
    intervals = []
    for half in np.array_split(x, 2):
        time = np.arange(len(half)) - (len(half) - 1) / 2
        slope = float(np.dot(time, half) / np.dot(time, time))
        intervals.append(median_interval(half - slope * time, level))
    first, second = intervals
    return first.high < second.low or second.high < first.low
