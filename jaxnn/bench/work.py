"""What a program does, beside how long it takes: FLOPs, bytes, memory, collectives, from `jaxnn.cost`."""

from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core as jex

from jaxnn import cost
from jaxnn.bench import display


@dataclass(frozen=True)
class Work:
    """One call of a program, over all its devices.

    Attributes:
        flops: From the jaxpr.
        flops_per_device: With manual regions counted for one device.
        xla_flops: XLA's own count, which takes a loop's body once; None where the backend has none.
        bytes: Lower estimate of memory traffic: arguments read once, results written once.
        bytes_upper: Upper estimate: nothing fused.
        memory: Bytes on one device; None where the backend cannot tell.
        collectives: What one device sends and receives.
        devices: How many devices the arguments are on.
        dtype: Operand type of the matrix products and convolutions, the most frequent one; None without any.
        unknown: Primitives whose work is not counted.
        flags: What the count leaves open.
    """

    flops: float
    flops_per_device: float
    xla_flops: float | None
    bytes: int
    bytes_upper: float
    memory: cost.Memory | None
    collectives: tuple[cost.Collective, ...]
    devices: int
    dtype: str | None
    unknown: tuple[str, ...]
    flags: tuple[str, ...]

    def lines(self) -> list[str]:
        """What a reader wants of it, in a few short parts."""
        parts = []
        if self.flops:
            text = f"{display.amount(self.flops, 'F')} (jaxpr"
            if self.xla_flops is not None and abs(self.xla_flops - self.flops_per_device) > 0.2 * self.flops_per_device:
                text += f"; XLA {display.amount(self.xla_flops, 'F')} on one device, loop bodies once"
            parts.append(text + ")")
            if self.bytes:
                low, high = self.flops / max(self.bytes_upper, 1), self.flops / self.bytes
                parts.append(f"AI {low:.3g}-{high:.3g}")
        if self.memory is not None:
            parts.append(f"mem {display.amount(self.memory.peak, 'B')}")
        for c in self.collectives[:4]:
            parts.append(f"{c.kind} {c.count * c.trip}x{display.amount(c.bytes, 'B', 1024)}")
        if self.unknown:
            parts.append(f"not counted: {', '.join(self.unknown[:4])}")
        return parts


def of(traced: Any, compiled: Any, args: tuple = ()) -> Work:
    """The work of a program that was traced and compiled for these arguments."""
    shardings = [leaf.sharding for leaf in jax.tree.leaves(args)]
    meshes = tuple({s.mesh: None for s in shardings if isinstance(s, jax.sharding.NamedSharding)})
    counted = cost.of(traced, compile=False)
    analysis = compiled.cost_analysis() or {}
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return Work(
        flops=counted.flops,
        flops_per_device=counted.flops_per_device,
        xla_flops=analysis.get("flops"),
        bytes=counted.bytes,
        bytes_upper=counted.bytes_upper,
        memory=cost.memory(compiled),
        collectives=tuple(cost.collectives(compiled, meshes)),
        devices=max((len(s.device_set) for s in shardings), default=1),
        dtype=_product_dtype(traced.jaxpr),
        unknown=tuple(counted.unknown),
        flags=counted.flags,
    )


def _product_dtype(closed: Any) -> str | None:
    """The operand type of most products, by the size of what they give."""
    found: dict[str, int] = {}

    def walk(value: Any) -> None:
        jaxpr = value.jaxpr if isinstance(value, jex.ClosedJaxpr) else value
        if not isinstance(jaxpr, jex.Jaxpr):
            return
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                operand: Any = equation.invars[0].aval
                result: Any = equation.outvars[0].aval
                found[str(operand.dtype)] = found.get(str(operand.dtype), 0) + result.size
            for parameter in equation.params.values():
                for item in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
                    walk(item)

    walk(closed)
    return max(found, key=lambda dtype: found[dtype]) if found else None
