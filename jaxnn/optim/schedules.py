"""Schedules: pure functions of the update number, from 0, that print, plot and know their peak and their end.

Any hyperparameter takes one. Its value is computed in the update, is held in the state in float32, and is overridden by
`optim.set_hyper`. Any function of a step works too; these also tell `fit` where they end, `decay` where their peak is,
and a reader what they are.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.report import canvas
from jaxnn.typing import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, repr=False)
class Schedule:
    """A hyperparameter as a function of the number of updates done.

    Attributes:
        fn: `fn(step) -> value`; `step` a float32 scalar or array, traceable.
        text: How it was written.
        peak: Its largest value; None where it grows for ever.
        ends: The step from which it only repeats its last value and is not meant to be used; None where it goes on.
        shown: How many steps show its shape.
    """

    fn: Callable[[Array], Array]
    text: str
    peak: float | None
    ends: int | None = None
    shown: int = 100

    def __call__(self, step: Any) -> Array:
        """The value at `step`, float32, of its shape."""
        return jnp.asarray(self.fn(jnp.asarray(step, jnp.float32)), jnp.float32)

    def __repr__(self) -> str:
        return self.text

    def values(self, steps: int | None = None) -> np.ndarray:
        """The values at steps 0 to `steps` - 1 [steps], float32."""
        return np.asarray(self(jnp.arange(steps or self.shown)))

    def plot(self, steps: int | None = None) -> "Figure":
        """A matplotlib figure of the values over the steps."""
        figure = canvas(figsize=(6.4, 2.8), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.values(steps))
        axes.set(xlabel="updates", ylabel="value", title=self.text, ylim=(0, None))
        axes.grid(alpha=0.3)
        return figure


def _count(where: str, name: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < least:
        raise ValueError(f"optim.{where}: {name} is {value!r}. Give a whole number of updates, {least} or more.")
    return int(value)


def _number(where: str, name: str, value: Any, least: float = 0.0) -> float:
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__") or not math.isfinite(float(value)):
        raise ValueError(f"optim.{where}: {name} is {value!r}. Give a finite number.")
    if float(value) < least:
        raise ValueError(f"optim.{where}: {name} is {float(value):g}. Give a number >= {least:g}.")
    return float(value)


def constant(value: float) -> Schedule:
    """Always `value`."""
    v = _number("constant", "value", value)
    return Schedule(lambda t: jnp.full(jnp.shape(t), v), f"constant({v:g})", v)


def polynomial(start: float, end: float, steps: int, power: float = 1.0) -> Schedule:
    """From `start` to `end` in `steps` updates: end + (start - end) (1 - t / steps)^power."""
    return _polynomial("polynomial", start, end, steps, power)


def _polynomial(where: str, start: float, end: float, steps: int, power: float) -> Schedule:
    a, b, n = _number(where, "start", start), _number(where, "end", end), _count(where, "steps", steps)
    p = _number(where, "power", power)
    text = f"polynomial({a:g}, {b:g}, steps={n}, power={p:g})"
    return Schedule(lambda t: b + (a - b) * (1 - jnp.minimum(t / n, 1)) ** p, text, max(a, b), n, n)


def linear(start: float, end: float, steps: int) -> Schedule:
    """From `start` to `end` along a line in `steps` updates; `linear(lr, 0, T)` is lr (1 - t / T)."""
    made = _polynomial("linear", start, end, steps, 1.0)
    return dataclasses.replace(made, text=f"linear({float(start):g}, {float(end):g}, steps={int(steps)})")


def cosine(peak: float, steps: int, end: float = 0.0) -> Schedule:
    """From `peak` to `end` along half a cosine in `steps` updates (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    a, b, n = _number("cosine", "peak", peak), _number("cosine", "end", end), _count("cosine", "steps", steps)
    return Schedule(lambda t: _half_cosine(a, b, t / n), f"cosine({a:g}, steps={n}, end={b:g})", max(a, b), n, n)


def _half_cosine(a: float, b: float, share: Array) -> Array:
    """From `a` to `b` while `share` goes from 0 to 1; flat outside."""
    return b + (a - b) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(share, 0, 1)))


