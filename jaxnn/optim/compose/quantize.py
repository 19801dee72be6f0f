"""Eight bits an element: codes that are small floating-point numbers, with a float32 scale for every block.

Blocks are of 256 elements or a few less. The scale is that of a block's largest element, so the codes need no range of
their own beyond what lies in one block; being logarithmic, they keep the relative error the same at every size. Moments
are signed with 4 exponent and 3 fraction bits (16 octaves below the block's largest), second moments unsigned with 5
and 3 (32 octaves). Rounding is stochastic: to nearest, an average that moves by 0.1 % a step rarely leaves its code.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.typing import Array

BLOCK = 256
SMALLEST = 64  # leaves of fewer elements stay as they are: their scales would cost more than the codes save
_FRACTION = 3
_SHIFT = 23 - _FRACTION  # float32's fraction bits that a code has not


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """An array in eight bits an element.

    Attributes:
        codes: uint8 [blocks, block].
        scale: float32 [blocks].
        shape: Of the array.
        signed: Whether the codes have a sign; else they hold nonnegative numbers, over twice the octaves.
    """

    codes: Any
    scale: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    signed: bool = dataclasses.field(metadata={"static": True})

    @property
    def value(self) -> Array:
        """The array, float32."""
        return dequantize(self)


def blocks_of(size: int) -> tuple[int, int]:
    """(number of blocks, elements of a block): 128 to 256 elements that divide `size`, or else as even as possible.

    Padding, which has to be written, stays below an element a block, and is rare.
    """
    exact = next((block for block in range(BLOCK, BLOCK // 2 - 1, -1) if size % block == 0), None)
    if exact and size:
        return size // exact, exact
    count = max(1, math.ceil(size / BLOCK))
    return count, math.ceil(size / count)


def quantize(x: Array, bits: Array | None = None, *, signed: bool = True) -> Quantized:
    """An array in eight bits an element. A block that is not finite comes back so.

    Args:
        x: Floating.
        bits: uint32 of the shape that `blocks_of` gives, uniform: round up or down at random, so that the expectation
            is `x`. None rounds to nearest.
        signed: Whether `x` may be negative; if not, negative elements become 0, and positive ones never do.

    Source:
        Dettmers et al. 2022, arXiv:2110.02861 (blocks, and a logarithmic code); exponent and fraction bits as in
        Fishman et al. 2025, arXiv:2409.12517 (a wider exponent for the second moment).
    """
    count, block = blocks_of(x.size)
    flat = x.astype(jnp.float32).reshape(-1)
    if count * block > x.size:
        flat = jnp.pad(flat, (0, count * block - x.size))
    blocks = flat.reshape(count, block)
    size = jnp.abs(blocks) if signed else jnp.maximum(blocks, 0)
    bias, top = _code_range(signed)
    # Of the values themselves, which are in memory: of their moduli, they would be written down once more.
    largest = jnp.max(blocks, axis=1, initial=0)
    if signed:
        largest = jnp.maximum(largest, -jnp.min(blocks, axis=1, initial=0))
    scale = largest / np.float32(2 - 2.0**-_FRACTION)
    inverse = jnp.where(scale > np.finfo(np.float32).tiny, 1 / scale, 0) + 0 * scale  # NaN and infinity stay
    y = size * inverse[:, None]
    raw = jax.lax.bitcast_convert_type(y, jnp.uint32)
    noise = np.uint32(1 << (_SHIFT - 1)) if bits is None else bits & np.uint32((1 << _SHIFT) - 1)
    code = jax.lax.bitcast_convert_type((raw + noise) >> np.uint32(_SHIFT), jnp.int32) - np.int32(bias)
    code = jnp.clip(code, 0, top)
    # Between 0 and the smallest number there is no fraction to round in.
    smallest = np.float32(_value(1, signed))
    chance = np.uint32(1 << 31) if bits is None else _high(bits)
    tiny = (y * np.float32(2.0**32 / smallest)).astype(jnp.uint32) > chance
    if not signed:
        tiny = y > 0
    code = jnp.where(y < smallest, tiny.astype(jnp.int32), code)
    if signed:
        code = code + jnp.where(blocks < 0, np.int32(128), np.int32(0))
    return Quantized(code.astype(jnp.uint8), scale, tuple(x.shape), signed)


def dequantize(q: Quantized) -> Array:
    """The float32 array of its shape."""
    bias, _ = _code_range(q.signed)
    code = q.codes.astype(jnp.int32)
    size = code & np.int32(127) if q.signed else code
    y = jax.lax.bitcast_convert_type((size + np.int32(bias)) << np.int32(_SHIFT), jnp.float32)
    y = jnp.where(size == 0, 0, y) * q.scale[..., None]
    y = jnp.where(code > 127, -y, y) if q.signed else y
    return y.reshape(-1)[: math.prod(q.shape)].reshape(q.shape)


def _high(bits: Array) -> Array:
    """Uniform uint32 from the bits that rounding in the fraction does not use, mixed with those that it does."""
    return (bits >> np.uint32(_SHIFT)) | (bits << np.uint32(32 - _SHIFT))


def _code_range(signed: bool) -> tuple[int, int]:
    """What a code lacks to the head of a float32, and the largest code: the one of 1.875."""
    exponents = 16 if signed else 32
    return (127 - (exponents - 1)) << _FRACTION, (exponents << _FRACTION) - 1


def _value(code: int, signed: bool) -> float:
    """The number of a code, at scale 1."""
    bias, _ = _code_range(signed)
    return float(np.uint32((code + bias) << _SHIFT).view(np.float32)) if code else 0.0
