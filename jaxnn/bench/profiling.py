"""Device time from jax's profiler: how long each run of a program took on each device, and which operations it went to.

Every operation that a device executes carries the `run_id` of the run it belongs to and the device's number (CPU), or
stands under that run's line in the device's own plane (TPU); where neither is recorded (GPU), it belongs to the call in
whose time it started. Wall time until the outputs are ready stands beside it: the difference is dispatch and waiting.
"""

import pathlib
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.profiler import ProfileData

from jaxnn.bench import display, guards, origins
from jaxnn.bench.case import copies
from jaxnn.bench.compilation import Program
from jaxnn.cost.collectives import KINDS

_CALL = "jaxnn.bench.call"
_PLANE = re.compile(r"/device:\w+:(\d+)")


class Op(NamedTuple):
    """One execution of an operation on a device.

    Attributes:
        name: The HLO instruction.
        module: The HLO module.
        run: What its run is called; None where the trace does not say.
        device: Number of the device.
        start_ns: Since the trace began.
        duration_ns: With what runs inside it (a loop's body).
        self_ns: Without.
    """

    name: str
    module: str
    run: Hashable
    device: int
    start_ns: float
    duration_ns: float
    self_ns: float

    @property
    def collective(self) -> bool:
        """Whether it exchanges data, and so waits for other devices."""
        return self.name.startswith(KINDS)


@dataclass(frozen=True)
class DeviceTimes:
    """Device time of each call.

    Attributes:
        wall_s: Seconds of each call until its outputs were ready, the profiler running [calls].
        span_s: Seconds from a device's first operation to the end of its last, summed over the call's runs
            [calls][devices].
        busy_s: Seconds in which a device executed anything but collectives [calls][devices].
        devices: Their numbers.
    """

    wall_s: tuple[float, ...]
    span_s: tuple[tuple[float, ...], ...]
    busy_s: tuple[tuple[float, ...], ...]
    devices: tuple[int, ...]

    @property
    def device_s(self) -> float:
        """Median over calls of the slowest device's span."""
        return float(np.median(np.max(self.span_s, axis=1)))

    @property
    def slowest(self) -> int:
        """The device with the largest median busy time."""
        return self.devices[int(np.argmax(np.median(self.busy_s, axis=0)))]

    @property
    def skew(self) -> float:
        """Median over calls of (slowest - fastest) / slowest busy time; 0 on one device.

        Spans end together, because the slowest device holds up the others' collectives; busy time does not.
        """
        busy = np.asarray(self.busy_s)
        return float(np.median(np.ptp(busy, axis=1) / np.maximum(np.max(busy, axis=1), 1e-12)))

    def __str__(self) -> str:
        text = f"device {display.duration(self.device_s)}, wall {display.duration(float(np.median(self.wall_s)))}"
        if len(self.devices) > 1:
            text += f", {len(self.devices)} devices: slowest is {self.slowest}, skew {100 * self.skew:.0f}%"
        return f"{text} (medians of {len(self.wall_s)} profiled calls)"


@dataclass(frozen=True)
class OpRow:
    """What one operation of a program took in all.

    Attributes:
        op: The HLO instruction.
        module: The HLO module.
        seconds: In all its executions on all devices, without what runs inside it.
        count: Executions.
        share: Of the time of all operations.
        origin: Source line, layer, phase and optimizer stage; empty unless the program's text was given.
    """

    op: str
    module: str
    seconds: float
    count: int
    share: float
    origin: origins.Origin


def device_times(call: Callable[[], Any], n: int = 5) -> DeviceTimes:
    """Profiles `n` calls after one that is not.

    Args:
        call: Runs compiled programs and returns their outputs; what it would compile belongs before.
        n: How many calls; >= 1.

    Raises:
        BenchError: If the trace has no operations of a device, or of a call.
    """
    if n < 1:
        raise guards.BenchError(f"bench.device_times: n={n} calls. Give at least 1.")
    jax.block_until_ready(call())
    wall = []
    with tempfile.TemporaryDirectory() as folder:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # it would record every Python call, and slow them
        with jax.profiler.trace(folder, profiler_options=options):
            for index in range(n):
                with jax.profiler.StepTraceAnnotation(_CALL, step_num=index):
                    start = time.perf_counter()
                    jax.block_until_ready(call())
                    wall.append(time.perf_counter() - start)
        ops, calls = read(folder)
    return attribute(ops, calls, wall)


