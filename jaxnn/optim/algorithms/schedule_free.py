"""Schedule-free learning: interpolated averaging in place of a decaying rate; over any optimizer, and ready-made."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnn.optim.algorithms.adam import adam_core, squared
from jaxnn.optim.algorithms.adam_variants import rectification
from jaxnn.optim.algorithms.sgd import sgd_core
from jaxnn.optim.compose.evaluated import over
from jaxnn.optim.compose.rates import climbing
from jaxnn.optim.compose.scaling import decay, full, scale_by_lr, times
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import Context, Transformation, apply_part, label
from jaxnn.optim.compose.wrapping import inner_of, wrap
from jaxnn.optim.hyper import NONNEGATIVE, Domain, Hyperparameters, Hypers
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule

INTERPOLATION = Domain(low=0, high=1, low_open=True, high_open=True)  # at 0 nothing tells x from y


class ScheduleFreeState(NamedTuple):
    """The base sequence `z`, float32; scalars: the share of x in y (the last update's b1, at first 1), the largest rate
    so far and the sum of the weights; the inner state."""

    hyper: Hypers
    z: Params
    share: Array
    lr_max: Array
    weights: Array
    inner: PyTree

    def eval_params(self, params: Params) -> Params:
        """The average x, of which the trained y = (1 - b1) z + b1 x."""
        back = 1 - 1 / self.share
        return over(lambda z, y: (full(y) + times(back, z - full(y))).astype(y.dtype), self.z, params)


def schedule_free(
    tx: optax.GradientTransformation,
    b1: float | Schedule = 0.9,
    *,
    r: float | Schedule = 0.0,
    weight_power: float | Schedule = 2.0,
) -> Transformation:
    """Any optimizer, whose path is averaged while it goes, in place of a decaying rate.

    y is trained: gradients, and decay, are taken there; u is what `tx` makes of them. z is the base sequence, x the
    average: y = (1 - b1) z + b1 x.

    z <- z + u,  x <- (1 - c) x + c z,  c = w_t / (sum of w),  w_t = t^r (largest lr)^weight_power

    Evaluate at x: `optim.eval_params(state, params)`, which `train.evaluate` uses. Give a warm-up and then a constant
    rate. Only y and z are kept; x follows from them. The largest rate is that of the `scale_by_lr` in `tx`; where none
    is known (optax hides it in a closure), `weight_power` must be 0, and is no hyperparameter.

    Args:
        tx: A whole optimizer, its rate included, without momentum, whose place b1 takes:
            `stages(adam=adam_core(None), lr=scale_by_lr(1e-3))`. In `groups`, each beside other whole optimizers.
        b1: Interpolation, in (0, 1).
        r: Power of the update's number in the average's weights; >= 0.
        weight_power: Power of the largest rate in them; >= 0.

    Raises:
        ValueError: If a hyperparameter is out of range, `tx` has no rate, or one that is not known while `weight_power`
            is not 0; at trace time, if the parameters are not given.

    Source:
        Defazio et al. 2024, arXiv:2405.15682, equations 3 to 5, as the authors' package runs it.
    """
    where = "optim.schedule_free"
    inner = inner_of(where, tx)
    if climbing(inner):
        raise ValueError(
            f"{where}: {label(inner)} has no rate, and the base sequence would climb. Give a whole optimizer: "
            "optim.stages(adam=optim.adam_core(None), lr=optim.scale_by_lr(1e-3)), say."
        )
    rate_of = inner.facts.get("lr_in_effect") if isinstance(inner, Transformation) else None
    numbers: dict[str, Any] = {"b1": b1, "r": r}
    if rate_of is not None:
        numbers["weight_power"] = weight_power
    elif callable(weight_power) or weight_power != 0:
        raise ValueError(
            f"{where}: the rate of {label(inner)} is not known, and the average's weights follow it. Give "
            "weight_power=0.0, or a rate that shows: optim.stages(..., lr=optim.scale_by_lr(...))."
        )
    domains = {"b1": INTERPOLATION, "r": NONNEGATIVE, "weight_power": NONNEGATIVE}
    hyper = Hyperparameters(where, domains=domains, **numbers)

    def init(params: Params) -> ScheduleFreeState:
        z = jax.tree.map(lambda p: jnp.array(full(p), copy=True), params)
        zero, one = jnp.zeros((), jnp.float32), jnp.ones((), jnp.float32)  # at first x, y and z are one
        return ScheduleFreeState(hyper.init(), z, one, zero, zero, inner.init(params))

    def update(
        grads: PyTree, state: ScheduleFreeState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, ScheduleFreeState]:
        if params is None:
            raise ValueError(f"{where}: update needs the parameters: tx.update(grads, state, params).")
        h, hypers = hyper.at(state.hyper)
        steps, new = apply_part(inner, grads, state.inner, params, context or Context(), extra)
        lr_max, weight = state.lr_max, h.count**h.r
        if rate_of is not None:
            lr_max = jnp.maximum(lr_max, rate_of(state.inner)[0])
            weight = weight * lr_max**h.weight_power
        total = state.weights + weight
        share = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 0)

        pull = share + (1 - h.b1 / state.share) * (1 - share)  # share, but where b1 is another than y was made with

        def moved(u: Array, z: Array, y: Array) -> Array:
            return times(pull, z - full(y)) + times(1 - h.b1 * (1 - share), full(u))

        updates = jax.tree.map(moved, steps, state.z, params)
        z = jax.tree.map(lambda z, u: z + full(u), state.z, steps)
        return updates, ScheduleFreeState(hypers, z, h.b1, lr_max, total, new)

    return wrap("schedule_free", inner, init, update, hyper=hyper)


class RectifiedState(NamedTuple):
    """The second moment, float32."""

    hyper: Hypers
    nu: Params


def _rectified(lr: Any, b2: Any, eps: Any, weight_decay: Any) -> Transformation:
    """What schedule-free RAdam averages: u <- -lr r_t (g / (sqrt(nu / (1 - b2^t)) + eps) + weight_decay y), r_t as in
    `radam_core`, 0 until the variance can be trusted. r_t is part of the rate, which the average's weights follow."""
    hyper = Hyperparameters("optim.schedule_free_radam", lr=lr, b2=b2, eps=eps, weight_decay=weight_decay)

    def rate(h: Any) -> Array:
        trusted, factor = rectification(h.b2, h.count, least=4)
        return jnp.where(trusted, h.lr * factor, 0.0)

    def init(params: Params) -> RectifiedState:
        return RectifiedState(hyper.init(), jax.tree.map(lambda p: jnp.zeros_like(full(p).real), params))

    def update(
        grads: PyTree, state: RectifiedState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, RectifiedState]:
        del extra
        h, hypers = hyper.at(state.hyper)
        nu = jax.tree.map(lambda g, v: times(h.b2, v) + times(1 - h.b2, squared(g, v)), grads, state.nu)
        c2, down = 1 - h.b2**h.count, -rate(h)

        def one(g: Array, v: Array, y: Array) -> Array:
            divided = full(g) / (jnp.sqrt(times(1 / c2, v)) + h.eps.astype(v.dtype))
            return times(down, divided + times(h.weight_decay, full(y)).astype(divided.dtype))

        return jax.tree.map(one, grads, nu, params), RectifiedState(hypers, nu)

    def in_effect(state: RectifiedState) -> tuple[Array, None]:
        return rate(hyper.at(state.hyper)[0]), None

    facts = {"lr_in_effect": in_effect, "descends": True}
    return Transformation(init, update, name="rectified_adam", hyper=hyper, facts=facts)


@registered(1e-2, "arXiv:2405.15682")
def schedule_free_sgd(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    weight_decay: float | Schedule = 0.0,
    *,
    r: float | Schedule = 0.0,
    weight_power: float | Schedule = 2.0,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """Schedule-free SGD, ready to train with: `schedule_free` over z <- z - lr (g + weight_decay y).

    Args:
        lr: Rate an update, or schedule; some ten times SGD's.
        b1: As in `schedule_free`.
        weight_decay: Times the rate, at y.
        r: As in `schedule_free`.
        weight_power: As in `schedule_free`.
        metrics: See `stages`.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Defazio et al. 2024, arXiv:2405.15682, equations 3 to 5, as the authors' package runs it.
    """
    base = stages(sgd=sgd_core(), decay=decay(weight_decay), lr=scale_by_lr(lr))
    return stages(schedule_free=schedule_free(base, b1, r=r, weight_power=weight_power), metrics=metrics)


@registered(1e-2, "arXiv:2405.15682")
def schedule_free_adamw(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-8,
    weight_decay: float | Schedule = 0.0,
    *,
    r: float | Schedule = 0.0,
    weight_power: float | Schedule = 2.0,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """Schedule-free AdamW, ready to train with: `schedule_free` over Adam without momentum, and decay.

    z <- z - lr (g / (sqrt(nu / (1 - b2^t)) + eps) + weight_decay y)

    The rest, and the arguments, as in `schedule_free_sgd`.

    Source:
        Defazio et al. 2024, arXiv:2405.15682, Algorithm 1.
    """
    base = stages(adam=adam_core(None, b2, eps), decay=decay(weight_decay), lr=scale_by_lr(lr))
    return stages(schedule_free=schedule_free(base, b1, r=r, weight_power=weight_power), metrics=metrics)


@registered(5e-2, "arXiv:2405.15682")
def schedule_free_radam(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-8,
    weight_decay: float | Schedule = 0.0,
    *,
    r: float | Schedule = 0.0,
    weight_power: float | Schedule = 2.0,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """Schedule-free RAdam, ready to train with: schedule-free AdamW whose rate has RAdam's rectification r_t, which is
    its warm-up.

    z <- z - lr r_t (g / (sqrt(nu / (1 - b2^t)) + eps) + weight_decay y),  r_t as in `radam_core`, 0 before rho_t > 4

    The rest, and the arguments, as in `schedule_free_sgd`.

    Source:
        Defazio et al. 2024, arXiv:2405.15682; rectification: Liu et al. 2020, arXiv:1908.03265.
    """
    base = _rectified(lr, b2, eps, weight_decay)
    return stages(schedule_free=schedule_free(base, b1, r=r, weight_power=weight_power), metrics=metrics)
