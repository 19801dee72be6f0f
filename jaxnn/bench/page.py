"""The page of result files, to be attached to a pull request: distributions, comparisons, roofline, history.

Every raw block is a dot; medians and intervals are drawn over them, so that a reader can see what the verdict rests on.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxnn.bench import display
from jaxnn.bench.comparison import Comparison
from jaxnn.bench.measurement import Failure, Measurement
from jaxnn.bench.probes import Peaks
from jaxnn.bench.schema import Results
from jaxnn.bench.sweeping import Sweep
from jaxnn.report import Page, curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURES = 30  # of distributions on a page; each costs some 80 ms
_COLOURS = ("#3b82d6", "#e07b39", "#2f9e6e", "#c2549d", "#8d7ae6", "#a08a2c", "#d1495b", "#5c8a99")
_VERDICTS = {"regress": "#d1495b", "improve": "#2f9e6e", "ok": "#2f9e6e", "inconclusive": "#a08a2c"}
_SEEN = 0.98  # of the dots lie within the axis; the rest are counted in the caption


def make_page(files: Sequence[Results], title: str = "Benchmarks") -> Page:
    """The page of one or more files; the last is reported, the earlier ones are its history.

    Args:
        files: From `load`, oldest first.
        title: Of the page.
    """
    page = Page(title)
    last = files[-1]
    measured = {name: m for name, m in last.measurements().items() if name != "A/A"}
    comparisons = [result for result in last.results if isinstance(result, Comparison)]
    failures = [result for result in last.results if isinstance(result, Failure)]
    where = last.environment
    facts = {
        "cases": len(measured),
        "commit": (where.get("commit") or "none")[:10],
        "measured": str(where.get("time"))[:16].replace("T", " "),
    }
    if comparisons:
        worst = min((c.verdict for c in comparisons), key=("regress", "inconclusive", "improve", "ok").index)
        facts = {"verdict": worst, **facts}
    if failures:
        facts["failed"] = len(failures)
    page.facts(facts).text(f"{where.get('device')}, {where.get('processor')}, jax {where.get('jax')}")
    if failures:
        page.heading("Failed").table([(f.name, f.error, f.message) for f in failures], ("case", "error", "message"))
    if comparisons:
        _comparisons(page, comparisons)
    if measured:
        _measurements(page, measured)
        _distributions(page, last)
    for sweep in (result for result in last.results if isinstance(result, Sweep)):
        _sweep(page, sweep)
    peaks = [result for results in files for result in results.results if isinstance(result, Peaks)]
    _roofline(page, measured, peaks[-1] if peaks else None)
    if len(files) > 1:
        _history(page, files)
    return _environment(page, files)


def _comparisons(page: Page, comparisons: Sequence[Comparison]) -> None:
    rows, marks = [], []
    for c in comparisons:
        for row in c.rows.values():
            change = _kept(display.percent(row.estimate.ratio, row.estimate.interval))
            verdict = f"{row.verdict} ({row.reason})" if row.reason else row.verdict
            rows.append((row.name, c.base, change, _kept(str(c.aa)), c.clock, c.rounds, verdict))
            marks.append((row.name, row.estimate, row.verdict, c.tolerance))
    page.heading("Comparisons").text(
        "Candidate against base, run in turns in one session. A/A is the base against a copy of itself: what this "
        "machine makes of no difference."
    )
    if any(math.isfinite(estimate.interval.high) for _, estimate, _, _ in marks):
        page.figure(_forest(marks), "Change of time with its interval; the band is the tolerance.")
    page.table(rows, ("case", "base", "change", "A/A", "clock", "rounds", "verdict"))


def _forest(marks: Sequence[tuple[str, Any, str, float]]) -> "Figure":
    figure, axes = _axes("", "change of time, %", 0.9 + 0.34 * len(marks))
    tolerance = 100 * max(mark[3] for mark in marks)
    axes.axvspan(-tolerance, tolerance, color=_COLOURS[7], alpha=0.14, linewidth=0)
    axes.axvline(0, color=_ink(axes), linewidth=0.8, alpha=0.5)
    for y, (_, estimate, verdict, _) in enumerate(marks):
        low, high = (100 * (x - 1) for x in (estimate.interval.low, estimate.interval.high))
        colour = _VERDICTS[verdict]
        if math.isfinite(high):
            axes.plot([low, high], [y, y], color=colour, linewidth=2.5, solid_capstyle="butt")
        axes.plot([100 * (estimate.ratio - 1)], [y], marker="o", color=colour, markersize=6)
    return _rows(figure, axes, [mark[0] for mark in marks])


def _measurements(page: Page, measured: Mapping[str, Measurement]) -> None:
    rows = []
    for name, m in measured.items():
        interval = f"[{_in(m, m.interval.low)}, {_in(m, m.interval.high)}]"
        stages = "+".join(display.digits(1e3 * s) for s in (m.compile.trace_s, m.compile.lower_s, m.compile.compile_s))
        memory = _kept(display.amount(m.work.memory.peak, "B")) if m.work.memory is not None else "–"
        flops = _kept(display.amount(m.work.flops, "F"))
        time = f"{_kept(display.duration(m.median_s))} {_kept(interval)}"
        rows.append((name, time, _in(m, m.cpu_s), _in(m, m.dispatch_s), stages, flops, memory))
    page.heading("Measurements").text(
        "Median wall time of a call with its 95 % interval, CPU time and dispatch in the same unit; compilation is "
        "trace + lower + compile."
    )
    page.table(rows, ("case", "time", "CPU", "dispatch", "compile, ms", "FLOPs", "memory"))
    remarks = [f"{name}: {note}" for name, m in measured.items() for note in (*m.notes, *_doubts(m))]
    if remarks:
        page.pre("\n".join(remarks))


def _doubts(m: Measurement) -> list[str]:
    found = ["the second half differs from the first (drift)"] if m.drift else []
    if not m.precise:
        found.append("the interval is wider than was asked for")
    return found


def _in(m: Measurement, seconds: float) -> str:
    """Seconds in the unit in which the measurement's median reads well."""
    return display.digits(seconds * display.seconds(m.median_s)[0])


