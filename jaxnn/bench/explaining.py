"""What a jitted step is made of: one page of its operations, memory, collectives and compilation.

The step may be ours or anybody's, jitted or not; nothing need be annotated, and nothing is run unless a profile is
asked for. Unlike a measurement it complains about nothing: what would be a guard's error is a remark here.
"""

import dataclasses
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxnn import cost, tree
from jaxnn.bench import display, guards, origins, profiling, schema
from jaxnn.bench.case import Donate, copies
from jaxnn.bench.compilation import persistent_cache
from jaxnn.bench.probes import Peaks
from jaxnn.bench.work import of
from jaxnn.cost import jaxprs
from jaxnn.report import Page

SCHEMA = "jaxnn.bench.explanation/1"
ROWS = 60  # of a table on the page


@dataclass(frozen=True)
class Part:
    """Work of one source line in one layer, phase and optimizer stage.

    Attributes:
        source: "step.py:12", outside installed packages.
        layer: Name scopes.
        stage: The optimizer's stage.
        phase: "forward", "backward" or "recompute".
        flops: All executions, all devices.
        bytes: Operands and results of every equation.
        count: Equations executed.
        primitives: The costliest ones.
    """

    source: str
    layer: str
    stage: str
    phase: str
    flops: float
    bytes: float
    count: float
    primitives: tuple[str, ...]

    @property
    def where(self) -> str:
        """What it is called in a comparison, in which line numbers would mean nothing."""
        return self.stage or self.layer or self.source.partition(":")[0] or "?"


@dataclass(frozen=True)
class Explanation:
    """What `explain` found.

    Attributes:
        name: Of the step.
        environment: Versions, device, commit.
        totals: Figure -> value: FLOPs, bytes, XLA's FLOPs, equations.
        compile: Figure -> seconds or bytes.
        memory: Class -> bytes on one device; empty where the backend does not say.
        arguments: Part of the arguments -> bytes.
        collectives: One line each.
        parts: The costliest first.
        ops: Operation, its origin, seconds a call, share; from a profile, empty without one.
        floors: Limit -> seconds that a call takes at least, by the machine's peaks; empty without peaks.
        remarks: What a reader should know: retraces, copies, what is not counted.
    """

    name: str
    environment: dict[str, Any]
    totals: dict[str, float]
    compile: dict[str, float]
    memory: dict[str, float]
    arguments: dict[str, float]
    collectives: tuple[str, ...]
    parts: tuple[Part, ...]
    ops: tuple[tuple[str, str, float, float], ...] = ()
    floors: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def by(self, key: Callable[[Part], str]) -> dict[str, tuple[float, float]]:
        """(FLOPs, bytes) of the parts by a key, the most FLOPs first."""
        found: dict[str, list[float]] = {}
        for part in self.parts:
            row = found.setdefault(key(part), [0.0, 0.0])
            row[0] += part.flops
            row[1] += part.bytes
        return {k: (a, b) for k, (a, b) in sorted(found.items(), key=lambda item: (-item[1][0], -item[1][1]))}

    def save(self, path: str | os.PathLike) -> None:
        """Writes it as JSON, to be compared with later."""
        content = {"schema": SCHEMA, **dataclasses.asdict(self)}
        pathlib.Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        total = max(self.totals["FLOPs"], 1e-9)
        seconds = "+".join(display.digits(1e3 * self.compile[k]) for k in ("trace s", "lower s", "compile s"))
        lines = [
            f"{self.name}   {display.amount(self.totals['FLOPs'], 'F')}  "
            f"{display.amount(self.totals['bytes at least'], 'B')} to "
            f"{display.amount(self.totals['bytes at most'], 'B')}  compile {seconds} ms"
        ]
        for where, (flops, _) in list(self.by(lambda part: part.where).items())[:8]:
            lines.append(f" {100 * flops / total:5.1f} %  {display.amount(flops, 'F'):>9}  {where}")
        return "\n".join([*lines, *(f" {remark}" for remark in self.remarks)])

    def _repr_html_(self) -> str:
        return display.as_html(str(self))

    def page(self, against: "Explanation | None" = None) -> Page:
        """The report, with the differences from another step or revision first."""
        from jaxnn.bench import explanation_page

        return explanation_page.make(self, against)


