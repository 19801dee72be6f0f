"""What this machine can do at most: matrix products, memory traffic, dispatch, an all-reduce.

A peak is what a simple program reaches here and now, measured as any other program is. It is not what the data sheet
says. Memory probes write into donated buffers: a triad that allocates its result measures page faults, 2.4 GB/s
instead of 30.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnn.bench import display, guards, statistics, timing
from jaxnn.bench.case import Case
from jaxnn.bench.compilation import build
from jaxnn.bench.statistics import Interval
from jaxnn.bench.timing import Arm, Block
from jaxnn.typing import Array

DTYPES = ("float32", "bfloat16", "float16")
_HOST_SIDE, _SIDE = 512, 8192  # of the matrices: some ms of work on a few cores, and on an accelerator
_HOST_BYTES, _BYTES = 64 << 20, 256 << 20  # of an array that no cache holds


@dataclass(frozen=True)
class Probe:
    """A case whose amount of work is known.

    Attributes:
        case: The program.
        amount: Units of work a call.
        unit: "FLOP", "B" or "s": a rate is in units a second; for "s" it is the time of a call.
    """

    case: Case
    amount: float
    unit: str

    def rate(self, seconds: np.ndarray) -> np.ndarray:
        """Units a second, or the seconds themselves."""
        return seconds if self.unit == "s" else self.amount / seconds


@dataclass(frozen=True)
class Peak:
    """One peak: FLOP/s, B/s or seconds, with its interval."""

    name: str
    value: float
    interval: Interval
    unit: str

    def __str__(self) -> str:
        if self.unit == "s":
            return f"{self.name:18} {display.duration_interval(self.value, self.interval)}"
        low, high = (display.amount(x, f"{self.unit}/s") for x in (self.interval.low, self.interval.high))
        return f"{self.name:18} {display.amount(self.value, f'{self.unit}/s')} [{low}, {high}]"


@dataclass(frozen=True)
class Peaks:
    """The peaks of this machine, by name: "product float32", "copy", "triad", "dispatch", "all-reduce"."""

    device: str
    by_name: Mapping[str, Peak]

    def __getitem__(self, name: str) -> Peak:
        return self.by_name[name]

    def __str__(self) -> str:
        return "\n".join([f"peaks of {self.device}", *(f"  {peak}" for peak in self.by_name.values())])

    def _repr_html_(self) -> str:
        return display.as_html(str(self))


def product(dtype: str, side: int | None = None) -> Probe:
    """A product of two [side, side] matrices of a type, summed in float32: 2 side^3 FLOPs."""
    n = side or (_HOST_SIDE if jax.default_backend() == "cpu" else _SIDE)

    def args(key: Array) -> tuple[Array, Array]:
        a, b = (jax.random.normal(k, (n, n)) / n**0.5 for k in jax.random.split(key))
        return a.astype(dtype), b.astype(dtype)

    def multiply(a: Array, b: Array) -> Array:
        return jnp.matmul(a, b, preferred_element_type=jnp.float32)

    return Probe(Case(f"product {dtype}", multiply, args), 2.0 * n**3, "FLOP")


def copy(nbytes: int | None = None) -> Probe:
    """Reads and writes an array in place: 2 nbytes of traffic."""
    n = _elements(nbytes)
    return Probe(Case("copy", lambda x: x + 1, lambda key: (jnp.zeros(n, jnp.int32),), "thread"), 8.0 * n, "B")


def triad(nbytes: int | None = None) -> Probe:
    """A = b + s c into the donated a: 3 nbytes of traffic.

    Source:
        McCalpin 1995, STREAM.
    """
    n = _elements(nbytes)

    def args(key: Array) -> tuple[Array, ...]:
        return jnp.zeros(n), jnp.ones(n), jnp.full(n, 2.0), jnp.float32(0.5)

    return Probe(Case("triad", lambda a, b, c, s: b + s * c, args, "thread"), 12.0 * n, "B")


def dispatch() -> Probe:
    """The smallest program: what a call costs."""
    return Probe(Case("dispatch", lambda x: x + 1, lambda key: (jnp.float32(0),)), 1.0, "s")


def all_reduce(nbytes: int = 4 << 20) -> Probe:
    """The sum over all devices of an array on each; 2 (N - 1) / N nbytes leave each device, as in a ring."""
    devices = np.array(jax.devices())
    mesh, spec, n = Mesh(devices, ("all",)), PartitionSpec("all"), nbytes // 4

    def reduce(x: Array) -> Array:
        f = jax.shard_map(lambda y: jax.lax.psum(y, "all"), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        return f(x)

    def args(key: Array) -> tuple[Array]:
        return (jax.device_put(jnp.ones((len(devices), n)), NamedSharding(mesh, spec)),)

    return Probe(Case("all-reduce", reduce, args), 8.0 * n * (len(devices) - 1) / len(devices), "B")


def peaks(seconds: float = 4.0, dtypes: tuple[str, ...] = DTYPES, level: float = 0.95) -> Peaks:
    """Measures every probe in turns for some seconds.

    Args:
        seconds: How long, in all, without compiling.
        dtypes: Types of the matrix products.
        level: Of the intervals.
    """
    probes = [*(product(dtype) for dtype in dtypes), copy(), triad(), dispatch()]
    if jax.device_count() > 1:
        probes.append(all_reduce())
    rng = np.random.default_rng(0)
    arms = [Arm(probe.case.name, build(probe.case), rng) for probe in probes]
    with guards.frozen_gc(), display.live("peaks") as show:
        timing.warm(arms, timing.BLOCK_S)
        rounds = list(_for(seconds, arms, rng, show))
    times = timing.seconds(rounds, "wall")
    return Peaks(device_name(), {p.case.name: _peak(p, row, level) for p, row in zip(probes, times, strict=True)})


def _peak(probe: Probe, seconds: np.ndarray, level: float) -> Peak:
    rates = probe.rate(seconds)
    return Peak(probe.case.name, float(np.median(rates)), statistics.median_interval(rates, level), probe.unit)


def _for(
    seconds: float, arms: list[Arm], rng: np.random.Generator, show: Callable[[str], None]
) -> Iterator[list[Block]]:
    start = time.perf_counter()
    for count, blocks in enumerate(timing.rounds(arms, rng), start=1):
        yield blocks
        show(f"{count} rounds of {len(arms)} probes")
        if time.perf_counter() - start > seconds and count >= 9:
            return


def device_name() -> str:
    """What the results of this process were measured on."""
    device = jax.devices()[0]
    return f"{jax.device_count()} x {device.platform} {device.device_kind}"


def _elements(nbytes: int | None) -> int:
    return (nbytes or (_HOST_BYTES if jax.default_backend() == "cpu" else _BYTES)) // 4
