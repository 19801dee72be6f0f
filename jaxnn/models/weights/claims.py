"""What a config.json claims, against the tensors' names and shapes: before a model of that size is traced."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxnn.models.weights.tensors import WHERE, Stored


class Claims(NamedTuple):
    """What must show in the tensors.

    Attributes:
        layers: By field of config.json, what the layers' tensors begin with before their number ("encoder.layer."), and
            how many layers it says.
        sizes: By field, a size that is some axis of the tensors, or a part of one.
    """

    layers: Mapping[str, tuple[str, int]]
    sizes: Mapping[str, int]


def check(where: Path, claims: Claims, stored: Mapping[str, Stored]) -> None:
    """Refuses a config.json that says more layers, or a larger size, than any tensor of the files has.

    So the time and memory that follow are bounded by the files and not by a number that somebody wrote.

    Raises:
        ValueError: Naming the field.
    """
    for field, (start, count) in claims.layers.items():
        numbered = re.compile(rf"(?:^|\.){re.escape(start)}(\d+)\.")
        there = len({match[1] for name in stored if (match := numbered.search(name))})
        if count > there:
            raise ValueError(
                f"{WHERE}: config.json in {str(where)!r} has {field}={count}. Tried: the tensors, which are of {there} "
                f"such layers. Correct config.json, or give the weights that belong to it."
            )
    check_sizes(where, claims.sizes, stored)


def check_sizes(where: Path, sizes: Mapping[str, int], stored: Mapping[str, Stored]) -> None:
    """Refuses sizes beyond the longest axis of a tensor that holds anything.

    Raises:
        ValueError: Naming the field.
    """
    longest = max((max(t.shape, default=1) for t in stored.values() if math.prod(t.shape)), default=0)
    for field, size in sizes.items():
        if size > longest:
            raise ValueError(
                f"{WHERE}: config.json in {str(where)!r} has {field}={size}. Tried: the tensors, whose longest axis is "
                f"{longest}. Correct config.json, or give the weights that belong to it."
            )
