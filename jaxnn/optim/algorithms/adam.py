"""Adam and AdamW: each coordinate moves by its mean gradient over its root mean square."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.optim.compose.scaling import decay, full, scale_by_lr, times
from jaxnn.optim.compose.select import Predicate, everything
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import ELEMENTWISE, Transformation
from jaxnn.optim.hyper import Hyperparameters, Hypers
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule


class AdamState(NamedTuple):
    """First and second moments, float32 (complex leaves: `mu` complex, `nu` of the modulus); `mu` None without b1."""

    hyper: Hypers
    mu: Params | None
    nu: Params


def adam_core(
    b1: float | Schedule | None = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-8,
    *,
    bias_correction: bool = True,
    nesterov: bool = False,
) -> Transformation:
    """Adam's direction.

    mu <- b1 mu + (1 - b1) g
    nu <- b2 nu + (1 - b2) |g|^2
    u  <- (mu / (1 - b1^t)) / (sqrt(nu / (1 - b2^t)) + eps)

    Args:
        b1: Decay rate of `mu`, in [0, 1). None is 0 and keeps no `mu`: for what has a momentum of its own around it.
        b2: Decay rate of `nu`, in [0, 1).
        eps: Added outside the root; >= 0.
        bias_correction: Divide by 1 - b^t; without it, the form that many texts print.
        nesterov: Use b1 mu + (1 - b1) g in mu's place (Dozat 2016, NAdam).

    Raises:
        ValueError: If a hyperparameter is out of range, or Nesterov's is asked for without `b1`.

    Source:
        Kingma & Ba 2015, arXiv:1412.6980, Algorithm 1.
    """
    if b1 is None and nesterov:
        raise ValueError("optim.adam: nesterov looks ahead along the momentum, and b1 is None. Give b1=0.9, say.")
    first_moment: dict[str, Any] = {} if b1 is None else {"b1": b1}
    hyper = Hyperparameters("optim.adam", **first_moment, b2=b2, eps=eps)

    def init(params: Params) -> AdamState:
        return AdamState(hyper.init(), None if b1 is None else zeros(params), real_zeros(params))

    def update(grads: PyTree, state: AdamState, params: PyTree = None, **extra: Any) -> tuple[PyTree, AdamState]:
        del params, extra
        h, hypers = hyper.at(state.hyper)
        keep1 = h.get("b1", jnp.zeros((), jnp.float32))
        new1, new2 = 1 - keep1, 1 - h.b2

        def first(g: Array, m: Array) -> Array:
            return times(keep1, m) + times(new1, g if g.dtype == m.dtype else g.astype(m.dtype))

        mu = None if b1 is None else jax.tree.map(first, grads, state.mu)
        nu = jax.tree.map(lambda g, v: times(h.b2, v) + times(new2, squared(g, v)), grads, state.nu)
        ahead = jax.tree.map(full, grads) if mu is None else jax.tree.map(first, grads, mu) if nesterov else mu
        one = jnp.ones((), jnp.float32)
        c1, c2 = (1 - keep1**h.count, 1 - h.b2**h.count) if bias_correction else (one, one)
        ratio, eps = c1 / jnp.sqrt(c2), c1 * h.eps

        # mu/c1 / (sqrt(nu/c2) + eps) with one division an element
        def direction(m: Array, v: Array) -> Array:
            return m / (times(ratio, jnp.sqrt(v)) + (eps if eps.dtype == v.dtype else eps.astype(v.dtype)))

        return jax.tree.map(direction, ahead, nu), AdamState(hypers, mu, nu)

    return Transformation(init, update, name="adam", hyper=hyper, facts=ELEMENTWISE)


def squared(g: Array, like: Array) -> Array:
    """|g|^2 in the dtype of `like`."""
    g = full(g)
    size = jnp.square(g) if not jnp.iscomplexobj(g) else jnp.square(g.real) + jnp.square(g.imag)
    return size if size.dtype == like.dtype else size.astype(like.dtype)


def moments(grads: PyTree, state: Any, b1: Array, b2: Array) -> tuple[PyTree, PyTree]:
    """Adam's `mu` and `nu` after another gradient."""
    mu = jax.tree.map(lambda g, m: times(b1, m) + times(1 - b1, g.astype(m.dtype)), grads, state.mu)
    return mu, jax.tree.map(lambda g, v: times(b2, v) + times(1 - b2, squared(g, v)), grads, state.nu)


def zeros(params: Params) -> Params:
    """Adam's `mu` before the first gradient: float32 at least."""
    return jax.tree.map(lambda p: jnp.zeros_like(full(p)), params)


def real_zeros(params: Params) -> Params:
    """Adam's `nu` before the first gradient: real also for complex leaves."""
    return jax.tree.map(lambda p: jnp.zeros_like(full(p).real), params)


@registered(1e-2, "arXiv:1412.6980")
def adam(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-8,
    *,
    bias_correction: bool = True,
    nesterov: bool = False,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """Adam, ready to train with: `stages(adam=adam_core(...), lr=scale_by_lr(lr))`. See `adam_core`."""
    core = adam_core(b1, b2, eps, bias_correction=bias_correction, nesterov=nesterov)
    return stages(adam=core, lr=scale_by_lr(lr), metrics=metrics)


def adamw_core(
    b1: float | Schedule = 0.9, b2: float | Schedule = 0.999, eps: float | Schedule = 1e-8
) -> Transformation:
    """The direction of AdamW, which is Adam's: its decay is a stage of its own. See `adam_core`, `optim.decay`."""
    return adam_core(b1, b2, eps)


@registered(1e-2, "arXiv:1711.05101")
def adamw(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-8,
    weight_decay: float | Schedule = 0.01,
    *,
    where: Predicate = everything,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """AdamW, ready to train with: Adam's direction plus `weight_decay` times the parameters, both times the rate.

    Args:
        lr: Rate an update, or schedule.
        b1: As in `adam_core`.
        b2: As in `adam_core`.
        eps: As in `adam_core`.
        weight_decay: Coupled to the rate, as in torch and optax.
        where: Which parameters decay.
        metrics: See `stages`.

    Source:
        Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2.
    """
    shrink = decay(weight_decay, where=where, coupling="lr")
    return stages(adam=adamw_core(b1, b2, eps), decay=shrink, lr=scale_by_lr(lr), metrics=metrics)
