"""The pictures that an experiment ends with: points and a line, a confusion matrix, a grid of images.

Each is a matplotlib figure in the look of `report.curve`, which follows a report's light or dark page. None is shown
or written here: give it to a report's section, call its `savefig`, or let a notebook show it as its cell's value.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxnn.report import _INK as INK, canvas, curve
from jaxnn.tree import describe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINT = "#8a94a0"  # grey that reads on white and on black
_SHOWN = 64  # images
_WIDTH, _LETTER = 8.0, 0.07  # inches: of a grid of images, and of a letter of its captions


def points(
    x: Any,
    y: Any,
    lines: Mapping[str, tuple[Any, Any]] | None = None,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
) -> "Figure":
    """Points, and lines through them.

    Args:
        x: [N] or [N, 1].
        y: Likewise.
        lines: Name -> (xs, ys), each of any shape with M elements.
        title: Above the plot.
        xlabel: With its unit.
        ylabel: With its unit.

    Raises:
        ValueError: If the points' coordinates differ in number, or a line's do.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.size != y.size or x.size != len(x):
        raise ValueError(
            f"figures.points: x {describe(x)} and y {describe(y)}. Tried: one number a point. Give [N] and [N]."
        )
    flat = {name: [np.ravel(np.asarray(side, np.float64)) for side in line] for name, line in (lines or {}).items()}
    xs, ys = ({name: line[side] for name, line in flat.items()} for side in (0, 1))
    figure = curve(xs, ys, title, xlabel, ylabel)
    figure.axes[0].scatter(x.ravel(), y.ravel(), s=9, color=_POINT, linewidths=0, zorder=1)
    return figure


def matrix(
    counts: Any, title: str = "", ylabel: str = "true class", xlabel: str = "given class", names: Sequence[str] = ()
) -> "Figure":
    """A confusion matrix, darker where a row has more of its examples; zeros are left out.

    Args:
        counts: [C, C], as `metrics.confusion` gives it: entry (i, j) counts examples of true class i given class j.
        title: Above the plot.
        ylabel: What rows are.
        xlabel: What columns are.
        names: C names of the classes; their numbers by default.

    Raises:
        ValueError: If `counts` is not square, or there is another number of names.
    """
    counts = np.asarray(counts, np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or (len(names) and len(names) != len(counts)):
        raise ValueError(
            f"figures.matrix: counts {describe(counts)} and {len(names)} names. Tried: [C, C] and C names or none. "
            "Give a square matrix, metrics.confusion(C)'s."
        )
    size, classes = min(9.0, 2.5 + 0.3 * len(counts)), range(len(counts))
    figure = curve((), {}, title, xlabel, ylabel)
    figure.set_size_inches(size, size)
    axes = figure.axes[0]
    axes.grid(visible=False)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(np.ma.masked_equal(shares, 0), cmap="Blues", vmin=0, vmax=1)
    for i, j in zip(*np.nonzero(counts)):
        color = "white" if shares[i, j] > 0.5 else "#10243a"
        axes.text(j, i, f"{counts[i, j]:.4g}", ha="center", va="center", fontsize=8, color=color)
    labels = list(names) or [str(i) for i in classes]
    axes.set_xticks(classes, labels, rotation=90 if names else 0)
    axes.set_yticks(classes, labels)
    return figure


def images(pictures: Any, captions: Sequence[str] = (), title: str = "", columns: int = 8) -> "Figure":
    """A grid of images with a caption below each; the first 64 of them.

    Args:
        pictures: [N, H, W, C] or [N, H, W], values in [0, 1] or bytes; C is 1 or 3.
        captions: N texts, or none; those wider than a column go on in a second line, and are cut there.
        title: Above the grid.
        columns: Images a row.

    Raises:
        ValueError: If the shape is another, or there is another number of captions.
    """
    pictures = np.asarray(pictures)
    pictures = pictures[..., None] if pictures.ndim == 3 else pictures
    if pictures.ndim != 4 or pictures.shape[-1] not in (1, 3) or len(captions) not in (0, len(pictures)):
        raise ValueError(
            f"figures.images: pictures {describe(pictures)} and {len(captions)} captions. Tried: [N, H, W, C] with 1 "
            "or 3 channels, and N captions or none. Write x[:32] and a caption each."
        )
    pictures = pictures[:_SHOWN]
    rows = max(1, math.ceil(len(pictures) / columns))
    letters = max(4, int(_WIDTH / columns / _LETTER))
    written = [textwrap.fill(c, letters, max_lines=2, placeholder=" …") for c in captions] or [""] * len(pictures)
    high = 1.15 + 0.15 * any("\n" in caption for caption in written)
    figure = canvas(figsize=(_WIDTH, 0.4 + high * rows), layout="constrained", facecolor="none")
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=11, fontweight="bold", parse_math=False)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, picture, caption in zip(grid, pictures, written):
        axes.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0)
        axes.set_title(caption, y=-0.04, pad=0, va="top", color=INK, fontsize=9, parse_math=False)
    return figure


def attention(
    weights: Any, keys: Sequence[str], queries: Sequence[str], title: str = "", xlabel: str = "", ylabel: str = ""
) -> "Figure":
    """An attention map: a row a query, a column a key, darker where a query reads more.

    Args:
        weights: [T, S], in [0, 1].
        keys: S texts, the columns'.
        queries: T texts, the rows'.
        title: Above the map.
        xlabel: What columns are.
        ylabel: What rows are.

    Raises:
        ValueError: If the numbers of texts are not those of the weights.
    """
    weights = np.asarray(weights, np.float64)
    if weights.shape != (len(queries), len(keys)) or not weights.size:
        raise ValueError(
            f"figures.attention: weights {describe(weights)}, {len(queries)} queries and {len(keys)} keys. Tried: "
            "[T, S], T and S at least 1. Write one text a row and a column."
        )
    figure = curve((), {}, title, xlabel, ylabel)
    rows, columns = (1.2 + 0.22 * n for n in weights.shape)
    figure.set_size_inches(min(12.0, columns + 0.8), min(12.0, rows + 0.8))
    axes = figure.axes[0]
    axes.grid(visible=False)
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(keys)), [_plain(text) for text in keys], rotation=90, fontsize=8)
    axes.set_yticks(range(len(queries)), [_plain(text) for text in queries], fontsize=8)
    return figure


def _plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")
