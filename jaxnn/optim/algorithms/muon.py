"""Muon: the momentum of each matrix, made orthogonal."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.optim.algorithms.adam import adamw_core
from jaxnn.optim.algorithms.orthogonalize import NEWTON_SCHULZ, RMS_MATCHED, Orthogonalizer, Scale
from jaxnn.optim.compose.groups import group, groups
from jaxnn.optim.compose.matrices import SplitHeads, View, check_split_heads, in_wide_stacks, views
from jaxnn.optim.compose.scaling import decay, full, scale_by_lr, times
from jaxnn.optim.compose.select import Predicate, everything, role
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import Transformation
from jaxnn.optim.hyper import Hyperparameters, Hypers
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule

MATRICES = role("matrix")


class MuonState(NamedTuple):
    """The momentum, float32 at least."""

    hyper: Hypers
    mu: Params


def muon_core(
    momentum: float | Schedule = 0.95,
    *,
    nesterov: bool = True,
    orthogonalize: Orthogonalizer = NEWTON_SCHULZ,
    scale: Scale = RMS_MATCHED,
    split_heads: SplitHeads | None = None,
) -> Transformation:
    """Muon's direction, for matrices.

    mu <- momentum mu + (1 - momentum) G
    M  <- mu, or with Nesterov's (1 - momentum) G + momentum mu
    u  <- scale(m, n) orthogonalize(M),  M [m, n]

    Matrices of one shape are one stack, whatever leaf they are in: layers apart, scanned layers, heads. So are
    convolutions' kernels, as (everything else, outputs). It has no form for vectors: give those to Adam by `groups`, as
    `optim.muon` does. Complex matrices take conjugate transposes.

    Args:
        momentum: In [0, 1).
        nesterov: Look ahead by one update.
        orthogonalize: `optim.newton_schulz(...)`, `optim.polar_express(...)`, or a function of a stack [B, m, n].
        scale: (rows, cols) -> factor: `optim.rms_matched(0.2)`, `optim.spectral`, or a function.
        split_heads: Predicate -> heads, for attention projections whose heads are matrices of their own:
            `{optim.path("qkv/kernel"): 36, optim.path("attention_out/kernel"): optim.Heads(12, "in")}`.

    Raises:
        TypeError: If a choice is not callable.
        ValueError: If a hyperparameter is out of range; at init, naming a leaf that is no matrix or does not split.

    Source:
        Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; scale: Liu et al. 2025, arXiv:2502.16982.
    """
    where = "optim.muon"
    hyper = Hyperparameters(where, momentum=momentum)
    split = check_split_heads(where, split_heads)
    check_choices(where, orthogonalize=orthogonalize, scale=scale)

    @functools.cache
    def factor(rows: int, cols: int) -> float:
        with jax.ensure_compile_time_eval():  # it may compute in jnp
            return float(scale(rows, cols))

    def init(params: Params) -> MuonState:
        check_matrices(where, views(where, params, split))
        return MuonState(hyper.init(), jax.tree.map(lambda p: jnp.zeros_like(full(p)), params))

    def update(grads: PyTree, state: MuonState, params: PyTree = None, **extra: Any) -> tuple[PyTree, MuonState]:
        del extra
        h, hypers = hyper.at(state.hyper)
        known = views(where, grads if params is None else params, split)

        # What depends on the shape alone multiplies the stack once, not every leaf.
        whole = all(factor(view.rows, view.cols) == factor(view.cols, view.rows) for view in known)

        mixed = mean_of(h.momentum)

        def one_shape(mu: Array, *g: Array) -> Array:
            u = orthogonalize(mixed(mu, *g) if nesterov else mu)
            return factor(*u.shape[-2:]) * u if whole else u

        gs = jax.tree.leaves(grads)
        # New momenta leaf by leaf, and then the stack of them: a stack of the old ones would be read after the new ones
        # took their place, so that each was copied first.
        mu = list(map(mixed, jax.tree.leaves(state.mu), gs))
        updates = in_wide_stacks(one_shape, known, mu, *([gs] if nesterov else []))
        if not whole:
            updates = [factor(view.rows, view.cols) * u for view, u in zip(known, updates)]
        structure = jax.tree.structure(grads)
        return jax.tree.unflatten(structure, updates), MuonState(hypers, jax.tree.unflatten(structure, mu))

    return Transformation(init, update, name="muon", hyper=hyper)


def mean_of(momentum: Array) -> Callable[[Array, Array], Array]:
    """`(m, g) -> momentum m + (1 - momentum) g`, in m's dtype."""
    rest = 1 - momentum

    def mixed(m: Array, g: Array) -> Array:
        return jax.lax.add(times(momentum, m), times(rest, g if g.dtype == m.dtype else g.astype(m.dtype)))

    return mixed