def explain(
    step: Callable[..., Any],
    *args: Any,
    out: str | os.PathLike | None = None,
    against: Any = None,
    name: str | None = None,
    donate: Donate = None,
    peaks: Peaks | None = None,
    profile: int = 0,
) -> Explanation:
    """Explains a step, and writes a page about it if `out` is given.

    Args:
        step: A function, jitted or not.
        *args: Its arguments: arrays, or `jax.ShapeDtypeStruct`s unless it is profiled.
        out: The HTML page.
        against: What to show the differences from: another function of the same arguments, (function, arguments), an
            `Explanation`, or a file that `Explanation.save` wrote.
        name: Of the step; by default the function's.
        donate: Argument numbers that a step which is not jitted donates; "thread" is the first.
        peaks: From `bench.peaks()`; adds how long a call takes at least.
        profile: Run so many calls under the profiler, and show which operations the time went to.

    Raises:
        TypeError: If `step` is not callable, or can't be traced with these arguments.
        BenchError: If `against` is a foreign, newer or damaged file.
    """
    found = _explain(step, args, name, donate, peaks, profile)
    if out is not None:
        other = None
        if isinstance(against, (str, os.PathLike)):
            other = load(against)
        elif isinstance(against, Explanation):
            other = against
        elif against is not None:
            function, given = against if isinstance(against, tuple) else (against, args)
            other = _explain(function, given, getattr(function, "__name__", None), donate, peaks, 0)
        found.page(other).write(out)
    return found


def load(path: str | os.PathLike) -> Explanation:
    """Reads what `Explanation.save` wrote.

    Raises:
        BenchError: If the file is missing, torn, foreign, of a newer schema, or damaged.
    """
    path = pathlib.Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise guards.BenchError(f"bench.explain: {path.name} cannot be read as JSON: {error}.") from error
    found = content.pop("schema", None) if isinstance(content, dict) else None
    if found != SCHEMA:
        raise guards.BenchError(
            f"bench.explain: {path.name} is of schema {found!r}; an explanation that this jaxnn reads is {SCHEMA!r}. "
            "Write it with --save, or Explanation.save."
        )
    try:
        parts = tuple(Part(**part | {"primitives": tuple(part["primitives"])}) for part in content.pop("parts"))
        ops = tuple(tuple(row) for row in content.pop("ops"))
        lists: dict[str, Any] = {key: tuple(content.pop(key)) for key in ("collectives", "remarks")}
        return Explanation(parts=parts, ops=ops, **lists, **content)
    except (KeyError, TypeError) as error:
        raise guards.BenchError(f"bench.explain: {path.name} is damaged: {type(error).__name__} {error}.") from error


def _explain(
    step: Callable[..., Any], args: tuple, name: str | None, donate: Donate, peaks: Peaks | None, profile: int
) -> Explanation:
    if not callable(step):
        raise TypeError(f"bench.explain: {type(step).__name__} is not callable. Give the step, then its arguments.")
    name = name or getattr(step, "__name__", type(step).__name__)
    numbers: Any = () if donate is None else 0 if donate == "thread" else donate
    jitted: Any = step if hasattr(step, "trace") else jax.jit(step, donate_argnums=numbers)
    jax.clear_caches()
    with persistent_cache(False):
        times = [time.perf_counter()]
        traced = jitted.trace(*args)
        times.append(time.perf_counter())
        lowered = traced.lower()
        times.append(time.perf_counter())
        compiled = lowered.compile()
        times.append(time.perf_counter())
    work = of(traced, compiled, tuple(x for x in jax.tree.leaves(args) if isinstance(x, jax.Array)))
    try:
        size = len(compiled.runtime_executable().serialize())
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        size = 0
    memory: dict[str, float] = {}
    if work.memory is not None:
        memory.update(dataclasses.asdict(work.memory), peak=work.memory.peak)
    parts = _parts(traced)
    return Explanation(
        name=name,
        environment=schema.environment(),
        totals={
            "FLOPs": work.flops,
            "FLOPs a device": work.flops_per_device,
            "XLA's FLOPs": work.xla_flops or 0.0,
            "bytes at least": work.bytes,
            "bytes at most": work.bytes_upper,
            "equations": sum(part.count for part in parts),
        },
        compile={
            "trace s": times[1] - times[0],
            "lower s": times[2] - times[1],
            "compile s": times[3] - times[2],
            "executable bytes": size,
            "HLO instructions": len(origins.of_module(compiled.as_text())),
        },
        memory=memory,
        arguments=_sizes(args),
        collectives=tuple(str(c) for c in work.collectives),
        parts=parts,
        ops=_profile(compiled, args, profile) if profile else (),
        floors=_floors(work, peaks) if peaks is not None else {},
        remarks=(*_remarks(args, traced), *work.flags, *(f"{p}: its work is not counted" for p in work.unknown)),
    )


