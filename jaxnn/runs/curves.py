"""Curves of a run's reported values: which belong together, how they are named, where a log scale helps."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxnn.report import canvas, curve, draw_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_VALUES = ("step", "epoch", "partial", "nonfinite_step", "nonfinite_name")
RATES = ("lr", "learning_rate")  # jaxnn's name, optax's
LAST = ("learning_rate", "grad_norm")  # of the families, in this order
POINTS = 800  # of a line: more than a figure's width in pixels, and a megabyte of SVG at 20 figures
FIGURES = 12  # of values; each costs some 60 ms
INK = "#1c2024"  # of a figure on white

Line = tuple[np.ndarray, np.ndarray]


def series(rows: Iterable[Mapping[str, Any]], x: str = "step") -> dict[str, Line]:
    """(xs, values) by name, in order of first appearance; `x` is the rows' key of the horizontal axis.

    The values of a population's members (`loss@3`) are left out: `loss` is the best one's, and a run of one member has
    its own.
    """
    held: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        at = row.get(x)
        if not isinstance(at, int | float):
            continue
        for name, value in row.items():
            if name not in NOT_VALUES and "@" not in name and isinstance(value, int | float):
                xs, values = held.setdefault(name, ([], []))
                xs.append(at)
                values.append(value)
    return {name: (np.asarray(a, np.float64), np.asarray(b, np.float64)) for name, (a, b) in held.items()}


def thin(xs: np.ndarray, values: np.ndarray) -> Line:
    """At most `POINTS` points: means of equal blocks of rows. A block with a NaN in it shows one."""
    block = -(-len(xs) // POINTS)
    if block <= 1:
        return xs, values
    starts = np.arange(0, len(xs), block)
    counts = np.diff(np.append(starts, len(xs)))
    with np.errstate(invalid="ignore", over="ignore"):
        return np.add.reduceat(xs, starts) / counts, np.add.reduceat(values, starts) / counts


def family(name: str) -> str:
    """What a value and its validation share: "loss" of "loss" and "val_loss"."""
    return name.removeprefix("val_")


def families(names: Iterable[str]) -> dict[str, list[str]]:
    """Family -> its names, training before validation: the loss first, then what is validated too, rates last."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(family(name), []).append(name)
    order = sorted(found, key=lambda f: (f != "loss", f in LAST, LAST.index(f) if f in LAST else 0, len(found[f]) < 2))
    return {f: sorted(found[f], key=lambda name: name.startswith("val_")) for f in order}


def moves(lines: Iterable[Line]) -> bool:
    """Whether any of the lines is more than one value repeated."""
    return any(len(set(values.tolist())) > 1 for _, values in lines)


def title(name: str) -> str:
    """A reported name as a heading: "validation bits per byte"."""
    if name.startswith("val_"):
        return f"validation {title(family(name))}"
    return {"grad_norm": "gradient norm"}.get(name, name.replace("_", " "))


def log_scale(name: str, lines: Iterable[Line]) -> bool:
    """Whether a logarithmic axis shows these values better: all positive, over more than a factor of 20.

    Rates do not want it, nor shares that grow, as accuracies do: their end would be a sliver.
    """
    if family(name) in RATES:
        return False
    every = [values[np.isfinite(values)] for _, values in lines]
    every = [values for values in every if len(values)]
    if not every:
        return False
    low, high = min(values.min() for values in every), max(values.max() for values in every)
    grows = all(values[-1] >= values[0] for values in every)
    return bool(low > 0 and high > 20 * low and not (grows and high <= 1))


def best(steps: np.ndarray, values: np.ndarray, mode: str | None) -> tuple[float, int] | None:
    """The best finite value and its step, `mode` "min" or "max"; None for no mode, or nothing finite."""
    finite = np.isfinite(values)
    if mode is None or not finite.any():
        return None
    kept = np.where(finite, values, np.inf if mode == "min" else -np.inf)
    at = int(np.argmin(kept) if mode == "min" else np.argmax(kept))
    return float(values[at]), int(steps[at])


def figure(
    lines: Mapping[str, Line], heading: str, ylabel: str = "", logy: bool = False, xlabel: str = "step"
) -> "Figure":
    """A page's figure of the lines by label."""
    xs, ys = ({name: line[side] for name, line in lines.items()} for side in (0, 1))
    return curve(xs, ys, heading, xlabel, ylabel, logy)


def from_zero(drawn: "Figure") -> "Figure":
    """Shows a speed or a share against nothing, with room for the legend: noise must not look like news."""
    axes = drawn.axes[0]
    top = np.nanmax([1e-9, *np.concatenate([line.get_ydata() for line in axes.lines])])
    axes.set_ylim(0, 1.25 * top)
    return drawn


def labels(names: Sequence[str]) -> list[str]:
    """What the lines of one family are called in its legend."""
    return ["validation" if name.startswith("val_") else "train" for name in names] if len(names) > 1 else list(names)


def panels(found: Mapping[str, Line], groups: Mapping[str, Sequence[str]]) -> "Figure":
    """One figure for a notebook or a file, a panel for each family: `groups` are family -> names in `found`.

    The figure belongs to no pyplot window, so that a notebook shows it once: as the value of its cell.
    """
    lines: dict[str, dict[str, Line]] = {}
    for name, members in groups.items():
        heading = title(name) if len(members) > 1 else title(members[0])
        lines[heading] = {label: thin(*found[member]) for label, member in zip(labels(members), members)}
    return sheet(lines, [log_scale(name, drawn.values()) for name, drawn in zip(groups, lines.values())])


def overlaid(runs: Mapping[str, Mapping[str, Line]]) -> "Figure | None":
    """One figure of several runs, a panel for each family and a line for each run: validation where it has a curve.

    Args:
        runs: Label -> name -> line. Rates and norms are left out, and what does not move.

    Returns:
        The figure; None where nothing moves.
    """
    groups = families(dict.fromkeys(name for series in runs.values() for name in series))
    lines: dict[str, dict[str, Line]] = {}
    logs = []
    for members in [members for group, members in groups.items() if group not in LAST][:FIGURES]:
        for name in reversed(members):
            drawn = {label: thin(*series[name]) for label, series in runs.items() if name in series}
            if moves(drawn.values()):
                lines[title(name)] = drawn
                logs.append(log_scale(name, drawn.values()))
                break
    return sheet(lines, logs) if lines else None


def sheet(lines: Mapping[str, Mapping[str, Line]], logs: Sequence[bool]) -> "Figure":
    """A figure of panels: heading -> label -> line, and whether each has a logarithmic axis."""
    columns = 1 if len(lines) == 1 else 2 if len(lines) in (2, 4) else 3
    across = -(-len(lines) // columns)
    size = (7.0, 3.6) if columns == 1 else (4.4 * columns, 3.1 * across)
    drawn = canvas(figsize=size, dpi=100, layout="constrained", facecolor="white")
    for number, ((heading, panel), logy) in enumerate(zip(lines.items(), logs)):
        xs, ys = ({label: line[side] for label, line in panel.items()} for side in (0, 1))
        below = "step" if number >= len(lines) - columns else ""
        draw_lines(drawn.add_subplot(across, columns, number + 1), xs, ys, heading, below, logy=logy, ink=INK)
    return drawn
