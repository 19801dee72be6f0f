"""Runs side by side on one page: their curves overlaid, their values, and how they differ in config and environment.

Only the files of the run folders are read, so runs may be compared while they go on, after they were killed, and on
another machine than the one they ran on.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxnn import metrics
from jaxnn.report import Page, format_value, line_look
from jaxnn.runs import curves
from jaxnn.runs.record import SPEEDS, Record, duration, flat

Axis = Literal["step", "epoch", "time"]
AXES: dict[str, str] = {"step": "step", "epoch": "epoch", "time": "seconds of training"}


def comparison_page(records: Sequence[Record], *, x: Axis = "step", title: str = "") -> Page:
    """The page.

    Args:
        records: The runs, in the order in which they are shown; see `read_record`.
        x: What the curves are drawn over: "step", "epoch", or "time", the seconds of training without compilation,
            validation and saving.
        title: Of the page.

    Raises:
        ValueError: If there are no runs, or `x` is unknown.
    """
    if not records:
        raise ValueError("runs.comparison_page: no runs. Give at least one record.")
    if x not in AXES:
        raise ValueError(f"runs.comparison_page: x={x!r}. Write one of {', '.join(AXES)}.")
    names = distinct([record.path for record in records])
    by_name = dict(zip(names, records))
    page = Page(title or (f"{len(records)} runs" if len(records) > 1 else f"Run {names[0]}"))
    page.table([_overview(name, record) for name, record in by_name.items()], OVERVIEW)
    notes = [f"{name}: {text}" for name, record in by_name.items() for text in _notes(record)]
    if notes:
        page.text(*notes)
    lines = {name: curves.series(_on(record, x), x) for name, record in by_name.items()}
    _curves(page, lines, AXES[x])
    _values(page, by_name)
    _speed(page, by_name)
    _differences(page, "Config", {name: dict(flat(record.config)) for name, record in by_name.items()})
    _differences(page, "Environment", {name: dict(flat(record.environment)) for name, record in by_name.items()})
    return page


def distinct(paths: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths that tell them apart: "lr-high/run-001" where two are called "run-001"."""
    parts = [path.absolute().parts for path in paths]
    taken = [1] * len(parts)
    while True:
        names = ["/".join(p[-n:]) for p, n in zip(parts, taken)]
        twice = {name for name in names if names.count(name) > 1}
        longer = [n + 1 if name in twice and n < len(p) else n for name, n, p in zip(names, taken, parts)]
        if longer == taken:
            return names
        taken = longer


OVERVIEW = ("run", "outcome", "steps", "wall time", "device", "speed (median)", "waiting", "model FLOP/s")


def _overview(name: str, record: Record) -> tuple[Any, ...]:
    speed = next((s for s in SPEEDS if any(s in row for row in record.timing)), None)
    return (
        name,
        record.outcome[0],
        str(record.steps_text) if isinstance(record.steps_text, str) else f"{record.steps_text:,}",
        duration(record.wall_s) or "–",
        record.device or "–",
        f"{format_value(_median(record, speed))} {speed.replace('_per_s', '/s')}" if speed else "–",
        f"{100 * _median(record, 'wait_share'):.1f} %" if _has(record, "wait_share") else "–",
        f"{_median(record, 'flops_per_s') / 1e9:.4g} G" if _has(record, "flops_per_s") else "–",
    )


def _has(record: Record, name: str) -> bool:
    return math.isfinite(_median(record, name))


def _median(record: Record, name: str) -> float:
    """The median of what the clock said; NaN where it said nothing."""
    found = [row[name] for row in record.timing if isinstance(row.get(name), int | float)]
    finite = [value for value in found if math.isfinite(value)]
    return float(np.median(finite)) if finite else math.nan


def _notes(record: Record) -> list[str]:
    outcome, sentence = record.outcome
    told = [sentence] if outcome in ("stopped", "interrupted") else []
    if not record.rows:
        told.append("No values were reported.")
    return [*told, *record.troubles]


def _on(record: Record, x: Axis) -> list[dict[str, Any]]:
    """The rows with the horizontal axis in them."""
    if x != "time":
        return [dict(row) for row in record.rows]
    steps, seconds = [0.0], [0.0]
    for row in record.timing:
        rate = row.get("steps_per_s")
        # A resumed run may have timed a step twice: what came first is kept, as the clock had it.
        if row["step"] > steps[-1] and isinstance(rate, int | float) and rate > 0:
            seconds.append(seconds[-1] + (row["step"] - steps[-1]) / rate)
            steps.append(row["step"])
    if len(steps) == 1:
        return []
    return [{**row, "time": float(np.interp(row["step"], steps, seconds))} for row in record.rows]


