"""Figures and tables -> one self-contained HTML file.

A report is read long after its run, on another machine, from a mail or an archive: so the page carries everything it
shows, asks nothing of the network (a content policy forbids it), and follows the reader's light or dark theme. Figures
are inlined as SVG whose text stays text: small, sharp and searchable.
"""

import html
import io
import math
import numbers
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#010203"  # figures of `curve` draw axes and text in it; the page shows it as the theme's text colour
_SERIES = (
    "#3b82d6",
    "#e07b39",
    "#2f9e6e",
    "#c2549d",
    "#8d7ae6",
    "#a08a2c",
    "#d1495b",
    "#5c8a99",
)  # read on white and on black
_STYLES = ("-", "--", ":", "-.")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #667079; --line: #dfe3e8; --card: #f6f7f9; --page: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #98a2ad; --line: #343a42; --card: #1f2329; --page: #15181c; }
}
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 56rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1.5rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
p { margin: .75rem 0; max-width: 44rem; }
dl { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; }
dl > div { background: var(--card); border-radius: .5rem; padding: .6rem 1rem; min-width: 6rem; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.scroll { overflow: auto; max-height: 32rem; margin: 1rem 0; border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: var(--card); text-align: left; font-weight: 600; }
th, td { padding: .4rem .8rem; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
pre { margin: 0; padding: .8rem 1rem; background: var(--card); font: .8125rem/1.5 ui-monospace, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1.25rem 0; }
figure svg { display: block; width: 100%; height: auto; border-radius: .5rem; }
figure svg text { font-family: system-ui, sans-serif !important; }
figcaption { color: var(--soft); font-size: .875rem; margin-top: .4rem; }
"""


def plain(value: Any) -> Any:
    """A NumPy or jax scalar as Python's; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def format_value(value: Any, pad: bool = False) -> str:
    """A value as a reader wants it: four significant digits, thousands separated, None as a dash.

    Args:
        value: Anything; NumPy and jax scalars count as numbers.
        pad: Keep trailing zeros, so that the numbers of a column line up.
    """
    value = plain(value)
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return str(value)
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    x = float(value)
    if not math.isfinite(x) or x == 0:
        return f"{x:g}"
    if 1000 <= abs(x) < 1e15:
        return f"{x:,.0f}"
    if 1e-3 <= abs(x) < 1000:
        return f"{x:#.4g}" if pad else f"{x:.4g}"
    return f"{x:.3e}"


def _is_number(value: Any) -> bool:
    value = plain(value)
    return value is None or (isinstance(value, numbers.Real) and not isinstance(value, bool))


def _escape(text: str) -> str:
    """Text for an element or an attribute; what HTML cannot hold (a model's sample may have it) becomes U+FFFD."""
    return html.escape(_CONTROL.sub("\ufffd", text.replace("\r\n", "\n")))


def _right(rows: Sequence[Sequence[Any]], headers: Sequence[str], more: Sequence[str] = ()) -> list[bool]:
    """Which columns are set right: those that hold numbers only, and `more` by name.

    Raises:
        ValueError: If a row's length is not that of `headers`.
    """
    for number, row in enumerate(rows):
        if len(row) != len(headers):
            raise ValueError(
                f"report.table: row {number} has {len(row)} cells {list(row)!r:.80}, "
                f"the headers are {list(headers)}. Give every row one cell a header, None for an empty one."
            )
    return [h in more or (bool(rows) and all(_is_number(row[c]) for row in rows)) for c, h in enumerate(headers)]


def _table_element(
    rows: Sequence[Sequence[Any]], headers: Sequence[str], right: str, left: str, more: Sequence[str] = ()
) -> str:
    """A `table` element; `right` and `left` are the attributes of the cells of numbers and of text."""
    numeric = _right(rows, headers, more)

    def cells(tag: str, values: Sequence[Any]) -> str:
        kinds = (f"{tag} {right if r else left}".rstrip() for r in numeric)
        texts = (v if isinstance(v, Markup) else _escape(format_value(v, pad=r)) for r, v in zip(numeric, values))
        return "".join(f"<{kind}>{text}</{tag}>" for kind, text in zip(kinds, texts))

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', headers)}</tr></thead><tbody>\n{body}\n</tbody></table>"


class Markup(str):
    """A cell that is HTML already, and is not escaped: what `sparkline` gives."""

    __slots__ = ()


def html_table(
    rows: Sequence[Sequence[Any]],
    headers: Sequence[str],
    title: str = "",
    note: str = "",
    right: Sequence[str] = (),
) -> str:
    """A table as a fragment of HTML for `_repr_html_`: in a notebook's cell, in the notebook's own colours.

    Args:
        rows: Cells by row, each row as long as `headers`; columns of numbers are set right, see `format_value`.
        headers: Names of the columns.
        title: Above it.
        note: Below it; a line break in it is kept.
        right: Names of further columns that are set right.

    Raises:
        ValueError: If a row's length is not that of `headers`.
    """
    pad = "padding:.15em .7em"
    numbers_style, text_style = (f'style="text-align:{side};{pad}"' for side in ("right", "left"))
    table = _table_element(rows, headers, numbers_style, text_style, right) if rows else ""
    head = f"<div><b>{_escape(title)}</b></div>" if title else ""
    foot = f'<div style="white-space:pre-line">{_escape(note)}</div>' if note else ""
    return f'<div>{head}<div style="overflow:auto;max-height:32rem">{table}</div>{foot}</div>'


def text_table(rows: Sequence[Sequence[Any]], headers: Sequence[str], right: Sequence[str] = ()) -> str:
    """The same table as lines of text for a terminal: two spaces between columns, no line ends in a space.

    Raises:
        ValueError: If a row's length is not that of `headers`.
    """
    numeric = _right(rows, headers, right)
    cells = [list(headers), *([format_value(v, pad=r) for r, v in zip(numeric, row)] for row in rows)]
    widths = [max(len(line[c]) for line in cells) for c in range(len(headers))]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(t.rjust(w) if r else t.ljust(w) for t, w, r in zip(line, widths, numeric)).rstrip() for line in cells
    )


def sparkline(values: Any, width: int = 120, height: int = 22) -> Markup:
    """Values [N] in order as a small line in SVG, as high as a line of text; "" for fewer than two finite ones."""
    y = np.asarray(values, np.float64)
    x = np.flatnonzero(np.isfinite(y))
    if len(x) < 2:
        return Markup("")
    x = x[np.unique(np.linspace(0, len(x) - 1, min(len(x), width)).round().astype(int))]
    low, high = y[x].min(), y[x].max()
    across = 2 + (width - 4) * (x - x[0]) / (x[-1] - x[0])
    down = 2 + (height - 4) * (high - y[x]) / (high - low) if high > low else np.full(len(x), height / 2)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down))
    return Markup(
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" style="vertical-align:middle">'
        f'<polyline points="{points}" fill="none" stroke="{_SERIES[0]}" stroke-width="1.5"/></svg>'
    )


