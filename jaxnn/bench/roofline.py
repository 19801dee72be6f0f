"""Which limit a step runs against: its rate as a share of peaks that were probed in turns with it.

Interleaving makes the shares robust: a machine that is slower this second is slower for the probe too. A share clearly
above 1.05 means that the count or the probe is wrong, and is an error rather than a result.
"""

import math
from dataclasses import dataclass

import numpy as np

from jaxnn.bench import guards, statistics
from jaxnn.bench.probes import Probe
from jaxnn.bench.statistics import Interval
from jaxnn.bench.work import Work

BOUND = 0.6  # of a peak: a real program that reaches this much of a probe has little else to wait for
MOST = 1.05


@dataclass(frozen=True)
class Share:
    """A part of a measured peak; 1 is all of it."""

    value: float
    interval: Interval

    def __str__(self) -> str:
        return f"{100 * self.value:.0f}% [{100 * self.interval.low:.0f}, {100 * self.interval.high:.0f}]"


@dataclass(frozen=True)
class Roofline:
    """A step against its limits.

    Attributes:
        compute: FLOPs a second over those of a matrix product of the step's type.
        memory: Bytes a second, by the lower estimate of its traffic, over those of a copy in place.
        memory_upper: The same by the upper estimate; above 1 where operations are fused or a cache helps.
        dtype: Of the matrix product that was the probe.
        verdict: "compute bound", "memory bound" or "neither bound".
    """

    compute: Share
    memory: Share
    memory_upper: float
    dtype: str
    verdict: str

    def __str__(self) -> str:
        upper = f"{100 * self.memory_upper:.0f}%"
        return (
            f"{self.compute} of the {self.dtype} peak, {self.memory} to {upper} of the memory's "
            f"(probes interleaved) -> {self.verdict}"
        )


def attribute(
    name: str, work: Work, step_s: np.ndarray, product: tuple[Probe, np.ndarray], copy: tuple[Probe, np.ndarray]
) -> Roofline:
    """A step's shares of the peaks, from rounds in which it and the probes took turns.

    Args:
        name: Of the step, for messages.
        work: What a call does; shared evenly by its devices.
        step_s: Seconds a call [rounds].
        product: The matrix product and its seconds a call [rounds].
        copy: The copy in place and its seconds a call [rounds].

    Raises:
        BenchError: If a share is above 1.05 with its whole interval: the count or the probe is wrong.
    """
    flops, nbytes = work.flops / work.devices, work.bytes / work.devices  # the probes run on one device
    dtype = product[0].case.name.split()[-1]
    compute = _share(flops / step_s / product[0].rate(product[1]))
    memory = _share(nbytes / step_s / copy[0].rate(copy[1]))
    upper = memory.value * work.bytes_upper / work.bytes if work.bytes else 0.0
    footprint = work.memory.peak if work.memory is not None else 0
    # What fits into a cache may be faster than the memory that the copy measures.
    checks = [("FLOPs", compute)] + ([("bytes", memory)] if footprint > copy[0].amount / 2 else [])
    for what, share in checks:
        if share.interval.low > MOST and math.isfinite(share.interval.low):
            raise guards.BenchError(
                f"bench: {name}: {share} of the measured peak of {what}, which cannot be. XLA left out work that was "
                f"counted ({work.flops:.4g} FLOPs, {work.bytes:.4g} bytes), or the {dtype} probe is too slow for this "
                "step. Compare cost.of(step, *args) with its xla_flops."
            )
    verdict = "neither bound"
    if max(compute.value, memory.value) >= BOUND:
        verdict = "compute bound" if compute.value >= memory.value else "memory bound"
    return Roofline(compute, memory, upper, dtype, verdict)


def _share(ratios: np.ndarray) -> Share:
    if not np.all(ratios > 0):
        return Share(0.0, Interval(0.0, 0.0))
    logs = np.log(ratios)
    return Share(float(np.exp(np.median(logs))), statistics.median_interval(logs, 0.95).exp())
