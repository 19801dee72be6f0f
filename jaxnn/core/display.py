"""How a state and a task show themselves, in a terminal and in a notebook; reads no array but the two counters."""

import dataclasses
import html
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxnn import tree
from jaxnn.report import html_table
from jaxnn.typing import PyTree

LEAVES = 24  # of a part that are shown in a terminal; a notebook scrolls
PARTS = ("params", "model_state", "opt_state")


def state_text(state: Any) -> str:
    """A state by part and leaf: path, shape and dtype, bytes."""
    lines = [f"{_position(state)}: {_total(state)}"]
    for part in PARTS:
        leaves = tree.leaves_by_path(getattr(state, part))
        if not leaves:
            continue
        lines.append(f"  {part}: {_total(getattr(state, part))}")
        shown = [(path, _describe(leaf), size(_nbytes(leaf))) for path, leaf in list(leaves.items())[:LEAVES]]
        wide = [max(len(row[c]) for row in shown) for c in (0, 1)]
        lines += [f"    {path:{wide[0]}}  {shape:{wide[1]}}  {held}" for path, shape, held in shown]
        if len(leaves) > LEAVES:
            more = f"tree.leaves_by_path(state.{part}) has all"
            lines.append(f"    ... and {len(leaves) - LEAVES} more; {more}")
    return "\n".join(lines)


def state_html(state: Any) -> str:
    """The same as a table for a notebook."""
    rows = []
    for part in PARTS:
        for path, leaf in tree.leaves_by_path(getattr(state, part)).items():
            where = part if path == "." else f"{part}/{path}"
            rows.append((where, _describe(leaf), _size(leaf), _nbytes(leaf)))
    return html_table(rows, ("leaf", "shape", "elements", "bytes"), _position(state), _total(state))


def task_text(about: Mapping[str, str]) -> str:
    """What a task is made of, in a line."""
    return f"Task({', '.join(f'{name}={value}' for name, value in about.items())})"


def task_html(about: Mapping[str, str]) -> str:
    """The same as a table for a notebook."""
    rows = "".join(
        f'<tr><th style="text-align:left;padding:.15em .7em">{html.escape(name)}</th>'
        f'<td style="text-align:left;padding:.15em .7em"><code>{html.escape(value)}</code></td></tr>'
        for name, value in about.items()
    )
    return f"<div><b>Task</b><table>{rows}</table></div>"


def name_of(function: Any) -> str:
    """A function as a reader knows it: "mse", "Model.loss"; a partial by what it calls."""
    function = getattr(function, "func", function)
    name = getattr(function, "__qualname__", None) or type(function).__name__
    return name.rpartition("<locals>.")[2]


def module_text(module: Any) -> str:
    """A Linen module with the settings that are not its defaults: "MLP(features=(64, 1))"."""
    shown = []
    for field in dataclasses.fields(module):
        if field.name in ("parent", "name") or not field.repr:
            continue
        value = getattr(module, field.name, None)
        default = field.default if field.default is not dataclasses.MISSING else None
        if value is default or field.default_factory is not dataclasses.MISSING:
            continue
        try:
            same = bool(value == default)
        except Exception:  # an array compares by element
            same = False
        if not same:
            text = name_of(value) if callable(value) and not dataclasses.is_dataclass(value) else repr(value)
            shown.append(f"{field.name}={text if len(text) <= 200 else text[:197] + '...'}")
    return f"{type(module).__name__}({', '.join(shown)})"


def size(nbytes: int) -> str:
    """Bytes in decimal units: "1.2 MB"."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def _position(state: Any) -> str:
    step, data_step = _scalar(state.step), _scalar(state.data_step)
    if step is None or data_step is None:
        return "State"  # of shapes, or donated
    return f"State at step {step:,}" + (f", data step {data_step:,}" if data_step != step else "")


def _scalar(leaf: Any) -> int | None:
    """A counter's value, where it has one: not under a trace, of a shape, or once it was donated."""
    if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct) or _deleted(leaf):
        return None
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        return None
    value = np.asarray(leaf)
    return int(value) if value.shape == () and value.dtype.kind in "iu" else None


def _deleted(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.is_deleted()


def _describe(leaf: Any) -> str:
    return tree.describe(leaf) + (", donated" if _deleted(leaf) else "")


def _size(leaf: Any) -> int | None:
    return int(np.prod(leaf.shape, dtype=np.int64)) if hasattr(leaf, "shape") else None


def _nbytes(leaf: Any) -> int:
    try:
        return int((_size(leaf) or 0) * leaf.dtype.itemsize)
    except (AttributeError, TypeError):  # a typed key, a Python number
        return int(getattr(leaf, "nbytes", 0))


def _total(part: PyTree) -> str:
    leaves = jax.tree.leaves(part)
    count = sum(_size(leaf) or 0 for leaf in leaves)
    held = f"{count:,} elements in {len(leaves)} leaves, {size(sum(map(_nbytes, leaves)))}"
    return held + (", some donated to a step" if any(map(_deleted, leaves)) else "")
