"""Attention whose memory grows with T + S, not with T times S, on any backend.

Tiles of the scores are computed one after another, forward and again backward, in one scan over those (queries, keys)
tiles that have something readable. The softmax is kept as a running maximum and sum.

Source:
    Rabe and Staats 2021, arXiv:2112.05682; Dao et al. 2022, arXiv:2205.14135 (the backward pass).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn.models.attention.rules import (
    Given,
    Rules,
    allowed,
    by_group,
    distance_bias,
    dot,
    reduced_like,
    relative_bias,
    span,
)
from jaxnn.typing import Array, HostArray

TILE = 256  # queries and keys a tile, at most


def _tile(length: int) -> int:
    return min(TILE, length)


def tiles(queries: int, keys: int, causal: bool, window: int | None) -> tuple[HostArray, HostArray]:
    """The tiles (i, j) of queries and keys in which some query may read some key, by position: two int32 arrays."""
    rows, columns = _tile(queries), _tile(keys)
    i, j = np.meshgrid(np.arange(-(-queries // rows)), np.arange(-(-keys // columns)), indexing="ij")
    farthest = (i + 1) * rows - 1 - j * columns  # the last query minus the first key
    nearest = i * rows - ((j + 1) * columns - 1)  # the first query minus the last key
    keep = np.ones(i.shape, bool)
    if causal:
        keep &= farthest >= 0
    if window is not None:
        keep &= nearest < window
        keep &= causal | (farthest > -window)
    return i[keep].astype(np.int32), j[keep].astype(np.int32)


def _split(x: Array, axis: int, size: int) -> Array:
    """`x` cut into tiles of `size` along `axis`, padded with zeros; the tiles first."""
    count = -(-x.shape[axis] // size)
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, count * size - x.shape[axis])
    x = jnp.pad(x, pad)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :]), axis, 0)


def _joined(x: Array, axis: int, length: int) -> Array:
    """Undoes `_split`."""
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return lax.slice_in_dim(x, 0, length, axis=axis)


class _Tiled:
    """The operands in tiles, and the scores of a tile."""

    def __init__(
        self, rules: Rules, q: Array, k: Array, v: Array, bias: Array | None, relative: Array | None, given: Given
    ):
        """`q` [B, T, H, D], `k` and `v` [B, S, K, D], whole."""
        self.rules = rules
        self.batch, self.queries, self.heads, self.width = q.shape
        self.keys, self.key_heads = k.shape[1], k.shape[2]
        self.groups = self.heads // self.key_heads
        self.rows, self.columns = _tile(self.queries), _tile(self.keys)
        self.q = self.by_rows((q * rules.scale).astype(rules.dtype))
        self.k, self.v = (
            _split(x.astype(rules.dtype).transpose(0, 2, 1, 3), 2, self.columns) for x in (k, v)
        )  # [j, B, K, columns, D]
        self.segment = None if given.segment is None else _split(given.segment, 1, self.rows)
        self.key_segment = None if given.key_segment is None else _split(given.key_segment, 1, self.columns)
        self.mask = None if given.mask is None else _split(given.mask != 0, 1, self.columns)
        self.slopes = given.slopes
        self.relative = relative
        self.bias = None
        if bias is not None:
            rest = (-self.queries % self.rows, -self.keys % self.columns)
            wide = by_group(bias, self.heads, self.key_heads)
            self.bias = jnp.pad(wide, ((0, 0),) * 3 + ((0, rest[0]), (0, rest[1])))
        self.pairs: Any = tiles(self.queries, self.keys, rules.causal, rules.window)

    def by_rows(self, x: Array) -> Array:
        """[B, T, H, D] as tiles [i, B, K, G, rows, D]."""
        x = x.transpose(0, 2, 1, 3).reshape(self.batch, self.key_heads, self.groups, self.queries, -1)
        return _split(x, 3, self.rows)

    def whole_rows(self, x: Array) -> Array:
        """Undoes `by_rows`."""
        return _joined(x, 3, self.queries).reshape(self.batch, self.heads, self.queries, -1).transpose(0, 2, 1, 3)

    def merged(self, x: Array) -> Array:
        """[B, K, G, rows, ...] as [B, K, G rows, ...]."""
        return x.reshape(*x.shape[:2], -1, x.shape[-1])

    def scores(self, i: Array, j: Array) -> Array:
        """Of tile (i, j): [B, K, G, rows, columns], -inf where it may not be read."""
        s = dot(self.merged(self.q[i]), self.k[j], transposed=True)
        s = s.reshape(self.batch, self.key_heads, self.groups, self.rows, self.columns)
        rows, columns = span(i * self.rows, self.rows), span(j * self.columns, self.columns)
        if self.bias is not None:
            s = s + lax.dynamic_slice(self.bias, *self.bias_window(i, j))
        if self.relative is not None:
            s = s + self.relative_tile(self.relative, i, j)
        if self.slopes is not None:
            s = s + distance_bias(self.slopes, rows, columns, self.groups)
        segment = None if self.segment is None else self.segment[i]
        key_segment = None if self.key_segment is None else self.key_segment[j]
        readable = allowed(self.rules, rows, columns, segment, key_segment, None if self.mask is None else self.mask[j])
        if self.keys % self.columns:
            there = (columns < self.keys)[None, None, None, None]
            readable = there if readable is None else readable & there
        return s if readable is None else jnp.where(readable, s, -jnp.inf)

    def relative_tile(self, relative: Array, i: Array, j: Array) -> Array:
        """What `relative` adds to tile (i, j): [1, K, G, rows, columns]."""
        tile = relative_bias(relative, i * self.rows, j * self.columns, self.rows, self.columns)
        return by_group(tile[None], self.heads, self.key_heads)

    def bias_window(self, i: Array, j: Array) -> tuple[tuple[Any, ...], tuple[int, ...]]:
        """Where tile (i, j) starts in the bias, and its size."""
        assert self.bias is not None
        zero = jnp.zeros((), i.dtype)
        return (zero, zero, zero, i * self.rows, j * self.columns), (*self.bias.shape[:3], self.rows, self.columns)


def _forward(
    rules: Rules, q: Array, k: Array, v: Array, bias: Array | None, relative: Array | None, given: Given
) -> tuple[Array, tuple[Any, ...]]:
    t = _Tiled(rules, q, k, v, bias, relative, given)
    wide = jnp.promote_types(rules.dtype, jnp.float32)

    def visit(carry: tuple[Array, Array, Array], ij: tuple[Array, Array]) -> tuple[Any, None]:
        (tops, totals, sums), (i, j) = carry, ij
        s = t.scores(i, j)
        top = jnp.maximum(tops[i], jnp.max(s, axis=-1, keepdims=True))
        shift = jnp.where(top == -jnp.inf, 0, top)  # nothing readable so far
        e, keep = jnp.exp(s - shift), jnp.exp(tops[i] - shift)
        y = dot(t.merged(e.astype(rules.dtype)), t.v[j]).reshape(sums.shape[1:])
        total = totals[i] * keep + jnp.sum(e, axis=-1, keepdims=True)
        return (tops.at[i].set(top), totals.at[i].set(total), sums.at[i].set(sums[i] * keep + y)), None

    column = (*t.q.shape[:-1], 1)
    start = (jnp.full(column, -jnp.inf, wide), jnp.zeros(column, wide), jnp.zeros((*column[:-1], v.shape[-1]), wide))
    (tops, totals, sums), _ = lax.scan(visit, start, t.pairs)
    empty = totals == 0
    out = t.whole_rows(sums / jnp.where(empty, 1, totals))
    return out, (q, k, v, bias, relative, given, out, jnp.where(empty, 0, tops + jnp.log(jnp.where(empty, 1, totals))))


def _backward(rules: Rules, saved: tuple[Any, ...], g: Array) -> tuple[Any, ...]:
    """With weights p = exp(s - lse): dv = p^T g, ds = p (g v^T - <g, out>), dq = ds k, dk = ds^T q."""
    q, k, v, bias, relative, given, out, lse = saved
    t = _Tiled(rules, q, k, v, bias, relative, given)
    delta = t.by_rows(jnp.sum(g * out, axis=-1, keepdims=True))
    grads = t.by_rows(g.astype(rules.dtype))

    def visit(carry: tuple[Any, ...], ij: tuple[Array, Array]) -> tuple[Any, None]:
        (dq, dk, dv, dbias, drelative), (i, j) = carry, ij
        p = jnp.exp(t.scores(i, j) - lse[i])
        ds = p * (dot(t.merged(grads[i]), t.v[j], transposed=True).reshape(p.shape) - delta[i])
        if dbias is not None:
            begin, shape = t.bias_window(i, j)
            part = lax.dynamic_slice(dbias, begin, shape) + reduced_like(ds, shape)
            dbias = lax.dynamic_update_slice(dbias, part, begin)
        if relative is not None:
            pull = jax.vjp(lambda table: t.relative_tile(table, i, j), relative.astype(ds.dtype))[1]
            drelative = drelative + pull(jnp.sum(ds, axis=0, keepdims=True))[0]
        ds, p = (t.merged(x.astype(rules.dtype)) for x in (ds, p))
        # Keys' gradients as columns [B, K, D, columns]: their left operands then have the summed axis last.
        q_columns, g_columns = (jnp.swapaxes(t.merged(x[i]), 2, 3) for x in (t.q, grads))
        dq = dq.at[i].add(dot(ds, t.k[j]).reshape(dq.shape[1:]))
        return (dq, dk.at[j].add(dot(q_columns, ds)), dv.at[j].add(dot(g_columns, p)), dbias, drelative), None

    wide = jnp.promote_types(rules.dtype, jnp.float32)
    dbias = None if t.bias is None else jnp.zeros(t.bias.shape, wide)
    by_column = [jnp.zeros((*x.shape[:3], x.shape[4], x.shape[3]), wide) for x in (t.k, t.v)]
    drelative = None if relative is None else jnp.zeros(relative.shape, wide)
    start = (jnp.zeros(t.q.shape, wide), *by_column, dbias, drelative)
    (dq, dk, dv, dbias, drelative), _ = lax.scan(visit, start, t.pairs)
    dq = t.whole_rows(dq) * rules.scale
    dk, dv = (_joined(x, 3, t.keys).transpose(0, 3, 1, 2) for x in (dk, dv))
    if bias is not None and dbias is not None:
        dbias = dbias[..., : t.queries, : t.keys].reshape(bias.shape).astype(bias.dtype)
    if relative is not None and drelative is not None:
        drelative = drelative.astype(relative.dtype)
    return dq, dk, dv, dbias, drelative, None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def linear(
    rules: Rules, q: Array, k: Array, v: Array, bias: Array | None, relative: Array | None, given: Given
) -> Array:
    """Attention of q [B, T, H, D] on k, v [B, S, K, D]: [B, T, H, D]; a reverse-mode derivative only."""
    return _forward(rules, q, k, v, bias, relative, given)[0]


linear.defvjp(_forward, _backward)
