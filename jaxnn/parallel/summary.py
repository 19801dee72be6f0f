"""What each device keeps of a state, as a table: to see a layout before anything is trained."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxnn import sharding, tree
from jaxnn.typing import Strategy


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf of a state.

    Attributes:
        path: `params/blocks_0/qkv/kernel`.
        shape: In global view.
        spec: Mesh axes of each of its axes.
        nbytes: In global view.
        held: Bytes on one device.
    """

    path: str
    shape: tuple[int, ...]
    spec: P
    nbytes: int
    held: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a strategy makes of a state; `print` it.

    Attributes:
        leaves: Every leaf.
        devices: Over how many.
    """

    leaves: tuple[Leaf, ...]
    devices: int

    @property
    def nbytes(self) -> int:
        """Bytes of the state in global view."""
        return sum(leaf.nbytes for leaf in self.leaves)

    @property
    def held(self) -> int:
        """Bytes of it on one device."""
        return sum(leaf.held for leaf in self.leaves)

    @property
    def whole(self) -> tuple[Leaf, ...]:
        """Leaves that every device keeps whole, the largest first: too small, or with no axis that divides."""
        return tuple(sorted((x for x in self.leaves if x.held == x.nbytes), key=lambda x: -x.nbytes))

    def __str__(self) -> str:
        split = sorted((x for x in self.leaves if x.held < x.nbytes), key=lambda x: -x.nbytes)
        rows = [(x.path, str(x.shape), _spec(x), f"{x.nbytes:,}", f"{x.held:,}") for x in (*split, *self.whole[:8])]
        rest = self.whole[8:]
        if rest:
            size = f"{sum(x.nbytes for x in rest):,}"
            rows.append((f"{len(rest)} more that are whole", "", "", size, size))
        share = self.held / max(1, self.nbytes)
        rows.append(("all", "", f"{share:.2%} a device of {self.devices}", f"{self.nbytes:,}", f"{self.held:,}"))
        table = [("leaf", "shape", "split over", "bytes", "a device"), *rows]
        widths = [max(len(row[i]) for row in table) for i in range(5)]
        align = (str.ljust, str.ljust, str.ljust, str.rjust, str.rjust)
        lines = ["  ".join(put(c, w) for put, c, w in zip(align, row, widths)).rstrip() for row in table]
        return "\n".join(lines)


def _spec(leaf: Leaf) -> str:
    return ", ".join(
        "-" if e is None else "+".join(sharding.axes_of(e)) for e in sharding.padded(leaf.spec, len(leaf.shape))
    )


def summary(strategy: Strategy, state: Any) -> Summary:
    """Where each leaf of a state lies, and how many bytes a device keeps of it.

    Args:
        strategy: Any strategy.
        state: A `core.State`, or its shapes (`jax.eval_shape`); nothing is placed or computed.
    """
    specs_of = getattr(strategy, "state_specs", None)
    specs = specs_of(state) if specs_of is not None else jax.tree.map(lambda _: P(), state)
    mesh = dict(getattr(strategy, "mesh").shape) if specs_of is not None else {}  # noqa: B009
    by_path = {
        tree.path_name(path): spec
        for path, spec in jax.tree_util.tree_leaves_with_path(specs, is_leaf=lambda x: isinstance(x, P))
    }
    leaves = []
    for path, leaf in tree.leaves_by_path(state).items():
        nbytes = math.prod(np.shape(leaf)) * np.dtype(leaf.dtype).itemsize
        ways = math.prod(mesh[axis] for entry in by_path[path] for axis in sharding.axes_of(entry))
        leaves.append(Leaf(path, np.shape(leaf), by_path[path], nbytes, nbytes // ways))
    return Summary(tuple(leaves), len(strategy.devices))
