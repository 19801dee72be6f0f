"""Runs side by side: every difference and every value is on the page, and a gap in one run is a note."""

import html
import math
import re
from pathlib import Path

import pytest

from jaxnn import cli, runs
from jaxnn.runs.comparison import comparison_page, distinct


def make(path, lr=0.1, rate=1.0, losses=(3.0, 2.0, 1.0, 2.5), versions="9.9", fit=None, **extra):
    environment = {"versions": {"jax": versions}, "devices": {"kinds": ["abacus"], "number": 2}}
    config = {"fit": {"steps": 4, "batch_size": 8} | (fit or {}), "config": {"lr": lr, "model": {"width": 64}} | extra}
    run = runs.RunFolder.create(path, config, environment=environment)
    run.journal.append("start", 0)
    for step, loss in enumerate(losses, 1):
        run.metrics.append({"step": step, "epoch": step / 2, "loss": loss, "accuracy": step / 10, "odd": lr * step})
        run.timing.append({"step": step, "steps_per_s": rate, "examples_per_s": 8 * rate, "wait_share": 0.25})
    run.journal.append("end", len(losses), stopped=None)
    return run.path


@pytest.fixture
def two(tmp_path):
    return [
        make(tmp_path / "low"),
        make(tmp_path / "high", lr=0.5, rate=4.0, versions="9.8", losses=(4.0, 0.5), extra=1),
    ]


def page(paths, **keywords):
    return comparison_page([runs.read_record(Path(path)) for path in paths], **keywords).html()


def words(text):
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", text, flags=re.S)))


def tables(text):
    """The tables of a page, as lists of rows of cells."""
    found = re.findall(r"<table>(.*?)</table>", text, flags=re.S)
    rows = [re.findall(r"<tr>(.*?)</tr>", table, flags=re.S) for table in found]
    cell = r"<t[dh][^>]*>(.*?)</t[dh]>"
    return [[[html.unescape(c) for c in re.findall(cell, row, flags=re.S)] for row in table] for table in rows]


def test_values_curves_and_differences(two):
    text = page(two)
    overview, values, config, environment = tables(text)
    assert overview[1][:4] == ["low", "finished", "4", overview[1][3]]
    assert overview[2][2] == "2 of 4"
    assert overview[1][4:7] == ["2 x abacus", "8 examples/s", "25.0 %"]
    assert overview[2][5] == "32 examples/s"
    assert values[1:3] == [
        ["loss", "low", "2.500", "1.000", "3", ""],
        ["loss", "high", "0.5000", "0.5000", "2", "best"],
    ]
    assert values[3:5] == [
        ["accuracy", "low", "0.4000", "0.4000", "4", "best"],
        ["accuracy", "high", "0.2000", "0.2000", "2", ""],
    ]
    assert values[5][3:5] == ["–", "–"]  # nobody knows which way "odd" is better
    assert config == [["field", "low", "high"], ["config.lr", "0.1", "0.5"], ["config.extra", "–", "1"]]
    assert environment == [["field", "low", "high"], ["versions.jax", "9.9", "9.8"]]
    assert text.count("<svg") == 4  # loss, accuracy, odd, speed
    assert re.findall(r'aria-label="([^"]*)"', text)
    seen = words(text)
    assert "The other 3 fields are the same." in seen
    assert not re.search(r"https?:|<script|<link|src=", text)


def test_a_value_that_one_run_lacks_is_noted_and_nan_leaves_a_gap(tmp_path, two):
    extra = runs.RunFolder.open(two[0])
    extra.metrics.append({"step": 5, "val_loss": math.nan})
    extra.metrics.append({"step": 6, "val_loss": 7.0})
    seen = words(page(two))
    assert "Not reported by high. Gaps are values that are not finite." in seen
    assert "validation loss" in seen


