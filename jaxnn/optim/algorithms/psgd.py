"""PSGD-Kron: a preconditioner that is fitted rather than averaged, one triangular factor a side."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.optim.compose import factorizations, layers, select
from jaxnn.optim.compose.matrices import View, in_stacks, views
from jaxnn.optim.compose.scaling import decay, full, scale_by_lr, times
from jaxnn.optim.compose.seldom import where_due
from jaxnn.optim.compose.select import Predicate, everything
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import Transformation
from jaxnn.optim.hyper import POSITIVE, Domain, Hyperparameters, Hypers, check_number, check_whole
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule


class PSGDState(NamedTuple):
    """The momentum and the factors: upper triangular [*stacked, d, d], or diagonal [*stacked, d]; float32 at least.

    `waited` counts updates since the factors' last, `fits` those of the factors. A vector has no `left`: size 0.
    """

    hyper: Hypers
    mu: Params
    left: Params
    right: Params
    waited: Array
    fits: Array


def annealed(step: Array) -> Array:
    """How often the factors are updated: at each of 500 updates, then ever less, to 3 in 100 from 4,000 on."""
    return jnp.clip(jnp.exp(-0.001 * (jnp.asarray(step, jnp.float32) - 500.0)), 0.03, 1.0)


Noise = Callable[[Array, Any, tuple[int, ...]], Array]


def gaussian(count: Array, numbers: Any, shape: tuple[int, ...]) -> Array:
    """Standard normal float32 of the update's number and each layer's: the same in every run, every layout of a model
    and every member of a population."""
    key = jax.random.fold_in(jax.random.key(0), count)
    return jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(key, n), shape[1:], jnp.float32))(numbers)


def psgd_kron_core(
    b1: float | Schedule = 0.9,
    fit_lr: float | Schedule = 0.1,
    fit_share: float | Schedule = annealed,
    *,
    initial: float = 1.0,
    max_dim: int = 8192,
    balance_every: int = 100,
    noise: Noise = gaussian,
) -> Transformation:
    """PSGD's direction with Kronecker factors, P = (Ql' Ql) x (Qr' Qr), for a matrix G [m, n].

    mu <- b1 mu + (1 - b1) G,  M = mu / (1 - b1^t)
    u  <- Ql' Ql M Qr' Qr, scaled to a root mean square of 1.1 at most
    at a share of the updates, before u, with V ~ N(0, 1) [m, n] and M damped by sqrt(eps32) mean|M| V:
    A = Ql M Qr',  B = Ql^-T V Qr^-1
    Ql <- Ql - fit_lr triu(A A' - B B') Ql / |A A' + B B'|,  Qr likewise with A' A, B' B; |.| a bound of the 2-norm

    Vectors have one diagonal factor; so has a side of 1 or longer than `max_dim`. Complex leaves are pairs of reals.
    Axes that only stack layers are a batch, a convolution's kernel is (everything else, outputs). The noise of a layer
    goes by its name and number, which are those of a scan in a loop too.

    Args:
        b1: Decay rate of the momentum, in [0, 1).
        fit_lr: Rate of the factors; > 0.
        fit_share: Share of the updates at which the factors are updated, in (0, 1].
        initial: P's first scale; > 0.
        max_dim: Longest side that has a triangular factor; >= 0.
        balance_every: Updates of the factors after which both are given the same largest element; it keeps P.
        noise: (update's number, uint32 [B] of the layers, (B, m, n)) -> V, float32.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Li 2015, arXiv:1512.04202, in the form of kron-torch 0.3.3, which balances at random instead.
    """
    where = "optim.psgd_kron"
    domains = {"fit_lr": POSITIVE, "fit_share": Domain(low=0, high=1, low_open=True)}
    hyper = Hyperparameters(where, domains=domains, b1=b1, fit_lr=fit_lr, fit_share=fit_share)
    start = check_number(where, "initial", initial, POSITIVE)
    balance_every = check_whole(where, "balance_every", balance_every)
    max_dim = check_whole(where, "max_dim", max_dim, 0)

    def factor(view: View, side: int, dtype: Any) -> Array:
        d = (view.rows, view.cols)[side]
        if view.ndim < 2:
            return jnp.full((*view.lead, d if side else 0), start, dtype)
        if d < 2 or d > max_dim:
            return jnp.full((*view.lead, d), start**0.5, dtype)
        return jnp.broadcast_to(start**0.5 * jnp.eye(d, dtype=dtype), (*view.lead, d, d))

    def init(params: Params) -> PSGDState:
        known, structure = views(where, params, complex_as_pairs=True), jax.tree.structure(params)
        dtypes = [full(p).real.dtype for p in jax.tree.leaves(params)]
        mu = jax.tree.map(lambda p: jnp.zeros_like(full(p)), params)
        left, right = (
            jax.tree.unflatten(structure, [factor(v, side, t) for v, t in zip(known, dtypes)]) for side in (0, 1)
        )
        return PSGDState(hyper.init(), mu, left, right, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(grads: PyTree, state: PSGDState, params: PyTree = None, **extra: Any) -> tuple[PyTree, PSGDState]:
        del extra
        h, hypers = hyper.at(state.hyper)
        like = grads if params is None else params
        known = views(where, like, complex_as_pairs=True)
        drawn = [x.reshape(-1) for x in layers.numbers(jax.tree.leaves(select.leaves(like)))]
        due = (state.waited + 1).astype(jnp.float32) >= 1 / h.fit_share
        fits = state.fits + due.astype(jnp.int32)
        balance = due & (jnp.mod(fits, balance_every) == 0)

        def one_shape(numbers: Any, g: Array, mu: Array, ql: Array, qr: Array) -> tuple[Array, ...]:
            mu = times(h.b1, mu) + times(1 - h.b1, g.astype(mu.dtype))
            mean = mu / (1 - h.b1**h.count).astype(mu.dtype)
            if not mean.size:
                return mean, mu, ql, qr

            def fitted(factors: tuple[Array, Array]) -> tuple[Array, Array]:
                ql, qr = (jnp.where(balance, x, q) for x, q in zip(balanced(*factors), factors))
                return fit(ql, qr, mean, noise(hypers.count, numbers, mean.shape).astype(mean.dtype), h.fit_lr)

            ql, qr = where_due(due, fitted, (ql, qr))
            u = apply(ql, apply(ql, mean, 0), 0, transpose=True)
            u = apply(qr, apply(qr, u, 1), 1, transpose=True)
            size = jnp.sqrt(jnp.mean(jnp.square(u), (1, 2), keepdims=True))
            return u * jnp.minimum(1.0, 1.1 / (size + 1e-12)), mu, ql, qr

        moments = [[v.fold(x) for v, x in zip(known, jax.tree.leaves(t))] for t in (grads, state.mu)]
        factors = [
            [x.reshape(v.batch, *x.shape[len(v.lead) :]) for v, x in zip(known, jax.tree.leaves(t))]
            for t in (state.left, state.right)
        ]
        made = in_stacks(one_shape, known, drawn, *moments, *factors) or ([],) * 4
        leaves = [[v.unfold(x) for v, x in zip(known, xs)] for xs in made[:2]]
        leaves += [[x.reshape(*v.lead, *x.shape[1:]) for v, x in zip(known, xs)] for xs in made[2:]]
        u, mu, left, right = (jax.tree.unflatten(jax.tree.structure(grads), xs) for xs in leaves)
        waited = jnp.where(due, 0, state.waited + 1)
        return u, PSGDState(hypers, mu, left, right, waited, fits)

    return Transformation(init, update, name="psgd_kron", hyper=hyper, facts={"draws": True})


def apply(q: Array, x: Array, side: int, *, transpose: bool = False) -> Array:
    """Q X (side 0) or X Q' (side 1) of stacks [B, m, n]; with Q' in Q's place if transposed. No factor: X."""
    if not q.size:
        return x
    if q.ndim == 2:
        return x * (q[:, :, None] if side == 0 else q[:, None, :])
    q = jnp.swapaxes(q, 1, 2) if transpose else q
    return q @ x if side == 0 else x @ jnp.swapaxes(q, 1, 2)


def solve(q: Array, x: Array, side: int) -> Array:
    """Q^-T X (side 0) or X Q^-1 (side 1)."""
    if not q.size:
        return x
    if q.ndim == 2:
        return x / (q[:, :, None] if side == 0 else q[:, None, :])
    return factorizations.triangular_solve(q, x, left_side=side == 0, transpose_a=side == 0)


def fit(ql: Array, qr: Array, g: Array, v: Array, rate: Array) -> tuple[Array, Array]:
    """One step of both factors towards P with E[P g g' P] = E[v v']."""
    damping = jnp.finfo(jnp.float32).eps ** 0.5 * jnp.mean(jnp.abs(g), (1, 2), keepdims=True)
    g = g + damping.astype(g.dtype) * v
    a = apply(qr, apply(ql, g, 0), 1)
    b = solve(qr, solve(ql, v, 0), 1)
    return stepped(ql, a, b, 0, rate), stepped(qr, a, b, 1, rate)


def stepped(q: Array, a: Array, b: Array, side: int, rate: Array) -> Array:
    """One factor after its step."""
    if not q.size:
        return q
    tiny = jnp.finfo(q.dtype).tiny
    if q.ndim == 2:
        aa, bb = jnp.sum(a * a, 2 - side), jnp.sum(b * b, 2 - side)
        norm = jnp.max(aa + bb, 1, keepdims=True)
        return q - times(rate, aa - bb) * (q / jnp.maximum(norm, tiny))
    a, b = (a, b) if side == 0 else (jnp.swapaxes(a, 1, 2), jnp.swapaxes(b, 1, 2))
    aa, bb = a @ jnp.swapaxes(a, 1, 2), b @ jnp.swapaxes(b, 1, 2)
    move = jnp.triu(times(rate, aa - bb)) / jnp.maximum(norm_bound(aa + bb), tiny)
    return q - move @ q


def norm_bound(x: Array) -> Array:
    """A lower bound of the 2-norm of symmetric [B, d, d], as [B, 1, 1]: from its longest column."""
    largest = jnp.max(jnp.abs(x), (1, 2), keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    longest = jnp.argmax(jnp.sum(x * x, 1), 1)
    column = jnp.take_along_axis(x, longest[:, None, None], 2)
    row = jnp.swapaxes(column, 1, 2) @ x
    length = jnp.sqrt(jnp.sum(row * row, (1, 2), keepdims=True))
    row = row / jnp.where(length > 0, length, 1)
    made = x @ jnp.swapaxes(row, 1, 2)
    return jnp.sqrt(jnp.sum(made * made, (1, 2), keepdims=True)) * largest


def balanced(ql: Array, qr: Array) -> tuple[Array, Array]:
    """Both factors with the same largest element, which changes nothing of P."""
    if not ql.size or not qr.size:
        return ql, qr
    sizes = [jnp.max(jnp.abs(q.reshape(q.shape[0], -1)), 1) for q in (ql, qr)]
    mean = jnp.sqrt(sizes[0] * sizes[1])
    ql, qr = (q * (mean / s).reshape(-1, *(1,) * (q.ndim - 1)) for q, s in zip((ql, qr), sizes))
    return ql, qr


@registered(1e-2, "arXiv:1512.04202")
def psgd_kron(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    weight_decay: float | Schedule = 0.0,
    *,
    fit_lr: float | Schedule = 0.1,
    fit_share: float | Schedule = annealed,
    max_dim: int = 8192,
    noise: Noise = gaussian,
    where: Predicate = everything,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """PSGD-Kron, ready to train with; a third of Adam's rate is usual.

    Args:
        lr: Rate an update, or schedule.
        b1: As in `psgd_kron_core`.
        weight_decay: Coupled to the rate.
        fit_lr: As in `psgd_kron_core`.
        fit_share: As in `psgd_kron_core`.
        max_dim: As in `psgd_kron_core`.
        noise: As in `psgd_kron_core`.
        where: Which parameters decay.
        metrics: See `stages`.
    """
    core = psgd_kron_core(b1, fit_lr, fit_share, max_dim=max_dim, noise=noise)
    shrink = decay(weight_decay, where=where, coupling="lr")
    return stages(psgd=core, decay=shrink, lr=scale_by_lr(lr), metrics=metrics)
