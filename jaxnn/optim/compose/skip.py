"""Steps that must not happen: gradients that are not finite, and loss scales that make them so."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import Literal

from jaxnn import tree
from jaxnn.optim.compose.measures import Metrics
from jaxnn.optim.compose.scaling import times
from jaxnn.optim.compose.transformation import ELEMENTWISE, Context, Transformation, apply_part
from jaxnn.optim.compose.wrapping import inner_of, wrap
from jaxnn.optim.hyper import POSITIVE, check_number, check_whole
from jaxnn.typing import Array, PyTree


class SkipState(NamedTuple):
    """State of `skip_nonfinite`: metrics `skip` and `skipped`, and the wrapped optimizer's state."""

    metrics: Metrics
    inner: PyTree


def skip_nonfinite(tx: optax.GradientTransformation) -> Transformation:
    """Leaves parameters and state as they are in a step whose gradients are not finite, and counts it.

    `optim.metrics(state)["skipped"]` is their number so far, and `"skip"` 1 where the last step was one, so that its
    mean over a window of a run's log is their share. The test is whether the gradients' global norm is finite,
    which `clip_by_global_norm` and the metric `norms` are then given. A norm above 1.8e19, whose square float32 does
    not hold, counts as not finite. There is no branch: the choice between new and old state fuses into the update,
    which reads both anyway.

    Args:
        tx: The whole optimizer, clipping included. A gradient that it takes itself, as `sam` does, is not seen from
            around it: write `sam(skip_nonfinite(...))`, which sees the first one in the second.
    """
    inner = inner_of("optim.skip_nonfinite", tx)

    def init(params: PyTree) -> SkipState:
        return SkipState(Metrics(dict.fromkeys(("skip", "skipped"), jnp.zeros((), jnp.float32))), inner.init(params))

    def update(
        updates: PyTree, state: SkipState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, SkipState]:
        good, updates, new = _guarded(inner, updates, state.inner, params, context, extra)
        return updates, SkipState(Metrics(_counted(state, good)), new)

    return wrap("skip_nonfinite", inner, init, update, facts=_elementwise(inner))


class LossScaleState(NamedTuple):
    """State of `loss_scale`.

    Attributes:
        scale: float32 scalar: what the loss is to be multiplied by.
        good: int32 scalar: updates since it last changed.
        metrics: `loss_scale`; and `skip` and `skipped` as of `skip_nonfinite`.
        inner: The wrapped optimizer's.
    """

    scale: Array
    good: Array
    metrics: Metrics
    inner: PyTree


def loss_scale(
    tx: optax.GradientTransformation,
    initial: float = 2.0**15,
    *,
    factor: float = 2.0,
    period: int = 2000,
    smallest: float = 1.0,
    largest: float = 2.0**24,
) -> Transformation:
    """Dynamic loss scaling, for gradients computed in float16.

    The caller differentiates `loss * optim.get(state, "scale")`; this divides the gradients by it, skips a step in
    which they are not finite and divides the scale by `factor`, and multiplies it after `period` good steps. Skipping
    is as in `skip_nonfinite`, which is not needed besides.

    Args:
        tx: The whole optimizer, clipping included: it sees unscaled gradients, in float32.
        initial: First scale; > 0.
        factor: > 1.
        period: Good steps before the scale grows; >= 1.
        smallest: Bound of the scale from below; > 0.
        largest: Bound from above.

    Raises:
        ValueError: If a number is out of range.

    Source:
        Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.
    """
    where = "optim.loss_scale"
    inner = inner_of(where, tx)
    for name, value in (("initial", initial), ("smallest", smallest), ("largest", largest)):
        check_number(where, name, value, POSITIVE)
    check_whole(where, "period", period)
    if not factor > 1 or not smallest <= initial <= largest:
        raise ValueError(
            f"{where}: factor {factor:g}, scale {initial:g} in [{smallest:g}, {largest:g}]. Give a factor above 1, and "
            "an initial scale within its bounds."
        )

    def init(params: PyTree) -> LossScaleState:
        scale = jnp.asarray(initial, jnp.float32)
        none = dict.fromkeys(("skip", "skipped"), jnp.zeros((), jnp.float32))
        return LossScaleState(
            scale, jnp.zeros((), jnp.int32), Metrics({"loss_scale": scale, **none}), inner.init(params)
        )

    def update(
        updates: PyTree, state: LossScaleState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, LossScaleState]:
        # A float16 gradient is widened first: dividing it would flush what scaling has saved.
        wide = jax.tree.map(lambda u: u.astype(np.promote_types(u.dtype, np.float32)), updates)
        unscaled = jax.tree.map(lambda u: times(1 / state.scale, u), wide)
        good, updates, new = _guarded(inner, unscaled, state.inner, params, context, extra)
        run = jnp.where(good, state.good + 1, 0)
        grows = run >= period
        scale = jnp.where(grows, state.scale * np.float32(factor), state.scale)
        scale = jnp.where(good, scale, state.scale / np.float32(factor))
        scale = jnp.clip(scale, np.float32(smallest), np.float32(largest))
        return updates, LossScaleState(
            scale, jnp.where(grows, 0, run), Metrics({"loss_scale": scale, **_counted(state, good)}), new
        )

    return wrap("loss_scale", inner, init, update, facts=_elementwise(inner))


