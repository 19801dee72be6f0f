"""RMSprop: the gradient over its root mean square."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.optim.algorithms.adam import squared
from jaxnn.optim.compose.scaling import full, scale_by_lr, times
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import ELEMENTWISE, Transformation
from jaxnn.optim.hyper import Hyperparameters, Hypers
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule


class RMSpropState(NamedTuple):
    """Mean square, mean and momentum, float32 at least; None where they are not used."""

    hyper: Hypers
    nu: Params
    mean: Params | None
    mu: Params | None


def rmsprop_core(
    decay: float | Schedule = 0.99,
    eps: float | Schedule = 1e-8,
    momentum: float | Schedule | None = None,
    *,
    eps_inside: bool = False,
    centered: bool = False,
) -> Transformation:
    """RMSprop's direction.

    nu   <- decay nu + (1 - decay) |g|^2
    mean <- decay mean + (1 - decay) g                        (centered only; else 0)
    d    <- g / (sqrt(nu - |mean|^2) + eps), or g / sqrt(nu - |mean|^2 + eps)
    u    <- d, or with momentum mu <- momentum mu + d, u <- mu

    Args:
        decay: Of the means, in [0, 1). torch has 0.99; Hinton's slides, Keras and optax 0.9.
        eps: >= 0.
        momentum: In [0, 1); None keeps no state for it.
        eps_inside: Where eps is added: inside the root as optax does by default, outside as torch and Keras do.
        centered: Divide by the standard deviation instead.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Tieleman & Hinton 2012, Coursera lecture 6.5; centered: Graves 2013, arXiv:1308.0850, equations 38-45.
    """
    with_momentum: dict[str, Any] = {} if momentum is None else {"momentum": momentum}
    hyper = Hyperparameters("optim.rmsprop", decay=decay, eps=eps, **with_momentum)

    def zeros(params: Params) -> Params:
        return jax.tree.map(lambda p: jnp.zeros_like(full(p)), params)

    def init(params: Params) -> RMSpropState:
        nu = jax.tree.map(lambda p: jnp.zeros_like(full(p).real), params)
        mean, mu = zeros(params) if centered else None, zeros(params) if momentum is not None else None
        return RMSpropState(hyper.init(), nu, mean, mu)

    def update(grads: PyTree, state: RMSpropState, params: PyTree = None, **extra: Any) -> tuple[PyTree, RMSpropState]:
        del params, extra
        h, hypers = hyper.at(state.hyper)
        grads = jax.tree.map(full, grads)
        nu = jax.tree.map(lambda g, v: times(h.decay, v) + times(1 - h.decay, squared(g, v)), grads, state.nu)
        mean, variance = None, nu
        if centered:
            mean = jax.tree.map(
                lambda g, m: times(h.decay, m) + times(1 - h.decay, g.astype(m.dtype)), grads, state.mean
            )
            # The difference is never negative but for rounding.
            variance = jax.tree.map(lambda v, m: jnp.maximum(v - squared(m, v), 0), nu, mean)

        def direction(g: Array, v: Array) -> Array:
            eps = h.eps.astype(v.dtype)
            return g / (jnp.sqrt(v + eps) if eps_inside else jnp.sqrt(v) + eps)

        updates, mu = jax.tree.map(direction, grads, variance), None
        if momentum is not None:
            mu = updates = jax.tree.map(lambda m, u: times(h.momentum, m) + u.astype(m.dtype), state.mu, updates)
        return updates, RMSpropState(hypers, nu, mean, mu)

    return Transformation(init, update, name="rmsprop", hyper=hyper, facts=ELEMENTWISE)


@registered(1e-2, "Tieleman & Hinton 2012")
def rmsprop(
    lr: float | Schedule,
    decay: float | Schedule = 0.99,
    eps: float | Schedule = 1e-8,
    momentum: float | Schedule | None = None,
    *,
    eps_inside: bool = False,
    centered: bool = False,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """RMSprop, ready to train with: `stages(rmsprop=rmsprop_core(...), lr=scale_by_lr(lr))`. See `rmsprop_core`."""
    core = rmsprop_core(decay, eps, momentum, eps_inside=eps_inside, centered=centered)
    return stages(rmsprop=core, lr=scale_by_lr(lr), metrics=metrics)
