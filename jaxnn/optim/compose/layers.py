"""Which layer a parameter is of, whatever the layout: a loop's `blocks_3/qkv` is row 3 of a scan's `blocks/qkv`.

What is drawn at random for a layer goes by its number here, so that a model's loop and scan layouts draw the same.
"""

import math
import re
import zlib
from collections.abc import Sequence

import numpy as np

from jaxnn.optim.compose.select import Leaf

_NUMBER = re.compile(r"_?(\d+)(?=_|$)")  # at a word's end: the 3 of `conv2d_3`


def unnumbered(path: str) -> str:
    """A path without the numbers at its words' ends (`conv2d_3` is `conv2d`); an entry that is nothing else goes."""
    entries = [_NUMBER.sub("", entry) for entry in path.split("/")]
    return "/".join(entry for entry in entries if entry) or ("all" if path.strip("/.") else path)


def order(path: str) -> tuple[int, ...]:
    """The numbers that `unnumbered` leaves out: by them `blocks_10` stands after `blocks_9`."""
    return tuple(int(number) for entry in path.split("/") for number in _NUMBER.findall(entry))


def numbers(leaves: Sequence[Leaf]) -> list[np.ndarray]:
    """For each leaf a uint32 for each of its layers, [*stacked].

    A hash of the path without numbers, the shape of a layer, and which of that name and shape it is, so that it is the
    same whether layers are leaves of their own, rows of one, or stacks of some.
    """
    kinds: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for i, leaf in enumerate(leaves):
        kinds.setdefault((unnumbered(leaf.path), leaf.shape[leaf.role.stacked :]), []).append(i)
    found: list[np.ndarray] = [np.empty(0, np.uint32)] * len(leaves)
    for (name, shape), members in kinds.items():
        known = zlib.crc32(f"{name} {shape}".encode())
        first = 0
        for i in sorted(members, key=lambda i: order(leaves[i].path)):
            lead = leaves[i].shape[: leaves[i].role.stacked]
            count = math.prod(lead)
            made = [zlib.crc32(b"%d" % number, known) for number in range(first, first + count)]
            found[i] = np.asarray(made, np.uint32).reshape(lead)
            first += count
    return found
