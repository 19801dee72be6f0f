"""The report of a run: one page from the files of its folder, for whoever asks later what was run and how it went.

Everything on the page is read back from the files, so that it can be written again at any time and shows what is kept,
not what a process remembers. A file that is missing, short or damaged costs its own section and nothing else.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxnn import tree
from jaxnn.report import Page, format_value
from jaxnn.runs import curves
from jaxnn.runs.folder import RunFolder
from jaxnn.runs.record import SPEEDS, Record, Rows, duration, flat, read_record
from jaxnn.typing import PyTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLD = ("event", "step", "time", "cpu_s", "load", "text")  # of an event, outside its details
SAMPLES = 10
EVENTS = 200


@dataclasses.dataclass(frozen=True)
class Section:
    """What an experiment adds to its run's report: text, a figure, a table, or several of them.

    Attributes:
        title: Its heading.
        rows: Cells by row, each row as long as `headers`.
        headers: Names of the columns.
        text: Shown first; a blank line parts paragraphs.
        figure: A matplotlib figure, shown above the table.
    """

    title: str
    rows: Sequence[Sequence[Any]] = ()
    headers: Sequence[str] = ()
    text: str = ""
    figure: "Figure | None" = None


def write_summary(folder: RunFolder, params: PyTree, *, sections: Sequence[Section] = ()) -> None:
    """Writes `report.html` of a run, atomically.

    It shows the outcome, curves, values, speed, samples, parameters, config, environment and journal.

    Args:
        folder: The run's folder; its files are read.
        params: The parameters, or their shapes; their values are not looked at.
        sections: What the experiment adds, shown after the curves.
    """
    if folder.writes:
        summary_page(read_record(folder.path), params, sections=sections).write(folder.report)


def summary_page(record: Record, params: PyTree, *, sections: Sequence[Section] = ()) -> Page:
    """The page that `write_summary` writes."""
    series = curves.series(record.rows)
    page = Page(f"Run {record.path.absolute().name}")
    page.facts(_facts(record, params))
    if sentence := record.outcome[1]:
        page.text(sentence)
    if record.troubles:
        page.text(*record.troubles)
    _curves(page, series)
    _speed(page, record.timing)
    _samples(page, record.events)
    for section in sections:
        page.heading(section.title)
        if section.text:
            page.text(section.text)
        if section.figure is not None:
            page.figure(section.figure)
        if section.rows:
            page.table(section.rows, section.headers)
    _parameters(page, params)
    for title, values in (("Config", record.config), ("Environment", record.environment)):
        if values:
            page.heading(title).table(list(flat(values)), ("field", "value"))
    _journal(page, record.events)
    return page


def _facts(record: Record, params: PyTree) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "outcome": record.outcome[0],
        "steps": record.steps_text,
        "wall time": duration(record.wall_s),
    }
    if cpu_s := record.spent("cpu_s"):
        facts["processor time"] = duration(cpu_s)
    if count := tree.size(params):
        facts["parameters"] = count
    if record.device is not None:
        facts["device"] = record.device
    last: dict[str, Any] = {}
    for row in record.rows:
        last |= row
    for name in ("loss", "val_loss", "bits_per_byte", "val_bits_per_byte", "accuracy", "val_accuracy"):
        if name in last:
            facts[curves.title(name)] = last[name]
    for name in SPEEDS[:2]:
        if speeds := [row[name] for row in record.timing if name in row]:
            facts[f"{name.removesuffix('_per_s')}/s (median)"] = float(np.median(speeds))
            break
    if speeds := [row["flops_per_s"] for row in record.timing if row.get("flops_per_s")]:
        facts["model FLOP/s (median)"] = f"{np.median(speeds) / 1e9:.4g} G"
        peaks = next((event for event in reversed(record.events) if event.get("event") == "peaks"), {})
        for name, value in peaks.items():
            if name.startswith("product "):
                facts[f"of the {name.removeprefix('product ')} peak"] = f"{100 * np.median(speeds) / value:.0f} %"
    return facts


# Sections of the page


def _curves(page: Page, series: Mapping[str, curves.Line]) -> None:
    """A figure for each family of names ("loss" with "val_loss"), and a table of all values."""
    if not series:
        page.heading("Curves").text("No values were reported.")
        return
    families = curves.families(series)
    moving = [f for f, names in families.items() if f == "loss" or curves.moves(series[n] for n in names)]
    page.heading("Curves")
    for family in moving[: curves.FIGURES]:
        names = families[family]
        lines = {label: curves.thin(*series[name]) for label, name in zip(curves.labels(names), names)}
        finite = all(np.isfinite(values).all() for _, values in lines.values())
        figure = curves.figure(lines, curves.title(family), logy=curves.log_scale(family, lines.values()))
        page.figure(figure, "" if finite else "Gaps are values that are not finite.")
    if left := moving[curves.FIGURES :]:
        page.text(f"{len(left)} further names are in the table only: {', '.join(left)}.")
    rows = [_extremes(name, *series[name]) for names in families.values() for name in names]
    page.heading("Values").table(rows, EXTREMES)


EXTREMES = ("value", "last", "lowest", "at step", "highest", "at step")


def _extremes(name: str, steps: np.ndarray, values: np.ndarray) -> tuple[Any, ...]:
    finite = np.isfinite(values)
    if not finite.any():
        return (name, values[-1], None, None, None, None)
    low = int(np.argmin(np.where(finite, values, np.inf)))
    high = int(np.argmax(np.where(finite, values, -np.inf)))
    return (name, values[-1], values[low], int(steps[low]), values[high], int(steps[high]))


def _speed(page: Page, timing: Rows) -> None:
    series = curves.series(timing)
    speed = next((name for name in SPEEDS if name in series), None)
    if speed is None:
        return
    line = {speed: curves.thin(*series[speed])}
    drawn = curves.figure(line, speed.replace("_per_s", " per second"))
    page.heading("Speed").figure(curves.from_zero(drawn))
    shares = {"waiting for data": "wait_share", "saving": "save_share"}
    found = {label: curves.thin(*series[name]) for label, name in shares.items() if name in series}
    if any(np.nanmax(v, initial=0) > 0.005 for _, v in found.values()):
        percent = {label: (s, 100 * v) for label, (s, v) in found.items()}
        page.figure(curves.from_zero(curves.figure(percent, "share of the time", "%")))
    elif found:
        page.text("Waiting for data and saving took under 0.5 % of the time throughout.")


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
    if not leaves:  # a run that has saved nothing
        return
    page.heading("Parameters").table(rows, ("path", "shape", "dtype", "count", "share"))


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
            lines.append([duration(max(0.0, event.get("time", began) - began)), [step, step], name, said, 1])
    dropped = max(0, len(lines) - EVENTS)
    page.heading("Journal")
    if dropped:
        page.text(f"The first {dropped} lines are in journal.jsonl only.")
    rows = []
    for when, (a, b), name, said, count in lines[dropped:]:
        step = format_value(a) if count == 1 else f"{format_value(a)} to {format_value(b)}"
        rows.append((when, step, name if count == 1 else f"{name}, {count} times", said))
    page.table(rows, ("after", "step", "event", "details"))
