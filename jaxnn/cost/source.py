"""Cost by source line, layer and phase: which line of which layer the work comes from."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxnn.cost import jaxprs
from jaxnn.cost.result import quantity, size
from jaxnn.cost.tracing import count, trace

_WRAPPED = re.compile(r"\b[\w.]+\(([^()]*)\)")


@dataclass(frozen=True)
class Line:
    """Work of one source line, in one layer and phase.

    Attributes:
        source: The innermost line outside installed packages, "/path/step.py:12:8 (loss)"; "" where jax made it up.
        inner: The innermost line of all outside jax, in Flax or Optax perhaps.
        layer: Name scopes, transformations taken off: Flax's module path, an optimizer's named stage.
        phase: "forward", "backward", or "recompute" for what remat repeats. What is not differentiated is forward.
        flops: All executions, all devices.
        transcendentals: The part of it that is exp, tanh, ...
        bytes: Operands and results of every equation.
        count: Equations executed.
        primitives: Primitive -> FLOPs, the largest first; those of 0 FLOPs are there too.
    """

    source: str
    inner: str
    layer: str
    phase: str
    flops: float
    transcendentals: float
    bytes: float
    count: float
    primitives: dict[str, float]

    def __str__(self) -> str:
        where = jaxprs.short(self.source) if self.source else "?"
        names = ", ".join(list(self.primitives)[:3])
        layer = self.layer or "-"
        return f"{quantity(self.flops):>8} {size(self.bytes):>9}  {where:<24} {layer:<32} {self.phase:<9} {names}"


def by_source(
    f: Callable[..., Any] | jax.stages.Traced, *args: Any, trips: Mapping[str, int] | None = None, **kwargs: Any
) -> tuple[Line, ...]:
    """The cost of `f(*args, **kwargs)` by source line, layer and phase, the most FLOPs first.

    The FLOPs add up to those of `cost.of`. Only tracing is needed; arguments, loops and errors are as in `cost.of`.

    Raises:
        TypeError: If `f` is not callable, or can't be traced with these arguments.
        ValueError: If `trips` names no loop of the program, or a count is negative.
    """
    traced, _ = trace("cost.by_source", f, args, kwargs)
    tally, _ = count(traced, trips, detail=True)
    groups: dict[tuple[str, str, str, str], list[Any]] = {}
    for key, row in tally.rows.items():
        layer, phase = split_scopes(key.stack)
        groups.setdefault((key.source, key.inner, layer, phase), []).append((key.primitive, row))
    lines = []
    for (source, inner, layer, phase), members in groups.items():
        primitives: dict[str, float] = {}
        for name, row in members:
            primitives[name] = primitives.get(name, 0) + row.flops
        lines.append(
            Line(
                source,
                inner,
                layer,
                phase,
                flops=sum(row.flops for _, row in members),
                transcendentals=sum(row.transcendentals for _, row in members),
                bytes=sum(row.bytes for _, row in members),
                count=sum(row.count for _, row in members),
                primitives=dict(sorted(primitives.items(), key=lambda item: -item[1])),
            )
        )
    return tuple(sorted(lines, key=lambda line: (-line.flops, -line.bytes)))


def split_scopes(stack: str) -> tuple[str, str]:
    """(layer, phase) of a name stack: `transpose(jvp(GPT))/block_0/attn` is ("GPT/block_0/attn", "backward")."""
    scopes = [part for part in stack.split("/") if part]
    phase = "backward" if "transpose(" in stack else "forward"
    if "rematted_computation" in scopes:
        phase = "recompute"
    bare = stack
    while (unwrapped := _WRAPPED.sub(r"\1", bare)) != bare:
        bare = unwrapped
    kept = [part for part in bare.split("/") if part not in ("", "rematted_computation", "checkpoint")]
    return "/".join(kept), phase
