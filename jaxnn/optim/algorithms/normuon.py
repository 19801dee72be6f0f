"""NorMuon: Muon whose neurons move alike."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.optim.algorithms.muon import MATRICES, check_choices, check_matrices, mean_of, with_adam
from jaxnn.optim.algorithms.orthogonalize import NEWTON_SCHULZ, Orthogonalizer
from jaxnn.optim.compose.matrices import SplitHeads, check_split_heads, in_stacks, views
from jaxnn.optim.compose.scaling import full, times
from jaxnn.optim.compose.select import Predicate, everything
from jaxnn.optim.compose.transformation import Transformation
from jaxnn.optim.hyper import NONNEGATIVE, Hyperparameters, Hypers
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule


class NorMuonState(NamedTuple):
    """The momentum, and each neuron's mean square [*stacked, *heads, outputs], float32 at least."""

    hyper: Hypers
    mu: Params
    nu: Params


def normuon_core(
    momentum: float | Schedule = 0.95,
    b2: float | Schedule = 0.95,
    eps: float | Schedule = 1e-8,
    rms: float | Schedule = 0.2,
    *,
    nesterov: bool = True,
    orthogonalize: Orthogonalizer = NEWTON_SCHULZ,
    split_heads: SplitHeads | None = None,
) -> Transformation:
    """NorMuon's direction, for matrices.

    mu <- momentum mu + (1 - momentum) G;  M as in `muon_core`
    O  <- orthogonalize(M),  O [m, n]
    nu <- b2 nu + (1 - b2) mean of O^2 over each neuron's inputs,  nu [n]
    N  <- O / (sqrt(nu) + eps), each column by its own
    u  <- rms sqrt(m n) N / ||N||

    Args:
        momentum: In [0, 1).
        b2: Decay rate of `nu`, in [0, 1).
        eps: >= 0.
        rms: Root mean square of the update's elements; 0.2 is AdamW's, so that its rates fit.
        nesterov: Look ahead by one update.
        orthogonalize: As in `muon_core`.
        split_heads: As in `muon_core`.

    Raises:
        TypeError: If a choice is not callable.
        ValueError: If a hyperparameter is out of range; at init, naming a leaf that is no matrix or does not split.

    Source:
        Li et al. 2025, arXiv:2510.05491, Algorithm 1.
    """
    where = "optim.normuon"
    hyper = Hyperparameters(where, domains={"rms": NONNEGATIVE}, momentum=momentum, b2=b2, eps=eps, rms=rms)
    split = check_split_heads(where, split_heads)
    check_choices(where, orthogonalize=orthogonalize)

    def init(params: Params) -> NorMuonState:
        known = views(where, params, split)
        check_matrices(where, known)
        mu = jax.tree.map(lambda p: jnp.zeros_like(full(p)), params)
        leaves = [jnp.zeros((*v.lead, v.cols), m.real.dtype) for v, m in zip(known, jax.tree.leaves(mu))]
        return NorMuonState(hyper.init(), mu, jax.tree.unflatten(jax.tree.structure(params), leaves))

    def update(grads: PyTree, state: NorMuonState, params: PyTree = None, **extra: Any) -> tuple[PyTree, NorMuonState]:
        del extra
        h, hypers = hyper.at(state.hyper)
        known = views(where, grads if params is None else params, split)
        mixed = mean_of(h.momentum)
        mu = jax.tree.map(mixed, state.mu, grads)

        def one_shape(tall: bool) -> Any:
            def neurons(g: Array, mu: Array, nu: Array) -> tuple[Array, Array]:
                x = orthogonalize(mixed(mu, g) if nesterov else mu)
                inputs = -1 if tall else -2  # a tall matrix lies transposed
                nu = times(h.b2, nu) + times(1 - h.b2, jnp.mean(jnp.square(jnp.abs(x)), inputs))
                x = x / jnp.expand_dims(jnp.sqrt(nu) + h.eps.astype(nu.dtype), inputs).astype(x.dtype)
                mean = jnp.sqrt(jnp.mean(jnp.square(jnp.abs(x)), (-2, -1), keepdims=True))
                x = times(h.rms, x) / jnp.maximum(mean, jnp.finfo(mean.dtype).tiny).astype(x.dtype)
                return x, nu

            return neurons

        def wide(values: PyTree) -> list[Array]:
            return [view.wide(x) for view, x in zip(known, jax.tree.leaves(values))]

        nus = [x.reshape(v.batch, v.cols) for v, x in zip(known, jax.tree.leaves(state.nu))]
        updates: list[Any] = [None] * len(known)
        nu = list(updates)
        for tall in (False, True):
            mine = [i for i, view in enumerate(known) if (view.rows > view.cols) == tall]
            operands = [[xs[i] for i in mine] for xs in (wide(grads), wide(mu), nus)]
            some = [known[i] for i in mine]
            for found, made in zip((updates, nu), in_stacks(one_shape(tall), some, *operands)):
                for i, x in zip(mine, made):
                    found[i] = x
        structure = jax.tree.structure(grads)
        new = (
            [view.unwide(u) for view, u in zip(known, updates)],
            [x.reshape(*view.lead, view.cols) for view, x in zip(known, nu)],
        )
        updates, nu = (jax.tree.unflatten(structure, leaves) for leaves in new)
        return updates, NorMuonState(hypers, mu, nu)

    return Transformation(init, update, name="normuon", hyper=hyper)


@registered(1e-2, "arXiv:2510.05491")
def normuon(
    lr: float | Schedule,
    momentum: float | Schedule = 0.95,
    b2: float | Schedule = 0.95,
    weight_decay: float | Schedule = 0.01,
    *,
    orthogonalize: Orthogonalizer = NEWTON_SCHULZ,
    split_heads: SplitHeads | None = None,
    matrices: Predicate = MATRICES,
    adam_lr: float | None = None,
    adam_betas: tuple[float, float] = (0.9, 0.95),
    where: Predicate = everything,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """NorMuon for the matrices and AdamW for everything else, ready to train with; settings as in `optim.muon`."""
    core = normuon_core(momentum, b2, orthogonalize=orthogonalize, split_heads=split_heads)
    return with_adam("optim.normuon", core, lr, adam_lr, adam_betas, weight_decay, matrices, where, metrics)
