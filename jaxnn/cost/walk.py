"""Adding up a jaxpr: every live equation, times the loops and devices around it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax

from jaxnn.cost import flops, jaxprs, primitives, trips


class Key(NamedTuple):
    """What rows are added up by; all but the primitive are "" unless asked for."""

    primitive: str
    source: str
    inner: str
    stack: str


@dataclass
class Row:
    """Totals over executions: the global ones, and those of one device."""

    flops: float = 0
    transcendentals: float = 0
    bytes: float = 0
    count: float = 0
    device_flops: float = 0

    def add(self, other: "Row", times: float = 1, devices: int = 1) -> None:
        """Add `other`, run `times` times on each of `devices` devices."""
        self.flops += other.flops * times * devices
        self.transcendentals += other.transcendentals * times * devices
        self.bytes += other.bytes * times * devices
        self.count += other.count * times * devices
        self.device_flops += other.device_flops * times


@dataclass
class Tally:
    """What a jaxpr costs.

    Attributes:
        rows: Work by primitive (and by line and scope, if asked for).
        unknown: Primitive without a rule -> executions.
        flags: What the totals leave open, each once, in order.
        meshes: Meshes of the manual regions inside.
        loops: Names of the while loops inside.
    """

    rows: dict[Key, Row] = field(default_factory=dict)
    unknown: dict[str, float] = field(default_factory=dict)
    flags: dict[str, None] = field(default_factory=dict)
    meshes: list[Any] = field(default_factory=list)
    loops: dict[str, None] = field(default_factory=dict)

    def add(self, other: "Tally", times: float = 1, devices: int = 1) -> None:
        """Add `other`, run `times` times on each of `devices` devices."""
        for key, row in other.rows.items():
            self.rows.setdefault(key, Row()).add(row, times, devices)
        for name, count in other.unknown.items():
            self.unknown[name] = self.unknown.get(name, 0) + count * times * devices
        self.flags |= other.flags
        self.loops |= other.loops
        self.meshes += [mesh for mesh in other.meshes if mesh not in self.meshes]

    def total(self, name: str) -> float:
        """The sum of a row's attribute over all rows."""
        return sum(getattr(row, name) for row in self.rows.values())


