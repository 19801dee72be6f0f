"""What an optimizer is made of, and what it will hold in memory: a table that costs nothing to make."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from jaxnn import tree
from jaxnn.optim.compose import select
from jaxnn.optim.compose.cells import Cells, cells
from jaxnn.optim.compose.places import Place, abstract_init, places
from jaxnn.optim.compose.specs import axis_sizes, shard_shape, spec_of, unknown_axis
from jaxnn.report import html_table, text_table
from jaxnn.sharding import axes_of
from jaxnn.typing import PyTree

ASSIGNED = 40  # leaves of the assignment that are shown in a terminal; a notebook scrolls


@dataclasses.dataclass(frozen=True)
class Row:
    """One stage on one group of parameters.

    Attributes:
        stage: Its name, dotted where stages are nested.
        group: The group's name; "" where the stage takes all parameters.
        kind: What it is: "adam", "optax.scale_by_adam".
        leaves: Number of parameter leaves that it acts on.
        elements: Number of their elements.
        dtypes: Of its state's arrays, without scalars: `("float32",)`.
        nbytes: Bytes of its state.
        device_nbytes: Bytes of it on one device.
        hypers: Hyperparameters: name -> number, or the schedule as it was written.
    """

    stage: str
    group: str
    kind: str
    leaves: int
    elements: int
    dtypes: tuple[str, ...]
    nbytes: int
    device_nbytes: int
    hypers: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Assigned:
    """One parameter and where it goes.

    Attributes:
        path: Its path.
        shape: Its shape.
        role: Its role.
        declared: Whether its module declared the role; else it is a guess from rank and name.
        groups: Its group in each `groups`, in their order.
    """

    path: str
    shape: tuple[int, ...]
    role: tree.Role
    declared: bool
    groups: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
    """Prints as tables, in a terminal and in a notebook. See `summary`.

    Attributes:
        rows: Stages by groups.
        assigned: Parameters by path.
        groups: The names of the stages that are `groups`.
        sharded: Whether `device_nbytes` follows given specs.
        computed: Whether `init` could not be traced, and was run on zeros in host memory.
    """

    rows: tuple[Row, ...]
    assigned: tuple[Assigned, ...]
    groups: tuple[str, ...]
    sharded: bool
    computed: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the whole state."""
        return sum(row.nbytes for row in self.rows)

    @property
    def device_nbytes(self) -> int:
        """Bytes of the state on one device."""
        return sum(row.device_nbytes for row in self.rows)

    @property
    def elements(self) -> int:
        """Elements of the parameters."""
        return sum(math.prod(leaf.shape) for leaf in self.assigned)

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes of state for each element of a parameter."""
        return self.nbytes / max(self.elements, 1)

    @property
    def guessed(self) -> int:
        """How many parameters' roles are guesses."""
        return sum(not leaf.declared for leaf in self.assigned)

    def _stage_table(self) -> tuple[list[tuple[Any, ...]], tuple[str, ...]]:
        rows = []
        for row in self.rows:
            cells = [row.stage, row.group, row.kind, row.leaves, row.elements, ", ".join(row.dtypes) or "–"]
            cells += [_bytes(row.nbytes), *([_bytes(row.device_nbytes)] if self.sharded else [])]
            cells += [round(row.nbytes / row.elements, 3) if row.elements else None]
            rows.append((*cells, ", ".join(f"{name}={_number(value)}" for name, value in row.hypers.items())))
        sizes = ("bytes", "a device") if self.sharded else ("bytes",)
        return rows, ("stage", "group", "kind", "leaves", "parameters", "state", *sizes, "B/param", "hyperparameters")

    def _group_table(self) -> tuple[list[tuple[Any, ...]], tuple[str, ...]]:
        rows = [(x.path, str(x.shape), _role(x), *x.groups) for x in self.assigned]
        one = len(self.groups) == 1
        return rows, ("parameter", "shape", "role", *(("group",) if one else self.groups))

    def _notes(self) -> list[str]:
        line = f"State: {_bytes(self.nbytes)}, {self.bytes_per_parameter:.3g} bytes a parameter"
        if self.sharded:
            line += f"; {_bytes(self.device_nbytes)} on a device"
        notes = [f"{line}."]
        if self.guessed and self.guessed == len(self.assigned):
            notes.append("No module declared roles for these parameters: every role is a guess from rank and name.")
        elif self.guessed:
            notes.append(f"{self.guessed} of {len(self.assigned)} roles are guesses from rank and name.")
        if self.computed:
            notes.append("init could not be traced, and was run on zeros in host memory.")
        return notes

    def __str__(self) -> str:
        rows, headers = self._stage_table()
        text = [text_table(rows, headers), "", *self._notes()]
        rows, headers = self._group_table()
        text += ["", text_table(rows[:ASSIGNED], headers)]
        if len(rows) > ASSIGNED:
            text.append(f"... and {len(rows) - ASSIGNED} more: summary.assigned has all")
        return "\n".join(text)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        stages = html_table(*self._stage_table(), "Optimizer", "\n".join(self._notes()))
        return stages + html_table(*self._group_table(), "Parameters")


