"""How time grows with size: one case a size, all in turns, and a fit t = a + b n^k with its interval."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxnn.bench import display, guards, statistics, timing
from jaxnn.bench.case import Case
from jaxnn.bench.compilation import build
from jaxnn.bench.measurement import Measurement, summarise
from jaxnn.bench.statistics import Interval
from jaxnn.bench.timing import Arm

_EXPONENTS = np.arange(0.05, 5.0001, 0.01)
_RESAMPLES = 300


@dataclass(frozen=True)
class Fit:
    """t = a + b n^k, seconds.

    Attributes:
        size: The name of n.
        a: Seconds that do not depend on n; at least 0.
        b: Seconds a unit of n^k.
        k: The exponent.
        k_interval: Of the exponent, from resampled rounds and, beyond three points, resampled residuals.
        a_interval: Of the constant.
        misfit: The largest relative distance of a median from the curve.
    """

    size: str
    a: float
    b: float
    k: float
    k_interval: Interval
    a_interval: Interval
    misfit: float

    def __call__(self, n: float) -> float:
        return self.a + self.b * n**self.k

    def __str__(self) -> str:
        return (
            f"t = {display.duration(self.a)} + {self.b:.3g} s x {self.size}^{self.k:.2f} "
            f"[{self.k_interval.low:.2f}, {self.k_interval.high:.2f}]  misfit {100 * self.misfit:.1f}%"
        )


@dataclass(frozen=True)
class Sweep:
    """What `sweep` found.

    Attributes:
        name: Of the sweep.
        points: The sizes of each point and its measurement, in order.
    """

    name: str
    points: tuple[tuple[Mapping[str, Any], Measurement], ...]

    def __str__(self) -> str:
        return "\n".join(measurement.text() for _, measurement in self.points)

    def _repr_html_(self) -> str:
        return display.as_html(str(self))

    def fit(self, size: str, level: float = 0.95, **fixed: Any) -> Fit:
        """Fits t = a + b n^k to the points along one size, relative errors weighing the same everywhere.

        Args:
            size: The name of n.
            level: Of the intervals.
            **fixed: Values of the other sizes, where the sweep has more than one.

        Raises:
            ValueError: If there are fewer than three points along it.
        """
        chosen = [(s, m) for s, m in self.points if size in s and all(s.get(k) == v for k, v in fixed.items())]
        n = np.array([float(s[size]) for s, _ in chosen])
        if len(set(n)) < 3 or len(set(n)) < len(n):
            names = sorted({k for s, _ in self.points for k in s})
            raise ValueError(
                f"bench.Sweep.fit: {self.name}: {len(n)} points at {sorted(set(n))} along {size!r} (there are "
                f"{names}). A fit needs three different ones; fix the other sizes by name: fit('T', heads=4)."
            )
        times = np.array([[block.seconds("wall") for block in m.blocks] for _, m in chosen])
        found = np.median(times, axis=1)
        a, b, k = (float(v[0]) for v in fit_power(n, found[None]))
        residuals = np.log(found / (a + b * n**k))
        rng, rounds = np.random.default_rng(0), times.shape[1]
        length = max(1, round(rounds**0.5))
        starts = rng.integers(0, rounds - length + 1, (_RESAMPLES, -(-rounds // length)))
        index = (starts[:, :, None] + np.arange(length)).reshape(_RESAMPLES, -1)[:, :rounds]
        medians = np.median(times[:, index], axis=2).T
        if len(n) > 3:  # what three parameters cannot follow is noise too
            inflated = residuals * np.sqrt(len(n) / (len(n) - 3))
            medians = medians * np.exp(rng.choice(inflated, medians.shape))
        aa, _, kk = fit_power(n, medians)
        ends = [np.quantile(v, [(1 - level) / 2, (1 + level) / 2]) for v in (kk, aa)]
        intervals = [Interval(float(low), float(high), level) for low, high in ends]
        misfit = float(np.max(np.abs(np.expm1(residuals))))
        return Fit(size, a, b, k, intervals[0], intervals[1], misfit)


def fit_power(n: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares of relative errors of a + b n^k, with a, b >= 0, for each row of times.

    Args:
        n: Sizes [P].
        t: Times [R, P].

    Returns:
        a, b, k, each [R].
    """
    powers = (n / n.max()) ** _EXPONENTS[:, None]  # [K, P]
    x, y = 1 / t[:, None, :], powers / t[:, None, :]  # a x + b y = 1
    xx, xy, yy = (np.sum(p, axis=-1) for p in (x * x, x * y, y * y))
    x1, y1 = np.sum(x, axis=-1), np.sum(y, axis=-1)
    determinant = np.maximum(xx * yy - xy * xy, 1e-300)
    a = (yy * x1 - xy * y1) / determinant
    b = (xx * y1 - xy * x1) / determinant
    b = np.where(a < 0, y1 / yy, b)
    a = np.where(a < 0, 0.0, a)
    a = np.where(b < 0, x1 / xx, a)
    b = np.maximum(b, 0.0)
    error = np.sum((a[..., None] * x + b[..., None] * y - 1) ** 2, axis=-1)  # [R, K]
    best = np.argmin(error, axis=1)
    rows = np.arange(len(t))
    k = _EXPONENTS[best]
    return a[rows, best], b[rows, best] / n.max() ** k, k


def sweep(
    name: str,
    make: Callable[..., tuple[Callable, Any]],
    sizes: Mapping[str, Sequence[Any]],
    *,
    max_seconds: float = 6.0,
    level: float = 0.95,
    seed: int = 0,
) -> Sweep:
    """Measures a case at every combination of sizes, all of them in turns.

    Args:
        name: Of the sweep.
        make: `make(T=256) -> (function, args)`, args as for `measure`; or a `Case`.
        sizes: Name -> values.
        max_seconds: How long to measure, without compiling.
        level: Of the points' intervals.
        seed: Of the arguments' key and the order of slots.

    Raises:
        BenchError: A pitfall; or there are no sizes.
    """
    grid = [dict(zip(sizes, values)) for values in itertools.product(*sizes.values())]
    if not sizes or not grid:
        raise guards.BenchError(f"bench.sweep: {name}: sizes={dict(sizes)} gives no point. Write {{'T': [256, 512]}}.")
    rng, arms = np.random.default_rng(seed), []
    for point in grid:
        label = f"{name} " + " ".join(f"{k}={v}" for k, v in point.items())
        made = make(**point)
        case = made if isinstance(made, Case) else Case(label, *made)
        arms.append(Arm(label, build(case, seed), rng))
    rounds = []
    with guards.frozen_gc(), display.live(name) as show:
        timing.warm(arms, timing.BLOCK_S)
        start = time.perf_counter()
        for blocks in timing.rounds(arms, rng):
            rounds.append(blocks)
            show(f"{len(rounds)} rounds of {len(arms)} points")
            if time.perf_counter() - start > max_seconds and len(rounds) >= 9:
                break
    points = []
    for index, (point, arm) in enumerate(zip(grid, arms)):
        own = [row[index] for row in rounds]
        interval = statistics.median_interval(np.array([block.seconds("wall") for block in own]), level, seed)
        points.append((point, summarise(arm.name, arm.program, own, interval, True)))
    return Sweep(name, tuple(points))
