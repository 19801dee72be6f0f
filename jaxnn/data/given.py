"""Checks of what sources and transforms are given: paths, whole numbers, texts."""

import os
from typing import Any

from jaxnn.tree import describe


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
