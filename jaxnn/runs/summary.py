"""The report of a run: one page from the files of its folder, for whoever asks later what was run and how it went.

Everything on the page is read back from the files, so that it can be written again at any time and shows what is kept,
not what a process remembers. A file that is missing, short or damaged costs its own section and nothing else.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxnn import tree
from jaxnn.report import Page, curve, format_value
from jaxnn.runs.folder import RunFolder
from jaxnn.typing import PyTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_VALUES = ("step", "epoch", "partial", "nonfinite_step", "nonfinite_name")
POINTS = 800  # of a line: more than a figure's width in pixels, and a megabyte of SVG at 20 figures
FIGURES = 12  # of values; each costs some 60 ms
TOLD = ("event", "step", "time", "text")  # of an event, outside its details
SAMPLES = 10
EVENTS = 200

Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Section:
    """What an experiment adds to its run's report: text, a table, or both.

    Attributes:
        title: Its heading.
        rows: Cells by row, each row as long as `headers`.
        headers: Names of the columns.
        text: Shown above the table; a blank line parts paragraphs.
    """

    title: str
    rows: Sequence[Sequence[Any]] = ()
    headers: Sequence[str] = ()
    text: str = ""


def write_summary(folder: RunFolder, params: PyTree, *, sections: Sequence[Section] = ()) -> None:
    """Writes `report.html` of a run, atomically.

    It shows the outcome, curves, values, speed, samples, parameters, config, environment and journal.

    Args:
        folder: The run's folder; its files are read.
        params: The parameters, or their shapes; their values are not looked at.
        sections: What the experiment adds, shown after the curves.
    """
    troubles: list[str] = []

    def read(what: str, get: Callable[[], Any], empty: Any) -> Any:
        try:
            return get()
        except (OSError, ValueError) as error:
            troubles.append(f"{what} could not be read: {error}")
            return empty

    rows: Rows = read("The metrics", folder.metrics.read, [])
    timing: Rows = read("The timing", folder.timing.read, [])
    events: Rows = read("The journal", folder.journal.read, [])
    environment: Mapping[str, Any] = read("The environment", lambda: folder.environment, {})
    series = _series(rows)

    page = Page(f"Run {folder.path.name}")
    page.facts(_facts(folder.config, environment, rows, timing, events, params))
    if outcome := _outcome(events)[1]:
        page.text(outcome)
    if troubles:
        page.text(*troubles)
    _curves(page, series)
    _speed(page, timing)
    _samples(page, events)
    for section in sections:
        page.heading(section.title)
        if section.text:
            page.text(section.text)
        if section.rows:
            page.table(section.rows, section.headers)
    _parameters(page, params)
    for title, values in (("Config", folder.config), ("Environment", environment)):
        if values:
            page.heading(title).table(list(_flat(values)), ("field", "value"))
    _journal(page, events)
    page.write(folder.report)


# What the files say


def _outcome(events: Rows) -> tuple[str, str]:
    """How the run ended, in a word and in a sentence ("" where the word says it all)."""
    for event in reversed(events):
        if event.get("event") == "end":
            reason = event.get("stopped")
            return ("stopped", f"Stopped at step {event.get('step')}: {reason}.") if reason else ("finished", "")
        if event.get("event") == "interrupted":
            return (
                "interrupted",
                f"Interrupted at step {event.get('step')} by {event.get('signal')}; it can be resumed.",
            )
        if event.get("event") in ("start", "resume"):
            break
    return "unfinished", "The journal has no end: the run is going on, or was killed; then it can be resumed."


def _wall_s(events: Rows) -> float | None:
    """Seconds from start or resume to the last event, added over the processes that worked on the run."""
    total, began, last = 0.0, None, 0.0
    for event in events:
        now = event.get("time")
        if not isinstance(now, int | float):
            continue
        if event.get("event") in ("start", "resume"):
            total += last - began if began is not None else 0.0
            began = now
        last = now
    return None if began is None else total + last - began


def _duration(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60) if seconds >= 3600 else int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if seconds >= 3600 else f"{minutes} min {seconds % 60:02.0f} s"


def _planned(config: Mapping[str, Any]) -> int | None:
    """Data steps that the run was to take."""
    fit = config.get("fit", {})
    if fit.get("steps"):
        return int(fit["steps"])
    if fit.get("epochs") and fit.get("examples") and fit.get("batch_size"):
        return int(fit["epochs"]) * -(-int(fit["examples"]) // int(fit["batch_size"]))
    return None


def _facts(
    config: Mapping[str, Any], environment: Mapping[str, Any], rows: Rows, timing: Rows, events: Rows, params: PyTree
) -> dict[str, Any]:
    done = max((int(row.get("step", 0)) for row in [*rows, *events]), default=0)
    planned = _planned(config)
    facts: dict[str, Any] = {
        "outcome": _outcome(events)[0],
        "steps": f"{done:,} of {planned:,}" if planned and planned != done else done,
        "wall time": _duration(_wall_s(events)),
        "parameters": tree.size(params),
    }
    devices = environment.get("devices", {})
    if kinds := ", ".join(map(str, devices.get("kinds", []))):
        used = config.get("fit", {}).get("devices") or devices.get("number", 1)
        facts["device"] = kinds if used == 1 else f"{used} x {kinds}"
    last: dict[str, Any] = {}
    for row in rows:
        last |= row
    for name in ("loss", "val_loss", "bits_per_byte", "val_bits_per_byte", "accuracy", "val_accuracy"):
        if name in last:
            facts[name.replace("val_", "validation ").replace("_", " ")] = last[name]
    for name in ("tokens_per_s", "examples_per_s"):
        if speeds := [row[name] for row in timing if name in row]:
            facts[f"{name.removesuffix('_per_s')}/s (median)"] = float(np.median(speeds))
            break
    if speeds := [row["flops_per_s"] for row in timing if row.get("flops_per_s")]:
        facts["model FLOP/s (median)"] = f"{np.median(speeds) / 1e9:.4g} G"
        peaks = next((event for event in reversed(events) if event.get("event") == "peaks"), {})
        for name, value in peaks.items():
            if name.startswith("product "):
                facts[f"of the {name.removeprefix('product ')} peak"] = f"{100 * np.median(speeds) / value:.0f} %"
    return facts


def _series(rows: Rows) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values by name, in order of first appearance."""
    held: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in NOT_VALUES and isinstance(value, int | float) and "step" in row:
                steps, values = held.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    return {name: (np.asarray(s, np.float64), np.asarray(v, np.float64)) for name, (s, v) in held.items()}


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `POINTS` points: means of equal blocks of rows. A block with a NaN in it shows one."""
    block = -(-len(steps) // POINTS)
    if block <= 1:
        return steps, values
    starts = np.arange(0, len(steps), block)
    counts = np.diff(np.append(starts, len(steps)))
    with np.errstate(invalid="ignore", over="ignore"):
        return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


# Sections of the page


def _figure(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str, ylabel: str = "", logy: bool = False
) -> "Figure":
    xs, ys = ({name: line[side] for name, line in lines.items()} for side in (0, 1))
    return curve(xs, ys, title, "step", ylabel, logy)


def _curves(page: Page, series: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """A figure for each family of names ("loss" with "val_loss"), and a table of all values."""
    if not series:
        page.heading("Curves").text("No values were reported.")
        return
    families: dict[str, list[str]] = {}
    for name in series:
        families.setdefault(name.removeprefix("val_"), []).append(name)
    last = ("learning_rate", "grad_norm")
    order = sorted(
        families, key=lambda f: (f != "loss", f in last, last.index(f) if f in last else 0, len(families[f]) < 2)
    )
    moving = [f for f in order if f == "loss" or any(len(set(series[n][1].tolist())) > 1 for n in families[f])]
    page.heading("Curves")
    for family in moving[:FIGURES]:
        names = sorted(families[family], key=lambda n: n.startswith("val_"))
        labels = ["validation" if n.startswith("val_") else "train" for n in names] if len(names) > 1 else names
        lines = {label: _thin(*series[name]) for label, name in zip(labels, names)}
        values = np.concatenate([v for _, v in lines.values()])
        finite = values[np.isfinite(values)]
        wide = len(finite) > 0 and bool(finite.min() > 0 and finite.max() > 20 * finite.min())
        figure = _figure(lines, _title(family), logy=wide and family != "learning_rate")
        page.figure(figure, "" if len(finite) == len(values) else "Gaps are values that are not finite.")
    if left := moving[FIGURES:]:
        page.text(f"{len(left)} further names are in the table only: {', '.join(left)}.")
    page.heading("Values").table([_extremes(name, *series[name]) for f in order for name in families[f]], EXTREMES)


EXTREMES = ("value", "last", "lowest", "at step", "highest", "at step")


def _extremes(name: str, steps: np.ndarray, values: np.ndarray) -> tuple[Any, ...]:
    finite = np.isfinite(values)
    if not finite.any():
        return (name, values[-1], None, None, None, None)
    low = int(np.argmin(np.where(finite, values, np.inf)))
    high = int(np.argmax(np.where(finite, values, -np.inf)))
    return (name, values[-1], values[low], int(steps[low]), values[high], int(steps[high]))


def _title(family: str) -> str:
    return {"grad_norm": "gradient norm"}.get(family, family.replace("_", " "))


def _speed(page: Page, timing: Rows) -> None:
    series = _series(timing)
    speed = next((name for name in ("tokens_per_s", "examples_per_s", "steps_per_s") if name in series), None)
    if speed is None:
        return
    line = {speed: _thin(*series[speed])}
    page.heading("Speed").figure(_from_zero(_figure(line, speed.replace("_per_s", " per second"))))
    shares = {"waiting for data": "wait_share", "saving": "save_share"}
    found = {label: _thin(*series[name]) for label, name in shares.items() if name in series}
    if any(np.nanmax(v, initial=0) > 0.005 for _, v in found.values()):
        percent = {label: (s, 100 * v) for label, (s, v) in found.items()}
        page.figure(_from_zero(_figure(percent, "share of the time", "%")))
    elif found:
        page.text("Waiting for data and saving took under 0.5 % of the time throughout.")


def _from_zero(figure: "Figure") -> "Figure":
    """Shows a speed or a share against nothing, with room for the legend: noise must not look like news."""
    axes = figure.axes[0]
    top = np.nanmax([1e-9, *np.concatenate([line.get_ydata() for line in axes.lines])])
    axes.set_ylim(0, 1.25 * top)
    return figure


def _samples(page: Page, events: Rows) -> None:
    # A run that was rewound or resumed may have journalled a step twice; what came last holds.
    texts = {e["step"]: str(e.get("text", "")) for e in events if e.get("event") == "sample" and "step" in e}
    if not texts:
        return
    steps = sorted(texts)
    page.heading("Samples")
    if len(steps) > SAMPLES:
        page.text(f"{SAMPLES} of {len(steps)}; the others are in journal.jsonl.")
        steps = [steps[i] for i in np.linspace(0, len(steps) - 1, SAMPLES).round().astype(int)]
    for step in steps:
        page.text(f"Step {step:,}").pre(texts[step])


def _parameters(page: Page, params: PyTree) -> None:
    leaves = tree.leaves_by_path(params)
    total = tree.size(params)
    rows = []
    for path, leaf in leaves.items():
        shape, count = " x ".join(map(str, leaf.shape)) or "scalar", math.prod(leaf.shape)
        rows.append((path, shape, str(leaf.dtype), count, f"{100 * count / max(1, total):.1f} %"))
    rows.append((f"total of {len(leaves)} leaves", "", f"{tree.nbytes(params) / 1e6:,.3g} MB", total, "100 %"))
    page.heading("Parameters").table(rows, ("path", "shape", "dtype", "count", "share"))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Any:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif key == "command" and isinstance(value, list):
            yield f"{prefix}{key}", " ".join(map(str, value))
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _journal(page: Page, events: Rows) -> None:
    """Events with the time since the first; what repeats without saying more ("save") is one line."""
    if not events:
        return
    began = events[0].get("time", 0.0)
    lines: list[list[Any]] = []
    for event in events:
        details = {k: v for k, v in event.items() if k not in TOLD and v is not None and v != []}
        said = ", ".join(f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in details.items())
        step, name = event.get("step"), str(event.get("event"))
        if lines and lines[-1][2] == name and not said and not lines[-1][3]:
            lines[-1][1][1] = step
            lines[-1][4] += 1
        else:
            lines.append([_duration(max(0.0, event.get("time", began) - began)), [step, step], name, said, 1])
    dropped = max(0, len(lines) - EVENTS)
    page.heading("Journal")
    if dropped:
        page.text(f"The first {dropped} lines are in journal.jsonl only.")
    rows = []
    for when, (a, b), name, said, count in lines[dropped:]:
        step = format_value(a) if count == 1 else f"{format_value(a)} to {format_value(b)}"
        rows.append((when, step, name if count == 1 else f"{name}, {count} times", said))
    page.table(rows, ("after", "step", "event", "details"))
