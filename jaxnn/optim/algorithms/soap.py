"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.optim.compose import factorizations
from jaxnn.optim.compose.matrices import View, in_stacks, views
from jaxnn.optim.compose.scaling import decay, full, scale_by_lr, times
from jaxnn.optim.compose.seldom import where_due
from jaxnn.optim.compose.select import Predicate, everything
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import Transformation
from jaxnn.optim.hyper import Hyperparameters, Hypers, check_whole
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule


class SOAPState(NamedTuple):
    """The moments, and for each side of each matrix its statistics and their eigenbasis [*stacked, d, d].

    `nu` lies in the eigenbasis, `mu` does not. A side that has no basis has arrays [*stacked, 0, 0].
    """

    hyper: Hypers
    mu: Params
    nu: Params
    left: Params
    right: Params
    q_left: Params
    q_right: Params


def soap_core(
    b1: float | Schedule = 0.95,
    b2: float | Schedule = 0.95,
    eps: float | Schedule = 1e-8,
    *,
    every: int = 10,
    max_dim: int = 4096,
) -> Transformation:
    """SOAP's direction.

    The first update is 0: it makes the bases from the first gradient. Then, at update t + 1, for a matrix G [m, n]:

    mu <- b1 mu + (1 - b1) G
    nu <- b2 nu + (1 - b2) (Ql' G Qr)^2
    u  <- Ql [ (Ql' mu Qr / (1 - b1^t)) / (sqrt(nu / (1 - b2^t)) + eps) ] Qr'
    L  <- b2 L + (1 - b2) G G',  R <- b2 R + (1 - b2) G' G
    where `every` divides t: Ql <- QR(L Ql), Qr <- QR(R Qr), columns in falling order of diag(Q' L Q), nu with them

    A side longer than `max_dim` has no basis (Q = 1). What has none at all (vectors, complex leaves, matrices with two
    such sides) is Adam's, from the first update. Axes that only stack layers are a batch, a convolution's kernel is
    (everything else, outputs).

    Args:
        b1: Decay rate of `mu`, in [0, 1).
        b2: Decay rate of `nu` and of the statistics, in [0, 1).
        eps: Added outside the root; >= 0.
        every: Updates between two bases; 1 is nearest to Shampoo. It costs a QR of each side.
        max_dim: Longest side that has a basis, >= 0: memory and time grow with its square and cube.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Vyas et al. 2024, arXiv:2409.11321, Algorithm 3, and its authors' code where it differs (momentum outside the
        basis, no update at the first step).
    """
    where = "optim.soap"
    hyper = Hyperparameters(where, b1=b1, b2=b2, eps=eps)
    every = check_whole(where, "every", every)
    max_dim = check_whole(where, "max_dim", max_dim, 0)

    def sides(view: View, dtype: Any) -> tuple[bool, bool]:
        whole = view.ndim >= 2 and not jnp.issubdtype(dtype, jnp.complexfloating)
        return whole and 0 < view.rows <= max_dim, whole and 0 < view.cols <= max_dim

    def init(params: Params) -> SOAPState:
        known, leaves = views(where, params), jax.tree.leaves(params)

        def squares(side: int) -> PyTree:
            made = []
            for view, p in zip(known, leaves):
                d = (view.rows, view.cols)[side] if sides(view, p.dtype)[side] else 0
                made.append(jnp.zeros((*view.lead, d, d), full(p).real.dtype))
            return jax.tree.unflatten(jax.tree.structure(params), made)

        zeros = jax.tree.map(lambda p: jnp.zeros_like(full(p)), params)
        nu = jax.tree.map(lambda p: jnp.zeros_like(full(p).real), params)
        return SOAPState(hyper.init(), zeros, nu, squares(0), squares(1), squares(0), squares(1))

    def update(grads: PyTree, state: SOAPState, params: PyTree = None, **extra: Any) -> tuple[PyTree, SOAPState]:
        del extra
        h, hypers = hyper.at(state.hyper)
        known = views(where, grads if params is None else params)
        leaves, structure = jax.tree.leaves(grads), jax.tree.structure(grads)
        based = [any(sides(view, g.dtype)) for view, g in zip(known, leaves)]

        def one_shape(
            g: Array, mu: Array, nu: Array, left: Array, right: Array, ql: Array, qr: Array
        ) -> tuple[Array, ...]:
            has_basis = bool(ql.shape[-1] or qr.shape[-1])
            g = g.astype(mu.dtype)
            t = h.count - 1 if has_basis else h.count
            first = t == 0

            new_mu = times(h.b1, mu) + times(1 - h.b1, g)
            squares = jnp.square(jnp.abs(turned(g, ql, qr)))
            new_nu = times(h.b2, nu) + times(1 - h.b2, squares)
            c1, c2 = 1 - h.b1 ** jnp.maximum(t, 1), 1 - h.b2 ** jnp.maximum(t, 1)
            root = times(c1 / jnp.sqrt(c2), jnp.sqrt(new_nu)) + (c1 * h.eps).astype(nu.dtype)
            u = turned(turned(new_mu, ql, qr) / root.astype(mu.dtype), ql, qr, back=True)
            if not has_basis:
                return u, new_mu, new_nu, left, right, ql, qr

            u, new_mu, new_nu = (jnp.where(first, jnp.zeros_like(x), x) for x in (u, new_mu, new_nu))
            left = mean_of(left, h.b2, g @ jnp.swapaxes(g, 1, 2))
            right = mean_of(right, h.b2, jnp.swapaxes(g, 1, 2) @ g)

            def begin(_: Any) -> tuple[Array, Array]:
                return eigenbasis(left), eigenbasis(right)

            def go_on(old: Any) -> tuple[Array, Array, Array]:
                nu, ql, qr = old
                nu, ql = next_basis(left, ql, nu, 1)
                nu, qr = next_basis(right, qr, nu, 2)
                return nu, ql, qr

            ql, qr = where_due(first, begin, (ql, qr))
            new_nu, ql, qr = where_due(~first & (jnp.mod(t, every) == 0), go_on, (new_nu, ql, qr))
            return u, new_mu, new_nu, left, right, ql, qr

        moments = [[v.fold(x) for v, x in zip(known, jax.tree.leaves(t))] for t in (grads, state.mu, state.nu)]
        squares = [[x.reshape(v.batch, *x.shape[-2:]) for v, x in zip(known, jax.tree.leaves(t))] for t in state[3:]]
        made = in_stacks(one_shape, known, *moments, *squares, by=based)
        made = made or ([],) * 7
        folded = [[v.unfold(x) for v, x in zip(known, xs)] for xs in made[:3]]
        bases = [[x.reshape(*v.lead, *x.shape[-2:]) for v, x in zip(known, xs)] for xs in made[3:]]
        u, *rest = (jax.tree.unflatten(structure, xs) for xs in (*folded, *bases))
        return u, SOAPState(hypers, *rest)

    return Transformation(init, update, name="soap", hyper=hyper)