def test_a_run_has_one_colour_in_every_figure(tmp_path, two, monkeypatch):
    extra = runs.RunFolder.open(two[1])
    extra.metrics.append({"step": 3, "mine": 1.0})
    extra.metrics.append({"step": 4, "mine": 2.0})
    drawn = []
    monkeypatch.setattr("jaxnn.report.Page.figure", lambda self, figure, caption="": drawn.append(figure) or self)
    page(two)
    looks = {f.axes[0].get_title(loc="left"): [line.get_color() for line in f.axes[0].lines] for f in drawn}
    assert list(looks) == ["loss", "accuracy", "odd", "mine", "examples per second"]
    assert len(set(looks["loss"])) == 2
    assert looks["loss"] == looks["accuracy"] == looks["examples per second"]
    assert looks["mine"] == looks["loss"][1:]  # only the second run has it
    assert [[t.get_text() for t in f.legends[0].get_texts()] for f in drawn[2:4]] == [["low", "high"], ["high"]]


def test_a_mode_that_a_run_was_told_counts(tmp_path):
    paths = [make(tmp_path / n, lr=lr, fit={"best": "odd", "best_mode": "max"}) for n, lr in (("a", 1.0), ("b", 2.0))]
    rows = [row for row in tables(page(paths))[1] if row[0] == "odd"]
    assert rows == [["odd", "a", "4.000", "4.000", "4", ""], ["odd", "b", "8.000", "8.000", "4", "best"]]


def test_time_and_epoch_as_the_horizontal_axis(two):
    at = {x: words(page(two, x=x)) for x in ("epoch", "time")}
    assert "epoch" in at["epoch"]
    assert "seconds of training" in at["time"]
    # the slow run took 4 s for its 4 steps, the fast one half a second for 2: the axis ends with the slow one
    assert re.search(r"\b4\b", at["time"])
    with pytest.raises(ValueError, match=r"x='minutes'\. Write one of step, epoch, time"):
        page(two, x="minutes")
    with pytest.raises(ValueError, match="no runs"):
        comparison_page([])


def test_half_written_runs_are_shown_with_a_note(tmp_path, two):
    (two[0] / "config.json").unlink()
    metrics = two[0] / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-3])
    empty = runs.RunFolder.create(tmp_path / "empty", {}, environment={}).path
    text = page([*two, empty])
    seen = words(text)
    assert "low: config.json could not be read: it is missing." in seen
    assert "low: The last line of metrics.jsonl is cut short" in seen
    assert "empty: No values were reported." in seen
    assert "Not known of low, empty." in seen  # the config of one, the other's holds nothing
    assert ["loss", "low", "1.000", "1.000", "3", ""] in tables(text)[1]


def test_names_that_tell_runs_apart():
    paths = [Path(p) for p in ("/a/x/run-1", "/a/y/run-1", "/a/y/run-2")]
    assert distinct(paths) == ["x/run-1", "y/run-1", "run-2"]
    assert distinct([Path("/a"), Path("/a")]) == ["//a", "//a"]


def test_more_runs_than_colours_differ_by_style(tmp_path):
    text = page([make(tmp_path / f"r{i:02}", lr=float(i)) for i in range(10)])
    assert "stroke-dasharray" in text
    assert words(text).count("r09") > 4


def test_the_command_writes_one_page_and_names_what_is_no_run(tmp_path, two, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "low", "high", "./low", "--title", "Rates"]) == 0
    assert capsys.readouterr().out == "2 runs in runs.html\n"
    assert "<title>Rates</title>" in (tmp_path / "runs.html").read_text()
    before = sorted(p.name for p in two[0].iterdir())
    assert cli.main(["report", "low", "nowhere", "-o", "deep/page.html"]) == 1
    out, err = capsys.readouterr()
    assert out == "1 run in deep/page.html\n"
    assert err.startswith("jaxnn report: runs.read_record: nowhere does not exist.")
    assert err.count("\n") == 1
    assert sorted(p.name for p in two[0].iterdir()) == before
    assert cli.main(["report", "nowhere"]) == 1
    assert cli.main(["report", "low", "-o", "runs.html/x.html"]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_the_command_of_one_run_is_its_report(tmp_path, two, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "low"]) == 0
    text = (tmp_path / "runs.html").read_text()
    assert "Run low" in text
    for heading in ("Curves", "Values", "Speed", "Config", "Environment", "Journal"):
        assert f"<h2>{heading}</h2>" in text
    assert "<h2>Parameters</h2>" not in text  # nothing was saved
    assert cli.main(["report", "low", "--x", "time"]) == 0
    assert "seconds of training" in (tmp_path / "runs.html").read_text()