def _inline_svg(figure: "Figure", prefix: str, label: str) -> str:
    """`figure` as an SVG element for an HTML body: ids made unique to it, no namespaces, ink in the theme's colour."""
    from xml.etree import ElementTree

    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        parent.tag = parent.tag.rpartition("}")[2]
        for key, value in list(parent.attrib.items()):
            del parent.attrib[key]
            name = key.rpartition("}")[2]
            if name == "id":
                value = prefix + value
            elif name == "href" and value.startswith("#"):
                value = f"#{prefix}{value[1:]}"
            value = re.sub(r"url\(#", f"url(#{prefix}", value)
            parent.set(name, value.replace(_INK, "currentColor"))
    for name in ("width", "height"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")


class Page:
    """A page under construction: each call adds a block below the last and returns the page.

    Everything given is text, escaped where it is shown.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._blocks: list[str] = []
        self._figures = 0

    def _add(self, block: str) -> Self:
        self._blocks.append(block)
        return self

    def heading(self, text: str) -> Self:
        """Starts a section."""
        return self._add(f"<h2>{_escape(text)}</h2>")

    def text(self, *paragraphs: str) -> Self:
        """Plain paragraphs; a blank line inside one also parts it."""
        parts = [part for given in paragraphs for part in re.split(r"\n\s*\n", given.strip()) if part]
        return self._add("\n".join(f"<p>{_escape(part)}</p>" for part in parts))

    def facts(self, values: Mapping[str, Any]) -> Self:
        """The few numbers that matter, large: name -> value."""
        items = (f"<div><dt>{_escape(k)}</dt><dd>{_escape(format_value(v))}</dd></div>" for k, v in values.items())
        return self._add(f"<dl>{''.join(items)}</dl>")

    def table(self, rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> Self:
        """A table; columns of numbers are set right, see `format_value`.

        Args:
            rows: Cells by row, each row as long as `headers`.
            headers: Names of the columns.

        Raises:
            ValueError: If a row's length is not that of `headers`.
        """
        table = _table_element(rows, headers, right='class="number"', left="")
        return self._add(f'<div class="scroll">{table}</div>')

    def figure(self, figure: "Figure", caption: str = "") -> Self:
        """A matplotlib figure, inlined as SVG; see `curve` for one that follows the reader's theme."""
        self._figures += 1
        svg = _inline_svg(
            figure, f"figure{self._figures}-", _CONTROL.sub("\ufffd", caption) or f"Figure {self._figures}"
        )
        below = f"<figcaption>{_escape(caption)}</figcaption>" if caption else ""
        return self._add(f"<figure>{svg}{below}</figure>")

    def pre(self, text: str) -> Self:
        """Text as it is: white space kept, long lines wrapped."""
        return self._add(f'<div class="scroll"><pre>{_escape(text)}</pre></div>')

    def html(self) -> str:
        """The page as one HTML document."""
        title, body = _escape(self.title), "\n".join(self._blocks)
        policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
            f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n{body}\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the page to `path` in one go: a reader sees the old page or the new one, never a part.

        Returns:
            The path. Missing folders above it are made.
        """
        target = pathlib.Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.html())
            os.chmod(draft, 0o644)
            os.replace(draft, target)
        except BaseException:
            os.unlink(draft)
            raise
        return target


def canvas(**settings: Any) -> "Figure":
    """A matplotlib figure of no window (settings as `Figure`'s), which a notebook shows once, as its cell's value."""
    from matplotlib.figure import Figure

    class Canvas(Figure):
        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", facecolor="white")
            return buffer.getvalue()

    return Canvas(**settings)


def curve(
    xs: Any,
    series: Mapping[str, Any],
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    logy: bool = False,
) -> "Figure":
    """Lines over a shared axis, in colours that read on light and dark pages.

    Args:
        xs: [N] for all series, or name -> [N_name] where they differ (validation is measured less often).
        series: Name -> [N]; values that are not finite leave gaps.
        title: Above the plot.
        xlabel: With its unit.
        ylabel: With its unit.
        logy: Logarithmic vertical axis; values <= 0 leave gaps.

    Raises:
        ValueError: If a series has not the length of its xs.
    """
    figure = canvas(figsize=(8, 3.6), layout="constrained", facecolor="none")
    draw_lines(figure.add_subplot(facecolor="none"), xs, series, title, xlabel, ylabel, logy)
    return figure


def line_look(number: int) -> tuple[str, str]:
    """Colour and style of the line with this number: styles change where there are more lines than colours."""
    return _SERIES[number % len(_SERIES)], _STYLES[number // len(_SERIES) % len(_STYLES)]


def draw_lines(
    axes: "Axes",
    xs: Any,
    series: Mapping[str, Any],
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    logy: bool = False,
    ink: str = _INK,
) -> None:
    """Draws the lines of `curve` into axes of your own; arguments and errors as there, `ink` for axes and text."""
    for number, (name, given) in enumerate(series.items()):
        x = np.asarray(xs[name] if isinstance(xs, Mapping) else xs, np.float64)
        y = np.asarray(given, np.float64)
        if x.ndim != 1 or x.shape != y.shape:
            raise ValueError(
                f"report.curve: series {name!r} has shape {y.shape}, its xs {x.shape}. "
                "Give one x for every y, or xs={name: xs} where series differ."
            )
        y = np.where(np.isfinite(y) & ((y > 0) | (not logy)), y, np.nan)
        alone = len(y) == 1 or np.isnan(y).all()
        color, style = line_look(number)
        marker = "o" if alone else None
        axes.plot(x, y, label=name, color=color, linestyle=style, linewidth=1.6, marker=marker, markersize=4)
    if logy:
        axes.set_yscale("log")
    axes.set_title(title, loc="left", color=ink, fontsize=11, fontweight="bold", parse_math=False)
    axes.set_xlabel(xlabel, color=ink, parse_math=False)
    axes.set_ylabel(ylabel, color=ink, parse_math=False)
    axes.tick_params(which="both", color=ink, labelcolor=ink, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(ink)
    axes.grid(axis="y", color=ink, alpha=0.12, linewidth=0.8)
    axes.margins(x=0.01)
    if len(series) > 1:
        for text in axes.legend(axes.lines, list(series), frameon=False, labelcolor=ink, fontsize=9).get_texts():
            text.set_parse_math(False)
