"""Attention on a cache of keys and values, for generation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnn.models.attention.rules import Rules, allowed, default_scale, distance_bias, dot, span
from jaxnn.typing import Array


class Cache(NamedTuple):
    """Keys and values of the slots that have been read, of every layer.

    Example b's text begins in slot `start[b]`, so that prompts of different lengths end in one slot and all examples
    are written and read at the same one. Heads come before slots: the products read the cache where it lies.

    Attributes:
        keys: [B, K, S, D] a layer, in a tuple, or stacked [L, B, K, S, D].
        values: Like `keys`.
        start: [B] int32.
        filled: How many slots are in use: an array, or 0 for a cache that nothing was written to.
    """

    keys: Any
    values: Any
    start: Array
    filled: Array | int

    @property
    def empty(self) -> bool:
        """Whether it is known while tracing that nothing was written to it."""
        return isinstance(self.filled, int) and self.filled == 0

    def positions(self, count: int) -> Array:
        """Positions [B, count] in their texts of the next `count` slots; 0 before a text begins."""
        return jnp.maximum(span(self.filled, count)[None] - self.start[:, None], 0)

    def written(self, keys: Any, values: Any) -> "Cache":
        """The cache with the next slots' keys and values in it: [B, T, K, D] a layer, or stacked, like its own.

        Raises:
            ValueError: If they are more than the free slots. Where `filled` is traced they are NaN instead, and so is
                what is read of them: no slot is overwritten unseen.
        """
        layered = isinstance(self.keys, tuple)
        count, slots = (keys[0] if layered else keys).shape[-3], (self.keys[0] if layered else self.keys).shape[-2]
        known = not isinstance(self.filled, jax.core.Tracer)
        if count > slots or (known and int(self.filled) + count > slots):
            used = f"{int(self.filled)} of which are filled" if known else "some of which may be filled"
            raise ValueError(
                f"attention.Cache: {count} more positions for {slots} slots, {used}. Tried: a free slot for each. "
                f"Make the cache with as many slots as the whole text has positions."
            )

        def write(old: Array, new: Array) -> Array:
            zero = jnp.zeros((), jnp.int32)
            at = (zero,) * (old.ndim - 2) + (jnp.asarray(self.filled, jnp.int32), zero)
            new = jnp.swapaxes(new, -2, -3).astype(old.dtype)
            if not known:
                new = jnp.where(self.filled + count > slots, jnp.nan, new)
            return lax.dynamic_update_slice(old, new, at)

        if layered:
            now_keys, now_values = tuple(map(write, self.keys, keys)), tuple(map(write, self.values, values))
        else:
            now_keys, now_values = write(self.keys, keys), write(self.values, values)
        return Cache(now_keys, now_values, self.start, self.filled + count)


def cached_attention(
    q: Array,
    k: Array,
    v: Array,
    keys: Array,
    values: Array,
    *,
    filled: Array | int,
    start: Array,
    window: int | None = None,
    alibi: Array | None = None,
) -> Array:
    """Causal attention of queries in slots `filled`, `filled + 1`, ... on the cached slots before and on their own.

    Args:
        q: [B, T, H, D].
        k: [B, T, K, D], K dividing H: keys of the queries' own slots, which the cache need not have.
        v: Like `k`.
        keys: [B, K, S, D], the cache. Its dtype is that of the products.
        values: Like `keys`.
        filled: How many of the S slots are read.
        start: [B], each example's first slot; a query before it gives 0.
        window: Queries read keys less than `window` slots back; None for all.
        alibi: Slopes [H].

    Returns:
        [B, T, H, D] in the dtype of `q`.
    """
    (batch, queries, heads, width), key_heads, slots = q.shape, keys.shape[1], keys.shape[2]
    groups = heads // key_heads
    rules = Rules(True, window, default_scale(width), keys.dtype, True)
    own = (x.astype(keys.dtype).transpose(0, 2, 1, 3) for x in (k, v))
    k, v = own
    merged = (q * rules.scale).astype(keys.dtype).transpose(0, 2, 1, 3).reshape(batch, key_heads, -1, width)

    def scores(k: Array, first: Array | int) -> Array:
        s = dot(merged, k, transposed=True).reshape(batch, key_heads, groups, queries, k.shape[2])
        rows, columns = span(filled, queries), span(first, k.shape[2])
        if alibi is not None:
            s = s + distance_bias(alibi, rows, columns, groups)
        mask = columns[None] >= start[:, None]
        if k is keys:
            mask = mask & (columns < filled)[None]
        return jnp.where(jnp.asarray(allowed(rules, rows, columns, None, None, mask)), s, -jnp.inf)

    s = jnp.concatenate([scores(keys, 0), scores(k, filled)], axis=-1)
    top = jnp.max(s, axis=-1, keepdims=True)
    e = jnp.exp(s - jnp.where(top == -jnp.inf, 0, top))
    total = jnp.sum(e, axis=-1, keepdims=True)
    e = e.astype(keys.dtype).reshape(batch, key_heads, -1, slots + queries)
    y = dot(e[..., :slots], values) + dot(e[..., slots:], v)
    y = y.reshape(batch, key_heads, groups, queries, -1) / jnp.where(total == 0, 1, total)
    return y.reshape(batch, heads, queries, -1).transpose(0, 2, 1, 3).astype(q.dtype)