def turned(x: Array, ql: Array, qr: Array, *, back: bool = False) -> Array:
    """Ql' X Qr of stacks, or Ql X Qr' back; a side without basis stays."""
    turn = (lambda q: q) if back else (lambda q: jnp.swapaxes(q, -2, -1))
    if ql.shape[-1]:
        x = turn(ql) @ x
    return x @ jnp.swapaxes(turn(qr), -2, -1) if qr.shape[-1] else x


def mean_of(stats: Array, b: Array, new: Array) -> Array:
    """The next exponential mean; a side without statistics stays."""
    return times(b, stats) + times(1 - b, new) if stats.shape[-1] else stats


def eigenbasis(stats: Array) -> Array:
    """Eigenvectors as columns, of the largest eigenvalue first, of symmetric [B, d, d].

    One gradient leaves the longer side's statistics without full rank. Any basis of their null space would do, and the
    library's would be left to rounding: another layout of the model, or another device, another run. So there the basis
    is that of a ramp, projected: it depends on the null space alone.
    """
    d = stats.shape[-1]
    if not d:
        return stats
    values, vectors = factorizations.eigenvectors(stats)
    null = values <= 16 * jnp.finfo(stats.dtype).eps * values[:, -1:]
    held = vectors * null[:, None, :].astype(vectors.dtype)
    onto = held @ jnp.swapaxes(held, 1, 2)
    chosen = factorizations.eigenvectors(onto * jnp.linspace(1, 0.5, d, dtype=stats.dtype) @ onto)[1]
    rank = d - jnp.sum(null, -1, keepdims=True)
    at = jnp.arange(d)
    at = jnp.where(at < rank, at, d + at - rank)  # the first `rank` of the ones, then the first of the others
    both = jnp.concatenate([vectors[:, :, ::-1], chosen[:, :, ::-1]], 2)
    return jnp.take_along_axis(both, at[:, None, :], 2)


def next_basis(stats: Array, q: Array, nu: Array, axis: int) -> tuple[Array, Array]:
    """One step of power iteration with QR, and `nu` in the new order of the axis."""
    if not stats.shape[-1]:
        return nu, q
    product = stats @ q
    order = jnp.argsort(-jnp.sum(q * product, -2), -1)
    nu = jnp.take_along_axis(nu, order[:, :, None] if axis == 1 else order[:, None, :], axis)
    return nu, factorizations.orthonormal(jnp.take_along_axis(product, order[:, None, :], 2))


@registered(1e-2, "arXiv:2409.11321")
def soap(
    lr: float | Schedule,
    b1: float | Schedule = 0.95,
    b2: float | Schedule = 0.95,
    eps: float | Schedule = 1e-8,
    weight_decay: float | Schedule = 0.01,
    *,
    every: int = 10,
    max_dim: int = 4096,
    where: Predicate = everything,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """SOAP, ready to train with: `stages(soap=soap_core(...), decay=..., lr=...)`; 3e-3 is usual.

    Args:
        lr: Rate an update, or schedule.
        b1: As in `soap_core`.
        b2: As in `soap_core`.
        eps: As in `soap_core`.
        weight_decay: Coupled to the rate.
        every: As in `soap_core`.
        max_dim: As in `soap_core`.
        where: Which parameters decay.
        metrics: See `stages`.
    """
    core = soap_core(b1, b2, eps, every=every, max_dim=max_dim)
    shrink = decay(weight_decay, where=where, coupling="lr")
    return stages(soap=core, decay=shrink, lr=scale_by_lr(lr), metrics=metrics)
