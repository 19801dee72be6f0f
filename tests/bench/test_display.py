"""What a person sees: a live line on a terminal and nothing elsewhere, and a block of text in a notebook."""

import io
import math

import jax.numpy as jnp
import pytest

from jaxnn import bench
from jaxnn.bench import display
from jaxnn.bench.probes import Peak
from jaxnn.bench.statistics import Interval


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream, text):
    monkeypatch.setattr("sys.stderr", stream)
    with display.live("step [x]") as show:
        show(text)
        show("done")
    return stream.getvalue()


def test_a_live_line_on_a_terminal_that_is_taken_away(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    text = shown(monkeypatch, Terminal(), "8.91 ms, 21 blocks")
    assert "step [x]  8.91 ms, 21 blocks" in text  # not read as markup
    assert "\x1b[" in text.partition("done")[2]  # the line is cleared at the end


def test_nothing_where_no_terminal_is(monkeypatch):
    assert shown(monkeypatch, io.StringIO(), "8.91 ms") == ""


def test_colour_on_a_terminal_only(monkeypatch):
    monkeypatch.setattr("sys.stdout", Terminal())
    assert display.is_terminal()
    assert display.verdict("regress", True) == "\x1b[31mREGRESS\x1b[0m"
    assert display.verdict("regress", False) == "REGRESS"
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert not display.is_terminal()


def test_every_result_is_a_block_in_a_notebook(dial, measurement):
    sweep = bench.sweep("dial", lambda n: dial("", n), {"n": [5, 10]}, max_seconds=0.0)
    comparison = bench.compare({"base": dial("a<b", 5), "head": dial("b", 5)}, max_seconds=0.0, block_s=1e-3)
    unsure = Peak("copy", 9.25e9, Interval(-math.inf, math.inf), "B")
    assert str(unsure) == "copy               9.25 GB/s [?, ?]"
    peaks = bench.Peaks("1 x cpu", {"copy": unsure})
    explanation = bench.explain(jnp.sin, jnp.ones(3))
    for result in (measurement, comparison, sweep, peaks, explanation):
        html = result._repr_html_()
        assert html.startswith("<pre")
        assert html.endswith("</pre>")
        assert "\x1b" not in html
        assert "<lambda>" not in html


@pytest.mark.parametrize(
    ("value", "text"),
    [(8.9123e-3, "8.91 ms"), (0.99e-6, "990 ns"), (123.4e-6, "123 us"), (2.0, "2.00 s"), (12.34e-3, "12.3 ms")],
)
def test_durations_have_three_digits_and_their_unit(value, text):
    assert display.duration(value) == text


def test_what_is_unknown_is_a_question_mark():
    assert display.digits(math.inf) == "?"
    assert display.duration_interval(1e-3, Interval(-math.inf, math.inf)) == "1.00 ms [?, ?]"
    assert display.percent(1.043, Interval(1.029, 1.056)) == "+4.3% [+2.9, +5.6]"
    assert display.percent(1.0, Interval(0.0, math.inf)) == "+0.0% [?, ?]"
    assert display.amount(1.38e9, "F") == "1.38 GF"
    assert display.amount(256 << 10, "B", 1024) == "256 KiB"
    assert display.amount(math.inf, "B") == "?"
