"""What the image families share: checks of what they are given, presets by name, pooling with padding."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxnn.models.given import check_array, check_rate as check_rate, check_sizes as check_sizes
from jaxnn.models.pooling import avg_pool, max_pool
from jaxnn.tree import describe
from jaxnn.typing import Array


def check_input(where: str, x: Array, channels: int, smallest: int = 1, instead: Sequence[str] = ()) -> None:
    """Refuses what is no batch of images of the model's channels, is empty, or too small for its strides.

    Args:
        where: The model, for the message.
        x: What it was given.
        channels: Of its images.
        smallest: Pixels a side.
        instead: What could be written for smaller images.

    Raises:
        ValueError: If `x` is not [B, H, W, channels], B at least 1, with at least `smallest` pixels a side.
        TypeError: If it is no array.
    """
    check_array(where, "x", x, f"[B, H, W, {channels}]")
    if x.ndim != 4:
        raise ValueError(
            f"models.{where}: x is {describe(x)}. Tried: images [B, H, W, {channels}]. Write x[..., None] for images "
            "without a channel axis, x[None] for a single one."
        )
    if jnp.iscomplexobj(x):
        raise ValueError(f"models.{where}: x is {describe(x)}. Tried: real numbers. Write x.real, or jnp.abs(x).")
    if x.shape[-1] != channels:
        first = " The channels lie first: write jnp.moveaxis(x, 1, -1)." if x.shape[1] == channels else ""
        raise ValueError(
            f"models.{where}: x is {describe(x)}, {x.shape[-1]} channels. Tried: [B, H, W, {channels}].{first} Give "
            f"such images, or write channels={x.shape[-1]} in the config."
        )
    if not x.shape[0]:
        raise ValueError(f"models.{where}: x is {describe(x)}, no image. Tried: a batch of them. Give at least one.")
    if min(x.shape[1:3]) < smallest:
        choices = "".join(f", or write {choice}" for choice in instead)
        raise ValueError(
            f"models.{where}: x is {describe(x)}. Tried: at least {smallest} pixels a side, or nothing is left after "
            f"its strides. Resize the images{choices}."
        )


def check_choice(where: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Refuses a value that is none of those allowed.

    Raises:
        ValueError: Listing them.
    """
    if value not in allowed:
        raise ValueError(
            f"models.{where}: {name}={value!r}. Tried: {', '.join(map(repr, allowed))}. Write one of them."
        )


def preset(where: str, presets: Mapping[str, Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The settings of a name.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in presets:
        raise ValueError(f"models.{where}.preset: {name!r} is unknown. Tried: {', '.join(presets)}. Write one of them.")
    return presets[name]


def padded_max_pool(x: Array, window: int, strides: int, pad: int) -> Array:
    """`max_pool` of `x` [B, H, W, C] with `pad` pixels on each side that never win."""
    sides = (pad, pad)
    return max_pool(jnp.pad(x, ((0, 0), sides, sides, (0, 0)), constant_values=-jnp.inf), window, strides)


def same_avg_pool(x: Array) -> Array:
    """3x3 average pooling at stride 1 of `x` [B, H, W, C], zeros around it counting as pixels: [B, H, W, C]."""
    return avg_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 1)


def adaptive_avg_pool(x: Array, size: int) -> Array:
    """Means over `size` x `size` regions that cover `x` [B, H, W, C]; they overlap or repeat where it does not divide.

    Region i of n pixels reaches from floor(i n / size) up to ceil((i + 1) n / size), as in torch.nn.AdaptiveAvgPool2d.
    """
    for axis in (1, 2):
        n = x.shape[axis]
        if n == size:
            continue
        bounds = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
        parts = [jnp.mean(jnp.take(x, jnp.arange(a, b), axis), axis, keepdims=True) for a, b in bounds]
        x = jnp.concatenate(parts, axis)
    return x