def exponential(start: float, rate: float, every: int = 1) -> Schedule:
    """The value `start` * rate^(t / every): multiplied by `rate` every so many updates, smoothly."""
    a, r, n = (
        _number("exponential", "start", start),
        _number("exponential", "rate", rate),
        _count("exponential", "every", every),
    )
    shown = n * 100 if n > 1 or r == 1 else min(10_000, max(100, round(abs(3 / math.log(max(r, 1e-9))))))
    return Schedule(
        lambda t: a * r ** (t / n), f"exponential({a:g}, {r:g}, every={n})", a if r <= 1 else None, None, shown
    )


def inverse_sqrt(peak: float, warmup: int) -> Schedule:
    """Up to `peak` along a line in `warmup` updates, then peak sqrt(warmup / t) (Vaswani et al. 2017, section 5.3)."""
    a, n = _number("inverse_sqrt", "peak", peak), _count("inverse_sqrt", "warmup", warmup)
    text = f"inverse_sqrt({a:g}, warmup={n})"
    return Schedule(lambda t: a * jnp.minimum((t + 1) / n, jnp.sqrt(n / (t + 1))), text, a, None, 10 * n)


def warmup(schedule: "Schedule | float", steps: int) -> Schedule:
    """Up along a line in `steps` updates to where `schedule` begins, then `schedule`.

    Update t of the warm-up has (t + 1) / (steps + 1) of the first value: none is spent on a rate of 0.
    """
    after = schedule if isinstance(schedule, Schedule) else constant(schedule)
    n = _count("warmup", "steps", steps, least=0)
    first = after(0)

    def fn(t: Array) -> Array:
        return jnp.where(t < n, first * (t + 1) / (n + 1), after.fn(jnp.maximum(t - n, 0)))

    ends = None if after.ends is None else after.ends + n
    return Schedule(fn, f"warmup({after.text}, steps={n})", after.peak, ends, after.shown + n)


def _steps_of(where: str, name: str, value: float, steps: int) -> int:
    """A number of updates, or a share of `steps` below 1."""
    value = _number(where, name, value, -math.inf)
    if 0 < value < 1:
        return round(value * steps)
    return _count(where, name, int(value) if value == int(value) else value, least=0)


def warmup_stable_decay(
    peak: float,
    steps: int,
    *,
    warmup: float = 0.02,
    decay: float = 0.2,
    end: float = 0.0,
    shape: Literal["linear", "sqrt"] = "linear",
) -> Schedule:
    """Up, level, down: the level part can be prolonged, and every decay from it is a finished model.

    Args:
        peak: The level.
        steps: Updates in all.
        warmup: Updates to the peak, or a share of `steps` below 1.
        decay: Updates from the level to `end`, or a share below 1.
        end: The last value.
        shape: "linear", or "sqrt" for 1 - sqrt of the share done.

    Raises:
        ValueError: If warm-up and decay are longer than the whole.

    Source:
        Hu et al. 2024, arXiv:2404.06395; shapes: Hägele et al. 2024, arXiv:2405.18392.
    """
    where = "warmup_stable_decay"
    a, b, n = _number(where, "peak", peak), _number(where, "end", end), _count(where, "steps", steps)
    up, down = _steps_of(where, "warmup", warmup, n), _steps_of(where, "decay", decay, n)
    if shape not in ("linear", "sqrt"):
        raise ValueError(f'optim.{where}: shape is {shape!r}. Give "linear" or "sqrt".')
    if up + down > n:
        raise ValueError(f"optim.{where}: warmup={up} and decay={down} are more than steps={n}. Make them fit.")

    def fn(t: Array) -> Array:
        done = jnp.clip((t - (n - down)) / max(down, 1), 0, 1)
        falling = b + (a - b) * (1 - (jnp.sqrt(done) if shape == "sqrt" else done))
        return jnp.where(t < up, a * (t + 1) / (up + 1), falling)

    return Schedule(fn, f"{where}({a:g}, steps={n}, warmup={up}, decay={down}, end={b:g}, shape={shape!r})", a, n, n)