def _elementwise(inner: optax.GradientTransformation) -> Mapping[str, Any]:
    """Whether a choice for the whole step, by a norm over all elements, is elementwise: where what it wraps is."""
    return ELEMENTWISE if isinstance(inner, Transformation) and inner.facts.get("elementwise") else {}


def _counted(state: SkipState | LossScaleState, good: Array) -> dict[str, Array]:
    skip = 1 - good.astype(jnp.float32)
    return {"skip": skip, "skipped": state.metrics.values["skipped"] + skip}


def _guarded(
    inner: optax.GradientTransformation,
    updates: PyTree,
    state: PyTree,
    params: PyTree,
    context: Context | None,
    extra: Mapping[str, Any],
) -> tuple[Array, PyTree, PyTree]:
    """Whether the gradients are finite; and the inner update where they are, else updates of 0 and the state as it was.

    The inner optimizer never sees what is not finite. Its norm is handed on, for clipping and metrics.
    """
    norm = tree.global_norm(updates)
    good = jnp.isfinite(norm)
    clean = jax.tree.map(lambda u: jnp.where(good, u, jnp.zeros_like(u)), updates)

    def run(clean: PyTree, norm: Array, state: PyTree) -> tuple[PyTree, PyTree]:
        known = (tuple(jax.tree.leaves(clean)), norm)
        return apply_part(inner, clean, state, params, (context or Context())._replace(norm=known), extra)

    updates, new = keeping(run, good, state, clean, jnp.where(good, norm, 0))
    return good, jax.tree.map(lambda u: jnp.where(good, u, jnp.zeros_like(u)), updates), new


def keeping(run: Callable[..., tuple[PyTree, PyTree]], good: Array, state: PyTree, *given: Any) -> Any:
    """`run(*given, state)`, whose new state is the old one unless `good`.

    A select after the update would do; but what comes after a moment in the update would then read the moment before
    its select, and XLA would compute it twice and copy the state that it overwrites. So each leaf's select is put where
    the leaf is computed, and all that follows reads the selected one.
    """
    traced, shapes = jax.make_jaxpr(run, return_shape=True)(*given, state)
    jaxpr = traced.jaxpr
    number = len(jax.tree.leaves(shapes[0]))
    old = jax.tree.leaves(state)
    leaves = jax.tree.leaves((*given, state))
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*traced.consts, *leaves), strict=True))
    unchanged = set(values)
    kept: dict[Any, Any] = {}
    for var, before in zip(jaxpr.outvars[number:], old, strict=True):
        if not isinstance(var, Literal) and var not in unchanged:
            kept.setdefault(var, before)

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        found = eqn.primitive.bind(*map(read, eqn.invars), **eqn.primitive.get_bind_params(eqn.params))
        for var, value in zip(eqn.outvars, found if eqn.primitive.multiple_results else [found], strict=True):
            values[var] = jnp.where(good, value, kept[var]) if var in kept else value
    outputs = [read(atom) for atom in jaxpr.outvars]
    late = [
        new if kept.get(None if isinstance(var, Literal) else var) is before else jnp.where(good, new, before)
        for var, new, before in zip(jaxpr.outvars[number:], outputs[number:], old, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(shapes), [*outputs[:number], *late])
