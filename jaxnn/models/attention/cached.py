"""Attention on a cache of keys and values, for generation."""

from typing import Any

import jax.numpy as jnp

from jaxnn.models.attention.rules import Rules, allowed, default_scale, distance_bias, dot, span
from jaxnn.typing import Array


def cached_attention(
    q: Array,
    keys: Array,
    values: Array,
    *,
    first: Array | int,
    start: Array,
    window: int | None = None,
    alibi: Array | None = None,
) -> Array:
    """Causal attention of queries that stand in slots `first`, `first + 1`, ... on a cache with S slots.

    Example b's text begins in slot `start[b]`: prompts of different lengths end in one slot, so that all examples are
    written and read at the same one. The cache has its heads before its slots: the products read it where it lies.

    Args:
        q: [B, T, H, D].
        keys: [B, K, S, D], K dividing H; those of the queries' own slots included. Its dtype is that of the products.
        values: [B, K, S, D].
        first: Slot of the first query, a number or an array.
        start: [B], each example's first slot; a query before it gives 0.
        window: Queries read keys less than `window` slots back; None for all.
        alibi: Slopes [H].

    Returns:
        [B, T, H, D] in the dtype of `q`.
    """
    (batch, queries, heads, width), key_heads, slots = q.shape, keys.shape[1], keys.shape[2]
    groups = heads // key_heads
    rules = Rules(True, window, default_scale(width), keys.dtype, True)
    rows, columns = span(first, queries), span(0, slots)
    merged = (q * rules.scale).astype(keys.dtype).transpose(0, 2, 1, 3).reshape(batch, key_heads, -1, width)
    scores = dot(merged, keys, transposed=True).reshape(batch, key_heads, groups, queries, slots)
    if alibi is not None:
        scores = scores + distance_bias(alibi, rows, columns, groups)
    readable: Any = allowed(rules, rows, columns, None, None, columns[None] >= start[:, None])
    scores = jnp.where(readable, scores, -jnp.inf)
    top = jnp.max(scores, axis=-1, keepdims=True)
    e = jnp.exp(scores - jnp.where(top == -jnp.inf, 0, top))
    total = jnp.sum(e, axis=-1, keepdims=True)
    y = dot(e.astype(values.dtype).reshape(batch, key_heads, -1, slots), values)
    y = y.reshape(batch, key_heads, groups, queries, -1) / jnp.where(total == 0, 1, total)
    return y.reshape(batch, heads, queries, -1).transpose(0, 2, 1, 3).astype(q.dtype)
