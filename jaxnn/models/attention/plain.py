"""Attention that keeps the weights for the backward pass: in chunks of queries, so that masked scores are left out.

With narrow operands the backward pass is its own: plain automatic differentiation took 2 to 7 times as long on CPU.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnn.models.attention.rules import Given, Rules, allowed, by_group, distance_bias, dot, reduced_like, span
from jaxnn.typing import Array

Saved = tuple[Any, ...]


def chunks(queries: int, keys: int, causal: bool, window: int | None) -> list[tuple[int, int, int, int]]:
    """Queries first..last and the keys from..to that they need. Causal chunks leave out nearly half of all scores.

    At 256 positions chunks of 64 took 40 to 55 % of the time of one chunk; at most eight bound the compile time.
    """
    if not causal and window is None:
        return [(0, queries, 0, keys)]
    size = max(64, -(-queries // 8))
    out = []
    for first in range(0, queries, size):
        last = min(first + size, queries)
        start = 0 if window is None else max(0, first - window + 1)
        end = last if causal else last + (window or 0) - 1
        out.append((first, last, min(start, keys - 1), min(end, keys)))
    return out


def _merged(x: Array, first: int, last: int) -> Array:
    """Queries first..last of `x` [B, K, G, T, D], the heads of a group one under the other: [B, K, G n, D]."""
    return x[:, :, :, first:last].reshape(*x.shape[:2], -1, x.shape[-1])


Drop = Callable[[Array, int], Array]  # of a chunk's weights [B, K, G, n, S], and its first query


def forward(
    rules: Rules, q: Array, k: Array, v: Array, bias: Array | None, given: Given, drop: Drop | None = None
) -> tuple[Array, Saved]:
    """Attention of q [B, T, H, D] on k, v [B, S, K, D], and what the backward pass needs: exponentials, not scores."""
    (batch, queries, heads, width), keys, key_heads = q.shape, k.shape[1], k.shape[2]
    groups = heads // key_heads
    q = (q * rules.scale).astype(rules.dtype).transpose(0, 2, 1, 3).reshape(batch, key_heads, groups, queries, width)
    k, v = (x.astype(rules.dtype).transpose(0, 2, 1, 3) for x in (k, v))
    wide_bias = None if bias is None else by_group(bias, heads, key_heads)
    outputs, exponentials, sums = [], [], []
    for first, last, start, end in chunks(queries, keys, rules.causal, rules.window):
        shape = (batch, key_heads, groups, last - first, end - start)
        scores = dot(_merged(q, first, last), k[:, :, start:end], transposed=True).reshape(shape)
        rows, columns = span(first, last - first), span(start, end - start)
        if wide_bias is not None:
            scores = scores + wide_bias[..., first:last, start:end]
        if given.slopes is not None:
            scores = scores + distance_bias(given.slopes, rows, columns, groups)
        segment, key_segment, mask = given.segment, given.key_segment, given.mask
        readable = allowed(
            rules,
            rows,
            columns,
            None if segment is None else segment[:, first:last],
            None if key_segment is None else key_segment[:, start:end],
            None if mask is None else mask[:, start:end],
        )
        if readable is not None:
            scores = jnp.where(readable, scores, -jnp.inf)
        top = lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
        if rules.empty:
            top = jnp.where(top == -jnp.inf, 0, top)
        e = jnp.exp(scores - top)
        total = jnp.sum(e, axis=-1, keepdims=True)
        sums.append(jnp.where(total == 0, 1, total) if rules.empty else total)
        if drop is not None:
            e = drop(e, first)
        exponentials.append(e.astype(rules.dtype))
        # Dividing the output instead of the weights saves a pass over the scores.
        y = dot(exponentials[-1].reshape(batch, key_heads, -1, end - start), v[:, :, start:end])
        outputs.append(y.reshape(*shape[:4], v.shape[-1]) / sums[-1])
    out = jnp.concatenate(outputs, axis=3)
    saved = (q, k, v, bias, tuple(exponentials), out, jnp.concatenate(sums, axis=3))
    return out.reshape(batch, heads, queries, -1).transpose(0, 2, 1, 3), saved


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def narrow(rules: Rules, q: Array, k: Array, v: Array, bias: Array | None, given: Given) -> Array:
    """`forward`, with a backward pass whose products have operands of `rules.dtype` too."""
    return forward(rules, q, k, v, bias, given)[0]


def _backward(rules: Rules, saved: Saved, g: Array) -> tuple[Any, ...]:
    """With weights p = e / l: dv = p^T g, ds = p (g v^T - <g, out>), dq = ds k, dk = ds^T q; 1 / l goes into g."""
    q, k, v, bias, exponentials, out, sums = saved
    batch, key_heads, groups, queries, width = q.shape
    keys = k.shape[2]
    g = g.transpose(0, 2, 1, 3).reshape(out.shape) / sums
    delta = jnp.sum(g * out, axis=-1, keepdims=True)
    g = g.astype(rules.dtype)
    q_columns, g_columns = (x.transpose(0, 1, 4, 2, 3) for x in (q, g))
    dq, dk, dv = [], 0.0, 0.0
    dbias = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
    for e, (first, last, start, end) in zip(exponentials, chunks(queries, keys, rules.causal, rules.window)):
        merged = (batch, key_heads, -1, end - start)
        down = dot(_merged(g, first, last), v[:, :, start:end], transposed=True).reshape(e.shape)
        ds = e.astype(jnp.float32) * (down - delta[:, :, :, first:last])
        if dbias is not None:
            part = ds.reshape(batch, key_heads * groups, *ds.shape[3:])
            shape = (*dbias.shape[:2], *part.shape[2:])
            dbias = dbias.at[:, :, first:last, start:end].add(reduced_like(part, shape))
        ds = ds.astype(rules.dtype).reshape(merged)
        dq.append(dot(ds, k[:, :, start:end]).reshape(*e.shape[:4], width))
        rest = ((0, 0), (0, 0), (0, 0), (start, keys - end))
        columns = [x[..., first:last].reshape(batch, key_heads, x.shape[2], -1) for x in (q_columns, g_columns)]
        dk += jnp.pad(dot(columns[0], ds), rest)
        dv += jnp.pad(dot(columns[1], e.reshape(merged)), rest)
    dq = jnp.concatenate(dq, axis=3).reshape(batch, -1, queries, width) * rules.scale
    dk, dv = (jnp.transpose(x, (0, 3, 1, 2)) for x in (dk, dv))
    if dbias is not None:
        dbias = dbias.astype(bias.dtype)
    return dq.transpose(0, 2, 1, 3), dk, dv, dbias, None


narrow.defvjp(forward, _backward)