class Walk:
    """One count of one program.

    Args:
        loops: Iterations of while loops that nothing in the program bounds: by "file.py:line" or by a name scope.
        detail: Keep rows apart by source line and name scope.
    """

    def __init__(self, loops: Mapping[str, int] | None = None, detail: bool = False):
        self.given = dict(loops or {})
        self.used: set[str] = set()
        self.detail = detail

    def jaxpr(self, jaxpr: Any, out: Sequence[bool], values: dict[int, int], stack: str = "") -> Tally:
        """Cost of one run of a bare jaxpr.

        Args:
            jaxpr: The jaxpr.
            out: Which of its results are used.
            values: id(variable) -> integer, for scalars that are known.
            stack: Name scopes around it.
        """
        tally = Tally()
        masks, _ = jaxprs.live(jaxpr, out)
        for index, eqn in enumerate(jaxpr.eqns):
            trips.fold(eqn, values)
            if index in masks:
                self._equation(tally, eqn, masks[index], values, stack)
        return tally

    def _equation(self, tally: Tally, eqn: Any, mask: jaxprs.Mask, values: dict[int, int], stack: str) -> None:
        name = eqn.primitive.name
        inside = "/".join(filter(None, (stack, jaxprs.stack_of(eqn)))) if self.detail or self.given else ""
        if (rule := flops.RULES.get(name)) is not None:
            work = rule(eqn)
            self._record(tally, eqn, inside, work.flops, work.transcendentals)
        elif name == "scan":
            self._scan(tally, eqn, mask, values, inside)
        elif name == "while":
            self._while(tally, eqn, mask, values, inside)
        elif name == "cond":
            self._cond(tally, eqn, mask, values, inside)
        elif name == "shard_map":
            self._shard_map(tally, eqn, mask, values, inside)
        elif name in ("reduce", "reduce_window"):
            self._reduction(tally, eqn, inside)
        elif name not in primitives.OPAQUE and (body := jaxprs.called(eqn)) is not None:
            tally.add(self._call(body, eqn.invars, mask, values, inside))
        else:
            self._unruled(tally, eqn, inside)

    def _record(self, tally: Tally, eqn: Any, stack: str, work: float, transcendentals: float = 0) -> None:
        scopes = (*jaxprs.sites(eqn), stack) if self.detail else ("", "", "")
        row = tally.rows.setdefault(Key(eqn.primitive.name, *scopes), Row())
        row.add(Row(work, transcendentals, flops.traffic(eqn), 1, work))

    def _call(
        self, body: Any, operands: Sequence[Any], mask: Sequence[bool], values: dict[int, int], stack: str
    ) -> Tally:
        """A jaxpr called once, operand for operand where the numbers agree."""
        passed = {}
        if len(body.invars) == len(operands):
            for variable, atom in zip(body.invars, operands):
                if (value := trips.known(atom, values)) is not None:
                    passed[id(variable)] = value
        out = mask if len(mask) == len(body.outvars) else (True,) * len(body.outvars)
        return self.jaxpr(body, out, passed, stack)

    def _scan(self, tally: Tally, eqn: Any, mask: jaxprs.Mask, values: dict[int, int], stack: str) -> None:
        body = jaxprs.bare(eqn.params["jaxpr"])
        consts, carry = jaxprs.carries(eqn)
        out, _ = jaxprs.loop_mask(body, mask, (consts, carry))
        known = zip(body.invars[:consts], eqn.invars[:consts])
        passed = {id(v): n for v, atom in known if (n := trips.known(atom, values)) is not None}
        tally.add(self.jaxpr(body, out, passed, stack), eqn.params["length"])

    def _while(self, tally: Tally, eqn: Any, mask: jaxprs.Mask, values: dict[int, int], stack: str) -> None:
        p, site = eqn.params, jaxprs.place(eqn)
        tally.loops[site] = None
        cond, body = jaxprs.bare(p["cond_jaxpr"]), jaxprs.bare(p["body_jaxpr"])
        names = {site, *stack.split("/")}
        given = next((key for key in self.given if key in names), None)
        if given is not None:
            self.used.add(given)
            count: float | None = self.given[given]
        else:
            count = trips.of_while(eqn, values)
        if count is None:
            tally.flags[f"while at {site}: unbounded, counted once; give trips={{{site!r}: N}}"] = None
            count = 1
        n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
        out, _ = jaxprs.while_mask(eqn, mask)
        test = self.jaxpr(cond, (True,), {}, stack)
        constants = {
            id(v): n
            for v, atom in zip(body.invars, eqn.invars[n_cond : n_cond + n_body])
            if (n := trips.known(atom, values)) is not None
        }
        tally.add(self.jaxpr(body, out, constants, stack), count)
        tally.add(test, count + 1)

    def _cond(self, tally: Tally, eqn: Any, mask: jaxprs.Mask, values: dict[int, int], stack: str) -> None:
        branches = [self._call(jaxprs.bare(b), eqn.invars[1:], mask, values, stack) for b in eqn.params["branches"]]
        costs = [(b.total("flops"), b.total("bytes")) for b in branches]
        largest = max(range(len(branches)), key=costs.__getitem__)
        if len({flops for flops, _ in costs}) > 1:
            site = jaxprs.place(eqn)
            tally.flags[f"cond at {site}: the largest of {len(branches)} branches is counted"] = None
        tally.add(branches[largest])
        for branch in branches:
            tally.loops |= branch.loops
            tally.meshes += [mesh for mesh in branch.meshes if mesh not in tally.meshes]

    def _shard_map(self, tally: Tally, eqn: Any, mask: jaxprs.Mask, values: dict[int, int], stack: str) -> None:
        mesh = eqn.params["mesh"]
        manual = eqn.params.get("newly_manual_axes", eqn.params.get("manual_axes"))
        devices = math.prod(mesh.shape[axis] for axis in (mesh.axis_names if manual is None else manual))
        tally.add(self._call(jaxprs.bare(eqn.params["jaxpr"]), eqn.invars, mask, values, stack), 1, devices)
        if isinstance(mesh, (jax.sharding.Mesh, jax.sharding.AbstractMesh)) and mesh not in tally.meshes:
            tally.meshes.append(mesh)

    def _reduction(self, tally: Tally, eqn: Any, stack: str) -> None:
        """A reduction by the user's own function: its cost for each pair that is combined."""
        body = jaxprs.bare(eqn.params["jaxpr"])
        outputs = eqn.outvars[0].aval.size
        elements = eqn.invars[0].aval.size if eqn.primitive.name == "reduce" else flops.window_pairs(eqn)
        each = self.jaxpr(body, (True,) * len(body.outvars), {}, stack)
        pairs = max(elements - outputs, 0)
        self._record(tally, eqn, stack, each.total("flops") * pairs, each.total("transcendentals") * pairs)
        tally.unknown |= {name: count * pairs for name, count in each.unknown.items()}

    def _unruled(self, tally: Tally, eqn: Any, stack: str) -> None:
        """A primitive that has no rule: its jaxprs are counted once each and flagged, or it is listed as unknown."""
        name = eqn.primitive.name
        bodies = [] if name in primitives.OPAQUE else list(jaxprs.inner(eqn.params))
        for body in bodies:
            tally.flags[f"{name}: an unknown container, each jaxpr inside counted once"] = None
            tally.add(self.jaxpr(body, (True,) * len(body.outvars), {}, stack))
        if not bodies:
            self._record(tally, eqn, stack, 0)
            tally.unknown[name] = tally.unknown.get(name, 0) + 1
