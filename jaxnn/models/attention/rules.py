"""Which key a query may read, and what is added to its score: the same for every form of attention.

Shapes: B examples, T queries, S keys, K heads of keys, G queries' heads a key's head, D head width.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxnn.models.products import narrow_dot
from jaxnn.typing import Array


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is known before tracing: hashable, an argument of custom derivatives.

    Attributes:
        causal: Whether query t reads keys up to t only.
        window: Whether it reads keys less than `window` away only.
        scale: Factor of the products.
        dtype: Of the products' operands.
        empty: Whether there may be a query that reads nothing; it gives 0.
    """

    causal: bool
    window: int | None
    scale: float
    dtype: Any
    empty: bool


class Given(NamedTuple):
    """Arrays that restrict and shift scores and have no derivative; None where there is no such restriction.

    Attributes:
        segment: [B, T] documents of the queries.
        key_segment: [B, S] documents of the keys.
        mask: [B, S], 0 for keys that nobody may read.
        slopes: [H] of ALiBi.
    """

    segment: Array | None
    key_segment: Array | None
    mask: Array | None
    slopes: Array | None


def allowed(
    rules: Rules, rows: Array, columns: Array, segment: Array | None, key_segment: Array | None, mask: Array | None
) -> Array | None:
    """Which of the queries `rows` [T] may read which of the keys `columns` [S]: bool [1 or B, 1, 1, T, S], or None."""
    parts = []
    distance = rows[:, None] - columns[None, :]
    if rules.causal:
        parts.append((distance >= 0)[None, None, None])
    if rules.window is not None:
        near = distance < rules.window
        parts.append((near if rules.causal else near & (distance > -rules.window))[None, None, None])
    if segment is not None and key_segment is not None:
        parts.append((segment[:, :, None] == key_segment[:, None, :])[:, None, None])
    if mask is not None:
        parts.append((mask != 0)[:, None, None, None, :])
    return None if not parts else _all(parts)


def _all(parts: list[Array]) -> Array:
    both = parts[0]
    for part in parts[1:]:
        both = both & part
    return both


def span(first: Array | int, count: int) -> Array:
    """`first`, `first + 1`, ...: int32 [count]."""
    return first + lax.iota(jnp.int32, count)


def distance_bias(slopes: Array, rows: Array, columns: Array, groups: int) -> Array:
    """ALiBi's `-slope * |t - s|` as [1, K, G, T, S]."""
    away = jnp.abs(rows[:, None] - columns[None, :]).astype(jnp.float32)
    return -lax.stop_gradient(slopes).astype(jnp.float32).reshape(1, -1, groups, 1, 1) * away


def relative_bias(relative: Array, row: Array | int, column: Array | int, rows: int, columns: int) -> Array:
    """`relative` [H, 2 R + 1] as the bias [H, rows, columns] of queries from `row` on and keys from `column` on.

    Entry (t, s) is `relative[:, clip(s - t, -R, R) + R]`. Diagonals are laid out by reshaping one line: the derivative
    of that is a sum, where a gather's would be a scatter.
    """
    heads, reach = relative.shape[0], relative.shape[1] // 2
    offsets = column - row + lax.iota(jnp.int32, rows + columns) - (rows - 1)
    line = jnp.take(relative, jnp.clip(offsets, -reach, reach) + reach, axis=1)
    # Read on in lines one shorter than the period: each begins one place further back.
    lines = jnp.broadcast_to(line[:, None], (heads, rows, rows + columns)).reshape(heads, -1)
    lines = lines[:, : rows * (rows + columns - 1)].reshape(heads, rows, rows + columns - 1)
    return lines[:, :, rows - 1 :]


def by_group(bias: Array, heads: int, key_heads: int) -> Array:
    """A bias [1 or B, 1 or H, T, S] as [1 or B, 1 or K, 1 or G, T, S]."""
    if bias.shape[1] == 1:
        return bias[:, None]
    return bias.reshape(bias.shape[0], key_heads, heads // key_heads, *bias.shape[2:])


def reduced_like(x: Array, shape: tuple[int, ...]) -> Array:
    """`x`, summed over the axes that `shape` has as 1."""
    return jnp.sum(x, axis=[i for i, n in enumerate(shape) if n == 1 and x.shape[i] != 1], keepdims=True)


def default_scale(width: int) -> float:
    """1 / sqrt(D)."""
    return 1 / math.sqrt(width)


def dot(a: Array, b: Array, transposed: bool = False) -> Array:
    """`a` [B, K, M, N] times `b` [B, K, N, O], or [B, K, O, N] if `transposed`, summed in float32 at least.

    On XLA:CPU batched bfloat16 products in which `a` would be the transposed one are not implemented (they fail when
    run), so callers lay `a` out with the summed axis last.
    """
    dimensions = (((3,), (3 if transposed else 2,)), ((0, 1), (0, 1)))
    return narrow_dot(a, b, dimensions) if a.dtype.itemsize < 4 else lax.dot_general(a, b, dimensions)
