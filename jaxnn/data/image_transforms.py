"""Transforms of batches of images [B, height, width, channels], for `mapped`: resizing, random crops, mixtures.

A size is changed by two products with small matrices, one for rows and one for columns, as Pillow does it: where an
image gets smaller the filter widens, so that no detail is folded into another. Random ones are functions of two words
an example, which `mapped` draws from (seed, data step, example id).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from jaxnn.data.given import is_size
from jaxnn.tree import describe
from jaxnn.typing import HostArray

Examples = dict[str, HostArray]
Filter = Literal["box", "bilinear", "bicubic"]


def _box(x: HostArray) -> HostArray:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _bilinear(x: HostArray) -> HostArray:
    return np.maximum(1 - np.abs(x), 0)


def _bicubic(x: HostArray) -> HostArray:
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0))


_FILTERS: dict[str, tuple[Callable[[HostArray], HostArray], float]] = {
    "box": (_box, 0.5),
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
}


def resize_matrix(start: Any, length: Any, before: int, after: int, filter: Filter = "bilinear") -> HostArray:
    """Weights [..., after, before] that turn the `length` pixels from `start` on into `after`, of `before` in all.

    Args:
        start: Where the part begins, in pixels; numbers or arrays [...].
        length: How long it is, in pixels, > 0; likewise.
        before: Pixels that there are; the filter reads none outside of the part.
        after: Pixels that there will be.
        filter: Interpolation; each row of weights sums to 1.

    Source:
        The convolution filters of Pillow's `Image.resize` (Resample.c).
    """
    weigh, radius = _FILTERS[filter]
    start, length = (np.asarray(a, np.float64)[..., None, None] for a in (start, length))
    scale = length / after
    wide = np.maximum(scale, 1)
    centre = start + (np.arange(after)[:, None] + 0.5) * scale
    at = np.arange(before)[None, :] + 0.5
    weights = weigh((at - centre) / wide) * (np.abs(at - centre) <= radius * wide + 0.5)
    weights = weights * ((at > start) & (at < start + length))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _whole(before: int, after: int, filter: Filter) -> HostArray:
    return resize_matrix(0, before, before, after, filter)


def _images(where: str, key: str, x: HostArray) -> HostArray:
    """The images as floats.

    Raises:
        ValueError: If `x` is not [B, height, width, channels].
    """
    if x.ndim != 4:
        raise ValueError(
            f"data.{where}: {key!r} {describe(x)}. Tried: [B, height, width, channels]. Give images; write "
            "x[..., None] for one channel."
        )
    return x.astype(np.float32, copy=False)


def _like(x: HostArray, given: HostArray) -> HostArray:
    """Floats back in the dtype that was given: bytes are rounded and clipped."""
    if np.issubdtype(given.dtype, np.integer):
        info = np.iinfo(given.dtype)
        return np.clip(np.rint(x), info.min, info.max).astype(given.dtype)
    return x.astype(given.dtype, copy=False)


def _sizes(where: str, size: tuple[int, int], filter: str) -> None:
    if not is_size(size):
        raise ValueError(f"data.{where}: size is {size}. Tried: (height, width) in pixels. Give two positive integers.")
    if filter not in _FILTERS:
        raise ValueError(f"data.{where}: filter={filter!r}. Tried: {', '.join(_FILTERS)}. Write one of them.")


def resize(size: tuple[int, int], filter: Filter = "bilinear", key: str = "x") -> Callable[[Examples], Examples]:
    """A transform: images of any size to (height, width), antialiased where they get smaller, proportions not kept.

    Floats stay floats, bytes are rounded to bytes.

    Args:
        size: (height, width) in pixels.
        filter: "box" (means where the size divides), "bilinear" or "bicubic".
        key: The array to change.

    Raises:
        ValueError: If the size or filter is impossible, or at take the array holds no images.
    """
    _sizes("resize", size, filter)

    def resized(examples: Examples) -> Examples:
        x = _images("resize", key, examples[key])
        rows, columns = (_whole(n, m, filter) for n, m in zip(x.shape[1:3], size, strict=True))
        return {**examples, key: _like(_resampled(x, rows, columns), examples[key])}

    return resized


def _resampled(x: HostArray, rows: HostArray, columns: HostArray) -> HostArray:
    """`x` [B, H, W, C] by rows [(B,) H', H] and columns [(B,) W', W]: [B, H', W', C]."""
    batch, height, width, channels = x.shape
    y = np.matmul(rows, x.reshape(batch, height, width * channels)).reshape(batch, -1, width, channels)
    return np.matmul(columns[..., None, :, :] if columns.ndim == 3 else columns, y)


def random_resized_crop(
    size: tuple[int, int],
    area: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
    filter: Filter = "bilinear",
    key: str = "x",
) -> Callable[[Examples, HostArray], Examples]:
    """A random transform: a part of the image of random area and proportions, resized to (height, width), mirrored half
    the time.

    For `mapped(source, random_resized_crop((224, 224)), random=True)`. A part that would not fit is cut to the image.

    Args:
        size: (height, width) in pixels.
        area: Bounds of the part's area, as shares of the image's.
        ratio: Bounds of its width over its height, drawn evenly in the logarithm.
        flip: False never mirrors.
        filter: As in `resize`.
        key: The array to change.

    Raises:
        ValueError: If a bound is impossible.

    Source:
        Szegedy et al. 2015, arXiv:1409.4842; bounds as in torchvision's RandomResizedCrop.
    """
    where = "random_resized_crop"
    _sizes(where, size, filter)
    if not 0 < area[0] <= area[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise ValueError(
            f"data.{where}: area={area}, ratio={ratio}. Tried: 0 < low <= high, areas up to 1. Write area=(0.08, 1.0)."
        )

    def cropped(examples: Examples, words: HostArray) -> Examples:
        x = _images(where, key, examples[key])
        height, width = x.shape[1:3]
        a, b, c, d = _shares(words)
        share = area[0] + (area[1] - area[0]) * a
        proportion = ratio[0] * (ratio[1] / ratio[0]) ** b
        tall = np.clip(np.rint(np.sqrt(height * width * share / proportion)), 1, height)
        broad = np.clip(np.rint(np.sqrt(height * width * share * proportion)), 1, width)
        top, left = np.floor(c * (height - tall + 1)), np.floor(d * (width - broad + 1))
        rows = resize_matrix(top, tall, height, size[0], filter)
        columns = resize_matrix(left, broad, width, size[1], filter)
        # The lowest bit of each word decides nothing else.
        mirrored = ((words[:, 0] ^ words[:, 1]) & np.uint32(1)).astype(bool) & flip
        columns = np.where(mirrored[:, None, None], columns[:, ::-1], columns)
        return {**examples, key: _like(_resampled(x, rows, columns), examples[key])}

    return cropped


def _shares(words: HostArray) -> tuple[HostArray, HostArray, HostArray, HostArray]:
    """Four numbers in [0, 1) an example, of 15 or 16 bits each, from its two words [B, 2]."""
    low, high = (words >> np.uint32(1)) & np.uint32(0x7FFF), words >> np.uint32(16)
    return low[:, 0] / 2**15, high[:, 0] / 2**16, low[:, 1] / 2**15, high[:, 1] / 2**16
