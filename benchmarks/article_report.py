"""What the samples of `benchmarks.articles` say: ratios with intervals, what was to be met, a table and a picture."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.article_programs import PROGRAMS

FLOOR_MUST, FLOOR_GOAL = 1.3, 1.1
EPOCHWISE = ("loop", "scan")
PEERS = ("keras_tensorflow", "keras_jax", "torch", "torch_compiled")
NAMES = {
    "fit": "jaxnn fit",
    "loop": "jitted loop",
    "scan": "scan of an epoch",
    "scans": "scan of many",
    "keras_tensorflow": "Keras, TensorFlow",
    "keras_jax": "Keras, JAX",
    "torch": "PyTorch",
    "torch_compiled": "PyTorch, compiled",
}
Samples = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A median of ratios, and the sign test's interval at 95 % or more (the range, where there are too few)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def ratio(above: Mapping[int, float], below: Mapping[int, float]) -> Ratio | None:
    """The ratios of what was measured in the same rounds; None where there is no such round."""
    each = np.sort([above[n] / below[n] for n in sorted(set(above) & set(below))])
    if not len(each):
        return None
    low = max(0, int(stats.binom.ppf(0.025, len(each), 0.5)) - 1)
    return Ratio(float(np.median(each)), float(each[low]), float(each[-1 - low]))


def by_round(samples: Samples, phase: str, program: str, arm: str, cache: str, value: str) -> dict[int, Any]:
    """A value by round."""
    wanted = {"phase": phase, "program": program, "arm": arm, "cache": cache}
    return {s["round"]: s[value] for s in samples if all(s[name] == v for name, v in wanted.items())}


def steady_us(samples: Samples, program: str, arm: str) -> list[float]:
    """Microseconds a step, a sample a round."""
    return list(by_round(samples, "steady", program, arm, "none", "us").values())


def median(values: Mapping[int, float]) -> float:
    """NaN where there are none."""
    return float(np.median(list(values.values()))) if values else math.nan


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One thing that was to be met: `value` at most or at least `bound`."""

    program: str
    what: str
    value: Ratio
    bound: float
    must: bool
    at_most: bool = False

    @property
    def met(self) -> bool:
        """By the median."""
        return self.value.value <= self.bound if self.at_most else self.value.value >= self.bound

    def row(self) -> list[str]:
        """Cells of a table."""
        sign, kind = "<=" if self.at_most else ">=", "must" if self.must else "goal"
        return [
            self.program,
            self.what,
            str(self.value),
            f"{sign} {self.bound:g}",
            kind,
            "ok" if self.met else "MISSED",
        ]


def verdicts(samples: Samples) -> list[Verdict]:
    """Everything that can be judged by the samples there are."""
    found = []

    def judge(program: str, what: str, value: Ratio | None, bound: float, must: bool, at_most: bool = False) -> None:
        if value is not None:
            found.append(Verdict(program, what, value, bound, must, at_most))

    for name, program in PROGRAMS.items():
        steady = {arm: by_round(samples, "steady", name, arm, "none", "us") for arm in NAMES}
        # By an epoch a dispatch, as the baselines are; then against the best there is, many epochs a dispatch too.
        for arms, bound, must in ((EPOCHWISE, FLOOR_MUST, True), ((*EPOCHWISE, "scans"), FLOOR_GOAL, False)):
            floors = [arm for arm in arms if steady[arm]]
            if floors:
                best = min(floors, key=lambda arm: median(steady[arm]))
                against = ratio(steady["fit"], steady[best])
                judge(name, f"step: fit / {NAMES[best]}", against, bound, must, True)
        for arm in PEERS:
            times = ratio(steady[arm], steady["fit"])
            bound = program.against_keras if arm == "keras_tensorflow" else 1.0
            must = arm == "keras_tensorflow" or (arm.startswith("torch") and not program.channels)
            judge(name, f"step: {NAMES[arm]} / fit", times, bound, must)

        def whole(arm: str, cache: str, name: str = name) -> dict[int, float]:
            return by_round(samples, "whole", name, arm, cache, "seconds")

        cold = whole("fit", "cold")
        for arm in PEERS:
            times = ratio(whole(arm, "cold") or whole(arm, "none"), cold)
            keras = arm == "keras_tensorflow"
            judge(name, f"whole: {NAMES[arm]} / fit cold", times, program.whole_against_keras if keras else 1.0, keras)
    return found


