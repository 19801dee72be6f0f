"""Adafactor: the second moment of a matrix from its rows' and its columns' alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.optim.algorithms.adam import squared
from jaxnn.optim.compose.matrices import View, views
from jaxnn.optim.compose.scaling import decay, full, scale_by_lr, times
from jaxnn.optim.compose.select import Predicate, everything
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import Transformation
from jaxnn.optim.hyper import NONNEGATIVE, POSITIVE, Hyperparameters, Hypers, check_number
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule


class AdafactorState(NamedTuple):
    """Mean squares, float32 at least: of a matrix [m, n], `rows` [*stacked, m] and `cols` [*stacked, n]; else `nu`.

    `mu` is the momentum, or None. What a leaf does not use has size 0.
    """

    hyper: Hypers
    rows: Params
    cols: Params
    nu: Params
    mu: Params | None


def adafactor_core(
    decay_power: float | Schedule = 0.8,
    eps: float | Schedule = 1e-30,
    clip: float | Schedule = 1.0,
    momentum: float | Schedule | None = None,
    *,
    least_rms: float | None = 1e-3,
    min_dim: int = 128,
) -> Transformation:
    """Adafactor's direction.

    b     = 1 - t^-decay_power
    rows <- b rows + (1 - b) mean over columns of (G^2 + eps),  cols likewise
    v     = rows cols' / mean(rows);  of vectors and small matrices nu <- b nu + (1 - b) (G^2 + eps), v = nu
    d     = G / sqrt(v);  d <- d / max(1, rms(d) / clip)
    u    <- max(least_rms, rms(p)) d;  with momentum mu <- momentum mu + (1 - momentum) u, u <- mu

    A state of m + n numbers for a matrix [m, n]. Axes that only stack layers are a batch: rms are of one layer. A
    convolution's kernel is (everything else, outputs).

    Args:
        decay_power: > 0.
        eps: Added to the squares; > 0.
        clip: Bound of the direction's root mean square; > 0.
        momentum: In [0, 1); None keeps no state.
        least_rms: The least scale of a parameter, so that one that is 0 moves; None does not scale by the parameters:
            then rates are absolute ones.
        min_dim: Matrices with a shorter side than this keep all of `nu`, as in optax and T5X.

    Raises:
        ValueError: If a hyperparameter is out of range; at trace time, if it is to scale and there are no parameters.

    Source:
        Shazeer & Stern 2018, arXiv:1804.04235, Algorithms 4 and 5; the momentum as in T5X and optax, after the scale.
    """
    where = "optim.adafactor"
    with_momentum: dict[str, Any] = {} if momentum is None else {"momentum": momentum}
    hyper = Hyperparameters(
        where,
        domains={"clip": POSITIVE, "eps": POSITIVE, "decay_power": POSITIVE},
        decay_power=decay_power,
        eps=eps,
        clip=clip,
        **with_momentum,
    )
    if least_rms is not None:
        check_number(where, "least_rms", least_rms, NONNEGATIVE)

    def factored(view: View) -> bool:
        return view.ndim >= 2 and min(view.rows, view.cols) >= max(min_dim, 1)

    def init(params: Params) -> AdafactorState:
        known, leaves = views(where, params), jax.tree.leaves(params)

        def zeros(shape: Any) -> PyTree:
            made = [jnp.zeros(shape(v), full(p).real.dtype) for v, p in zip(known, leaves)]
            return jax.tree.unflatten(jax.tree.structure(params), made)

        return AdafactorState(
            hyper.init(),
            zeros(lambda v: (*v.lead, v.rows if factored(v) else 0)),
            zeros(lambda v: (*v.lead, v.cols if factored(v) else 0)),
            zeros(lambda v: (*v.lead, 0) if factored(v) else v.shape),
            None if momentum is None else jax.tree.map(lambda p: jnp.zeros_like(full(p)), params),
        )

    def update(
        grads: PyTree, state: AdafactorState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, AdafactorState]:
        del extra
        if params is None and least_rms is not None:
            raise ValueError(
                f"{where}: update needs the parameters, by whose size it scales: tx.update(grads, state, params). Or "
                "write least_rms=None."
            )
        h, hypers = hyper.at(state.hyper)
        fresh = h.count**-h.decay_power

        def mean_of(old: Array, new: Array) -> Array:
            return times(1 - fresh, old) + times(fresh, new)

        def one(view: View, g: Array, p: Array, rows: Array, cols: Array, nu: Array) -> tuple[Array, ...]:
            g = full(g)
            squares = squared(g, nu) + h.eps.astype(nu.dtype)
            if factored(view):
                folded = view.fold(squares)
                new_rows = mean_of(rows.reshape(view.batch, -1), folded.mean(-1))
                new_cols = mean_of(cols.reshape(view.batch, -1), folded.mean(-2))
                mean = new_rows.mean(-1, keepdims=True)
                left = jax.lax.rsqrt(new_rows / jnp.where(mean > 0, mean, 1))
                d = view.fold(g) * (left[:, :, None] * jax.lax.rsqrt(new_cols)[:, None, :]).astype(g.dtype)
                rows, cols = new_rows.reshape(rows.shape), new_cols.reshape(cols.shape)
            else:
                nu = mean_of(nu, squares)
                d = view.fold(g * jax.lax.rsqrt(nu).astype(g.dtype))
            factor = 1 / jnp.maximum(rms(d) / h.clip.astype(nu.dtype), 1)
            if least_rms is not None:
                factor = factor * jnp.maximum(rms(view.fold(full(p))), least_rms)
            return view.unfold(d * factor.astype(d.dtype)), rows, cols, nu

        known, structure = views(where, grads if params is None else params), jax.tree.structure(grads)
        trees = (grads, grads if params is None else params, state.rows, state.cols, state.nu)
        made = [one(view, *xs) for view, *xs in zip(known, *map(jax.tree.leaves, trees))]
        updates, rows, cols, nu = (jax.tree.unflatten(structure, [x[i] for x in made]) for i in range(4))
        mu = None
        if momentum is not None:
            mu = updates = jax.tree.map(
                lambda m, u: times(h.momentum, m) + times(1 - h.momentum, u.astype(m.dtype)), state.mu, updates
            )
        return updates, AdafactorState(hypers, rows, cols, nu, mu)

    return Transformation(init, update, name="adafactor", hyper=hyper)


def rms(x: Array) -> Array:
    """Root mean square of each of [batch, m, n], as [batch, 1, 1]; 0 of nothing."""
    squares = jnp.sum(jnp.square(jnp.abs(x)), (1, 2), keepdims=True)
    return jnp.sqrt(squares / max(x.shape[1] * x.shape[2], 1))


@registered(1e-1, "arXiv:1804.04235")
def adafactor(
    lr: float | Schedule,
    decay_power: float | Schedule = 0.8,
    momentum: float | Schedule | None = None,
    weight_decay: float | Schedule = 0.0,
    *,
    least_rms: float | None = 1e-3,
    min_dim: int = 128,
    where: Predicate = everything,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """Adafactor, ready to train with; rates are relative to the parameters' size, and 1e-2 / sqrt(t) is the paper's.

    Args:
        lr: Rate an update, or schedule: `optim.inverse_sqrt(...)`.
        decay_power: As in `adafactor_core`.
        momentum: As in `adafactor_core`.
        weight_decay: Coupled to the rate.
        least_rms: As in `adafactor_core`.
        min_dim: As in `adafactor_core`.
        where: Which parameters decay.
        metrics: See `stages`.
    """
    core = adafactor_core(decay_power, momentum=momentum, least_rms=least_rms, min_dim=min_dim)
    shrink = decay(weight_decay, where=where, coupling="lr")
    return stages(adafactor=core, decay=shrink, lr=scale_by_lr(lr), metrics=metrics)
