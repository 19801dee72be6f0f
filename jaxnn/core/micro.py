"""A batch in micro-batches: what is computed of each is added up, so that memory is a part's and numbers the whole's.

Micro-batch m of k holds the examples m, m + k, m + 2k, ...: on devices that hold contiguous blocks of the batch each
takes its own rows, nothing is exchanged, and all devices' parts together are the one that one device would take.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxnn.typing import Array, Batch, ModelState, PyTree


def split(batch: Batch, k: int) -> dict[str, Array]:
    """The batch [B, ...] as [k, B / k, ...]."""
    return {name: jnp.swapaxes(x.reshape(x.shape[0] // k, k, *x.shape[1:]), 0, 1) for name, x in batch.items()}


def wide(x: Array) -> Array:
    """`x` in the dtype that it is added up in: float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if jnp.issubdtype(x.dtype, jnp.floating) else x


def add_up(
    fn: Callable[[ModelState, Batch], tuple[PyTree, PyTree, ModelState]],
    like: PyTree,
    model_state: ModelState,
    batch: Batch,
    k: int,
) -> tuple[PyTree, PyTree, ModelState]:
    """`fn(model_state, batch) -> (grads, sums, model_state)` over k micro-batches, one after the other.

    Args:
        fn: What is computed of a micro-batch.
        like: Tree like the gradients.
        model_state: What the first is given; each is given what the one before it gave.
        batch: Arrays [B, ...], B a multiple of k.
        k: Micro-batches; 1 calls `fn` as it is.

    Returns:
        The sums of gradients and of sums, float32 at least, and the last model state.
    """
    if k == 1:
        return fn(model_state, batch)

    def body(carry: tuple[PyTree, ModelState], part: Batch) -> tuple[tuple[PyTree, ModelState], PyTree]:
        held, model_state = carry
        grads, sums, model_state = fn(model_state, part)
        return (jax.tree.map(lambda h, g: h + g.astype(h.dtype), held, grads), model_state), jax.tree.map(wide, sums)

    zeros = jax.tree.map(lambda x: jnp.zeros_like(wide(x)), like)
    (total, model_state), sums = jax.lax.scan(body, (zeros, model_state), split(batch, k))
    grads = jax.tree.map(lambda t, x: t.astype(x.dtype), total, like)
    return grads, jax.tree.map(lambda x: jnp.sum(x, axis=0), sums), model_state
