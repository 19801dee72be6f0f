"""Why a run is slow."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxnn import bench
from jaxnn.bench.roofline import BOUND
from jaxnn.cost.result import size
from jaxnn.data.bucketing import batch_lengths
from jaxnn.train import checks
from jaxnn.train.diagnosis.probe import Probe
from jaxnn.train.diagnosis.verdict import SLOW, Verdict
from jaxnn.train.run import Conditions

SHORT_S = 0.1  # of training: what is over sooner has no trouble with speed, nor a clock that could tell
WAITING = 0.3  # of the time: below, a faster source gains less than the next idea
FEW_STEPS = 8  # a dispatch: fit's own first ones have 1 and 8, and then more
DISPATCHED = 0.5  # of a step's time is not the step
DISPATCH_S = 5e-3  # a dispatch at most: Python, jax and fit take 0.1 to 2 ms; what is more is another program's doing
RECOMPILED = 3  # windows or batches after the first: one is a first validation, two a ragged end
CACHED = 32 << 20  # bytes that a step touches at least: fewer may lie in a cache, whose speed no probe here measures


@dataclasses.dataclass(frozen=True)
class Clock:
    """The rows of timing, added up.

    Attributes:
        rows: How many, without the first, which has the compilation.
        steps: In them.
        seconds: Of training.
        waited_s: Of those, for data.
        compiling: Rows in which programs were compiled.
        compilations: In those.
    """

    rows: int
    steps: int
    seconds: float
    waited_s: float
    compiling: int
    compilations: int


def clock(timing: Sequence[Mapping[str, Any]]) -> Clock | None:
    """The clock of a run; None of too few rows."""
    last, steps, seconds, waited, compiling, compilations, rows = 0, 0, 0.0, 0.0, 0, 0, 0
    for number, row in enumerate(timing):
        here, last = row["step"] - last, row["step"]
        if number == 0 or here <= 0 or not row.get("steps_per_s"):
            continue
        took = here / row["steps_per_s"]
        rows, steps, seconds = rows + 1, steps + here, seconds + took
        waited += took * row.get("wait_share", 0.0)
        compiling += row.get("compilations", 0) > 0
        compilations += row.get("compilations", 0)
    return Clock(rows, steps, seconds, waited, compiling, compilations) if rows else None


def verdicts(
    timing: Sequence[Mapping[str, Any]],
    conditions: Conditions | None,
    probe: Probe | None,
    peaks: Any,
    notes: list[str],
    unknown: list[str],
) -> list[Verdict]:
    """What a run's time goes into.

    Args:
        timing: What the clock said, by row.
        conditions: How it was driven; None of a folder alone.
        probe: What measures; None likewise.
        peaks: `bench.Peaks`, or the values by name; None to measure them where they are needed.
        notes: Appended to.
        unknown: Likewise.
    """
    found = clock(timing)
    recompiled = _recompiling(found, conditions)
    if recompiled is not None:
        return [recompiled]  # all other times have the compiler in them
    if found is None or found.seconds < SHORT_S:
        notes.append("it was over too soon to be slow: its speed was not looked at.")
        return []
    waiting = _waiting(found, conditions, probe)
    if waiting is not None:
        return [waiting]
    if conditions is None or probe is None:
        return []
    try:
        return _step(found, conditions, probe, peaks)
    except Exception as error:  # a diagnosis of the rest is worth more than the error of a part
        unknown.append(f"where a step's time goes: it could not be measured ({checks.reason(error)}).")
        return []


def _recompiling(found: Clock | None, conditions: Conditions | None) -> Verdict | None:
    traced = list(dict.fromkeys(conditions.traced)) if conditions is not None else []
    expected = max(0, len(batch_lengths(conditions.source)) - 1) if conditions is not None else 0
    if conditions is not None and len(conditions.traced) > RECOMPILED + expected:
        shown = "; ".join(traced[:3]) + (f"; and {len(traced) - 3} more" if len(traced) > 3 else "")
        return Verdict(
            "recompiling",
            SLOW,
            f"The step was compiled {len(conditions.traced)} times in {conditions.steps} steps, for batches of other "
            f"shapes or dtypes: {shown}.",
            "Give every batch the same shape: pad to one length (or a few), and mask the rest.",
            "severe",
        )
    if found is not None and found.compiling > max(RECOMPILED, found.rows // 4):
        return Verdict(
            "recompiling",
            SLOW,
            f"In {found.compiling} of {found.rows} log windows programs were compiled, {found.compilations} in all; "
            "the step itself was compiled once. A hook, or the data, compiles its own.",
            "Make jitted functions once, outside of the hook; jax.config.update('jax_log_compiles', True) names them.",
            "severe",
        )
    return None


def _waiting(found: Clock, conditions: Conditions | None, probe: Probe | None) -> Verdict | None:
    share = found.waited_s / found.seconds
    if share < WAITING:
        return None
    made = ""
    if probe is not None:
        made = f" A batch takes {_time(probe.batch_s)} to be made, a step without it {_time(_own_s(found))}."
    resident = conditions is not None and not conditions.resident and conditions.source.resident() is not None
    return Verdict(
        "waiting for data",
        SLOW,
        f"{share:.0%} of the time ({found.waited_s:.2g} s of {found.seconds:.2g} s) the loop waited for batches.{made}",
        "Keep the data on the device: dispatch=train.Dispatch(resident=True)."
        if resident
        else "Decode once, not in every epoch: keep arrays in a .npy, and read it with mmap_mode='r'.",
        "severe" if share > 0.6 else "moderate",
    )


def _own_s(found: Clock) -> float:
    """Seconds a step, without waiting for data."""
    return (found.seconds - found.waited_s) / found.steps


def _time(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.2g} us"


def _step(found: Clock, conditions: Conditions, probe: Probe, peaks: Any) -> list[Verdict]:
    own = _own_s(found)
    each = conditions.steps / max(1, conditions.dispatches)
    # A longer step cannot have lost half its time to a dispatch: it is not made again.
    if each < FEW_STEPS and own * DISPATCHED < DISPATCH_S / each and len(conditions.strategy.devices) == 1:
        alone = probe.step_s
        if DISPATCHED * own < own - alone < DISPATCH_S / each:
            return [_dispatch(own, alone, each, conditions)]
    return _memory(own, conditions, probe, peaks)


def _dispatch(own: float, alone: float, each: float, conditions: Conditions) -> Verdict:
    if conditions.most == 1 and conditions.resident:
        what = "Let fit choose how many steps a dispatch runs: leave dispatch=train.Dispatch(most=1) out."
    elif not conditions.resident and conditions.source.resident() is not None:
        what = "Keep the data on the device, so that many steps run in a dispatch: leave Dispatch(resident=False) out."
    elif not conditions.resident:
        what = "Larger batches: the same step for little more. Or arrays that fit on the device (data.Arrays)."
    else:
        what = "Validate (validate_every=), save and let hooks act less often: each ends the dispatch at its step."
    share = (own - alone) / own
    return Verdict(
        "dispatch-bound",
        SLOW,
        f"A step took {_time(own)}, {each:.3g} steps a dispatch; inside one program of many steps the same one takes "
        f"{_time(alone)}: {share:.0%} of the time goes into sending it off and looking after it.",
        what,
        "severe" if share > 0.8 else "moderate",
    )


def _memory(own: float, conditions: Conditions, probe: Probe, peaks: Any) -> list[Verdict]:
    cost = probe.cost
    devices = len(conditions.strategy.devices)
    if cost.bytes < CACHED:
        return []
    copy, product = _peaks(peaks)
    moved, done = cost.bytes / own / copy, cost.flops / devices / own / product
    if moved < BOUND or moved < done:
        return []
    return [
        Verdict(
            "memory-bound",
            SLOW,
            f"A step moves at least {size(cost.bytes)} through each device's memory (what it reads and writes once) in "
            f"{_time(own)}: {moved:.0%} of what a copy reaches here. Its {cost.flops:.3g} FLOPs are {done:.0%} of what "
            f"a matrix product does; {cost.flops / cost.bytes:.2g} FLOPs a byte.",
            "Do more with what is read (larger batches), or read less (optimizer state in bfloat16).",
        )
    ]


def _peaks(peaks: Any) -> tuple[float, float]:
    """Bytes a second of a copy, FLOPs a second of a product, of one device."""
    if peaks is None:
        peaks = bench.peaks(seconds=1.0, dtypes=("float32",))
    value = lambda name: getattr(peaks[name], "value", peaks[name])  # noqa: E731
    return value("copy"), value("product float32")
