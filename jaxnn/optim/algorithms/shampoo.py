"""Shampoo: the gradient between inverse roots of its own statistics, block by block, at another optimizer's length."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnn.optim.algorithms.adam import adam_core
from jaxnn.optim.compose import factorizations
from jaxnn.optim.compose.matrices import View, in_stacks, views
from jaxnn.optim.compose.scaling import decay, full, scale_by_lr, times
from jaxnn.optim.compose.seldom import where_due
from jaxnn.optim.compose.select import Predicate, everything
from jaxnn.optim.compose.stable import stable
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import Context, Transformation, apply_part, check
from jaxnn.optim.hyper import POSITIVE, SHARE, Hyperparameters, Hypers, check_number, check_whole
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule

ADAM = adam_core(0.9, 0.999)


class ShampooState(NamedTuple):
    """The momentum; statistics of each block's sides and their inverse roots; the graft's state.

    Sides are [*stacked, down, across, d, d], for each block. A vector has no `left`: its d is 0.
    """

    hyper: Hypers
    mu: Params
    left: Params
    right: Params
    root_left: Params
    root_right: Params
    graft: PyTree


def shampoo_core(
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-12,
    *,
    block: int = 1024,
    every: int = 10,
    exponent: float | None = None,
    graft: optax.GradientTransformation | None = ADAM,
) -> Transformation:
    """Distributed Shampoo's direction, for each block G [m, n] of at most `block` by `block`.

    mu <- b1 mu + (1 - b1) G
    L  <- b2 L + (1 - b2) G G',  R <- b2 R + (1 - b2) G' G;  sums where b2 is 1
    where `every` divides t:  Lr <- (L / (1 - b2^t) + eps)^-p,  Rr likewise, by eigenvalues
    S  <- Lr mu / (1 - b1^t) Rr;  u <- S |D| / |S|, D what `graft` makes of G, norms over a whole matrix
    before the first roots:  u <- D, or without graft mu / (1 - b1^t)

    p is 1/4 for matrices and 1/2 for vectors, which have the right side alone. Eigenvalues below float32's rounding of
    the largest are raised to it. Matrices are cut into equal blocks, padded by zeros; equal blocks of all parameters
    are one stack. Axes that only stack layers are a batch, a convolution's kernel is (everything else, outputs),
    complex leaves are pairs of reals.

    Args:
        b1: Decay rate of the momentum, in [0, 1).
        b2: Decay rate of the statistics, in [0, 1]; at 1 they are sums, as in the first paper.
        eps: Added to the eigenvalues; >= 0.
        block: Longest side of a block: memory and time grow with its square and cube.
        every: Updates between two roots.
        exponent: p; None takes the above.
        graft: Whose length the update takes, matrix by matrix; None keeps Shampoo's own.

    Raises:
        TypeError: If `graft` is no gradient transformation.
        ValueError: If a hyperparameter is out of range.

    Source:
        Gupta et al. 2018, arXiv:1802.09568; blocks, grafting: Anil et al. 2020, arXiv:2002.09018, and Shi et al. 2023,
        arXiv:2309.06497, Algorithm 1; the settings that won AlgoPerf: Kasimbeg et al. 2025, arXiv:2502.15015.
    """
    where = "optim.shampoo"
    hyper = Hyperparameters(where, domains={"b2": SHARE}, b1=b1, b2=b2, eps=eps)
    block = check_whole(where, "block", block)
    every = check_whole(where, "every", every)
    power = None if exponent is None else check_number(where, "exponent", exponent, POSITIVE)
    grafted = None if graft is None else stable(check(where, "graft", graft))

    def init(params: Params) -> ShampooState:
        known, leaves = views(where, params, complex_as_pairs=True), jax.tree.leaves(params)
        blocks = [_blocked(view, block) for view in known]

        def squares(side: int) -> PyTree:
            made = []
            for view, part, p in zip(known, blocks, leaves):
                d = (part.rows, part.cols)[side] if side or view.ndim >= 2 else 0
                made.append(jnp.zeros((*part.lead, d, d), full(p).real.dtype))
            return jax.tree.unflatten(jax.tree.structure(params), made)

        mu = jax.tree.map(lambda p: jnp.zeros_like(full(p)), params)
        own = grafted.init(params) if grafted is not None else ()
        return ShampooState(hyper.init(), mu, squares(0), squares(1), squares(0), squares(1), own)

    def update(
        grads: PyTree, state: ShampooState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, ShampooState]:
        h, hypers = hyper.at(state.hyper)
        known = views(where, grads if params is None else params, complex_as_pairs=True)
        blocks = [_blocked(view, block) for view in known]
        due, ready = jnp.mod(h.count, every) == 0, h.count >= every
        summed = h.b2 == 1
        fresh = jnp.where(summed, 1.0, 1 - h.b2)
        shares = [1 - h.b1**h.count, jnp.where(summed, 1.0, 1 - h.b2**h.count)]

        def one_shape(g: Array, mu: Array, left: Array, right: Array, rl: Array, rr: Array) -> tuple[Array, ...]:
            g = g.astype(mu.dtype)
            mu = times(h.b1, mu) + times(1 - h.b1, g)
            right = times(h.b2, right) + times(fresh, jnp.swapaxes(g, 1, 2) @ g)
            p = power or (0.25 if left.shape[-1] else 0.5)
            if left.shape[-1]:
                left = times(h.b2, left) + times(fresh, g @ jnp.swapaxes(g, 1, 2))

            def roots(_: Any) -> tuple[Array, Array]:
                share = shares[1].astype(right.dtype)
                return inverse_root(left / share, p, h.eps), inverse_root(right / share, p, h.eps)

            if right.size:
                rl, rr = where_due(due, roots, (rl, rr))
            mean = mu / shares[0].astype(mu.dtype)
            u = rl @ mean @ rr if left.shape[-1] else mean @ rr
            return jnp.where(ready, u, mean), mu, left, right, rl, rr

        operands = [
            [_cut(part, view.fold(x)) for view, part, x in zip(known, blocks, jax.tree.leaves(t))]
            for t in (grads, state.mu)
        ]
        operands += [
            [x.reshape(part.batch, *x.shape[-2:]) for part, x in zip(blocks, jax.tree.leaves(t))] for t in state[2:6]
        ]
        made = in_stacks(one_shape, blocks, *operands) or ([],) * 6
        shape = [[_uncut(v, part, x) for v, part, x in zip(known, blocks, xs)] for xs in made[:2]]
        own: Any = ()
        if grafted is not None:
            passed = (grads, state.graft, params, context or Context(), extra)
            lengths, own = apply_part(grafted, *passed)
            targets = [view.fold(full(x)) for view, x in zip(known, jax.tree.leaves(lengths))]
            shape[0] = [jnp.where(ready, x * _ratio(d, x), d) for x, d in zip(shape[0], targets)]
        leaves = [[view.unfold(x) for view, x in zip(known, xs)] for xs in shape]
        leaves += [[x.reshape(*part.lead, *x.shape[1:]) for part, x in zip(blocks, xs)] for xs in made[2:]]
        u, mu, left, right, rl, rr = (jax.tree.unflatten(jax.tree.structure(grads), xs) for xs in leaves)
        return u, ShampooState(hypers, mu, left, right, rl, rr, own)

    parts = {} if grafted is None else {"graft": grafted}
    return Transformation(init, update, name="shampoo", hyper=hyper, parts=parts, wants_context=True)


def inverse_root(stats: Array, power: float, eps: Array) -> Array:
    """(stats + eps)^-power of symmetric [B, d, d]; a side without statistics stays."""
    if not stats.shape[-1]:
        return stats
    values, vectors = factorizations.eigenvectors(stats)
    rounding = jnp.finfo(jnp.float32).eps.astype(stats.dtype) * jnp.max(values, -1, keepdims=True)
    values = jnp.maximum(values, jnp.maximum(rounding, 0)) + eps.astype(stats.dtype)
    scaled = jnp.where(values > 0, values, 1) ** -power * (values > 0)
    return vectors * scaled[:, None, :] @ jnp.swapaxes(vectors, 1, 2)


def _blocked(view: View, block: int) -> View:
    """The view of one block; its lead ends with the numbers of blocks down and across."""
    down, across = (max(math.ceil(d / block), 1) for d in (view.rows, view.cols))
    rows, cols = math.ceil(view.rows / down), math.ceil(view.cols / across)
    return dataclasses.replace(view, lead=(*view.lead, down, across), rows=rows, cols=cols)


def _cut(part: View, x: Array) -> Array:
    """[batch, m, n] as [batch of blocks, rows, cols], padded by zeros."""
    down, across = part.lead[-2:]
    pad = [(0, 0), (0, down * part.rows - x.shape[1]), (0, across * part.cols - x.shape[2])]
    x = jnp.pad(x, pad).reshape(-1, down, part.rows, across, part.cols) if down * across > 1 else x
    return jnp.swapaxes(x, 2, 3).reshape(part.batch, part.rows, part.cols) if down * across > 1 else x


def _uncut(view: View, part: View, x: Array) -> Array:
    """The inverse of `_cut`."""
    down, across = part.lead[-2:]
    if down * across == 1:
        return x
    x = jnp.swapaxes(x.reshape(-1, down, across, part.rows, part.cols), 2, 3)
    return x.reshape(-1, down * part.rows, across * part.cols)[:, : view.rows, : view.cols]


def _ratio(target: Array, x: Array) -> Array:
    """|target| / |x| of each matrix; 0 where x is 0."""
    of, norm = (jnp.sqrt(jnp.sum(jnp.square(y), (1, 2), keepdims=True)) for y in (target, x))
    return (of / jnp.where(norm > 0, norm, 1) * (norm > 0)).astype(x.dtype)


@registered(1e-2, "arXiv:2309.06497")
def shampoo(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    weight_decay: float | Schedule = 0.01,
    *,
    block: int = 1024,
    every: int = 10,
    graft: optax.GradientTransformation | None = ADAM,
    where: Predicate = everything,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """Distributed Shampoo, ready to train with; grafted to Adam, it takes Adam's rates.

    Args:
        lr: Rate an update, or schedule.
        b1: As in `shampoo_core`.
        b2: As in `shampoo_core`.
        weight_decay: Coupled to the rate.
        block: As in `shampoo_core`.
        every: As in `shampoo_core`.
        graft: As in `shampoo_core`.
        where: Which parameters decay.
        metrics: See `stages`.
    """
    core = shampoo_core(b1, b2, block=block, every=every, graft=graft)
    shrink = decay(weight_decay, where=where, coupling="lr")
    return stages(shampoo=core, decay=shrink, lr=scale_by_lr(lr), metrics=metrics)