def check_matrices(where: str, known: list[View]) -> None:
    """Refuses leaves that are no matrices.

    Raises:
        ValueError: Naming the first.
    """
    for view in known:
        if view.ndim < 2:
            core = where.rpartition(".")[2]
            raise ValueError(
                f"{where}: leaf {view.path!r} {view.shape} is no matrix: it has {view.ndim} axes that do not "
                f'only stack layers. Write optim.groups({core}=(optim.role("matrix"), optim.{core}_core()), '
                f"adam=(optim.otherwise, optim.adamw_core())), or {where}(lr)."
            )


def check_choices(where: str, **choices: Any) -> None:
    """Refuses choices that are not callable.

    Raises:
        TypeError: Naming the first.
    """
    for name, choice in choices.items():
        if not callable(choice):
            raise TypeError(
                f"{where}: {name} is {choice!r:.60}. Give a function, such as "
                f"{'optim.polar_express()' if name == 'orthogonalize' else 'optim.rms_matched(0.2)'}."
            )


def with_adam(
    where: str,
    core: Transformation,
    lr: float | Schedule,
    adam_lr: float | None,
    betas: tuple[float, float],
    weight_decay: float | Schedule,
    matrices: Predicate,
    decay_where: Predicate,
    metrics: tuple[str, ...],
) -> Transformation:
    """A core for some parameters and AdamW for the others, in one `stages` with one rate.

    Raises:
        ValueError: If `adam_lr` has no rate to be a multiple of.
    """
    ratio = 1.0
    if adam_lr is not None:
        peak = getattr(lr, "peak", None) if callable(lr) else lr
        if not peak:
            raise ValueError(
                f"{where}: adam_lr={adam_lr!r} follows lr's schedule by a constant factor, and this lr has "
                f"{'no `peak`' if peak is None else 'the peak 0'}. Use one of optim that has (optim.cosine, ...)."
            )
        ratio = adam_lr / float(peak)
    parts = groups(
        **{core.name: group(matrices, core, may_be_empty=True)},
        adam=group(~matrices, adamw_core(*betas), lr=ratio, may_be_empty=True),
    )
    shrink = decay(weight_decay, where=decay_where, coupling="lr")
    return stages(precondition=parts, decay=shrink, lr=scale_by_lr(lr), metrics=metrics)


@registered(1e-2, "arXiv:2502.16982")
def muon(
    lr: float | Schedule,
    momentum: float | Schedule = 0.95,
    weight_decay: float | Schedule = 0.01,
    *,
    nesterov: bool = True,
    orthogonalize: Orthogonalizer = NEWTON_SCHULZ,
    scale: Scale = RMS_MATCHED,
    split_heads: SplitHeads | None = None,
    matrices: Predicate = MATRICES,
    adam_lr: float | None = None,
    adam_betas: tuple[float, float] = (0.9, 0.95),
    where: Predicate = everything,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """Muon for the matrices and AdamW for everything else (embeddings, heads, vectors, convolutions), ready to train.

    Args:
        lr: Rate an update, or schedule. With `rms_matched`, AdamW's rates fit; with `spectral`, 0.02 is usual.
        momentum: As in `muon_core`.
        weight_decay: Coupled to the rate.
        nesterov: As in `muon_core`.
        orthogonalize: As in `muon_core`.
        scale: As in `muon_core`.
        split_heads: As in `muon_core`.
        matrices: Which parameters are Muon's: those with the role "matrix".
        adam_lr: Rate of the others at the peak of `lr`'s schedule, which they follow; None takes `lr`.
        adam_betas: Of the others' AdamW.
        where: Which parameters decay.
        metrics: See `stages`.

    Raises:
        ValueError: If `adam_lr` is given and `lr` is a schedule without `peak`.

    Source:
        Jordan et al. 2024; Liu et al. 2025, arXiv:2502.16982.
    """
    core = muon_core(momentum, nesterov=nesterov, orthogonalize=orthogonalize, scale=scale, split_heads=split_heads)
    return with_adam("optim.muon", core, lr, adam_lr, adam_betas, weight_decay, matrices, where, metrics)
