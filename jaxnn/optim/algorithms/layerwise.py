"""LAMB and LARS: each layer's step is scaled to the size of its parameters, also where one leaf stacks several."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.optim.algorithms.adam import moments, real_zeros, zeros
from jaxnn.optim.algorithms.sgd import sgd_core
from jaxnn.optim.compose import select
from jaxnn.optim.compose.matrices import layer_norm
from jaxnn.optim.compose.scaling import full, scale_by_lr, times
from jaxnn.optim.compose.select import Predicate, everything
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import Transformation
from jaxnn.optim.hyper import POSITIVE, Hyperparameters, Hypers
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule

MATRICES = ~select.ndim(0, 1)


class LAMBState(NamedTuple):
    """Adam's moments, float32."""

    hyper: Hypers
    mu: Params
    nu: Params


def lamb_core(
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-6,
    weight_decay: float | Schedule = 0.0,
    *,
    where: Predicate = everything,
) -> Transformation:
    """LAMB's direction.

    mu <- b1 mu + (1 - b1) g,  nu <- b2 nu + (1 - b2) |g|^2
    r  <- (mu / (1 - b1^t)) / (sqrt(nu / (1 - b2^t)) + eps) + weight_decay x
    u  <- r ||x|| / ||r||  of each layer; r where either norm is 0

    Args:
        b1: As in `adam_core`.
        b2: As in `adam_core`.
        eps: As in `adam_core`.
        weight_decay: Part of the ratio; >= 0. A stage `decay` beside it would not be, nor do groups multiply it.
        where: Which parameters decay.

    Raises:
        ValueError: If a hyperparameter is out of range; at trace time, if the parameters are not given.

    Source:
        You et al. 2020, arXiv:1904.00962, Algorithm 2, with phi the identity.
    """
    hyper = Hyperparameters("optim.lamb", b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    select.check("optim.lamb: where", where)

    def init(params: Params) -> LAMBState:
        select.check_masks("optim.lamb: where", where, params)
        return LAMBState(hyper.init(), zeros(params), real_zeros(params))

    def update(grads: PyTree, state: LAMBState, params: PyTree = None, **extra: Any) -> tuple[PyTree, LAMBState]:
        del extra
        if params is None:
            raise ValueError("optim.lamb: update needs the parameters: tx.update(grads, state, params).")
        h, hypers = hyper.at(state.hyper)
        mu, nu = moments(grads, state, h.b1, h.b2)
        c1, c2 = 1 - h.b1**h.count, 1 - h.b2**h.count

        def one(leaf: select.Leaf, m: Array, v: Array, p: Array) -> Array:
            r = times(1 / c1, m) / (jnp.sqrt(times(1 / c2, v)) + h.eps.astype(v.dtype))
            if where(leaf):
                r = r + times(h.weight_decay, full(p)).astype(r.dtype)
            return _scaled(r, layer_norm(leaf, p), layer_norm(leaf, r))

        return jax.tree.map(one, select.leaves(params), mu, nu, params), LAMBState(hypers, mu, nu)

    return Transformation(init, update, name="lamb", hyper=hyper)


def _scaled(u: Array, size: Array, length: Array) -> Array:
    """Scales u by size / length, layer by layer; leaves it where either is 0."""
    ratio = jnp.where((size > 0) & (length > 0), size / jnp.where(length > 0, length, 1), 1)
    return ratio.astype(u.dtype) * u


@registered(1e-2, "arXiv:1904.00962")
def lamb(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-6,
    weight_decay: float | Schedule = 0.0,
    *,
    where: Predicate = everything,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """LAMB, ready to train with: `stages(lamb=lamb_core(...), lr=scale_by_lr(lr))`. See `lamb_core`."""
    return stages(lamb=lamb_core(b1, b2, eps, weight_decay, where=where), lr=scale_by_lr(lr), metrics=metrics)


class LARSState(NamedTuple):
    """The momentum, float32 at least; None without."""

    hyper: Hypers
    mu: Params | None


def lars_core(
    momentum: float | Schedule | None = 0.9,
    weight_decay: float | Schedule = 0.0,
    trust: float | Schedule = 1e-3,
    *,
    where: Predicate = MATRICES,
) -> Transformation:
    """LARS's direction: layers at their own rates, then momentum.

    d  <- trust ||x|| / (||g|| + weight_decay ||x||) (g + weight_decay x)  of each layer
    mu <- momentum mu + d,  u <- mu

    1 in the ratio's place where a norm is 0. Other leaves than `where`'s keep their gradients, without decay. The rate
    comes after the momentum here, as in `sgd_core`; the paper's, inside it, is `lars`. Under a constant rate both move
    alike.

    Args:
        momentum: In [0, 1); None keeps no state for it, u <- d.
        weight_decay: >= 0; part of the ratio, as in the paper (optax takes the norm of the sum).
        trust: > 0.
        where: Which leaves: by default all but vectors and scalars.

    Raises:
        ValueError: If a hyperparameter is out of range; at trace time, if the parameters are not given.

    Source:
        You et al. 2017, arXiv:1708.03888, equation 6 and Algorithm 1.
    """
    numbers: dict[str, Any] = {} if momentum is None else {"momentum": momentum}
    domains = {"trust": POSITIVE}
    hyper = Hyperparameters("optim.lars", domains=domains, trust=trust, weight_decay=weight_decay, **numbers)
    select.check("optim.lars: where", where)

    def init(params: Params) -> LARSState:
        select.check_masks("optim.lars: where", where, params)
        mu = None if momentum is None else jax.tree.map(lambda p: jnp.zeros_like(full(p)), params)
        return LARSState(hyper.init(), mu)

    def update(grads: PyTree, state: LARSState, params: PyTree = None, **extra: Any) -> tuple[PyTree, LARSState]:
        del extra
        if params is None:
            raise ValueError("optim.lars: update needs the parameters: tx.update(grads, state, params).")
        h, hypers = hyper.at(state.hyper)

        def one(leaf: select.Leaf, g: Array, p: Array) -> Array:
            g, p = full(g), full(p)
            if not where(leaf):
                return g
            size = layer_norm(leaf, p)
            below = layer_norm(leaf, g) + h.weight_decay * size
            return _scaled(g + times(h.weight_decay, p), h.trust * size, below)

        updates, mu = jax.tree.map(one, select.leaves(params), grads, params), None
        if momentum is not None:
            mu = updates = jax.tree.map(lambda m, u: times(h.momentum, m) + u.astype(m.dtype), state.mu, updates)
        return updates, LARSState(hypers, mu)

    return Transformation(init, update, name="lars", hyper=hyper)


@registered(0.1, "arXiv:1708.03888", make=lambda lr: lars(lr, trust=0.02))
def lars(
    lr: float | Schedule,
    momentum: float | Schedule = 0.9,
    weight_decay: float | Schedule = 0.0,
    trust: float | Schedule = 1e-3,
    *,
    where: Predicate = MATRICES,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """LARS, ready to train with: each layer's rate, the global rate, then momentum.

    mu <- momentum mu + lr d,  x <- x - mu,  d as in `lars_core`

    Args:
        lr: Rate an update, or schedule.
        momentum: Of the scaled steps, in [0, 1).
        weight_decay: As in `lars_core`.
        trust: As in `lars_core`.
        where: As in `lars_core`.
        metrics: See `stages`.

    Source:
        You et al. 2017, arXiv:1708.03888, Algorithm 1.
    """
    scaled = lars_core(None, weight_decay, trust, where=where)
    return stages(lars=scaled, lr=scale_by_lr(lr), momentum=sgd_core(momentum), metrics=metrics)