def summary(
    tx: optax.GradientTransformation,
    params: PyTree,
    *,
    specs: PyTree = None,
    mesh: Mesh | Mapping[str, int] | None = None,
) -> Summary:
    """What an optimizer does to which parameters, and the memory that its state takes; computes nothing.

    Args:
        tx: Any optimizer; what optax hides in closures is one row.
        params: Parameters, or their shapes.
        specs: The state's specs, from `state_specs`, or `NamedSharding`s: then the table has bytes a device.
        mesh: The mesh of `specs`, or axis name -> size. By default that of `NamedSharding`s in `specs`, else of those
            of `params`, else the one in force.

    Raises:
        ValueError: If `specs` is not a tree like the state, no mesh is known that has its axes, or groups do not fit
            the parameters.
    """
    where = "optim.summary"
    state, how = abstract_init(tx, params)
    found = list(places(state, params))
    local = [np.shape(place.leaf) for place in found]
    if specs is not None:
        flat = [spec_of(s) for s in jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))]
        if len(flat) != len(found):
            raise ValueError(
                f"{where}: {len(flat)} specs for {len(found)} leaves of state. Give what optim.state_specs gives "
                "for this optimizer and these parameters."
            )
        sizes = axis_sizes(where, mesh, ("specs", specs), ("params", params))
        named = sorted({axis for spec in flat for entry in spec for axis in axes_of(entry)})
        if not set(named) <= sizes.keys():
            raise ValueError(f"{where}: specs name the axes {named}, and {unknown_axis(sizes, 'specs')}")
        local = [shard_shape(shape, spec, sizes) for shape, spec in zip(local, flat)]
    leaves = {leaf.path: leaf for leaf in jax.tree.leaves(select.leaves(params))}
    parts = cells(tx, params)
    held: dict[tuple[str, str], list[tuple[Place, tuple[int, ...]]]] = {key: [] for key in parts.kinds}
    for place, shape in zip(found, local):
        held.setdefault(_cell_of(place, parts), []).append((place, shape))
    rows = []
    for key, arrays in held.items():
        kind, hypers, paths = parts.kinds.get(key, ("", {}, list(leaves)))
        rows.append(_row(key, kind, hypers, [leaves[p] for p in paths], arrays))
    assigned = tuple(
        Assigned(
            x.path, x.shape, x.role, x.declared, tuple(labels.get(x.path, "") for labels in parts.columns.values())
        )
        for x in leaves.values()
    )
    return Summary(tuple(rows), assigned, tuple(parts.columns), specs is not None, how == "computed")


def _cell_of(place: Place, parts: Cells) -> tuple[str, str]:
    if place.owner == "Metrics" and not place.stage:
        return "metrics", ""
    key = place.stage, place.group
    return parts.moved.get(key, key)


def _row(
    key: tuple[str, str],
    kind: str,
    hypers: Mapping[str, Any],
    leaves: list[select.Leaf],
    held: list[tuple[Place, tuple[int, ...]]],
) -> Row:
    def size(shape: tuple[int, ...], place: Place) -> int:
        return math.prod(shape) * place.leaf.dtype.itemsize

    if key == ("metrics", ""):
        leaves = []
    return Row(
        *key,
        kind,
        len(leaves),
        sum(math.prod(leaf.shape) for leaf in leaves),
        tuple(sorted({str(place.leaf.dtype) for place, _ in held if place.remembers})),
        sum(size(np.shape(place.leaf), place) for place, _ in held),
        sum(size(shape, place) for place, shape in held),
        hypers,
    )


def _role(leaf: Assigned) -> str:
    stacked = f" x{leaf.role.stacked} stacked" if leaf.role.stacked else ""
    return f"{leaf.role.name}{stacked}{'' if leaf.declared else ' (guess)'}"


def _number(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _bytes(nbytes: int) -> str:
    """Bytes in decimal units: "1.2 MB"."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"
