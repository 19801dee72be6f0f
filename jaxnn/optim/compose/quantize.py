"""Eight bits an element: small floating-point numbers that share an exponent with their block.

Blocks are of 32 elements or a few less, and keep one byte each: the exponent of their smallest normal number, which is
chosen so that the largest element just fits. An element has 4 fraction bits; the first moment spends a bit on its sign
and 3 on its own exponent, the second moment, never negative, all 4. As in any floating-point format numbers below the
smallest normal one are evenly spaced. That is a relative spacing of 1/16 to 1/32 over 7 and over 15 octaves below the
block's largest, and a finest step 4 octaves below that.

Every number of this format is a float32 exactly, and the grid does not move with the largest element: only what changed
is rounded again. So an average that moves by 0.1 % a step meets half its spacing rarely, and to nearest would stand
still: rounding is dithered (`jaxnn.optim.compose.rounding.dither`).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.typing import Array

BLOCK = 32
SMALLEST = 64  # leaves of fewer elements stay as they are: their exponents would cost more than the codes save
_FRACTION = 4
_LOWEST = 30  # of a block's exponent: below 2^-97 spacing is even, so that 2^(26 - exponent) is a float32 too
_INFINITE = np.int32(255 << 23)  # as bits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """An array in eight bits an element.

    Attributes:
        codes: uint8 [blocks, block].
        exponent: uint8 [blocks]: as in a float32, of the smallest normal number; 0 for a block that is not finite.
        shape: Of the array.
        signed: Whether the codes have a sign; else they hold nonnegative numbers, over twice the octaves.
    """

    codes: Any
    exponent: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    signed: bool = dataclasses.field(metadata={"static": True})

    @property
    def value(self) -> Array:
        """The array, float32."""
        return dequantize(self)


def blocks_of(size: int) -> tuple[int, int]:
    """(number of blocks, elements of a block): 24 to 32 elements that divide `size`, or else as even as possible.

    Padding, which has to be written, stays below an element a block, and is rare.
    """
    exact = next((block for block in range(BLOCK, BLOCK * 3 // 4 - 1, -1) if size % block == 0), None)
    if exact and size:
        return size // exact, exact
    count = max(1, math.ceil(size / BLOCK))
    return count, math.ceil(size / count)


def quantize(x: Array, bits: Array | None = None, *, signed: bool = True) -> Quantized:
    """An array in eight bits an element. A block that is not finite comes back as NaN.

    Args:
        x: Floating.
        bits: uint32 of the shape that `blocks_of` gives, uniform: round up or down so that the expectation is `x`. None
            rounds to nearest.
        signed: Whether `x` may be negative; if not, negative elements become 0, and positive ones never do.

    Source:
        Rouhani et al. 2023, arXiv:2310.10537 (blocks of 32 with one exponent, "MX"); a wider exponent for the second
        moment as in Fishman et al. 2025, arXiv:2409.12517; eight-bit moments by blocks are of Dettmers et al. 2022,
        arXiv:2110.02861.
    """
    count, block = blocks_of(x.size)
    flat = x.astype(jnp.float32).reshape(-1)
    if count * block > x.size:
        flat = jnp.pad(flat, (0, count * block - x.size))
    blocks = flat.reshape(count, block)
    raw = jax.lax.bitcast_convert_type(blocks, jnp.int32)
    size = raw & np.int32(0x7FFFFFFF)  # compares as the modulus does, NaN above all
    size = size if signed else jnp.where(blocks < 0, 0, size)
    lowest = _smallest_exponent(jnp.max(size, axis=1, initial=0), signed)
    exponent = jnp.maximum(size >> np.int32(23), lowest[:, None])
    # In units of 2^-26 of the spacing at `exponent`: below 2^31, as there are fewer than 32 of these.
    unit = _power_of_two(np.int32(2 * 127 + 26 + _FRACTION) - exponent)
    units = (jax.lax.bitcast_convert_type(size, jnp.float32) * unit).astype(jnp.int32).astype(jnp.uint32)
    up = np.uint32(1 << 25) if bits is None else bits >> np.uint32(6)
    fraction = ((units + up) >> np.uint32(26)).astype(jnp.int32)
    code = ((exponent - lowest[:, None]) << np.int32(_FRACTION)) + fraction
    code = code | ((raw >> np.int32(24)) & np.int32(128)) if signed else jnp.maximum(code, (size > 0).astype(jnp.int32))
    return Quantized(code.astype(jnp.uint8), lowest.astype(jnp.uint8), tuple(x.shape), signed)


def dequantize(q: Quantized) -> Array:
    """The float32 array of its shape."""
    code, lowest = q.codes.astype(jnp.int32), q.exponent.astype(jnp.int32)
    size = code & np.int32(127) if q.signed else code
    octave = jnp.maximum((size >> np.int32(_FRACTION)) - np.int32(1), 0)
    steps = (size - (octave << np.int32(_FRACTION))) << octave
    spacing = jnp.where(lowest == 0, np.float32(np.nan), _power_of_two(lowest - np.int32(_FRACTION)))
    y = steps.astype(jnp.float32) * spacing[..., None]
    y = jnp.where(code > 127, -y, y) if q.signed else y
    return y.reshape(-1)[: math.prod(q.shape)].reshape(q.shape)


def _smallest_exponent(largest: Array, signed: bool) -> Array:
    """A block's byte, int32, from the bits of its largest element."""
    octaves = (7 if signed else 8) - _FRACTION
    # A spacing below the end of the last octave at least, so that rounding stays in it.
    top = (largest + np.int32(1 << (23 - _FRACTION))) >> np.int32(23)
    chosen = jnp.maximum(top - np.int32(2**octaves - 2), _LOWEST)
    return jnp.where(largest < _INFINITE, chosen, 0)


def _power_of_two(exponent: Array) -> Array:
    """The float32 of an exponent, int32 in 1 to 254."""
    return jax.lax.bitcast_convert_type(exponent << np.int32(23), jnp.float32)