def of_program(program: Program, n: int = 5) -> DeviceTimes:
    """`device_times` of a compiled case, with its arguments threaded and donated as bench does.

    Args:
        program: From `jaxnn.bench.compilation.build`.
        n: How many calls.

    Raises:
        BenchError: As `device_times`.
    """
    plan, again = program.flow, bool(program.flow.donated) and not program.flow.threaded
    supply = [copies(program.args, plan.donated) for _ in range(n + 1 if again else 1)]
    args = supply.pop()

    def call() -> Any:
        nonlocal args
        out = program.call(*args)
        if plan.threaded:
            args = plan.following(args, out)
        elif again and supply:
            args = supply.pop()
        return out

    return device_times(call, n)


def attribute(ops: Sequence[Op], calls: Sequence[tuple[float, float]], wall_s: Sequence[float]) -> DeviceTimes:
    """Sums operations by call and device.

    Args:
        ops: Of the trace.
        calls: Start and end of each call, ns.
        wall_s: Seconds of each call.

    Raises:
        BenchError: If a call has no operations.
    """
    devices = sorted({op.device for op in ops})
    by_run: dict[Hashable, list[Op]] = {}
    for op in ops:
        by_run.setdefault(op.run if op.run is not None else ("call", _call_at(calls, op.start_ns)), []).append(op)
    span, busy = np.zeros((len(calls), len(devices))), np.zeros((len(calls), len(devices)))
    for run in by_run.values():
        index = _call_at(calls, min(op.start_ns for op in run))
        if index is None:
            continue
        for column, device in enumerate(devices):
            own = [op for op in run if op.device == device]
            if own:
                end = max(op.start_ns + op.duration_ns for op in own)
                span[index, column] += 1e-9 * (end - min(op.start_ns for op in own))
                # A loop is not busy by itself: its body's operations are, apart from the collectives in it.
                leaves = [op for op in own if not op.collective and op.self_ns == op.duration_ns]
                busy[index, column] += 1e-9 * _covered(leaves)
    empty = [index for index in range(len(calls)) if not span[index].any()]
    if empty or not calls:
        raise guards.BenchError(
            f"bench.device_times: the trace has no device operations of calls {empty[:5]} of {len(calls)}. Either the "
            "call runs nothing on a device, or the profiler's buffer overflowed: profile fewer calls."
        )
    rows = [tuple(tuple(float(x) for x in row) for row in table) for table in (span, busy)]
    return DeviceTimes(tuple(wall_s), rows[0], rows[1], tuple(devices))


def op_table(folder: str | pathlib.Path, programs: Iterable[Any] = ()) -> tuple[OpRow, ...]:
    """The operations in a trace, the costliest first; shares add up to 1.

    Args:
        folder: What `jax.profiler.trace` wrote; the newest trace under it is read.
        programs: `jax.stages.Compiled`s, or their `as_text()`, whose operations are to be told their origins.

    Raises:
        BenchError: If there is no trace, or no operation of a device in it.
    """
    known = {}
    for program in programs:
        text = program if isinstance(program, str) else program.as_text()
        name = re.match(r"HloModule ([\w.\-]+)", text)
        known[name[1] if name else ""] = origins.of_module(text)
    ops, _ = read(folder)
    rows: dict[tuple[str, str], list[float]] = {}
    for op in ops:
        rows.setdefault((op.module, op.name), []).append(1e-9 * op.self_ns)
    total = sum(sum(times) for times in rows.values()) or 1.0
    found = [
        OpRow(name, module, sum(t), len(t), sum(t) / total, known.get(module, {}).get(name, origins.Origin()))
        for (module, name), t in rows.items()
    ]
    return tuple(sorted(found, key=lambda row: -row.seconds))


