"""Where an operation comes from: the source line, the layer, the phase and the optimizer's stage.

A jaxpr's equations and an HLO's instructions both carry the call stack they were traced in. A stage of an optimizer is
the innermost `update` function on that stack which was made by another function: `scale_by_adam.<locals>.update_fn` is
the stage "scale_by_adam", whichever helper under it did the arithmetic. That is how Optax and everything that follows
its contract is written, so nothing need be annotated.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jax.extend import core as jex

from jaxnn.cost import hlo, jaxprs, source

_STAGE = re.compile(r"(?:^|[.\s(])(\w+)\.<locals>\.update(?:_fn)?(?:\.<locals>\..*)?\)?$")
_CONTAINERS = frozenset(("chain", "with_extra_args_support", "named_chain", "make_update_fn"))
_ROW = re.compile(r"^(\d+) (?:\"(.*)\"|\{(.*)\})$")
_FRAME = re.compile(r"\bstack_frame_id=(\d+)")
_CONTROL = frozenset(("while", "body", "cond", "closed_call", "eval_jaxpr", "scan", "branch", "pjit", "shard_map"))


class Origin(NamedTuple):
    """Where an operation comes from; "" for what is not known.

    Attributes:
        source: The innermost line outside installed packages, "/path/step.py:12 (loss)".
        layer: Name scopes: Flax's module path, an optimizer's named stage.
        phase: "forward", "backward" or "recompute".
        stage: The optimizer's stage, "scale_by_adam".
    """

    source: str = ""
    layer: str = ""
    phase: str = ""
    stage: str = ""


def stage_of(functions: Sequence[str]) -> str:
    """The optimizer stage that a call stack is in, or "".

    Args:
        functions: Qualified names of the functions on the stack, or lines that end in "(name)"; outermost first.
    """
    for function in reversed(functions):
        found = _STAGE.search(function)
        if found and found[1] not in _CONTAINERS:
            return found[1]
    return ""


def stages(traced: Any) -> dict[tuple[str, str], str]:
    """(source, inner) of a `cost.Line` -> the optimizer's stage; several that share a helper are joined by commas.

    Args:
        traced: A `jax.stages.Traced`.
    """
    found: dict[tuple[str, str], dict[str, None]] = {}
    for equation in _equations(traced.jaxpr, set()):
        if stage := stage_of(jaxprs.frames(equation)):
            found.setdefault(jaxprs.sites(equation), {})[stage] = None
    return {sites: ", ".join(names) for sites, names in found.items()}


def _equations(value: Any, seen: set[int]) -> Iterator[Any]:
    jaxpr = value.jaxpr if isinstance(value, jex.ClosedJaxpr) else value
    if not isinstance(jaxpr, jex.Jaxpr) or id(jaxpr) in seen:
        return
    seen.add(id(jaxpr))
    for equation in jaxpr.eqns:
        yield equation
        for parameter in equation.params.values():
            for item in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
                yield from _equations(item, seen)


def of_module(text: str) -> dict[str, Origin]:
    """Instruction name -> origin, from a compiled program's `as_text()`.

    A fusion without metadata of its own takes that of the root it computes.

    Raises:
        ValueError: If the text has no entry computation.
    """
    frames = _Frames(text)
    module = hlo.parse(text)
    found = {}
    for instructions in module.computations.values():
        for instruction in instructions:
            bearer = instruction
            if not instruction.scope and (called := instruction.computation("calls")):
                bearer = module.root(called) or instruction
            number = _FRAME.search(bearer.attributes)
            stack = frames.stack(int(number[1])) if number else []
            found[instruction.name] = _origin(bearer.scope, stack)
    return found


def _origin(scope: str, stack: list[str]) -> Origin:
    own = [line for line in stack if "site-packages" not in line and "dist-packages" not in line]
    layer, phase = source.split_scopes(scope.rpartition("/")[0]) if scope else ("", "")
    parts = [part for part in layer.split("/") if part and part not in _CONTROL]
    if scope.startswith("jit(") and parts:
        parts = parts[1:]  # the program's own name
    return Origin((own or stack or [""])[-1], "/".join(parts), phase, stage_of(stack))


class _Frames:
    """The tables of file names, functions, places and frames at the head of an HLO text."""

    def __init__(self, text: str):
        self._tables: dict[str, dict[int, Any]] = {
            name: {} for name in ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
        }
        table: dict[int, Any] | None = None
        for line in text.splitlines()[1:]:
            if line in self._tables:
                table = self._tables[line]
            elif table is not None and (row := _ROW.match(line)):
                values = dict(re.findall(r"(\w+)=(\d+)", row[3])) if row[3] is not None else row[2]
                table[int(row[1])] = values
            elif line.strip() and table is not None:
                break
        first: Mapping[str, str] = self._tables["StackFrames"].get(1, {})
        # XLA writes a parent's number plus one, so that the outermost frame seems to be its own parent.
        self._offset = int(first.get("parent_frame_id", 0))

    def stack(self, number: int) -> list[str]:
        """ "file:line (function)" of a frame and those that called it, outermost first."""
        lines: list[str] = []
        while (frame := self._tables["StackFrames"].get(number)) and len(lines) < 200:
            place = self._tables["FileLocations"].get(int(frame["file_location_id"]), {})
            file = self._tables["FileNames"].get(int(place.get("file_name_id", 0)), "?")
            function = self._tables["FunctionNames"].get(int(place.get("function_name_id", 0)), "?")
            lines.append(f"{file}:{place.get('line', '?')} ({function})")
            number = int(frame.get("parent_frame_id", 0)) - self._offset
        return lines[::-1]