def _parts(traced: Any) -> tuple[Part, ...]:
    """`cost.by_source`, helpers inside installed packages merged into the line that called them."""
    stages = origins.stages(traced)
    groups: dict[tuple[str, str, str, str], list[cost.Line]] = {}
    for line in cost.by_source(traced):
        place = jaxprs.short(line.source) if line.source else ""
        key = (place, line.layer, stages.get((line.source, line.inner), ""), line.phase)
        groups.setdefault(key, []).append(line)
    parts = []
    for (place, layer, stage, phase), lines in groups.items():
        primitives: dict[str, float] = {}
        for line in lines:
            for primitive, flops in line.primitives.items():
                primitives[primitive] = primitives.get(primitive, 0) + flops
        names = tuple(sorted(primitives, key=lambda p: -primitives[p]))[:4]
        flops, size, count = (float(sum(getattr(line, k) for line in lines)) for k in ("flops", "bytes", "count"))
        parts.append(Part(place, layer, stage, phase, flops, size, count, names))
    return tuple(sorted(parts, key=lambda part: (-part.flops, -part.bytes)))


def _sizes(args: tuple) -> dict[str, float]:
    """Bytes of the arguments by their first two levels."""
    found: dict[str, float] = {}
    for index, argument in enumerate(args):
        for path, leaf in tree.leaves_by_path(argument).items():
            if hasattr(leaf, "dtype"):
                top = f"args[{index}]" + ("" if path == "." else f"/{path.split('/')[0]}")
                found[top] = found.get(top, 0) + tree.nbytes(leaf)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _remarks(args: tuple, traced: Any) -> list[str]:
    """Arguments that every call copies from the host, and why a second call would be traced again."""
    lines = []
    for path, leaf in guards.named(args).items():
        if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)) and hasattr(leaf, "dtype"):
            lines.append(f"{path} {tree.describe(leaf)} is on the host: every call copies it to the device")
    out = traced.out_info
    outputs = out if isinstance(out, tuple) and not hasattr(out, "_fields") else (out,)
    for index, (argument, output) in enumerate(zip(args, outputs)):
        if jax.tree.structure(argument) != jax.tree.structure(output) or not jax.tree.leaves(argument):
            break
        if index and jax.tree.structure(argument) == jax.tree.structure(0):
            break
        for line in guards.differences((argument,), (output,)):
            moved = line.replace("args[0]", f"args[{index}]", 1)
            lines.append(f"a loop would retrace its second call: {moved} (argument against output)")
    return lines


def _profile(compiled: Any, args: tuple, calls: int) -> tuple[tuple[str, str, float, float], ...]:
    supply = [copies(args, tuple(range(len(args)))) for _ in range(calls + 1)]
    jax.block_until_ready(compiled(*supply.pop()))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            while supply:
                jax.block_until_ready(compiled(*supply.pop()))
        rows = profiling.op_table(folder, [compiled])
    found = []
    for row in rows[:ROWS]:
        o = row.origin
        place = "  ".join(filter(None, (jaxprs.short(o.source) if o.source else "", o.stage or o.layer, o.phase)))
        found.append((row.op, place, row.seconds / calls, row.share))
    return tuple(found)


def _floors(work: Any, peaks: Peaks) -> dict[str, float]:
    """Seconds that a call takes at least, by each limit that was measured."""
    found = {}
    product = f"product {work.dtype}" if work.dtype else "product float32"
    if product in peaks.by_name and work.flops:
        found[f"{work.dtype or 'float32'} products"] = work.flops / peaks[product].value
    if "copy" in peaks.by_name:
        found["memory, if all is fused"] = work.bytes / peaks["copy"].value
        found["memory, if nothing were fused (no floor)"] = work.bytes_upper / peaks["copy"].value
    if "dispatch" in peaks.by_name:
        found["dispatch"] = peaks["dispatch"].value
    return found
