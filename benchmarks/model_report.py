"""What the samples of `benchmarks.models` say: ratios with intervals, shares of the peak, verdicts, and a card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.article_report import Ratio, by_round, markdown, median, number, ratio
from benchmarks.model_families import FAMILIES, LR, OURS, PEERS, TOLERANCE
from jaxnn.report import text_table

Samples = Sequence[Mapping[str, Any]]
GOAL, BF16, CACHE = 1.0, 1.3, 5.0
METHOD = """\
A step is forward, backward and AdamW's update (rate 1e-3, decay 0.01, PyTorch's defaults: `fused` and `foreach` are
off on CPU), in float32 on two threads, without dropout, over batches of noise that lie in memory. PyTorch's models
are plain `torch.nn` (`benchmarks/model_torch.py`, `model_torch_images.py`), attention
`F.scaled_dot_product_attention`; "compiled" is `torch.compile` of model and loss, the update as in eager. Ours is the
program that `train.fit` compiles: token models and the MLP in its loop over data on the device, images and the ViT a
step a dispatch, as they are streamed. Every arm is a process; they take turns in an order drawn for each round, a
stretch lasting 0.4 s or a step. A speed is the median over rounds of their time over ours, with the sign test's
interval; shares of the peak count products and convolutions by `jaxnn.cost`, for PyTorch too."""
BY_HAND = "## What bounds the rows"  # from here on the card is written by hand, and kept


def times(samples: Samples, family: str, arm: str, clock: str = "seconds") -> dict[int, float]:
    """Seconds a step by round, of the wall clock or of the CPU ("cpu_s")."""
    return by_round(samples, "steady", family, arm, "none", clock)


def speed(samples: Samples, family: str, ours: str, theirs: str, clock: str = "seconds") -> Ratio | None:
    """How many times faster ours is."""
    return ratio(times(samples, family, theirs, clock), times(samples, family, ours, clock))


def one(samples: Samples, phase: str, family: str, arm: str = "all") -> Mapping[str, Any]:
    """A sample that is there once; empty where it is not."""
    found = [s for s in samples if (s["phase"], s["program"], s["arm"]) == (phase, family, arm)]
    return found[-1] if found else {}


def peak(samples: Samples, clock: str = "seconds") -> float:
    """FLOP/s of the machine's matrix products: the highest median of the probes that followed one arm's stretches.

    After a large model's stretch the probe pays for memory that the stretch gave back, and is too low to divide by.
    """
    name = "peak_s" if clock == "seconds" else "peak_cpu_s"
    found: dict[tuple[str, str], list[float]] = {}
    for s in samples:
        if s["phase"] == "steady" and name in s:
            found.setdefault((s["program"], s["arm"]), []).append(s["peak_flops"] / s[name])
    return max((float(np.median(rates)) for rates in found.values()), default=np.nan)


def share(samples: Samples, family: str, arm: str, clock: str) -> float:
    """The share of that peak that an arm's products reach, by its median step."""
    flops = one(samples, "work", family).get("flops", np.nan)
    return flops / median(times(samples, family, arm, clock)) / peak(samples, clock)


def fastest(samples: Samples, family: str, clock: str) -> str | None:
    """The faster of PyTorch's arms."""
    there = [arm for arm in PEERS if times(samples, family, arm, clock)]
    return min(there, key=lambda arm: median(times(samples, family, arm, clock))) if there else None


def brief(samples: Samples, family: str) -> str:
    """A line about a family: milliseconds a step, wall and CPU."""
    there = [a for a in (*OURS, *PEERS) if times(samples, family, a)]
    parts = []
    for arm in there:
        wall, cpu = (1e3 * median(times(samples, family, arm, clock)) for clock in ("seconds", "cpu_s"))
        parts.append(f"{arm} {wall:.3g} (cpu {cpu:.3g})")
    return "ms a step: " + "  ".join(parts)


def rows(samples: Samples) -> list[list[str]]:
    """Cells of the table, a row a family that was measured."""
    found = []
    for family, row in FAMILIES.items():
        ours = row.ours[0]
        wrong = one(samples, "proof", family).get("wrong")
        if wrong:
            found.append([family, "refused", *[""] * (len(HEADERS) - 2)])
        elif mine := times(samples, family, ours):
            ms = [number(1e3 * median(times(samples, family, arm))) for arm in PEERS]
            speeds = [
                [str(speed(samples, family, ours, arm, clock) or "-") for clock in ("seconds", "cpu_s")]
                for arm in PEERS
            ]
            shares = [
                f"{100 * share(samples, family, arm, 'seconds'):.0f} %"
                for arm in (ours, "eager")
                if times(samples, family, arm)
            ]
            shares += ["-"] * (2 - len(shares))
            found.append([family, number(1e3 * median(mine)), *ms, *speeds[0], *speeds[1], *shares])
    return found


HEADERS = (
    "",
    "jaxnn, ms",
    "eager, ms",
    "compiled, ms",
    "speed / eager",
    "in CPU seconds",
    "speed / compiled",
    "in CPU seconds ",
    "of the peak",
    "eager's",
)


