"""Causal and segmented attention, and rotary positions.

Shape suffixes: B examples, T queries, S keys, H heads, D head width.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.models.layers import product
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
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    a, b = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _allowed(length: int, causal: bool, segment: Array | None) -> Array | None:
    """Which query may read which key: bool, broadcastable to [B, H, T, S]; None where every one may."""
    allowed = jnp.tril(jnp.ones((length, length), bool))[None, None] if causal else None
    if segment is not None:
        same = (segment[:, :, None] == segment[:, None, :])[:, None]
        allowed = same if allowed is None else allowed & same
    return allowed


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
        matmul_dtype: Precision of the products' operands, forward and backward; see `layers.product`.

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
    allowed = _allowed(q.shape[1], causal, segment)
    if jax.default_backend() != "cpu":
        narrow = [x if matmul_dtype is None else x.astype(matmul_dtype) for x in (q, k, v)]
        return jax.nn.dot_product_attention(*narrow, mask=allowed).astype(q.dtype)
    scores = product("bthd,bshd->bhts", q * (1 / math.sqrt(q.shape[-1])), k, matmul_dtype)
    if allowed is not None:
        scores = jnp.where(allowed, scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    return product("bhts,bshd->bthd", weights, v, matmul_dtype).astype(q.dtype)
