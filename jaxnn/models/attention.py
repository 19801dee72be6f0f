"""Causal and segmented attention, and rotary positions.

On CPU the scores are computed in chunks of queries and, with narrow operands, with a backward pass of its own: plain
automatic differentiation took 2 to 7 times as long. Elsewhere `jax.nn.dot_product_attention` is used.

Shapes: B examples, T queries, S keys, H heads, D head width.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnn.models.products import narrow_dot
from jaxnn.tree import describe
from jaxnn.typing import Array


def rotary(x: Array, positions: Array, base: float = 10_000.0) -> Array:
    """Rotates each pair (x[d], x[d + D/2]) by the angle `position * base^(-2d / D)`, in float32.

    Products of two rotated vectors depend on the difference of their positions only.

    Args:
        x: [B, T, H, D], D even.
        positions: [T] or [B, T], integers or floats.
        base: The slowest wavelength is about 2 pi `base` positions.

    Raises:
        ValueError: If D is odd.

    Source:
        Su et al. 2021, arXiv:2104.09864, in the halves layout of GPT-NeoX.
    """
    width = x.shape[-1]
    if width % 2:
        raise ValueError(f"attention.rotary: x is {describe(x)}. Tried: an even head width. Write width / heads even.")
    frequencies = base ** (-jnp.arange(width // 2, dtype=jnp.float32) * 2 / width)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    # Without the barrier XLA:CPU computes a cosine for every element of x. Reversed halves fuse where a concatenation
    # does not: together they take most of rotary's cost away.
    cos, sin = lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles)))
    cos, sin = (jnp.stack(pair, axis=-2)[..., None, :, :] for pair in ((cos, cos), (-sin, sin)))
    halves = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(*x.shape[:-1], 2, width // 2)
    return (halves * cos + jnp.flip(halves, axis=-2) * sin).reshape(x.shape).astype(x.dtype)


def _mask(first: int, last: int, keys: int, causal: bool, segment: Array | None) -> Array | None:
    """Which of queries first..last may read which of the first `keys` keys: bool [1 or B, 1, T, S]; None for all."""
    allowed = None
    if causal:
        shape = (last - first, keys)
        allowed = (first + lax.broadcasted_iota(jnp.int32, shape, 0) >= lax.broadcasted_iota(jnp.int32, shape, 1))[
            None, None
        ]
    if segment is not None:
        same = (segment[:, first:last, None] == segment[:, None, :keys])[:, None]
        allowed = same if allowed is None else allowed & same
    return allowed


def _chunks(length: int, causal: bool) -> list[tuple[int, int, int]]:
    """Queries first..last and how many keys they need. Causal chunks leave out nearly half of all scores.

    At 256 positions chunks of 64 took 40 to 55 % of the time of one chunk; at most eight bound the compile time.
    """
    if not causal:
        return [(0, length, length)]
    size = max(64, -(-length // 8))
    return [(i, min(i + size, length), min(i + size, length)) for i in range(0, length, size)]


def _dot(a: Array, b: Array, transposed: bool = False) -> Array:
    """`a` [B, H, M, K] times `b` [B, H, K, N], or [B, H, N, K] if `transposed`, summed in float32 at least.

    On XLA:CPU batched bfloat16 products in which `a` would be the transposed one are not implemented (they fail when
    run), so callers lay `a` out with K last.
    """
    dimensions = (((3,), (3 if transposed else 2,)), ((0, 1), (0, 1)))
    return narrow_dot(a, b, dimensions) if a.dtype.itemsize < 4 else lax.dot_general(a, b, dimensions)


def _forward(
    causal: bool, dtype: Any, q: Array, k: Array, v: Array, segment: Array | None
) -> tuple[Array, tuple[Any, ...]]:
    """Attention on [B, T, H, D], chunk by chunk, and what the backward pass needs: the exponentials, not the scores."""
    q, k, v = ((x.astype(dtype)).transpose(0, 2, 1, 3) for x in (q * (1 / math.sqrt(q.shape[-1])), k, v))
    outputs, exponentials, sums = [], [], []
    for first, last, keys in _chunks(q.shape[2], causal):
        scores = _dot(q[:, :, first:last], k[:, :, :keys], transposed=True)
        allowed = _mask(first, last, keys, causal, segment)
        if allowed is not None:
            scores = jnp.where(allowed, scores, -jnp.inf)
        # Every query may read its own key, so the maximum is finite.
        e = jnp.exp(scores - lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
        sums.append(jnp.sum(e, axis=-1, keepdims=True))
        exponentials.append(e.astype(dtype))
        # Dividing the output instead of the weights saves a pass over the scores.
        outputs.append(_dot(exponentials[-1], v[:, :, :keys]) / sums[-1])
    out = jnp.concatenate(outputs, axis=2)
    return out.transpose(0, 2, 1, 3), (q, k, v, tuple(exponentials), out, jnp.concatenate(sums, axis=2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _narrow(causal: bool, dtype: Any, q: Array, k: Array, v: Array, segment: Array | None) -> Array:
    return _forward(causal, dtype, q, k, v, segment)[0]


def _narrow_bwd(causal: bool, dtype: Any, saved: tuple[Any, ...], g: Array) -> tuple[Array, Array, Array, None]:
    """With weights p = e / l: dv = p^T g, ds = p (g v^T - <g, out>), dq = ds k, dk = ds^T q; 1 / l goes into g."""
    q, k, v, exponentials, out, sums = saved
    length = q.shape[2]
    g = g.transpose(0, 2, 1, 3) / sums
    delta = jnp.sum(g * out, axis=-1, keepdims=True)
    g = g.astype(dtype)
    q_columns, g_columns = jnp.swapaxes(q, 2, 3), jnp.swapaxes(g, 2, 3)
    dq, dk, dv = [], 0.0, 0.0
    for e, (first, last, keys) in zip(exponentials, _chunks(length, causal)):
        ds = e.astype(jnp.float32) * (
            _dot(g[:, :, first:last], v[:, :, :keys], transposed=True) - delta[:, :, first:last]
        )
        ds = ds.astype(dtype)
        dq.append(_dot(ds, k[:, :, :keys]))
        rest = ((0, 0), (0, 0), (0, 0), (0, length - keys))
        dk += jnp.pad(_dot(q_columns[..., first:last], ds), rest)
        dv += jnp.pad(_dot(g_columns[..., first:last], e), rest)
    scale = 1 / math.sqrt(q.shape[-1])
    dq = jnp.concatenate(dq, axis=2) * scale
    return dq.transpose(0, 2, 1, 3), jnp.transpose(dk, (0, 3, 1, 2)), jnp.transpose(dv, (0, 3, 1, 2)), None


_narrow.defvjp(_forward, _narrow_bwd)


def attention(
    q: Array, k: Array, v: Array, *, causal: bool, segment: Array | None = None, matmul_dtype: Any = None
) -> Array:
    """`softmax(q k^T / sqrt(D)) v`, each head apart; the softmax in float32.

    Args:
        q: Queries [B, T, H, D].
        k: Keys [B, T, H, D].
        v: Values [B, T, H, D].
        causal: Whether a query reads only keys at its own and earlier positions.
        segment: [B, T] document ids; a query reads only keys of its own document.
        matmul_dtype: Precision of the products' operands, forward and backward; see `products.matmul`.

    Returns:
        [B, T, H, D] in the dtype of `q`.

    Raises:
        ValueError: If the shapes differ.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762.
    """
    if not q.shape == k.shape == v.shape or q.ndim != 4 or (segment is not None and segment.shape != q.shape[:2]):
        raise ValueError(
            f"attention.attention: q {describe(q)}, k {describe(k)}, v {describe(v)}, segment {describe(segment)}. "
            f"Tried: q, k and v [B, T, H, D] alike and segment [B, T]. Reshape the projections to heads first."
        )
    if jax.default_backend() != "cpu":
        narrow = [x if matmul_dtype is None else x.astype(matmul_dtype) for x in (q, k, v)]
        allowed = _mask(0, q.shape[1], q.shape[1], causal, segment)
        return jax.nn.dot_product_attention(*narrow, mask=allowed).astype(q.dtype)
    if matmul_dtype is None:
        return _forward(causal, q.dtype, q, k, v, segment)[0].astype(q.dtype)
    wide = (x.astype(jnp.float32) for x in (q, k, v))
    return _narrow(causal, jnp.dtype(matmul_dtype), *wide, segment).astype(q.dtype)
