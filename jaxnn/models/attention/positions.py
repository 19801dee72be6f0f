"""Positions that attention sees: rotations of queries and keys, and slopes of a bias that grows with distance."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn.tree import describe
from jaxnn.typing import Array, HostArray


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """Llama 3's change of rotary frequencies for texts longer than those of the first training.

    Wavelengths up to `length / high` stay, those from `length / low` on grow by `factor`, those between by a mixture.

    Attributes:
        factor: How much longer the slow wavelengths become.
        low: Turns within `length` below which a frequency is divided by `factor`.
        high: Turns within `length` above which it stays; more than `low`.
        length: Of the first training, in tokens.

    Source:
        Dubey et al. 2024, arXiv:2407.21783; the mixture is that of Meta's released model code.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    length: int = 8192

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: If `factor`, `low` or `length` is not positive, or `high` not above `low`.
        """
        if self.factor <= 0 or not 0 < self.low < self.high or self.length < 1:
            raise ValueError(f"attention.{self}. Tried: factor > 0, 0 < low < high, length >= 1. Write such values.")

    def __call__(self, frequencies: HostArray) -> HostArray:
        """Scaled `frequencies`, radians a token."""
        turns = self.length * frequencies / (2 * math.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return frequencies * (kept + (1 - kept) / self.factor)


def rotary(x: Array, positions: Array, base: float = 10_000.0, scaling: RotaryScaling | None = None) -> Array:
    """Rotates each pair (x[d], x[d + D/2]) by the angle `position * base^(-2d / D)`, in float32.

    Products of two rotated vectors depend on the difference of their positions only.

    Args:
        x: [B, T, H, D], D even.
        positions: [T] or [B, T], integers or floats.
        base: The slowest wavelength is about 2 pi `base` positions.
        scaling: Changes the frequencies, if given.

    Raises:
        ValueError: If D is odd.

    Source:
        Su et al. 2021, arXiv:2104.09864, in the halves layout of GPT-NeoX.
    """
    width = x.shape[-1]
    if width % 2:
        raise ValueError(f"attention.rotary: x is {describe(x)}. Tried: an even head width. Write width / heads even.")
    frequencies = base ** (-np.arange(width // 2) * 2 / width)
    if scaling is not None:
        frequencies = scaling(frequencies)
    angles = positions[..., None].astype(jnp.float32) * frequencies.astype(np.float32)
    # Without the barrier XLA:CPU computes a cosine for every element of x. Reversed halves fuse where a concatenation
    # does not: together they take most of rotary's cost away.
    cos, sin = lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles)))
    cos, sin = (jnp.stack(pair, axis=-2)[..., None, :, :] for pair in ((cos, cos), (-sin, sin)))
    halves = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(*x.shape[:-1], 2, width // 2)
    return (halves * cos + jnp.flip(halves, axis=-2) * sin).reshape(x.shape).astype(x.dtype)


def alibi_slopes(heads: int) -> HostArray:
    """The slopes [heads], float32, of ALiBi's bias `-slope * distance`: 2^(-8 / n), 2^(-16 / n), ... for n heads.

    Where n is no power of two, the slopes of the next lower power come first, then every other one of twice that.

    Args:
        heads: At least 1.

    Raises:
        ValueError: If `heads` < 1.

    Source:
        Press et al. 2022, arXiv:2108.12409, and the authors' code for numbers that are no powers of two.
    """
    if heads < 1:
        raise ValueError(f"attention.alibi_slopes: heads={heads}. Tried: a number of heads. Write at least 1.")
    power = 2 ** int(math.log2(heads))
    first = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4 * np.arange(1, 2 * power + 1, 2) / power)
    return np.concatenate([first, between])[:heads].astype(np.float32)
