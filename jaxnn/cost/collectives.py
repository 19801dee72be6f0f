"""What a compiled program sends between devices, read from its optimized HLO."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxnn.cost import hlo

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_STARTS = {f"{kind}-start": kind for kind in KINDS}
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\(((?:[^()]|\([^()]*\))*)\))?\s*(\{[^}]*\})")
_SKIP = frozenset((*KINDS, *_STARTS))


@dataclass(frozen=True)
class Collective:
    """Equal collectives of a program, as one device runs them.

    Attributes:
        kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", ...
        axes: Mesh axes it runs over, in the mesh's order; None where no mesh is known or none of its axes fit.
        count: Instructions in the program.
        trip: How often each runs: the trip counts of the loops around it.
        bytes: Of one run's whole buffer, operands summed: what is reduced, gathered (the result), scattered (the
            operand), exchanged or sent.
        group: Devices in a replica group.
        bounded: False where a loop around it has no known trip count and was counted once.
        conditional: True inside a branch, which may not run.
        scope: op_name of the first one, for people.
    """

    kind: str
    axes: tuple[str, ...] | None
    count: int
    trip: int
    bytes: int
    group: int
    bounded: bool = True
    conditional: bool = False
    scope: str = ""

    @property
    def total_bytes(self) -> int:
        """Count x trip x bytes."""
        return self.count * self.trip * self.bytes

    def __str__(self) -> str:
        over = f"over {', '.join(self.axes)} " if self.axes else ""
        notes = (
            "" if self.bounded else ", in a loop of unknown length counted once"
        ) + ", in a branch" * self.conditional
        return f"{self.kind} {over}({self.group} devices): {self.count} x {self.trip} x {self.bytes} B{notes}"


def collectives(program: Any, mesh: Any = ()) -> tuple[Collective, ...]:
    """The collectives of a compiled program, the largest total first.

    Async pairs count once; a variadic one counts once with its operands' bytes summed; loops multiply.

    Args:
        program: A `jax.stages.Compiled`, or its `as_text()`.
        mesh: The mesh (or several) that names the axes; jax 0.12 writes names into the HLO itself.

    Raises:
        ValueError: If the text has no entry computation.
    """
    text = program if isinstance(program, str) else program.as_text()
    meshes = list(mesh) if isinstance(mesh, (tuple, list)) else [mesh]
    module = hlo.parse(text)
    devices = _devices(text)
    found: dict[Collective, tuple[int, str]] = {}
    for run in hlo.runs(module, _SKIP):
        instruction = run.instruction
        kind = _STARTS.get(instruction.opcode, instruction.opcode)
        if kind not in KINDS:
            continue
        axes, group = _replicas(instruction, devices, meshes)
        size = module.operand_bytes(run.computation, instruction) * (group if kind == "all-gather" else 1)
        key = Collective(kind, axes, 1, run.times, size, group, run.bounded, run.conditional)
        count, scope = found.get(key, (0, instruction.scope))
        found[key] = (count + 1, scope)
    merged = [replace(key, count=count, scope=scope) for key, (count, scope) in found.items()]
    return tuple(sorted(merged, key=lambda c: (-c.total_bytes, c.kind)))


def _devices(text: str) -> int:
    """Devices of the program: its partitions times its replicas."""
    header = text.partition("\n")[0]
    counts = [re.search(rf"\b{key}=(\d+)", header) for key in ("num_partitions", "replica_count")]
    return math.prod(int(c[1]) for c in counts if c)


def iota(text: str) -> np.ndarray:
    """`[2,4]<=[8]` or `[4,2]<=[2,4]T(1,0)` as rows of device numbers, the form XLA calls an iota tile assignment."""
    found = re.match(r"\s*\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not found:
        raise ValueError(f"cost.collectives: replica groups {text[:60]!r} aren't understood. Give compiled.as_text().")
    shape, dims, order = ([int(n) for n in part.split(",")] if part else None for part in found.groups())
    ids = np.arange(math.prod(dims or ())).reshape(dims or ())
    return (ids.transpose(order) if order else ids).reshape(shape or ())


def _groups(text: str, devices: int) -> list[tuple[int, ...]]:
    """Replica groups as tuples of device numbers; no groups mean all devices."""
    if "<=" in text:
        return [tuple(int(i) for i in row) for row in iota(text)]
    found = [tuple(int(i) for i in row.split(",")) for row in re.findall(r"\{([\d, ]+)\}", text)]
    return found or [tuple(range(devices))]


def _replicas(instruction: hlo.Instruction, devices: int, meshes: Iterable[Any]) -> tuple[tuple[str, ...] | None, int]:
    """(mesh axes, devices a group) of a collective."""
    pairs = instruction.attribute("source_target_pairs")
    if pairs:
        sends = _groups(pairs, devices)
        return _axes_of_pairs(sends, meshes), _cycle(sends)
    if found := _MESH.search(instruction.attributes):
        names, groups = _mesh_groups(*found.groups(default=""))
        return _axes_of_groups(groups, meshes) or names, len(groups[0])
    groups = _groups(instruction.attribute("replica_groups"), devices)
    return _axes_of_groups(groups, meshes), len(groups[0])


def _mesh_groups(axes: str, order: str, chosen: str) -> tuple[tuple[str, ...] | None, list[tuple[int, ...]]]:
    """(axes, groups) of `mesh['a'=2,'b'=4], device_ids=(order) {'b'}`.

    `'b':(2)2` is a part of b: the factor of 2 after the first factor of 2. Names that XLA made up (`axis_0`) and parts
    of axes give None.
    """
    shape = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", axes)}
    picked: dict[str, list[tuple[int, int]]] = {}
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen):
        picked.setdefault(name, []).append((int(before or 1), int(size or shape[name])))
    inside: list[int] = []
    sizes: list[int] = []
    for name, whole in shape.items():
        done = 1
        for before, size in sorted(picked.get(name, [])):
            sizes += [before // done, size]
            inside.append(len(sizes) - 1)
            done = before * size
        sizes.append(whole // done)
    ids = _tiled(order, math.prod(sizes)).reshape(sizes)
    outside = [i for i in range(len(sizes)) if i not in inside]
    rows = ids.transpose(*outside, *inside).reshape(-1, math.prod(sizes[i] for i in inside))
    whole_axes = all(parts == [(1, shape[name])] for name, parts in picked.items())
    named = whole_axes and not any(re.fullmatch(r"axis_\d+", name) for name in picked)
    return tuple(n for n in shape if n in picked) if named else None, [tuple(int(i) for i in row) for row in rows]


def _tiled(order: str, count: int) -> np.ndarray:
    """The device numbers of a mesh in its own order: listed, or `[4,2]T(1,0)`, or "" for 0, 1, 2, ..."""
    if not order:
        return np.arange(count)
    if found := re.fullmatch(r"(?:<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?", order):
        dims, permutation = ([int(n) for n in part.split(",")] if part else None for part in found.groups())
        ids = np.arange(count).reshape(dims or ())
        return (ids.transpose(permutation) if permutation else ids).reshape(-1)
    return np.array([int(n) for n in order.split(",")])


def _axes_of_groups(groups: list[tuple[int, ...]], meshes: Iterable[Any]) -> tuple[str, ...] | None:
    """The mesh axes along which exactly these groups lie. Device numbers are positions in the mesh, row by row."""
    wanted = {frozenset(g) for g in groups}
    for mesh in filter(None, meshes):
        shape = dict(mesh.shape)
        ids = np.arange(math.prod(shape.values())).reshape(tuple(shape.values()))
        for choice in range(1, 2 ** len(shape)):
            inside = [i for i in range(len(shape)) if choice >> i & 1]
            outside = [i for i in range(len(shape)) if i not in inside]
            size = math.prod(ids.shape[i] for i in inside)
            rows = ids.transpose(*outside, *inside).reshape(-1, size)
            if {frozenset(int(i) for i in row) for row in rows} == wanted:
                return tuple(name for i, name in enumerate(shape) if i in inside)
    return None


def _axes_of_pairs(sends: list[tuple[int, ...]], meshes: Iterable[Any]) -> tuple[str, ...] | None:
    """The mesh axes along which sender and receiver differ."""
    for mesh in filter(None, meshes):
        shape = dict(mesh.shape)
        sizes = tuple(shape.values())
        if max(max(pair) for pair in sends) >= math.prod(sizes):
            continue
        places = [[np.unravel_index(device, sizes) for device in pair] for pair in sends]
        axes = tuple(name for i, name in enumerate(shape) if any(a[i] != b[i] for a, b in places))
        return axes or None
    return None


def _cycle(sends: list[tuple[int, ...]]) -> int:
    """Devices of the largest set that the pairs connect."""
    groups: list[set[int]] = []
    for pair in sends:
        joined = [g for g in groups if g & set(pair)]
        groups = [g for g in groups if g not in joined] + [set(pair).union(*joined)]
    return max((len(g) for g in groups), default=1)
