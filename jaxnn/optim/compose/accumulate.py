"""Gradients added over micro-batches, one update for all of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnn.optim.compose.fits import check_gradients
from jaxnn.optim.compose.scaling import full, times
from jaxnn.optim.compose.transformation import Context, Transformation, apply_part
from jaxnn.optim.compose.wrapping import inner_of, wrap
from jaxnn.typing import Array, PyTree


class AccumulateState(NamedTuple):
    """State of `accumulate`.

    Attributes:
        count: int32 scalar, micro-batches added since the last update.
        weight: float32 scalar, the sum of their weights.
        total: The weighted sum of their gradients, float32 at least.
        inner: The wrapped optimizer's, which counts updates only.
    """

    count: Array
    weight: Array
    total: PyTree
    inner: PyTree


class Accumulate(Transformation):
    """What `accumulate` gives: a transformation, and its two halves for who drives micro-steps himself.

    Attributes:
        add: `add(grads, state, weight=1.0) -> state`: one more micro-batch. Touches nothing but the sum: donated, it
            is done in place.
        emit: `emit(grads, state, params=None, *, weight=1.0, **extra) -> (updates, state)`: the last micro-batch, or
            None where all were added, and the update. However many were added.
    """

    add: Any
    emit: Any


def accumulate(tx: optax.GradientTransformation, k: int) -> Accumulate:
    """Updates with the weighted mean gradient of k micro-batches.

    As a plain transformation, k - 1 calls of k give updates of 0 and leave the optimizer alone, in a branch; the k-th
    gives its update. `train.Step(accumulate=k)` needs no sum in the state; this is for other loops, and
    the two programs `tx.add` and `tx.emit` for those that know which micro-batch is the last: then no branch is there
    to copy state around.

    Args:
        tx: The whole optimizer, clipping included: it sees the mean gradient.
        k: Micro-batches an update; >= 1.

    Returns:
        A transformation whose `update` takes `weight=` (the micro-batch's number of tokens or examples; 1 by default).

    Raises:
        ValueError: If `k` is no whole number of at least 1; at trace time, if gradients do not fit the sum.
    """
    where = "optim.accumulate"
    inner = inner_of(where, tx)
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"{where}: k is {k!r}. Give a whole number of at least 1.")

    def init(params: PyTree) -> AccumulateState:
        return AccumulateState(*_nothing(params), inner.init(params))

    def add(grads: PyTree, state: AccumulateState, weight: Any = 1.0) -> AccumulateState:
        check_gradients(where, grads, state.total)
        weight = jax.lax.convert_element_type(jnp.asarray(weight), jnp.float32)
        total = jax.tree.map(lambda t, g: t + times(weight, full(g).astype(t.dtype)), state.total, grads)
        return AccumulateState(state.count + 1, state.weight + weight, total, state.inner)

    def emit(
        grads: PyTree,
        state: AccumulateState,
        params: PyTree = None,
        *,
        weight: Any = 1.0,
        context: Context | None = None,
        **extra: Any,
    ) -> tuple[PyTree, AccumulateState]:
        if grads is not None:
            state = add(grads, state, weight)
        share = jnp.where(state.weight > 0, 1 / jnp.where(state.weight > 0, state.weight, 1), 0)
        mean = jax.tree.map(lambda t: times(share, t), state.total)
        updates, new = apply_part(inner, mean, state.inner, params, context or Context(), extra)
        return updates, AccumulateState(*_nothing(state.total), new)

    def update(
        updates: PyTree,
        state: AccumulateState,
        params: PyTree = None,
        *,
        weight: Any = 1.0,
        context: Context | None = None,
        **extra: Any,
    ) -> tuple[PyTree, AccumulateState]:
        added = add(updates, state, weight)
        if k == 1:
            return emit(None, added, params, context=context, **extra)
        due = added.count >= k
        shapes, _ = jax.eval_shape(lambda s: emit(None, s, params, context=context, **extra), added)

        def yes(s: AccumulateState) -> tuple[PyTree, PyTree]:
            updates, new = emit(None, s, params, context=context, **extra)
            return updates, new.inner

        def no(s: AccumulateState) -> tuple[PyTree, PyTree]:
            return jax.tree.map(lambda u: jnp.zeros(u.shape, u.dtype), shapes), s.inner

        # The sum does not go through the branch, which would copy it.
        updates, new = jax.lax.cond(due, yes, no, added)
        none = _nothing(added.total)
        kept = [jax.tree.map(lambda x, z: jnp.where(due, z, x), *pair) for pair in zip(added[:3], none)]
        return updates, AccumulateState(kept[0], kept[1], kept[2], new)

    plain = wrap("accumulate", inner, init, update)
    made = Accumulate(init, update, name=plain.name, parts=plain.parts, wants_context=True, facts=plain.facts)
    made.add, made.emit = add, emit
    return made


def _nothing(like: PyTree) -> tuple[Array, Array, PyTree]:
    """No micro-batch: count, weight and sum."""
    total = jax.tree.map(lambda p: jnp.zeros_like(full(p)), like)
    return jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), total
