"""Hyperball: matrices stay on the sphere of their first norm, and every update goes the same way along it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.optim.algorithms.adam import adam_core
from jaxnn.optim.compose import select
from jaxnn.optim.compose.scaling import full, scale_by_lr
from jaxnn.optim.compose.select import ndim
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import Context, Transformation
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree


class HyperballState(NamedTuple):
    """The radius of each matrix: its first Frobenius norm, float32 at least [stacked axes]; 0 for other leaves."""

    radius: PyTree


@registered(
    1e-2, "arXiv:2606.16899", make=lambda lr: stages(adam=adam_core(), lr=scale_by_lr(lr), ball=hyperball(ndim(2)))
)
def hyperball(where: select.Predicate | None = None) -> Transformation:
    """A stage of `stages` after the rate: the direction is normalised, and the result put back on the sphere.

    x <- R n(x - lr R n(u)),  R = ||x_0||_F, n(y) = y / ||y||_F

    Takes the place of weight decay. Each of a stack of layers has its own sphere. One that begins at 0 (an output
    projection, in some models) has radius 0 and stays there: leave it out by `where`, or begin elsewhere.

    Args:
        where: Which parameters; by default `role("matrix")`. The others are stepped as they are.

    Raises:
        ValueError: At trace time, outside `stages` or without a rate in it.

    Source:
        Wen et al. 2026, arXiv:2606.16899.
    """
    chosen = select.role("matrix") if where is None else select.check("optim.hyperball: where", where)
    tiny = jnp.finfo(jnp.float32).tiny

    def norm(leaf: select.Leaf, x: Array) -> Array:
        """Over the logical axes, kept."""
        axes = tuple(range(leaf.role.stacked, x.ndim))
        return jnp.sqrt(jnp.sum(jnp.square(jnp.abs(full(x))), axis=axes, keepdims=True))

    def init(params: Params) -> HyperballState:
        select.check_masks("optim.hyperball: where", chosen, params)

        def one(leaf: select.Leaf, p: Array) -> Array:
            if not chosen(leaf):
                return jnp.zeros((), jnp.float32)
            return norm(leaf, p).reshape(p.shape[: leaf.role.stacked])

        return HyperballState(jax.tree.map(one, select.leaves(params), params))

    def update(
        updates: PyTree, state: HyperballState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, HyperballState]:
        del extra
        if params is None or context is None or context.lr is None:
            raise ValueError(
                "optim.hyperball: needs the parameters and a rate beside it. Put it and scale_by_lr into one "
                "optim.stages."
            )
        multipliers = context.lr_multipliers
        if multipliers is None:
            multipliers = jax.tree.map(lambda _: jnp.ones((), jnp.float32), params)

        def one(leaf: select.Leaf, u: Array, p: Array, radius: Array, multiplier: Array) -> Array:
            if not chosen(leaf):
                return u
            size = radius.reshape((*p.shape[: leaf.role.stacked], *(1,) * leaf.ndim))
            # u is already minus the rate times the direction
            unit = u * (1 / jnp.maximum(norm(leaf, u), tiny)).astype(u.dtype)
            ahead = full(p) + (context.lr * multiplier * size).astype(u.dtype) * unit
            there = ahead * (size / jnp.maximum(norm(leaf, ahead), tiny)).astype(ahead.dtype)
            return there - full(p)

        moved = jax.tree.map(one, select.leaves(params), updates, params, state.radius, multipliers)
        return moved, state

    return Transformation(init, update, name="hyperball", wants_context=True, facts={"after_lr": True})
