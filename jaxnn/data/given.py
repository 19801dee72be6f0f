"""Checks of what sources and transforms are given: paths, whole numbers, texts, examples."""

import os
from typing import Any

import numpy as np

from jaxnn.tree import describe
from jaxnn.typing import HostArray


def check_path(where: str, path: Any) -> None:
    """Refuses what is no path.

    Raises:
        TypeError: Naming it.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{where}: path is {describe(path)}. Tried: a file or folder. Give its path.")


def is_whole(value: Any, least: int) -> bool:
    """Whether `value` is an integer of at least so much."""
    return hasattr(value, "__index__") and value >= least


def check_whole(where: str, name: str, value: Any, least: int) -> None:
    """Refuses what is no integer, or below the least.

    Raises:
        ValueError: Naming it.
    """
    if not is_whole(value, least):
        raise ValueError(f"{where}: {name}={value!r}. Tried: an integer of at least {least}. Write one.")


def example_numbers(where: str, index: Any, n: int) -> HostArray:
    """What a source's `take` is given, as integers [B], each the number of one of `n` examples.

    Raises:
        TypeError: If they are no integers: truths and slices choose examples too, but not here.
        ValueError: If they are not in a row, or an example is not there. -1 is no example, but a batch's padding.
    """
    numbers = np.asarray(index)
    if not numbers.size and numbers.ndim == 1:
        return numbers.astype(np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        kind = ValueError if numbers.dtype.kind in "iu" else TypeError
        raise kind(
            f"{where}.take: index {describe(index)}. Tried: integers [B]. Write [3] for a single example, "
            f"np.arange({n}) for all, np.flatnonzero(chosen) for truths."
        )
    if int(numbers.min()) < 0 or int(numbers.max()) >= n:
        raise ValueError(
            f"{where}.take: examples {numbers.min()} to {numbers.max()} of {n}. Tried: numbers in [0, {n}). Leave the "
            "others out; data.host_batch takes -1 for padding."
        )
    return numbers


def is_size(size: Any) -> bool:
    """Whether `size` is two positive integers: (height, width)."""
    return isinstance(size, (tuple, list)) and len(size) == 2 and all(is_whole(n, 1) for n in size)


def check_text(where: str, text: Any) -> None:
    """Refuses what is no text that UTF-8 can hold.

    Raises:
        TypeError: If it is no string.
        ValueError: If it has half of a surrogate pair, as files that were read wrongly leave behind.
    """
    if not isinstance(text, str):
        raise TypeError(f"{where}: {text!r:.60} is {type(text).__name__}. Tried: strings. Decode it first.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: {text!r:.60} has {text[error.start]!r}, which is no character. Tried: UTF-8. Read the file by "
            f"its encoding, or write text.encode(errors='replace').decode()."
        ) from error


def check_texts(where: str, texts: Any) -> None:
    """Refuses one text in place of several, which would be taken for its letters, and what holds none.

    Raises:
        TypeError: Naming it.
    """
    if isinstance(texts, (str, bytes)) or not hasattr(texts, "__iter__"):
        what = describe(texts)
        raise TypeError(f"{where}: texts are {what}. Tried: several strings. Write [text] for a single one.")
