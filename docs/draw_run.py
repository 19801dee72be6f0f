"""Draws docs/run.png: the curves of a run of experiments.gpt_stdlib beside gzip and xz.

python docs/draw_run.py runs/gpt_stdlib-001 docs/run.png
"""

import sys
from pathlib import Path

from jaxnn import runs


def draw(folder: Path, out: Path) -> None:
    """Writes the picture of the run in `folder`."""
    from matplotlib.figure import Figure

    run = runs.RunFolder.open(folder)
    rows = run.metrics.read()
    (score,) = run.journal.read("score")[-1:]
    figure = Figure(figsize=(9, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, label in (
        ("bits_per_byte", "training windows"),
        ("val_bits_per_byte", "held-out windows"),
    ):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
    lines = (
        ("gzip", "gzip -9"),
        ("xz", "xz -9e"),
        ("xz_concatenated", "xz -9e of all files as one"),
    )
    for (name, label), style in zip(lines, ("--", "-.", ":"), strict=True):
        axes.axhline(
            score[name],
            color="0.35",
            linestyle=style,
            linewidth=1,
            label=f"{label}: {score[name]:.2f}",
        )
    axes.plot(
        score["step"],
        score["ours"],
        "o",
        color="tab:red",
        label=f"every held-out byte: {score['ours']:.2f}",
    )
    axes.set(
        xlabel="step",
        ylabel="bits per byte",
        ylim=(1.2, 4),
        title="A GPT learns Python from the standard library",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(out)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