def verdicts(samples: Samples) -> list[list[str]]:
    """Everything that can be judged: what, median and interval, bound, must or goal, whether it is met."""
    found: list[list[str]] = []

    def judge(what: str, value: Ratio | None, bound: float, kind: str) -> None:
        if value is not None:
            found.append([what, str(value), f">= {bound:g}", kind, "met" if value.value >= bound else "MISSED"])

    for family, row in FAMILIES.items():
        if one(samples, "proof", family).get("wrong"):
            found.append([f"{family}: the same losses", "no", "", "must", "MISSED"])
            continue
        if row.must is not None:
            judge(f"{family} / PyTorch eager", speed(samples, family, row.ours[0], "eager"), row.must, "must")
        best = fastest(samples, family, "seconds")
        if best is not None:
            judge(f"{family} / {PEERS[best]}", speed(samples, family, row.ours[0], best), GOAL, "goal")
        if "loop_bf16" in row.ours:
            judge(f"{family}: bf16 / float32 products", speed(samples, family, "loop_bf16", "loop"), BF16, "must")
    cached = one(samples, "extra", "generation")
    if cached:
        judge(
            "generation: with / without a cache", Ratio(cached["faster"], cached["low"], cached["high"]), CACHE, "must"
        )
    return found


def curves(samples: Samples) -> str | None:
    """The two loss curves in words and numbers."""
    losses = one(samples, "extra", "curve").get("losses")
    if not losses:
        return None
    wide, narrow = (np.asarray(losses[name]) for name in ("float32", "matmul_bf16"))
    at = [n for n in (1, 10, 25, 50, 100, 150, 200, 300, 400) if n <= len(wide)]
    table = [[str(n), f"{wide[n - 1]:.4f}", f"{narrow[n - 1]:.4f}"] for n in at]
    last = max(1, len(wide) // 5)
    gap = np.max(np.abs(narrow / wide - 1))
    end = narrow[-last:].mean() / wide[-last:].mean() - 1
    return (
        f"{len(wide)} steps of GPT small on the sources of Python's standard library, from the same state, the same "
        f"windows, AdamW at {LR:g}; nats a byte. The curves are nowhere more than {100 * gap:.2f} % apart, the means "
        f"of the last {last} steps {100 * end:+.3f} %.\n\n" + markdown(table, ["step", "float32", "bf16 products"])
    )


def failures(samples: Samples) -> list[str]:
    """What could not be run or was refused, a line each."""
    found = [f"- {s['program']}, {PEERS.get(s['arm'], s['arm'])}: {s['failed']}" for s in samples if s.get("failed")]
    return found + [f"- {s['program']}: refused: {s['wrong']}" for s in samples if s.get("wrong")]


def card(samples: Samples, versions: Mapping[str, Any], command: str) -> str:
    """The card, up to what is written by hand."""
    counts = {f: len(times(samples, f, FAMILIES[f].ours[0])) for f in FAMILIES}
    rounds = sorted({n for n in counts.values() if n})
    more = [
        [f, OURS[arm], number(1e3 * median(times(samples, f, arm))), str(speed(samples, f, arm, FAMILIES[f].ours[0]))]
        for f in FAMILIES
        for arm in FAMILIES[f].ours[1:]
        if times(samples, f, arm)
    ]
    losses = [
        [f, arm, *(f"{x:.6f}" for x in one(samples, "first", f, arm).get("losses", ()))]
        for f in FAMILIES
        for arm in (FAMILIES[f].ours[0], "eager")
        if one(samples, "first", f, arm).get("losses")
    ]
    ours = {**versions.get("ours", {})}
    theirs = {**versions.get("peers", {})}
    parts = [
        "# A training step of every model family, beside PyTorch",
        f"```text\n{command}\n```",
        f"{versions['cpu']}, {versions['cpus']} CPUs. Ours: {said(ours)}. PyTorch: {said(theirs)}. Rounds: "
        f"{', '.join(map(str, rounds)) or 'none'}. The peak, of a product of two 512 x 512 float32 matrices, "
        f"was {peak(samples) / 1e9:.0f} GFLOP/s (the highest median of the probes after an arm's stretches).",
        METHOD,
        markdown(rows(samples), HEADERS),
        "Rows: " + "; ".join(f"**{f}** {FAMILIES[f].about}" for f in FAMILIES if counts[f]) + ".",
        "## What was to be met",
        markdown(verdicts(samples), ["", "median [interval]", "bound", "", ""]),
    ]
    if bad := failures(samples):
        parts += ["What could not be run or compared:", "\n".join(bad)]
    if more:
        parts += ["## Other ways to run ours", markdown(more, ["", "", "ms", "speed / the first way"])]
    if text := curves(samples):
        parts += ["## bf16 products", text]
    parts += [
        "## The same work",
        f"Both begin with the same weights and see the same batches. Losses of the first steps, which must agree to "
        f"{TOLERANCE:g} of themselves (Inception's: the first), or the row is refused:",
        markdown(losses, ["", "", "step 1", "step 2", "step 3"]),
    ]
    return "\n\n".join(parts)


def said(found: Mapping[str, Any]) -> str:
    """Versions in a row."""
    return ", ".join(f"{name} {value}" for name, value in found.items()) or "not there"


def write(samples: Samples, versions: Mapping[str, Any], out: Path, path: Path | None, command: str) -> bool:
    """Writes models.json and the card, and prints the tables; whether every must was met and every row compared."""
    judged = verdicts(samples)
    print("\n" + text_table(rows(samples), HEADERS))
    print("\n" + text_table(judged, ["", "median [interval]", "bound", "kind", "verdict"]))
    print("".join(f"\n{line}" for line in failures(samples)))
    path = out / "models_speed.md" if path is None else path
    kept = path.read_text().partition(BY_HAND)[2] if path.exists() else ""
    path.write_text(card(samples, versions, command) + "\n\n" + (BY_HAND + kept if kept else BY_HAND + "\n"))
    content = {"schema": "jaxnn.models/1", "versions": versions, "samples": list(samples)}
    (out / "models.json").write_text(json.dumps(content, indent=1))
    print(f"\n-> {path}, {out}/models.json")
    return all(row[-1] == "met" for row in judged if row[-2] == "must")
