"""`Cost`: what a program does and needs, and the block of text that says so."""

import functools
import html
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxnn.cost.collectives import Collective, collectives
from jaxnn.cost.memory import Memory, memory
from jaxnn.cost.primitives import PRODUCTS


@dataclass(frozen=True, eq=False)
class Cost:
    """What one call of a program costs. Counts are of the whole program, over all devices; nothing was run.

    What XLA says (`xla_flops`, `xla_bytes`, `memory`, `collectives`, `hlo`) needs a compilation, which happens when one
    of them is first read. They are None, and nothing is compiled, if the cost was made with `compile=False`.

    Attributes:
        name: The function's name.
        flops: Floating-point operations, by the conventions of `jaxnn.cost.flops`; a multiply-add is 2.
        flops_by: Primitive -> FLOPs, the largest first.
        flops_per_device: The same with each manual region (shard_map, pmap) counted for one device; what is outside
            of them is counted whole, whether or not XLA will partition it.
        transcendentals: The part of `flops` that is exp, tanh, sqrt, ...
        bytes: Lower estimate of memory traffic: arguments that are used read once, results written once.
        bytes_upper: Upper estimate: the operands and results of every equation, as if nothing were fused.
        bytes_by: Primitive -> its part of `bytes_upper`; sorts, gathers and copies are here with their traffic.
        unknown: Primitive without a rule -> executions. Their work is not in `flops`.
        flags: What the count leaves open: while loops without a bound, conditions, unknown containers.
        meshes: Meshes of the manual regions and of the arguments; they name the axes of `collectives`.
    """

    name: str
    flops: float
    flops_by: dict[str, float]
    flops_per_device: float
    transcendentals: float
    bytes: int
    bytes_upper: float
    bytes_by: dict[str, float]
    unknown: dict[str, float]
    flags: tuple[str, ...]
    meshes: tuple[Any, ...] = field(default=(), repr=False)
    _compile: Callable[[], Any] | None = field(default=None, repr=False)

    @property
    def products(self) -> float:
        """FLOPs of matrix products and convolutions, which formulas such as 6 N D count."""
        return sum(self.flops_by.get(name, 0) for name in PRODUCTS)

    @functools.cached_property
    def compiled(self) -> Any | None:
        """The `jax.stages.Compiled`; compiles on the first access, unless made with `compile=False`."""
        return None if self._compile is None else self._compile()

    @functools.cached_property
    def hlo(self) -> str | None:
        """The optimized HLO's text."""
        return None if self.compiled is None else self.compiled.as_text()

    @functools.cached_property
    def _analysis(self) -> dict[str, float]:
        found = None if self.compiled is None else self.compiled.cost_analysis()
        found = found[0] if isinstance(found, list) and found else found
        return found if isinstance(found, dict) else {}

    @property
    def xla_flops(self) -> float | None:
        """XLA's own count: of one device, without transcendentals, and each loop's body once."""
        return self._analysis.get("flops")

    @property
    def xla_bytes(self) -> float | None:
        """XLA's own bytes accessed, with the same limits."""
        return self._analysis.get("bytes accessed")

    @functools.cached_property
    def memory(self) -> Memory | None:
        """Bytes on one device."""
        return None if self.compiled is None else memory(self.compiled)

    @functools.cached_property
    def collectives(self) -> tuple[Collective, ...] | None:
        """What one device sends and receives."""
        return None if self.hlo is None else collectives(self.hlo, self.meshes)

    def __str__(self) -> str:
        return "\n".join([f"cost of {self.name}", *(f"  {label:<12}{text}" for label, text in self._lines())])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(label)}</th><td>{html.escape(text)}</td></tr>"
            for label, text in self._lines()
        )
        return f"<table><caption>cost of {html.escape(self.name)}</caption>{rows}</table>"

    def _lines(self) -> list[tuple[str, str]]:
        by = [f"{name} {quantity(n)}" for name, n in list(self.flops_by.items())[:4]]
        more = len(self.flops_by) - len(by)
        lines = [
            ("FLOPs", quantity(self.flops) + (f" = {' + '.join(by)}" if by else "") + f" + {more} more" * (more > 0))
        ]
        if self.flops:
            share = f"products {self.products / self.flops:.0%}, transcendental {self.transcendentals / self.flops:.1%}"
            lines.append(("", share))
        if self.flops_per_device != self.flops:
            lines.append(("a device", quantity(self.flops_per_device)))
        low, high = (self.flops / b if b else 0 for b in (self.bytes_upper, self.bytes))
        lines.append(("bytes", f"{size(self.bytes)} to {size(self.bytes_upper)}, {low:.3g} to {high:.3g} FLOPs a byte"))
        if self._compile is None:
            lines.append(("XLA", "not asked (compile=False)"))
        elif "compiled" not in self.__dict__:
            lines.append(("XLA", "not compiled yet: read .memory, .collectives or .xla_flops"))
        else:
            lines += self._compiled_lines()
        lines += [("unknown", f"{name} x {count:g}: not counted") for name, count in self.unknown.items()]
        return lines + [("note", flag) for flag in self.flags]

    def _compiled_lines(self) -> list[tuple[str, str]]:
        lines = []
        if self.xla_flops is not None:
            what = f"{quantity(self.xla_flops)} FLOPs, {size(self.xla_bytes or 0)}; one device, each loop's body once"
            lines.append(("XLA", what))
        if (m := self.memory) is not None:
            parts = f"arguments {size(m.arguments)} + outputs {size(m.outputs)} + temporaries {size(m.temporaries)}"
            lines.append(("memory", f"{size(m.peak)} = {parts} - aliased {size(m.aliased)}"))
        return lines + [("collective", str(c)) for c in self.collectives or ()]


def quantity(number: float) -> str:
    """A count with its decimal prefix: 1.38 G."""
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= scale:
            return f"{number / scale:.4g} {prefix}"
    return f"{number:.4g}"


def size(number: float) -> str:
    """Bytes with their binary prefix: 23.1 MiB."""
    for scale, prefix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(number) >= scale:
            return f"{number / scale:.3g} {prefix}"
    return f"{number:.0f} B"
