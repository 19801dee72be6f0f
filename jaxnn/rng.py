"""Keys: derived by `fold_in` from one constant key, never carried, so that any step can be computed on its own.

A run's key is raw uint32 data that never changes. A step's key is `fold_in(key, data_step)`; a layer's key adds the
layer's path; an example's key adds the example's global index. Dropout draws from an example's key by hashing the
position of each element, so that its mask depends neither on the batch's layout over devices nor on the chunk of
steps it ran in, and costs a tenth of a bit generator on CPU.
"""

import contextlib
import contextvars
import zlib
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.typing import Array, HostArray

_examples: contextvars.ContextVar[Array | None] = contextvars.ContextVar("jaxnn_examples", default=None)


def check_seed(seed: Any, where: str) -> int:
    """A seed as an int that fits 32 bits, so that the key and the order of examples agree everywhere. Compiles nothing.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is not from 0 to 2**32 - 1.
    """
    hint = "Any number from 0 to 2**32 - 1."
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise TypeError(f"{where}: seed must be an integer, got {seed!r:.60} of type {type(seed).__name__}. {hint}")
    number = int(seed)
    if not 0 <= number < 2**32:
        bound = "at least 0" if number < 0 else "below 2**32"
        raise ValueError(f"{where}: seed must be {bound}, got {number}. {hint}")
    return number


def seed_key(seed: int) -> HostArray:
    """The constant key of a run: uint32[2] raw data of a threefry key.

    Args:
        seed: From 0 to 2**32 - 1.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is out of range: jax would keep its lower 32 bits.
    """
    # What jax.random.key makes of a number below 2**32, for which it compiles a program.
    return np.array([0, check_seed(seed, "rng.seed_key")], np.uint32)


def wrap(data: Array | HostArray) -> Array:
    """A typed key from raw uint32[2] data."""
    return jax.random.wrap_key_data(jnp.asarray(data), impl="threefry2x32")


def step_key(data: Array | HostArray, data_step: Array) -> Array:
    """The typed key of one data step, from the run's raw key."""
    return jax.random.fold_in(wrap(data), data_step)


def named_key(key: Array, name: str) -> Array:
    """A key for a name (a parameter's path, a layer's site): the same in every process and version."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


@contextlib.contextmanager
def examples(index: Array) -> Iterator[None]:
    """While tracing inside, `dropout` tells examples apart by `index` [B] (global ids), not by their row."""
    token = _examples.set(index)
    try:
        yield
    finally:
        _examples.reset(token)


def _mix(x: Array) -> Array:
    """MurmurHash3's 32-bit finaliser: every input bit flips every output bit with probability near 1/2."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def example_bits(key: Array, shape: tuple[int, ...]) -> Array:
    """uint32 random bits of `shape` [B, ...]: a hash of each element's position, under two words per example.

    Args:
        key: Typed key of the layer at this step.
        shape: Leading axis is the example axis.

    Raises:
        ValueError: If the example axis is not first, inside `examples`.

    Source:
        The finaliser is Appleby's MurmurHash3 (public domain); the two words come from threefry.
    """
    index = _examples.get()
    if index is None:
        index = jnp.arange(shape[0])
    elif index.shape[0] != shape[0]:
        raise ValueError(
            f"rng.example_bits: shape {shape} for a batch of {index.shape[0]} examples. Tried: the example axis first. "
            f"Reshape to ({index.shape[0]}, ...) before drawing."
        )
    words = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), (2,), jnp.uint32))(index)
    position = jnp.zeros(shape[1:], jnp.uint32)
    stride = 1
    for axis in reversed(range(1, len(shape))):
        position = position + jax.lax.broadcasted_iota(jnp.uint32, shape[1:], axis - 1) * jnp.uint32(stride)
        stride *= shape[axis]
    expand = (slice(None),) + (None,) * (len(shape) - 1)
    return _mix(_mix(position[None] ^ words[:, 0][expand]) + words[:, 1][expand])


def dropout(key: Array, x: Array, rate: float) -> Array:
    """Zeroes each element of `x` [B, ...] with probability `rate` and scales the rest by 1 / (1 - rate).

    Args:
        key: Typed key of the layer at this step.
        x: Activations, example axis first.
        rate: In [0, 1).

    Source:
        Srivastava et al. 2014, JMLR 15, "inverted" form.
    """
    if rate == 0:
        return x
    threshold = jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    keep = example_bits(key, x.shape) >= threshold
    return jnp.where(keep, x * jnp.asarray(1 / (1 - rate), x.dtype), jnp.zeros((), x.dtype))