def markdown(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """A table, columns lined up."""
    widths = [max(len(str(row[i])) for row in (headers, *rows)) for i in range(len(headers))]
    line = lambda row: "| " + " | ".join(str(c).ljust(w) for c, w in zip(row, widths)) + " |"  # noqa: E731
    return "\n".join([line(headers), "|" + "|".join("-" * (w + 2) for w in widths) + "|", *map(line, rows)])


def number(value: float) -> str:
    """Three digits, a dash for none."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def tables(samples: Samples) -> str:
    """The report as Markdown."""
    names = [name for name in PROGRAMS if any(s["program"] == name for s in samples)]
    steady = [
        [name, *(number(median(by_round(samples, "steady", name, arm, "none", "us"))) for arm in NAMES)]
        for name in names
    ]
    kinds = list(dict.fromkeys((s["arm"], s["cache"]) for s in samples if s["phase"] == "whole"))
    kinds.sort(key=lambda kind: (list(NAMES).index(kind[0]), kind[1]))
    whole = []
    for name in names:
        for arm, cache in kinds:
            values = {
                part: by_round(samples, "whole", name, arm, cache, part)
                for part in ("seconds", "import_s", "first_s", "rest_s", "values")
            }
            if values["seconds"]:
                result: dict[str, float] = list(values["values"].values())[-1]
                shown = ", ".join(f"{k} {v:.4g}" for k, v in result.items())
                label = NAMES[arm] + ("" if cache == "none" else f", {cache}")
                spread = f"{min(values['seconds'].values()):.2f} to {max(values['seconds'].values()):.2f}"
                parts = [f"{median(values[part]):.2f}" for part in ("seconds", "import_s", "first_s", "rest_s")]
                whole.append([name, label, parts[0], spread, *parts[1:], shown])
    judged = verdicts(samples)
    return "\n\n".join(
        [
            "Microseconds a step, medians of rounds:",
            markdown(steady, ["", *NAMES.values()]),
            "Seconds of the whole program, medians; of it imports, the first step, and the rest of the training,"
            " evaluation and prediction; what starts and ends Python is in the whole only:",
            markdown(whole, ["", "", "whole", "range", "import", "first step", "rest", "test data"]),
            "What was to be met:",
            markdown([v.row() for v in judged], ["", "", "median [interval]", "bound", "", ""]),
        ]
    )


def draw(samples: Samples, path: Path) -> None:
    """Bars: a step, and the whole program."""
    from matplotlib.figure import Figure

    names = [name for name in PROGRAMS if any(s["program"] == name for s in samples)]
    figure = Figure(figsize=(11, 7.5), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1)
    whole = [(arm, "cold" if arm in ("fit", "torch_compiled") else "none") for arm in NAMES]
    kinds = {above: [(arm, "none") for arm in NAMES], below: [*whole[:1], ("fit", "warm"), *whole[1:]]}
    colors = dict(zip(NAMES, ("#d1495b", "#b8c0c8", "#8d97a3", "#667079", "#e07b39", "#e8b04a", "#3b82d6", "#8d7ae6")))
    for axes, phase, value in ((above, "steady", "us"), (below, "whole", "seconds")):
        shown = [
            (arm, cache)
            for arm, cache in kinds[axes]
            if any(by_round(samples, phase, n, arm, cache, value) for n in names)
        ]
        for i, (arm, cache) in enumerate(shown):
            heights = [median(by_round(samples, phase, name, arm, cache, value)) for name in names]
            at = np.arange(len(names)) + (i - (len(shown) - 1) / 2) * 0.8 / len(shown)
            label = NAMES[arm] + ("" if cache == "none" else f", {cache} cache")
            alpha = 0.5 if cache == "warm" else 1.0
            bars = axes.bar(at, heights, 0.76 / len(shown), label=label, color=colors[arm], alpha=alpha)
            axes.bar_label(bars, [number(h) for h in heights], fontsize=7, rotation=90, padding=3)
        axes.set_yscale("log")
        axes.margins(y=0.18)
        axes.set_xticks(range(len(names)), names)
        axes.spines[["top", "right"]].set_visible(False)
        if shown:
            axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper left", bbox_to_anchor=(0, 1.13))
    above.set_title("A step of steady training, microseconds\n\n", loc="left", fontweight="bold")
    below.set_title("The whole program, from import to predictions, seconds\n\n", loc="left", fontweight="bold")
    figure.savefig(path)


def write(samples: Samples, versions: Mapping[str, Any], out: Path) -> bool:
    """Writes articles.json, articles.md and articles.png, and prints the table; whether every must was met."""
    text = tables(samples)
    print(f"\n{text}\n")
    content = {"schema": "jaxnn.articles/1", "versions": versions, "samples": list(samples)}
    (out / "articles.json").write_text(json.dumps(content, indent=1))
    (out / "articles.md").write_text(f"{json.dumps(versions)}\n\n{text}\n")
    draw(samples, out / "articles.png")
    print(f"-> {out}/articles.md, .png, .json")
    return all(v.met for v in verdicts(samples) if v.must)
