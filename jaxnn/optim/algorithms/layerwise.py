"""LAMB and LARS: each layer's step is scaled to the size of its parameters, also where one leaf stacks several."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnn.optim.algorithms.adam import adam_core
from jaxnn.optim.compose import select
from jaxnn.optim.compose.matrices import layer_norm
from jaxnn.optim.compose.scaling import decay, full, scale_by_lr, stateless, times
from jaxnn.optim.compose.select import Predicate, everything
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import Transformation
from jaxnn.optim.hyper import POSITIVE, Hyperparameters, Hypers
from jaxnn.typing import Array, PyTree, Schedule

MATRICES = ~select.ndim(0, 1)


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
    """LAMB, ready to train with: Adam's direction plus decay, times ||x|| / ||u|| leaf by leaf (1 where either is 0).

    Args:
        lr: Rate an update, or schedule.
        b1: As in `adam_core`.
        b2: As in `adam_core`.
        eps: As in `adam_core`.
        weight_decay: Added before the ratio is taken.
        where: Which parameters decay.
        metrics: See `stages`.

    Source:
        You et al. 2020, arXiv:1904.00962, Algorithm 2, with phi the identity.
    """
    return stages(
        adam=adam_core(b1, b2, eps),
        decay=decay(weight_decay, where=where, coupling="lr"),
        trust=stateless(trust_ratio, "trust_ratio"),
        lr=scale_by_lr(lr),
        metrics=metrics,
    )


def trust_ratio(updates: PyTree, params: PyTree) -> PyTree:
    """Scales each layer of u by ||x|| / ||u||; by 1 where either norm is 0.

    Raises:
        ValueError: If the parameters are not given.
    """
    if params is None:
        raise ValueError("optim.lamb: update needs the parameters: tx.update(grads, state, params).")

    def one(leaf: select.Leaf, u: Array, p: Array) -> Array:
        size, length = layer_norm(leaf, p), layer_norm(leaf, u)
        ratio = jnp.where((size > 0) & (length > 0), size / jnp.where(length > 0, length, 1), 1)
        return ratio.astype(u.dtype) * u

    return jax.tree.map(one, select.leaves(params), updates, params)


class LayerRateState(NamedTuple):
    """The coefficient and the decay."""

    hyper: Hypers


def layer_rate(
    trust: float | Schedule = 1e-3, weight_decay: float | Schedule = 0.0, *, where: Predicate = MATRICES
) -> Transformation:
    """LARS's rate of a layer: u <- trust ||x|| / (||g|| + weight_decay ||x||) (g + weight_decay x).

    1 in the ratio's place where a norm is 0. Other leaves than `where`'s keep their gradients, without decay.

    Args:
        trust: > 0.
        weight_decay: >= 0; part of the ratio, as in the paper (optax takes the norm of the sum).
        where: Which leaves: by default all but vectors and scalars.

    Raises:
        ValueError: If a hyperparameter is out of range; at trace time, if the parameters are not given.

    Source:
        You et al. 2017, arXiv:1708.03888, equation 6.
    """
    hyper = Hyperparameters("optim.lars", domains={"trust": POSITIVE}, trust=trust, weight_decay=weight_decay)
    select.check("optim.lars: where", where)

    def update(
        grads: PyTree, state: LayerRateState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, LayerRateState]:
        del extra
        if params is None:
            raise ValueError("optim.lars: update needs the parameters: tx.update(grads, state, params).")
        h, hypers = hyper.at(state.hyper)

        def one(leaf: select.Leaf, g: Array, p: Array) -> Array:
            g, p = full(g), full(p)
            if not where(leaf):
                return g
            size, steep = layer_norm(leaf, p), layer_norm(leaf, g)
            below = steep + h.weight_decay * size
            ratio = jnp.where((size > 0) & (below > 0), h.trust * size / jnp.where(below > 0, below, 1), 1)
            return ratio.astype(g.dtype) * (g + times(h.weight_decay, p))

        return jax.tree.map(one, select.leaves(params), grads, params), LayerRateState(hypers)

    return Transformation(lambda params: LayerRateState(hyper.init()), update, name="lars", hyper=hyper)


def lars(
    lr: float | Schedule,
    momentum: float = 0.9,
    weight_decay: float | Schedule = 0.0,
    trust: float | Schedule = 1e-3,
    *,
    where: Predicate = MATRICES,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """LARS, ready to train with: each layer's rate, the global rate, then momentum.

    Args:
        lr: Rate an update, or schedule.
        momentum: Of the scaled steps.
        weight_decay: As in `layer_rate`.
        trust: As in `layer_rate`.
        where: As in `layer_rate`.
        metrics: See `stages`.

    Source:
        You et al. 2017, arXiv:1708.03888, Algorithm 1.
    """
    scaled = layer_rate(trust, weight_decay, where=where)
    return stages(lars=scaled, lr=scale_by_lr(lr), momentum=optax.trace(momentum), metrics=metrics)
