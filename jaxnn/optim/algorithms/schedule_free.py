"""Schedule-free learning: interpolated averaging in place of a decaying rate; over SGD, AdamW and RAdam."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.optim.algorithms.adam import squared
from jaxnn.optim.algorithms.adam_variants import rectification
from jaxnn.optim.compose.evaluated import over
from jaxnn.optim.compose.scaling import full, times
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import Transformation
from jaxnn.optim.hyper import NONNEGATIVE, Hyperparameters, Hypers
from jaxnn.typing import Array, Params, PyTree, Schedule


class ScheduleFreeState(NamedTuple):
    """The base sequence `z` and, but for SGD, the second moment, float32; the largest rate and the weights' sum."""

    hyper: Hypers
    z: Params
    nu: Params | None
    lr_max: Array
    weights: Array

    def eval_params(self, params: Params) -> Params:
        """The average x, of which the trained y = (1 - b1) z + b1 x."""
        b1 = self.hyper.values["b1"]
        share = 1 - 1 / b1
        return over(lambda z, y: (full(y) + times(share, z - full(y))).astype(y.dtype), self.z, params)


def _core(name: str, lr: Any, b1: Any, b2: Any, eps: Any, weight_decay: Any, r: Any, power: Any) -> Transformation:
    """The three share everything but what divides the gradient."""
    adaptive = name != "schedule_free_sgd"
    numbers = {"b2": b2, "eps": eps} if adaptive else {}
    domains = {"r": NONNEGATIVE, "weight_power": NONNEGATIVE}
    hyper = Hyperparameters(
        f"optim.{name}", domains=domains, lr=lr, b1=b1, weight_decay=weight_decay, r=r, weight_power=power, **numbers
    )
    if not callable(b1) and float(b1) == 0:
        raise ValueError(f"optim.{name}: b1 is 0, and the average cannot be told from the parameters. Give 0 < b1 < 1.")

    def init(params: Params) -> ScheduleFreeState:
        z = jax.tree.map(lambda p: jnp.array(full(p), copy=True), params)
        nu = jax.tree.map(lambda p: jnp.zeros_like(full(p).real), params) if adaptive else None
        zero = jnp.zeros((), jnp.float32)
        return ScheduleFreeState(hyper.init(), z, nu, zero, zero)

    def update(
        grads: PyTree, state: ScheduleFreeState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, ScheduleFreeState]:
        del extra
        if params is None:
            raise ValueError(f"optim.{name}: update needs the parameters: tx.update(grads, state, params).")
        h, hypers = hyper.at(state.hyper)
        rate, nu = h.lr, state.nu
        grads = jax.tree.map(full, grads)
        if adaptive:
            nu = jax.tree.map(lambda g, v: times(h.b2, v) + times(1 - h.b2, squared(g, v)), grads, state.nu)
            c2 = 1 - h.b2**h.count
            divided = jax.tree.map(lambda g, v: g / (jnp.sqrt(times(1 / c2, v)) + h.eps.astype(v.dtype)), grads, nu)
            if name == "schedule_free_radam":
                trusted, factor = rectification(h.b2, h.count, least=4)
                rate = jnp.where(trusted, rate * factor, 0.0)  # while the variance cannot be trusted, nothing moves
                divided = jax.tree.map(lambda d, g: jnp.where(trusted, d, g), divided, grads)
            grads = divided
        grads = jax.tree.map(lambda g, y: g + times(h.weight_decay, full(y)).astype(g.dtype), grads, params)
        lr_max = jnp.maximum(state.lr_max, rate)
        weight = h.count**h.r * lr_max**h.weight_power
        total = state.weights + weight
        share = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 0)

        def moved(g: Array, z: Array, y: Array) -> Array:
            return times(share, z - full(y)) + times(rate * (h.b1 * (1 - share) - 1), g)

        updates = jax.tree.map(moved, grads, state.z, params)
        z = jax.tree.map(lambda z, g: z - times(rate, g), state.z, grads)
        return updates, ScheduleFreeState(hypers, z, nu, lr_max, total)

    return Transformation(init, update, name=name, hyper=hyper)


def schedule_free_sgd(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    weight_decay: float | Schedule = 0.0,
    *,
    r: float | Schedule = 0.0,
    weight_power: float | Schedule = 2.0,
    metrics: tuple[str, ...] = (),
) -> Transformation:
    """Schedule-free SGD, ready to train with: d = g + weight_decay y.

    y is trained, z is the base sequence, x the average: y = (1 - b1) z + b1 x.

    z <- z - lr d,  x <- (1 - c) x + c z,  c = w_t / (sum of w),  w_t = t^r (largest lr)^weight_power

    Evaluate at x: `optim.eval_params(state, params)`, which `train.evaluate` uses. Give a warm-up and then a constant
    rate. Only y and z are kept; x follows from them.

    Args:
        lr: Rate an update, or schedule; some ten times SGD's.
        b1: Interpolation, in (0, 1).
        weight_decay: Times the rate, at y.
        r: Power of the update's number in the average's weights.
        weight_power: Power of the largest rate in them.
        metrics: See `stages`.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Defazio et al. 2024, arXiv:2405.15682, equations 3 to 5, as the authors' package runs it.
    """
    core = _core("schedule_free_sgd", lr, b1, None, None, weight_decay, r, weight_power)
    return stages(schedule_free=core, metrics=metrics)


def schedule_free_adamw(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-8,
    weight_decay: float | Schedule = 0.0,
    *,
    r: float | Schedule = 0.0,
    weight_power: float | Schedule = 2.0,
    metrics: tuple[str, ...] = (),
) -> Transformation:
    """Schedule-free AdamW, ready to train with: d = g / (sqrt(nu / (1 - b2^t)) + eps) + weight_decay y.

    The rest, and the arguments, as in `schedule_free_sgd`.

    Source:
        Defazio et al. 2024, arXiv:2405.15682, Algorithm 1.
    """
    core = _core("schedule_free_adamw", lr, b1, b2, eps, weight_decay, r, weight_power)
    return stages(schedule_free=core, metrics=metrics)


def schedule_free_radam(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-8,
    weight_decay: float | Schedule = 0.0,
    *,
    r: float | Schedule = 0.0,
    weight_power: float | Schedule = 2.0,
    metrics: tuple[str, ...] = (),
) -> Transformation:
    """Schedule-free RAdam, ready to train with: schedule-free AdamW whose rate has RAdam's rectification, which is its
    warm-up.

    The rest, and the arguments, as in `schedule_free_sgd`.

    Source:
        Defazio et al. 2024, arXiv:2405.15682; rectification: Liu et al. 2020, arXiv:1908.03265.
    """
    core = _core("schedule_free_radam", lr, b1, b2, eps, weight_decay, r, weight_power)
    return stages(schedule_free=core, metrics=metrics)