def _kept(text: str) -> str:
    """Text that is not broken at its spaces."""
    return text.replace(" ", "\u00a0")


def _distributions(page: Page, results: Results) -> None:
    groups: list[dict[str, Measurement]] = []
    for result in results.results:
        if isinstance(result, Comparison):
            groups.append(dict(result.measurements))
        elif isinstance(result, Measurement):
            groups.append({result.name: result})
    if not groups:
        return
    page.heading("Distributions").text(
        "Every dot is a block of calls (its mean wall time), as it was measured: nothing is dropped. The bar is the "
        "median's interval, the tick the median."
    )
    for group in groups[:FIGURES]:
        figure, beyond = _strips(group)
        page.figure(figure, f"Beyond the right edge: {beyond}." if beyond else "")
    if len(groups) > FIGURES:
        page.text(f"{len(groups) - FIGURES} more cases are in the file.")


def _strips(group: Mapping[str, Measurement]) -> tuple["Figure", int]:
    """Dots of each measurement in a row of its own, and how many do not fit."""
    blocks = {name: np.array([block.seconds("wall") for block in m.blocks]) for name, m in group.items()}
    everything = np.concatenate(list(blocks.values()))
    factor, unit = display.seconds(float(np.median(everything)))
    figure, axes = _axes("", f"a call, {unit}", 0.85 + 0.5 * len(group))
    low, high = factor * float(everything.min()), factor * float(np.quantile(everything, _SEEN))
    for name in group:
        high = max(high, factor * group[name].median_s)
    margin = 0.04 * max(high - low, 1e-3 * high)
    rng = np.random.default_rng(0)
    for y, (name, m) in enumerate(group.items()):
        x = factor * blocks[name]
        colour = _COLOURS[7] if name == "A/A" else _COLOURS[y % len(_COLOURS)]
        axes.plot(x, y + rng.uniform(-0.26, 0.26, len(x)), "o", color=colour, markersize=3.5, alpha=0.5, mew=0)
        ends = [min(factor * end, high + margin) for end in (m.interval.low, m.interval.high)]
        if all(math.isfinite(end) for end in ends):
            axes.plot(ends, [y, y], color=colour, linewidth=4, alpha=0.9, solid_capstyle="butt")
        axes.plot([factor * m.median_s] * 2, [y - 0.36, y + 0.36], color=_ink(axes), linewidth=1.6)
    axes.set_xlim(low - margin, high + margin)
    return _rows(figure, axes, list(group)), int(np.sum(factor * everything > high + margin))


def _sweep(page: Page, sweep: Sweep) -> None:
    page.heading(f"Sweep {sweep.name}")
    names = list(sweep.points[0][0])
    rows = [
        (*(point[n] for n in names), display.duration_interval(m.median_s, m.interval)) for point, m in sweep.points
    ]
    page.table(rows, (*names, "time"))
    for name in names:
        values = sorted({point[name] for point, _ in sweep.points if isinstance(point[name], (int, float))})
        others = {tuple(v for n, v in point.items() if n != name) for point, _ in sweep.points}
        if len(values) < 3 or len(others) != 1:
            continue
        fit = sweep.fit(name)
        figure, axes = _axes("", name, 3.2, "seconds")
        x = np.geomspace(min(values), max(values), 100)
        axes.plot(x, [fit(n) for n in x], color=_COLOURS[1], linewidth=1.4)
        for point, m in sweep.points:
            axes.plot([point[name]] * len(m.blocks), [b.seconds("wall") for b in m.blocks], "o", **_DOT)
        axes.set_xscale("log")
        axes.set_yscale("log")
        page.figure(figure, str(fit))


_DOT: dict[str, Any] = {"color": _COLOURS[0], "markersize": 3, "alpha": 0.3, "mew": 0}