def read(folder: str | pathlib.Path) -> tuple[list[Op], list[tuple[float, float]]]:
    """The device operations of the newest trace under `folder`, and the times (ns) of the calls marked in it.

    Raises:
        BenchError: If there is no trace, or no operation of a device in it.
    """
    files = sorted(pathlib.Path(folder).rglob("*.xplane.pb"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise guards.BenchError(
            f"bench.profiling: {folder} holds no trace (*.xplane.pb). Give what jax.profiler.trace wrote."
        )
    return parse(ProfileData.from_file(str(files[-1])))


def parse(data: ProfileData) -> tuple[list[Op], list[tuple[float, float]]]:
    """`read` for a trace in memory.

    Raises:
        BenchError: If there is no operation of a device in it.
    """
    ops: list[Op] = []
    calls: dict[int, tuple[float, float]] = {}
    with warnings.catch_warnings():
        # jax's binding lacks a __module__, which Python 3.13 remarks upon at the first use.
        warnings.filterwarnings("ignore", "builtin type .* has no __module__", DeprecationWarning)
        planes = list(data.planes)
        for plane in planes:
            lines = {line.name: list(line.events) for line in plane.lines}
            found = _PLANE.match(plane.name)
            device = int(found[1]) if found else None
            if device is not None and "XLA Ops" in lines:
                ops += _of_lines(lines["XLA Ops"], lines.get("XLA Modules", []), device)
            else:
                for line in plane.lines:
                    ops += _of_stats(line.events, device)
            for events in lines.values():
                for event in events:
                    if event.name == _CALL:
                        calls[int(dict(event.stats)["step_num"])] = (event.start_ns, event.start_ns + event.duration_ns)
    if not ops:
        raise guards.BenchError(
            f"bench.profiling: no device operations in the trace (planes {[plane.name for plane in planes]}). Nothing "
            "ran on a device while it was taken, or this backend's profiler does not report operations."
        )
    return ops, [calls[index] for index in sorted(calls)]


class _Raw(NamedTuple):
    start: float
    duration: float
    name: str
    module: str
    run: Hashable
    device: int


def _of_stats(events: Iterable[Any], device: int | None) -> Iterator[Op]:
    """Operations that say themselves what they belong to: the CPU's threads and the GPU's streams."""
    raw = []
    for event in events:
        stats = dict(event.stats)
        if "hlo_op" in stats:
            where = int(stats.get("device_ordinal", 0)) if device is None else device
            run = stats.get("run_id")
            run = None if run is None else (stats.get("program_id"), run)
            raw.append(
                _Raw(event.start_ns, event.duration_ns, stats["hlo_op"], stats.get("hlo_module", ""), run, where)
            )
    return _nested(raw)


def _of_lines(events: Iterable[Any], modules: Iterable[Any], device: int) -> Iterator[Op]:
    """Operations of a TPU's plane, whose runs are the events of the line "XLA Modules"."""
    runs = [(m.start_ns, m.start_ns + m.duration_ns, m.name, dict(m.stats).get("run_id")) for m in modules]
    raw = []
    for event in events:
        inside = next((run for run in runs if run[0] <= event.start_ns < run[1]), None)
        module = inside[2].partition("(")[0] if inside else ""
        run = (module, inside[3]) if inside and inside[3] is not None else None
        name = event.name.lstrip("%").partition(" ")[0]
        raw.append(_Raw(event.start_ns, event.duration_ns, name, module, run, device))
    return _nested(raw)


def _nested(raw: list[_Raw]) -> Iterator[Op]:
    """Takes from each operation of a thread the time of those inside it."""
    raw = sorted(raw, key=lambda r: (r.start, -r.duration))
    inside, open_ = [0.0] * len(raw), list[int]()
    for index, r in enumerate(raw):
        while open_ and raw[open_[-1]].start + raw[open_[-1]].duration <= r.start:
            open_.pop()
        if open_:
            inside[open_[-1]] += r.duration
        open_.append(index)
    for r, within in zip(raw, inside):
        yield Op(r.name, r.module, r.run, r.device, r.start, r.duration, max(0.0, r.duration - within))


def _call_at(calls: Sequence[tuple[float, float]], at: float) -> int | None:
    return next((index for index, (start, end) in enumerate(calls) if start <= at <= end), None)


def _covered(ops: Iterable[Op]) -> float:
    """Nanoseconds in which at least one of the operations ran."""
    total, reached = 0.0, -np.inf
    for op in sorted(ops, key=lambda op: op.start_ns):
        end = op.start_ns + op.duration_ns
        total += max(0.0, end - max(op.start_ns, reached))
        reached = max(reached, end)
    return total
