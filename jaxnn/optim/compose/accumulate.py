"""Gradients added over micro-batches, one update for all of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnn.optim.compose.fits import check_gradients
from jaxnn.optim.compose.measures import Metrics
from jaxnn.optim.compose.scaling import full, times
from jaxnn.optim.compose.skip import keeping
from jaxnn.optim.compose.transformation import Context, Transformation, apply_part
from jaxnn.optim.compose.wrapping import inner_of, wrap
from jaxnn.optim.hyper import check_whole
from jaxnn.typing import Array, PyTree


class AccumulateState(NamedTuple):
    """State of `accumulate`.

    Attributes:
        count: int32 scalar, micro-batches added since the last update.
        weight: float32 scalar, the sum of their weights.
        total: The weighted sum of their gradients, float32 at least.
        metrics: `empty`, the number of updates so far that were none because their weights summed to 0.
        inner: The wrapped optimizer's, which counts updates only.
    """

    count: Array
    weight: Array
    total: PyTree
    metrics: Metrics
    inner: PyTree


class Accumulate(Transformation):
    """What `accumulate` gives: a transformation, and its two halves for who drives micro-steps himself.

    Attributes:
        add: `add(grads, state, weight=1.0) -> state`: one more micro-batch. Touches nothing but the sum: donated, it
            is done in place.
        emit: `emit(grads, state, params=None, *, weight=1.0, **extra) -> (updates, state)`: the last micro-batch, or
            None where all were added, and the update. However many were added; where none was that weighs anything,
            the update is 0 and nothing but `empty` changes.
    """

    add: Any
    emit: Any


def accumulate(tx: optax.GradientTransformation, k: int) -> Accumulate:
    """Updates with the weighted mean gradient of k micro-batches.

    As a plain transformation, k - 1 calls of k give updates of 0 and leave the optimizer alone, in a branch; the k-th
    gives its update. `train.Step(accumulate=k)` needs no sum in the state; this is for other loops, and the two
    programs `tx.add` and `tx.emit` for those that know which micro-batch is the last: then no branch is there to copy
    state around.

    A micro-batch of weight 0 adds nothing, whatever its gradients: a mean over no tokens is NaN. Where all weights are
    0 there is nothing to learn from: parameters, moments and counts stay as they are, nothing decays, and
    `optim.metrics(state)["empty"]` counts it.

    Args:
        tx: The whole optimizer, clipping included: it sees the mean gradient, and of what else is passed (`value`,
            `value_fn`) the last micro-batch's: an objective of all is to be passed for `sam` and `lbfgs`.
        k: Micro-batches an update; >= 1.

    Returns:
        A transformation whose `update` takes `weight=` (the micro-batch's number of tokens or examples; 1 by default).

    Raises:
        ValueError: If `k` is no whole number of at least 1; at trace time, if gradients do not fit the sum, or a weight
            is no scalar.
    """
    where = "optim.accumulate"
    inner = inner_of(where, tx)
    k = check_whole(where, "k", k)

    def init(params: PyTree) -> AccumulateState:
        return AccumulateState(*_nothing(params), Metrics({"empty": jnp.zeros((), jnp.float32)}), inner.init(params))

    def add(grads: PyTree, state: AccumulateState, weight: Any = 1.0) -> AccumulateState:
        check_gradients(where, grads, state.total)
        weight = jax.lax.convert_element_type(jnp.asarray(weight), jnp.float32)
        if weight.ndim:
            raise ValueError(f"{where}: weight has the shape {weight.shape}. Give one number: the sum of the weights.")

        def one(t: Array, g: Array) -> Array:
            more = times(weight, full(g).astype(t.dtype))
            return t + jnp.where(weight == 0, jnp.zeros_like(more), more)

        return state._replace(
            count=state.count + 1, weight=state.weight + weight, total=jax.tree.map(one, state.total, grads)
        )

    def step(state: AccumulateState, some: Array | None, params: PyTree, context: Context | None, extra: Any) -> Any:
        """The inner update, and its state: that of before where not `some`; None promises that there is a weight."""
        weight = state.weight if some is None else jnp.where(some, state.weight, 1)
        share = 1 / weight.astype(float)  # float64 where there is any: float32 would halve those gradients' digits
        mean = jax.tree.map(lambda t: times(share, t), state.total)

        def run(mean: PyTree, inner_state: PyTree) -> tuple[PyTree, PyTree]:
            return apply_part(inner, mean, inner_state, params, context or Context(), extra)

        if some is None:
            return run(mean, state.inner)
        updates, new = keeping(run, some, state.inner, mean)
        return jax.tree.map(lambda u: jnp.where(some, u, jnp.zeros_like(u)), updates), new

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
        some = state.weight > 0
        updates, new = step(state, some, params, context, extra)
        counted = _counted(state, ~some)
        return updates, AccumulateState(*_nothing(state.total), counted, new)

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
        due, some = added.count >= k, added.weight > 0
        shapes, _ = jax.eval_shape(lambda s: step(s, None, params, context, extra), added)

        def yes(s: AccumulateState) -> tuple[PyTree, PyTree]:
            return step(s, None, params, context, extra)

        def no(s: AccumulateState) -> tuple[PyTree, PyTree]:
            return jax.tree.map(lambda u: jnp.zeros(u.shape, u.dtype), shapes), s.inner

        # The sum does not go through the branch, which would copy it.
        updates, new = jax.lax.cond(due & some, yes, no, added)
        none = _nothing(added.total)
        kept = [jax.tree.map(lambda x, z: jnp.where(due, z, x), *pair) for pair in zip(added[:3], none)]
        counted = _counted(added, due & ~some)
        return updates, AccumulateState(kept[0], kept[1], kept[2], counted, new)

    plain = wrap("accumulate", inner, init, update)
    made = Accumulate(init, update, name=plain.name, parts=plain.parts, wants_context=True, facts=plain.facts)
    made.add, made.emit = add, emit
    return made


def _counted(state: AccumulateState, empty: Array) -> Metrics:
    return Metrics({"empty": state.metrics.values["empty"] + empty.astype(jnp.float32)})


def _nothing(like: PyTree) -> tuple[Array, Array, PyTree]:
    """No micro-batch: count, weight and sum."""
    total = jax.tree.map(lambda p: jnp.zeros_like(full(p)), like)
    return jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), total