def _roofline(page: Page, measured: Mapping[str, Measurement], peaks: Peaks | None) -> None:
    shares = [(name, m.roofline) for name, m in measured.items() if m.roofline is not None]
    points = {name: m for name, m in measured.items() if m.work.flops and m.work.bytes}
    if not shares and (peaks is None or not points):
        return
    page.heading("Roofline")
    if peaks is not None and points and "copy" in peaks.by_name:
        page.figure(
            _roof(points, peaks),
            "Rate against FLOPs a byte. A case is a span: from nothing fused (left) to everything fused (right). The "
            "roof is what this machine's probes reached, in a session of their own.",
        )
    if peaks is not None:
        page.pre(str(peaks))
    if shares:
        rows = [
            (name, str(r.compute), r.dtype, f"{r.memory} to {100 * r.memory_upper:.0f}%", r.verdict)
            for name, r in shares
        ]
        page.text("Shares of peaks that were probed in turns with the case.")
        page.table(rows, ("case", "of compute", "dtype", "of memory", "verdict"))


def _roof(points: Mapping[str, Measurement], peaks: Peaks) -> "Figure":
    figure, axes = _axes("", "FLOPs a byte", 4.2, "GFLOP/s")
    bandwidth = peaks["copy"].value
    low = min(m.work.flops / max(m.work.bytes_upper, 1) for m in points.values()) / 2
    high = max(m.work.flops / m.work.bytes for m in points.values()) * 2
    products = {name: p.value for name, p in peaks.by_name.items() if name.startswith("product")}
    used = {f"product {m.work.dtype or 'float32'}" for m in points.values()}
    high = max([high, *(2 * products[name] / bandwidth for name in used if name in products)])
    x = np.geomspace(low, high, 200)
    for name, value in products.items():
        if name in used:
            axes.plot(x, np.minimum(x * bandwidth, value) / 1e9, color=_ink(axes), linewidth=1.2)
            axes.annotate(
                name.removeprefix("product "),
                (high, value / 1e9),
                ha="right",
                va="bottom",
                fontsize=8,
                color=_ink(axes),
            )
    for index, (name, m) in enumerate(points.items()):
        rate = m.work.flops / m.median_s / 1e9
        ends = [m.work.flops / max(m.work.bytes_upper, 1), m.work.flops / m.work.bytes]
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(ends, [rate, rate], color=colour, linewidth=2, marker="o", markersize=4, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _legend(axes)
    return figure


def _history(page: Page, files: Sequence[Results]) -> None:
    names = [name for name in files[-1].measurements() if name != "A/A"]
    rows, series = [], {}
    for name in names:
        found = [results.measurements().get(name) for results in files]
        if sum(m is not None for m in found) > 1:
            first = next(m for m in found if m is not None)
            series[name] = [math.nan if m is None else m.median_s / first.median_s for m in found]
            rows.append((name, *("–" if m is None else display.duration(m.median_s) for m in found)))
    if not rows:
        return
    labels = [(str(r.environment.get("commit") or "?")[:8], str(r.environment.get("time"))[:10]) for r in files]
    page.heading("History").text(
        "Medians of each file, as a ratio to the first. They are of different sessions, which wander by 8 % on a quiet "
        "machine and by more on a busy one: compare revisions in turns before believing a step in a line."
    )
    figure, axes = _axes("", "", 3.4, "time against the first file")
    for index, (name, values) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(range(len(files)), values, color=colour, linewidth=1.6, marker="o", markersize=4, label=name)
    axes.axhline(1, color=_ink(axes), linewidth=0.8, alpha=0.4)
    axes.set_xticks(range(len(files)), [f"{commit}\n{day}" for commit, day in labels])
    _legend(axes)
    page.figure(figure).table(rows, ("case", *(f"{commit} {day}" for commit, day in labels)))


def _environment(page: Page, files: Sequence[Results]) -> Page:
    keys = list(dict.fromkeys(key for results in files for key in results.environment))
    headers = [""] + (["value"] if len(files) == 1 else [f"file {i}" for i in range(1, len(files) + 1)])
    rows = [(key, *(str(results.environment.get(key, "–")) for results in files)) for key in keys]
    devices = {str(results.environment.get("device")) for results in files}
    page.heading("Environment")
    if len(devices) > 1:
        page.text(f"These files are of different devices ({', '.join(sorted(devices))}): their times do not compare.")
    return page.table([row for row in rows if any(row[1:])], headers)


def _axes(title: str, xlabel: str, height: float, ylabel: str = "") -> tuple["Figure", "Axes"]:
    """Empty axes in the report's style."""
    figure = curve([], {}, title=title, xlabel=xlabel, ylabel=ylabel)
    figure.set_size_inches(8, height)
    return figure, figure.axes[0]


def _ink(axes: "Axes") -> Any:
    """The colour that the page shows as its text's."""
    return axes.spines["left"].get_edgecolor()


def _rows(figure: "Figure", axes: "Axes", names: Sequence[str]) -> "Figure":
    """Names the rows of a horizontal figure, the first on top."""
    axes.set_yticks(range(len(names)), [name if len(name) < 34 else f"…{name[-32:]}" for name in names])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=_ink(axes), alpha=0.12, linewidth=0.8)
    return figure


def _legend(axes: "Axes") -> None:
    for text in axes.legend(frameon=False, labelcolor=_ink(axes), fontsize=8).get_texts():
        text.set_parse_math(False)