def one_cycle(
    peak: float, steps: int, *, warmup: float = 0.3, start_factor: float = 25.0, end_factor: float = 1e4
) -> Schedule:
    """Half a cosine up from peak / start_factor, half a cosine down to peak / (start_factor end_factor).

    Args:
        peak: The largest value.
        steps: Updates in all; >= 2.
        warmup: Updates to the peak, or a share of `steps` below 1.
        start_factor: >= 1.
        end_factor: >= 1.

    Raises:
        ValueError: If the warm-up is longer than the whole.

    Source:
        Smith & Topin 2018, arXiv:1708.07120, in the two-phase form of torch's OneCycleLR.
    """
    where = "one_cycle"
    a, n = _number(where, "peak", peak), _count(where, "steps", steps, least=2)
    up = max(1, _steps_of(where, "warmup", warmup, n))
    if up > n:
        raise ValueError(f"optim.{where}: warmup={up} is more than steps={n}. Make it fit.")
    low = a / _number(where, "start_factor", start_factor, 1.0)
    last = low / _number(where, "end_factor", end_factor, 1.0)

    def fn(t: Array) -> Array:
        top = up - 1
        down = _half_cosine(a, last, (t - top) / max(n - 1 - top, 1))
        return jnp.where(t <= top, _half_cosine(low, a, t / max(top, 1)), down)

    return Schedule(fn, f"one_cycle({a:g}, steps={n}, warmup={up})", a, n, n)


def piecewise(start: float, factors: Mapping[int, float]) -> Schedule:
    """`start`, multiplied by a factor from each step in `factors` on: `piecewise(0.1, {300: 0.1, 600: 0.1})`."""
    a = _number("piecewise", "start", start)
    edges = sorted((_count("piecewise", "step", s), _number("piecewise", "factor", f)) for s, f in factors.items())

    def fn(t: Array) -> Array:
        value = jnp.full(jnp.shape(t), a)
        for edge, factor in edges:
            value = value * jnp.where(t >= edge, factor, 1.0)
        return value

    levels = np.cumprod([a, *(f for _, f in edges)])
    shown = 2 * edges[-1][0] if edges else 100
    text = ", ".join(f"{s}: {f:g}" for s, f in edges)
    return Schedule(fn, f"piecewise({a:g}, {{{text}}})", float(levels.max()), None, shown)


def _peak_within(schedule: Schedule, steps: int | None) -> float | None:
    """The largest value in so many updates; None where it grows for ever, and nothing ends it."""
    if steps is None:
        return schedule.peak
    with jax.ensure_compile_time_eval():
        largest = float(schedule.values(steps).max())
    # A peak that is reached is given as it was written, not as float32 holds it.
    return (
        schedule.peak if schedule.peak is not None and math.isclose(largest, schedule.peak, rel_tol=1e-6) else largest
    )


def joined(*parts: tuple[Schedule, int | None]) -> Schedule:
    """Schedules one after the other, each from its own step 0: `joined((linear(0, 1, 10), 10), (cosine(1, 90), None))`.

    Args:
        parts: (schedule, how many updates it lasts); the last may last for ever (None).

    Raises:
        ValueError: If a part but the last has no length.
    """
    if not parts or any(n is None for _, n in parts[:-1]):
        raise ValueError("optim.joined: give (schedule, updates), of which only the last may have None.")
    starts = np.cumsum([0, *(_count("joined", "updates", n) for _, n in parts[:-1])]).tolist()

    def fn(t: Array) -> Array:
        value = parts[0][0].fn(t)
        for (part, _), start in zip(parts[1:], starts[1:], strict=True):
            value = jnp.where(t >= start, part.fn(jnp.maximum(t - start, 0)), value)
        return value

    last, length = parts[-1]
    ends = starts[-1] + length if length is not None else None if last.ends is None else starts[-1] + last.ends
    text = ", ".join(f"({s.text}, {n})" for s, n in parts)
    peaks = [_peak_within(schedule, n) for schedule, n in parts]
    peak = None if None in peaks else max(p for p in peaks if p is not None)
    return Schedule(fn, f"joined({text})", peak, ends, starts[-1] + (length or last.shown))
