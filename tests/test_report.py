import html.parser
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxnn import report

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(html.parser.HTMLParser):
    """Checks that elements nest, and collects tags, ids, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "xlink:href", "src"):
                self.references.append(str(value))
            self.references += [f"#{found}" for found in re.findall(r"url\(#([^)]*)\)", str(value))]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: report.Page) -> Reader:
    reader = Reader()
    reader.feed(page.html())
    reader.close()
    assert reader.open == []
    return reader


def example() -> report.Page:
    steps = np.arange(50)
    page = report.Page("A run").text("First.\n\nSecond.").facts({"bits per byte": 1.87123})
    page.heading("Curves").figure(
        report.curve(steps, {"train": np.exp(-steps / 9), "test": np.exp(-steps / 8)}, logy=True)
    )
    page.figure(
        report.curve({"a": steps, "b": steps[::7]}, {"a": steps, "b": steps[::7]}, "A title", "step", "loss"), "Two."
    )
    return page.table([["x.py", 1.5, 2], ["y.py", None, 30000]], ["file", "bits", "bytes"]).pre("if x:\n    y")


def test_page_is_one_well_formed_document_that_needs_nothing_else():
    reader = read(example())
    assert reader.tags.count("svg") == 2
    assert reader.tags.count("p") == 2
    assert len(set(reader.ids)) == len(reader.ids) > 0
    assert reader.references
    assert {ref.removeprefix("#") for ref in reader.references} <= set(reader.ids)
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link", example().html())
    assert "\n    y" in "".join(reader.text)


def test_page_is_the_same_bytes_every_time():
    assert example().html() == example().html()


@pytest.mark.parametrize("add", ["title", "heading", "text", "facts", "header", "cell", "pre", "caption", "plot"])
def test_markup_in_text_stays_text(add):
    evil = "</pre></title><script>alert('x')</script>&amp;\"'"
    page = report.Page(evil if add == "title" else "t")
    blank = report.curve([0], {evil if add == "plot" else "a": [0], "b": [1]}, *[evil] * 3 if add == "plot" else [])
    {
        "title": lambda: page,
        "heading": lambda: page.heading(evil),
        "text": lambda: page.text(evil),
        "facts": lambda: page.facts({evil: evil}),
        "header": lambda: page.table([], [evil]),
        "cell": lambda: page.table([[evil]], ["h"]),
        "pre": lambda: page.pre(evil),
        "caption": lambda: page.figure(blank, evil),
        "plot": lambda: page.figure(blank),
    }[add]()
    reader = read(page)
    assert "script" not in reader.tags
    assert evil in "".join(reader.text)


def test_bytes_that_html_cannot_hold_are_replaced(tmp_path):
    page = report.Page("t").pre("a\x00b\x1b[0m\tc\r\nd\udc80e")
    assert "a\ufffdb\ufffd[0m\tc\nd\ufffde" in page.html()
    assert page.write(tmp_path / "t.html").read_text(encoding="utf-8") == page.html()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.87123, "1.871"),
        (0.00123456, "0.001235"),
        (1e-7, "1.000e-07"),
        (12345.6, "12,346"),
        (-2500.0, "-2,500"),
        (1e20, "1.000e+20"),
        (1931904, "1,931,904"),
        (np.float32(0.5), "0.5"),
        (np.int64(1000), "1,000"),
        (jnp.asarray(2.5), "2.5"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (None, "–"),
        (True, "True"),
        ("gzip -9", "gzip -9"),
    ],
)
def test_values_are_shown_as_readers_want_them(value, text):
    assert report.format_value(value) == text


def test_columns_of_numbers_line_up_and_others_do_not():
    page = report.Page("t").table([["a", 1.9, 1], ["b", 1.71, "many"], ["c", None, 2.5]], ["name", "bits", "mixed"])
    cells = re.findall(r"<t[dh]( class=\"number\")?>([^<]*)<", page.html())
    assert [text for number, text in cells if number] == ["bits", "1.900", "1.710", "–"]
    assert [text for number, text in cells if not number] == ["name", "mixed", "a", "1", "b", "many", "c", "2.5"]


def test_a_row_of_another_length_is_named():
    with pytest.raises(
        ValueError, match=r"report\.table: row 1 has 1 cells \['b'\], the headers are \['name', 'bits'\]"
    ):
        report.Page("t").table([["a", 1], ["b"]], ["name", "bits"])


def test_curve_draws_what_it_was_given():
    figure = report.curve(
        {"train": [0, 1, 2, 3], "test": [3]},
        {"train": [4.0, np.nan, np.inf, -1.0], "test": [2.0]},
        "T",
        "step",
        "loss",
        True,
    )
    axes = figure.axes[0]
    train, test = axes.lines
    np.testing.assert_array_equal(train.get_xydata(), [[0, 4], [1, np.nan], [2, np.nan], [3, np.nan]])
    np.testing.assert_array_equal(test.get_xydata(), [[3, 2]])
    assert test.get_marker() == "o"
    assert axes.get_yscale() == "log"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train", "test"]
    assert (axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()) == ("T", "step", "loss")


def test_curve_follows_the_theme_and_reads_no_formulas():
    price = "$5 to $6_a"
    page = report.Page("t").figure(report.curve([0, 1], {price: [1, 2], "_b": [1, 2]}, price, price, price))
    assert "stroke: currentColor" in page.html()
    assert "fill: currentColor" in page.html()
    assert not re.search(r"#000000|#010203|#ffffff;", page.html().partition("<svg")[2])
    assert "".join(read(page).text).count(price) == 4
    assert "_b" in read(page).text


def test_curve_of_nothing_can_be_shown():
    read(report.Page("t").figure(report.curve([], {"a": []}, logy=True)).figure(report.curve([], {})))


def test_curve_says_which_series_has_another_length():
    with pytest.raises(ValueError, match=r"report\.curve: series 'b' has shape \(2,\), its xs \(3,\)"):
        report.curve([0, 1, 2], {"a": [1, 2, 3], "b": [1, 2]})


def test_long_series_stay_small_enough_to_mail():
    noise = np.random.default_rng(0).normal(size=100_000)
    assert len(report.Page("t").figure(report.curve(np.arange(100_000), {"noise": noise})).html()) < 500_000


def test_any_matplotlib_figure_is_inlined():
    figure = Figure()
    figure.add_subplot().imshow(np.eye(3))
    reader = read(report.Page("t").figure(figure, "An image."))
    assert any(ref.startswith("data:image/png;base64,") for ref in reader.references)
    assert "An image." in reader.text


def test_write_makes_folders_and_never_shows_a_part(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "report.html"
    assert report.Page("old").write(path) == path
    old = path.read_text(encoding="utf-8")

    def fail(self: report.Page) -> str:
        raise RuntimeError("cut short")

    monkeypatch.setattr(report.Page, "html", fail)
    with pytest.raises(RuntimeError, match="cut short"):
        report.Page("new").write(path)
    assert path.read_text(encoding="utf-8") == old
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_matplotlib_loads_only_when_a_figure_is_drawn():
    code = "import sys; from jaxnn import report; report.Page('t').text('x').html(); print('matplotlib' in sys.modules)"
    root = pathlib.Path(__file__).parent.parent
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


def test_no_state_of_pyplot_is_touched():
    code = (
        "from jaxnn import report; import matplotlib; before = dict(matplotlib.rcParams);"
        "report.Page('t').figure(report.curve([1], {'a': [1]})).html();"
        "import matplotlib.pyplot; print(matplotlib.pyplot.get_fignums(), before == dict(matplotlib.rcParams))"
    )
    root = pathlib.Path(__file__).parent.parent
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout == "[] True\n"


ROWS, HEADERS = [["a", 1, 0.5], ["bb", 20, None]], ["name", "count", "share"]


def test_a_table_for_a_notebook_is_a_fragment_with_escaped_cells():
    text = report.html_table([*ROWS, ["<i>", 3, 0.25]], HEADERS, "A & B", "one\ntwo")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    shown = " ".join(" ".join(reader.text).split())
    assert shown == "A & B name count share a 1 0.5000 bb 20 – <i> 3 0.2500 one two"
    assert "<style" not in text
    assert "class=" not in text  # a notebook has its own classes
    assert text.count("text-align:right") == 8  # two columns of numbers, four rows
    assert report.html_table([], HEADERS, note="nothing") == (
        '<div><div style="overflow:auto;max-height:32rem"></div><div style="white-space:pre-line">nothing</div></div>'
    )


def test_a_table_for_a_terminal_lines_up():
    assert report.text_table(ROWS, HEADERS).splitlines() == [
        "name  count   share",
        "----  -----  ------",
        "a         1  0.5000",
        "bb       20       –",
    ]
    assert report.text_table([["x", "1 M"], ["y", "20 k"]], ["n", "FLOPs"], ["FLOPs"]).splitlines()[2:] == [
        "x    1 M",
        "y   20 k",
    ]


def test_tables_refuse_rows_of_another_length():
    for make in (report.html_table, report.text_table):
        with pytest.raises(ValueError, match=r"report\.table: row 1 has 1 cells"):
            make([[1, 2], [3]], ["a", "b"])


def test_a_sparkline_goes_from_the_first_value_to_the_last():
    line = report.sparkline([3.0, np.nan, 1.0, 2.0])
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]*)"', line)[1].split()]
    assert [x for x, _ in points] == [2.0, pytest.approx(79.3, abs=0.1), 118.0]
    assert [y for _, y in points] == [2.0, 20.0, 11.0]  # the highest value above
    assert report.sparkline([1.0]) == report.sparkline([np.nan] * 5) == report.sparkline([]) == ""
    assert len(report.sparkline(np.arange(100_000))) < 3000
    assert "nan" not in report.sparkline([2.0, 2.0])
    assert "&lt;svg" not in report.html_table([[line]], ["curve"])  # it is markup already


def test_lines_beyond_the_colours_differ_by_style():
    axes = report.curve([0, 1], {str(i): [i, i] for i in range(20)}).axes[0]
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 20


def test_lines_are_drawn_into_axes_of_ones_own():
    axes = Figure().add_subplot()
    report.draw_lines(axes, [0, 1], {"a": [1, 2]}, "A title", "step", logy=True, ink="#123456")
    assert (axes.get_title(loc="left"), axes.get_xlabel(), axes.get_yscale()) == ("A title", "step", "log")
    assert axes.xaxis.label.get_color() == "#123456"