def _names(lines: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every reported name, each family together."""
    seen = dict.fromkeys(name for series in lines.values() for name in series)
    return [name for names in curves.families(seen).values() for name in names]


def _curves(page: Page, lines: Mapping[str, Mapping[str, curves.Line]], xlabel: str) -> None:
    page.heading("Curves")
    shown = 0
    left: list[str] = []
    for name in _names(lines):
        found = {run: series[name] for run, series in lines.items() if name in series}
        if curves.family(name) != "loss" and not curves.moves(found.values()) and len(found) == len(lines):
            constants = {float(values[0]) for _, values in found.values()}
            if len(constants) == 1:
                continue
        if shown == curves.FIGURES:
            left.append(name)
            continue
        shown += 1
        drawn = {run: curves.thin(*line) for run, line in found.items()}
        missing = [run for run in lines if run not in found]
        notes = [f"Not reported by {', '.join(missing)}."] if missing else []
        if not all(np.isfinite(values).all() for _, values in drawn.values()):
            notes.append("Gaps are values that are not finite.")
        logy = curves.log_scale(name, drawn.values())
        figure = curves.figure(drawn, curves.title(name), logy=logy, xlabel=xlabel)
        page.figure(_by_run(figure, drawn, list(lines)), " ".join(notes))
    if left:
        page.text(f"{len(left)} further names are in the table only: {', '.join(left)}.")
    if not shown:
        page.text("No values were reported.")


def _by_run(figure: Any, lines: Mapping[str, Any], all_runs: Sequence[str]) -> Any:
    """Each run in its own colour in every figure, and the names beside the plot, where they hide no line."""
    axes = figure.axes[0]
    if len(all_runs) < 2:
        return figure
    if axes.get_legend() is not None:
        axes.get_legend().remove()
    for line, run in zip(axes.lines, lines):
        color, style = line_look(all_runs.index(run))
        line.set(color=color, linestyle=style)
    ink = axes.xaxis.label.get_color()
    where = "outside right upper"
    legend = figure.legend(axes.lines, list(lines), loc=where, frameon=False, labelcolor=ink, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


VALUES = ("value", "run", "last", "best", "at step", "")


def _values(page: Page, records: Mapping[str, Record]) -> None:
    """The last and the best value of every name and run; the best of all runs is marked."""
    series = {name: curves.series(record.rows) for name, record in records.items()}
    rows: list[tuple[Any, ...]] = []
    for value in _names(series):
        found = {run: lines[value] for run, lines in series.items() if value in lines}
        mode = _mode(value, records)
        best = {run: curves.best(*line, mode) for run, line in found.items()}
        rated = [b[0] for b in best.values() if b is not None]
        top = (min(rated) if mode == "min" else max(rated)) if rated else None
        for run, (_, values) in found.items():
            at = best[run]
            mark = "best" if at is not None and at[0] == top and len(found) > 1 else ""
            rows.append((value, run, float(values[-1]), *(at or (None, None)), mark))
    if rows:
        page.heading("Values").table(rows, VALUES)
        if any(row[3] is None for row in rows):
            page.text("No best where a value's name does not say whether a smaller or a larger one is better.")


def _mode(value: str, records: Mapping[str, Record]) -> str | None:
    """Which way a value is better: by its name, or as a run was told for its best checkpoint."""
    told = [r.fit.get("best_mode") for r in records.values() if r.fit.get("best") == value and r.fit.get("best_mode")]
    return metrics.better(value) or (told[0] if told else None)


def _speed(page: Page, records: Mapping[str, Record]) -> None:
    series = {run: curves.series(record.timing) for run, record in records.items()}
    speed = next((s for s in SPEEDS if any(s in lines for lines in series.values())), None)
    if speed is None:
        return
    lines = {run: curves.thin(*found[speed]) for run, found in series.items() if speed in found}
    figure = curves.from_zero(curves.figure(lines, speed.replace("_per_s", " per second")))
    page.heading("Speed").figure(_by_run(figure, lines, list(records)))


def _differences(page: Page, title: str, fields: Mapping[str, Mapping[str, str]]) -> None:
    """The fields that are not the same in all runs that have any, a column a run."""
    known = {run: values for run, values in fields.items() if values}
    if len(fields) < 2:
        (values,) = fields.values()
        if values:
            page.heading(title).table(list(values.items()), ("field", "value"))
        return
    page.heading(f"{title} differences")
    if unknown := [run for run in fields if run not in known]:
        page.text(f"Not known of {', '.join(unknown)}.")
    if len(known) < 2:
        return
    names = dict.fromkeys(name for values in known.values() for name in values)
    rows = [(name, *(values.get(name) for values in known.values())) for name in names]
    differing = [tuple("–" if cell is None else cell for cell in row) for row in rows if len(set(row[1:])) > 1]
    if differing:
        page.table(differing, ("field", *known))
    same = [row[0] for row in rows if len(set(row[1:])) == 1]
    page.text(f"The other {len(same)} fields are the same." if differing else f"All {len(same)} fields are the same.")
