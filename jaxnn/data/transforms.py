"""Transforms of a taken batch, on the host: pure functions of the examples and, if random, of two words each."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxnn.data import order
from jaxnn.data.arrays import take_rows
from jaxnn.data.given import is_whole
from jaxnn.tree import describe
from jaxnn.typing import HostArray, Resident, Source

Examples = dict[str, HostArray]
_BLOCK = 1024  # examples transformed at a time when a whole source is made resident


def take_at(source: Source, index: HostArray, step: int, length: int | None = None) -> Examples:
    """The examples `index` [B] as data step `step` sees them: sources with a true `takes_step` are told the step, those
    with `padded_to` (see `data.bucketing`) the length, where one is given."""
    take: Any = source.take
    told: dict[str, int] = {"step": step} if getattr(source, "takes_step", False) else {}
    return take(index, **told) if length is None else take(index, length=length, **told)


class Mapped:
    """A source whose examples pass through a function; made by `mapped`."""

    def __init__(self, source: Source, fn: Callable[..., Examples], random: bool, seed: int):
        self.source, self.fn, self.random, self.seed = source, fn, random, seed
        self.takes_step = random or getattr(source, "takes_step", False)
        self.padded_to: HostArray | None = getattr(source, "padded_to", None)

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"mapped({self.source!r}, {getattr(self.fn, '__name__', self.fn)!s}{', random' if self.random else ''})"

    def take(self, index: HostArray, step: int = 0, length: int | None = None) -> Examples:
        """The transformed examples `index` [B] as data step `step` sees them, of a source that pads: to `length`."""
        index = np.asarray(index)
        given = take_at(self.source, index, step, length)
        out = self.fn(given, order.words(self.seed, step, index)) if self.random else self.fn(given)
        if not isinstance(out, dict):
            raise TypeError(
                f"data.mapped: the function gave {type(out).__name__} for {sorted(given)}. Return a dict of arrays [B, "
                "...]."
            )
        for name, array in out.items():
            if np.shape(array)[:1] != index.shape:
                raise ValueError(
                    f"data.mapped: the function gave {name!r} {describe(array)} for {len(index)} examples. "
                    f"Return a dict of arrays whose first axis is the {len(index)} examples."
                )
        return out

    def resident(self) -> Resident | None:
        """The whole transformed data set, each example transformed once; None for random transforms."""
        if self.takes_step or self.source.resident() is None:
            return None
        blocks = [self.take(np.arange(i, min(i + _BLOCK, len(self)))) for i in range(0, len(self), _BLOCK)]
        return Resident({name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}, take_rows)


def mapped(source: Source, fn: Callable[..., Examples], *, random: bool = False, seed: int = 0) -> Mapped:
    """A source that gives `fn(examples)`, or `fn(examples, words)` where `random`.

    `fn` treats each example by itself: what it makes of one may not depend on which others are in the batch.

    Args:
        source: What to transform.
        fn: Pure function from a dict of arrays [B, ...] to another, whose arrays may be the ones it was given.
        random: `fn` also gets `words` uint32 [B, 2], random bits that are a function of (seed, data step, example id);
            the same example differs from epoch to epoch, and a resumed run sees what the first one would have.
        seed: Tells two random transforms apart.

    Raises:
        TypeError: If `fn` is not a function.
    """
    if not callable(fn):
        raise TypeError(
            f"data.mapped: fn is {fn!r}. Tried: calling it. Give a function from a dict of arrays to a dict of arrays."
        )
    return Mapped(source, fn, random, seed)


def normalize(mean: Any, std: Any, key: str = "x") -> Callable[[Examples], Examples]:
    """A transform: (x - mean) / std in float32, for `mapped`.

    Args:
        mean: Number or one per channel (last axis), in the units of the data.
        std: The same; every entry > 0.
        key: The array to change.

    Raises:
        ValueError: If an entry of `std` is not positive.
    """
    try:
        shift, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    except (TypeError, ValueError):
        shift, scale = np.float32(np.nan), np.float32(np.nan)
    if not (np.isfinite(shift).all() and np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(
            f"data.normalize: mean {mean} and std {std}. Tried: (x - mean) / std. Give finite means and std > 0."
        )

    def normalized(examples: Examples) -> Examples:
        channels = examples[key].shape[-1:]
        if not {shift.shape, scale.shape} <= {(), (1,), channels}:
            raise ValueError(
                f"data.normalize: {key!r} {describe(examples[key])} with mean {describe(shift)} and std "
                f"{describe(scale)}. Tried: one number, or one a channel. Give as many."
            )
        return {**examples, key: (examples[key].astype(np.float32) - shift) / scale}

    return normalized


def random_crop_flip(pad: int = 4, flip: bool = True, key: str = "x") -> Callable[[Examples, HostArray], Examples]:
    """A random transform: pads an image with zeros, crops it to its size, mirrors it left to right half the time.

    For `mapped(source, random_crop_flip(), random=True)`; the array is [B, height, width, channels].

    Args:
        pad: Pixels added on each side, so that the crop moves by at most as many; 0 only flips.
        flip: False never mirrors (digits and letters are not symmetric).
        key: The array to change.

    Raises:
        ValueError: If `pad` is negative.
    """
    if not is_whole(pad, 0):
        raise ValueError(f"data.random_crop_flip: pad is {pad!r} pixels. Tried: zeros on each side. Give 0 or more.")

    def cropped(examples: Examples, words: HostArray) -> Examples:
        x = examples[key]
        if x.ndim != 4:
            raise ValueError(
                f"data.random_crop_flip: {key!r} {describe(x)}. Tried: [B, height, width, channels]. Give images."
            )
        _, height, width, _ = x.shape
        span = 2 * pad + 1
        top = (words[:, 0] & np.uint32(0xFFFF)).astype(np.int64) * span >> 16
        left = (words[:, 0] >> np.uint32(16)).astype(np.int64) * span >> 16
        across = left[:, None] + np.arange(width)
        mirrored = (words[:, 1] >> np.uint32(31)).astype(bool) & flip
        across = np.where(mirrored[:, None], across[:, ::-1], across)
        padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        rows = top[:, None] + np.arange(height)
        return {**examples, key: padded[np.arange(len(x))[:, None, None], rows[:, :, None], across[:, None, :]]}

    return cropped


def one_hot(classes: int, key: str = "y") -> Callable[[Examples], Examples]:
    """A transform: class ids [B] to float32 [B, classes], for `mapped`.

    Raises:
        ValueError: If `classes` < 1, or at take if an id is out of range.
    """
    if not is_whole(classes, 1):
        raise ValueError(f"data.one_hot: {classes!r} classes. Tried: one column a class. Give at least 1.")

    def encoded(examples: Examples) -> Examples:
        ids = examples[key]
        if ids.dtype.kind not in "iu":
            raise ValueError(f"data.one_hot: {key!r} {describe(ids)}. Tried: class ids. Give integers.")
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= classes):
            raise ValueError(
                f"data.one_hot: ids from {ids.min()} to {ids.max()} for {classes} classes. Give ids in [0, {classes})."
            )
        return {**examples, key: (ids[..., None] == np.arange(classes)).astype(np.float32)}

    return encoded
