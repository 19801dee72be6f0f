"""AdEMAMix: Adam whose direction adds a slow average of the gradients to the fast one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.optim.algorithms.adam import moments, real_zeros, zeros
from jaxnn.optim.compose.scaling import decay, scale_by_lr, times
from jaxnn.optim.compose.select import Predicate, everything
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import ELEMENTWISE, Transformation
from jaxnn.optim.hyper import NONNEGATIVE, Hyperparameters, Hypers
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule


class AdEMAMixState(NamedTuple):
    """The fast average, the slow average, the second moment; float32."""

    hyper: Hypers
    mu: Params
    slow: Params
    nu: Params


def ademamix_core(
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    b3: float | Schedule = 0.9999,
    alpha: float | Schedule = 5.0,
    eps: float | Schedule = 1e-8,
) -> Transformation:
    """AdEMAMix's direction.

    mu   <- b1 mu + (1 - b1) g
    slow <- b3 slow + (1 - b3) g
    nu   <- b2 nu + (1 - b2) |g|^2
    u    <- (mu / (1 - b1^t) + alpha slow) / (sqrt(nu / (1 - b2^t)) + eps)

    The slow average is not corrected for its start. The paper raises `alpha` from 0 and `b3` from `b1` over the run:
    give them schedules (`alpha_warmup`, `b3_warmup`).

    Args:
        b1: Decay rate of the fast average.
        b2: Decay rate of the second moment.
        b3: Decay rate of the slow average.
        alpha: Weight of the slow average; >= 0.
        eps: Added outside the root; >= 0.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Pagliardini et al. 2024, arXiv:2409.03137, Algorithm 1.
    """
    hyper = Hyperparameters("optim.ademamix", domains={"alpha": NONNEGATIVE}, b1=b1, b2=b2, b3=b3, alpha=alpha, eps=eps)

    def init(params: Params) -> AdEMAMixState:
        return AdEMAMixState(hyper.init(), zeros(params), zeros(params), real_zeros(params))

    def update(grads: PyTree, state: AdEMAMixState, params: PyTree = None, **extra: Any) -> tuple[PyTree, Any]:
        del params, extra
        h, hypers = hyper.at(state.hyper)
        mu, nu = moments(grads, state, h.b1, h.b2)
        slow = jax.tree.map(lambda g, s: times(h.b3, s) + times(1 - h.b3, g.astype(s.dtype)), grads, state.slow)
        c1, c2 = 1 - h.b1**h.count, 1 - h.b2**h.count

        def direction(m: Array, s: Array, v: Array) -> Array:
            root = jnp.sqrt(times(1 / c2, v)) + h.eps.astype(v.dtype)
            return (times(1 / c1, m) + times(h.alpha, s)) / root

        return jax.tree.map(direction, mu, slow, nu), AdEMAMixState(hypers, mu, slow, nu)

    return Transformation(init, update, name="ademamix", hyper=hyper, facts=ELEMENTWISE)


def alpha_warmup(alpha: float, steps: int) -> Schedule:
    """From 0 to `alpha` along a line in `steps` updates (arXiv:2409.03137, equation 2)."""
    return lambda t: alpha * jnp.minimum(jnp.asarray(t, jnp.float32) / steps, 1)


def b3_warmup(b1: float, b3: float, steps: int) -> Schedule:
    """From `b1` to `b3` in `steps` updates, so that the average's half-life grows along a line (equation 3)."""

    def at(t: Any) -> Array:
        share = jnp.minimum(jnp.asarray(t, jnp.float32) / steps, 1)
        log1, log3 = jnp.log(jnp.float32(b1)), jnp.log(jnp.float32(b3))
        return jnp.minimum(jnp.exp(log1 * log3 / ((1 - share) * log3 + share * log1)), b3)

    return at


@registered(3e-3, "arXiv:2409.03137")
def ademamix(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    b3: float | Schedule = 0.9999,
    alpha: float | Schedule = 5.0,
    eps: float | Schedule = 1e-8,
    weight_decay: float | Schedule = 0.0,
    *,
    where: Predicate = everything,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """AdEMAMix, ready to train with; decay coupled to the rate. See `ademamix_core`."""
    shrink = decay(weight_decay, where=where, coupling="lr")
    core = ademamix_core(b1, b2, b3, alpha, eps)
    return stages(ademamix=core, decay=shrink, lr=scale_by_lr(lr), metrics=metrics)
