"""`jaxnn checkpoint list|verify|inspect RUN`: reads only, so it may be used beside a live run."""

import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxnn.runs import reading, stored


def find(folder: str) -> Path | None:
    """The checkpoints folder that `folder` is or holds; None, with a message on stderr, where there is none."""
    path = Path(folder)
    for candidate in (path / "checkpoints", path):
        if stored.steps(candidate) or stored.set_aside(candidate):
            return candidate
    reason = "it does not exist" if not path.exists() else "it holds no checkpoints"
    print(f"cli.checkpoint: {path}: {reason}. Give a run's folder (with checkpoints/ in it).", file=sys.stderr)
    return None


def list_all(folder: str) -> int:
    """Prints a table of the checkpoints; 1 where there are none."""
    if (found := find(folder)) is None:
        return 1
    rows, good = stored.listing(found), "[green]good[/]"
    rated = [r.metric for r in rows if r.metric is not None and not math.isnan(r.metric)]
    table = _table("step", "good", "metric", "size", "age")
    for row in rows:
        metric = "" if row.metric is None else f"{row.metric:.6g}"
        if rated and row.metric == min(rated) != max(rated):
            metric += " lowest"
        if rated and row.metric == max(rated) != min(rated):
            metric += " highest"
        age = "manifest unreadable" if row.time is None else duration(time.time() - row.time)
        table.add_row(str(row.step), good if row.good else "not marked", metric, size(row.nbytes), age)
    for path in stored.set_aside(found):
        table.add_row("", "[red]damaged[/]", "", "", path.name)
    _print(table)
    return 0


def verify(folder: str) -> int:
    """Checks every byte and every array of every checkpoint; 1 when one is damaged or there are none."""
    from rich.markup import escape

    if (found := find(folder)) is None:
        return 1
    table, damaged = _table("step", "good", "files and arrays"), []
    for step in stored.steps(found):
        path = stored.step_folder(found, step)
        try:
            problems = stored.verify(path) or reading.read_arrays(path)[1]
        except FileNotFoundError as error:
            problems = [f"{error.filename}: missing"]
        except ValueError as error:  # another version's format: neither whole nor damaged
            print(error, file=sys.stderr)
            return 1
        if not path.exists():  # a live run's retention removed it meanwhile
            continue
        if problems:
            damaged.append(f"{path.name}: {'; '.join(problems)}")
        mark = "good" if stored.is_good(path) else "not marked"
        table.add_row(
            str(step), mark, "[red]DAMAGED[/] " + escape("\n".join(problems)) if problems else "[green]whole[/]"
        )
    for path in stored.set_aside(found):
        table.add_row("", "", f"set aside earlier: {path.name}")
    _print(table)
    for line in damaged:
        print(f"damaged: {line}", file=sys.stderr)
    return 1 if damaged else 0


def inspect(folder: str, step: int | None) -> int:
    """Prints every array of one checkpoint; 1 when there is none such or it is damaged."""
    from rich.markup import escape

    if (found := find(folder)) is None:
        return 1
    present = stored.steps(found)
    if step is None:
        marked = [s for s in present if stored.is_good(stored.step_folder(found, s))]
        step = max(marked or present, default=None)
    if step not in present:
        print(f"cli.checkpoint: no checkpoint of step {step} in {found}. Present: {present}.", file=sys.stderr)
        return 1
    path = stored.step_folder(found, step)
    try:
        problems = stored.verify(path)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    arrays: dict[str, np.ndarray] = {}
    if not problems:
        arrays, problems = reading.read_arrays(path)
    if problems:
        print(f"damaged: {path.name}: {'; '.join(problems)}", file=sys.stderr)
        return 1
    table = _table("leaf", "shape", "dtype", "size", "norm", "mean", "finite")
    for name, array in arrays.items():
        shape = "x".join(map(str, array.shape)) or "scalar"
        table.add_row(escape(name), shape, str(array.dtype), size(array.nbytes), *statistics(array))
    mark = "good" if stored.is_good(path) else "not marked good"
    table.caption = f"step {step}, {mark}, {len(arrays)} arrays, {size(sum(a.nbytes for a in arrays.values()))}"
    _print(table)
    return 0


def statistics(array: np.ndarray) -> tuple[str, str, str]:
    """L2 norm, mean and finiteness of an array, computed in float64; blank for an array without elements."""
    if array.size == 0:
        return "", "", ""
    values = array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore", over="ignore"):
        norm, mean = float(np.linalg.norm(values)), values.mean()
    bad = int(finite.size - finite.sum())
    return f"{norm:.6g}", f"{mean:.4g}", "yes" if bad == 0 else f"[red]NO: {bad} of {finite.size}[/]"


def size(nbytes: int) -> str:
    """Bytes in decimal units: 1.2 MB."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def duration(seconds: float) -> str:
    """A time span in its two largest units: 3 h 20 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    return table


def _print(table: Any) -> None:
    from rich.console import Console

    console = Console()
    # A file or a pipe has no width: never fold what a program may read.
    Console(width=None if console.is_terminal else 200).print(table)
