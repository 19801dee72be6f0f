"""The report of a run: what its folder holds is on the page, and nothing missing or odd in it breaks the page."""

import html
import json
import math
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxnn.runs import RunFolder
from jaxnn.runs.summary import Section, write_summary

PARAMS = {
    "dense": {"kernel": jax.ShapeDtypeStruct((3, 5), np.float32), "bias": jax.ShapeDtypeStruct((5,), np.float32)},
    "scale": jax.ShapeDtypeStruct((), np.float16),
}


def make(tmp_path, **fit):
    facts = {"steps": 40, "epochs": None, "batch_size": 4, "examples": 10, "devices": 2} | fit
    environment = {
        "versions": {"jax": "9.9"},
        "devices": {"kinds": ["abacus"], "number": 8},
        "command": ["python", "-m", "x"],
    }
    return RunFolder.create(tmp_path / "mine", {"fit": facts, "config": {"lr": 0.5}}, environment=environment)


def fill(folder, n=10):
    folder.journal.append("start", 0)
    for step in range(4, 4 * n + 1, 4):
        folder.metrics.append(
            {"step": step, "epoch": step / 3, "loss": 1 / step, "learning_rate": 0.1 / step, "eps": 0.5}
        )
        folder.timing.append({"step": step, "examples_per_s": 100.0 + step, "wait_share": 0.25, "save_share": 0.0})
        if step % 8 == 0:
            folder.metrics.append({"step": step, "epoch": step / 3, "val_loss": 2 / step})
            folder.journal.append("save", step)
        if step % 20 == 0:
            folder.journal.append("sample", step, text=f"def f_{step}(x):\n    return x < {step}")
    folder.journal.append("end", 4 * n, stopped=None)


def page(folder, params=PARAMS, **keywords):
    write_summary(folder, params, **keywords)
    return folder.report.read_text()


def words(text):
    """What a reader sees, tags dropped and spaces made one."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", text, flags=re.S)))


def figures(text):
    return re.findall(r'aria-label="([^"]*)"', text), re.findall(r"<svg", text)


def rows_of(text, heading):
    """The table under a heading, as lists of cells."""
    section = text.split(f"<h2>{heading}</h2>")[1].split("<h2>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section, flags=re.S)
    return [[html.unescape(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, flags=re.S)] for row in rows]


def test_a_finished_run_tells_everything_its_folder_holds(tmp_path):
    folder = make(tmp_path)
    fill(folder)
    text = page(folder)
    seen = words(text)
    for expected in ("Run mine", "outcome finished", "steps 40", "device 2 x abacus", "parameters 21", "wall time"):
        assert expected in seen
    assert "loss 0.025" in seen
    assert "validation loss 0.05" in seen
    # loss with its validation, learning rate, speed, shares; "eps" never moves and is in the table only
    assert len(figures(text)[1]) == 4
    assert "train" in seen
    assert "validation" in seen
    values = {row[0]: row[1:] for row in rows_of(text, "Values")}
    assert values["loss"] == ["0.02500", "0.02500", "40", "0.2500", "4"]
    assert values["eps"][0] == "0.5000"
    assert rows_of(text, "Parameters") == [
        ["path", "shape", "dtype", "count", "share"],
        ["dense/bias", "5", "float32", "5", "23.8 %"],
        ["dense/kernel", "3 x 5", "float32", "15", "71.4 %"],
        ["scale", "scalar", "float16", "1", "4.8 %"],
        ["total of 3 leaves", "", "8.2e-05 MB", "21", "100 %"],
    ]
    assert ["config.lr", "0.5"] in rows_of(text, "Config")
    assert ["command", "python -m x"] in rows_of(text, "Environment")
    assert text.index("def f_20") < text.index("def f_40")
    assert "\n    return x &lt; 40" in text
    events = [row[2] for row in rows_of(text, "Journal")]
    assert events == ["event", "start", "save, 2 times", "sample", "save, 3 times", "sample", "end"]
    assert not re.search(r"https?:|<script|<link|src=", text)
    assert not list(folder.path.glob(".report*"))


def test_the_median_speed_is_of_examples_or_of_tokens(tmp_path):
    folder = make(tmp_path)
    fill(folder)
    assert "examples/s (median) 122" in words(page(folder))
    for step in (44, 48, 52):
        folder.timing.append({"step": step, "examples_per_s": 1.0, "tokens_per_s": float(step)})
    assert "tokens/s (median) 48" in words(page(folder))


@pytest.mark.parametrize(
    ("events", "outcome", "sentence"),
    [
        (
            [("end", 12, {"stopped": "loss is not finite at step 9"})],
            "stopped",
            "Stopped at step 12: loss is not finite at step 9.",
        ),
        ([("interrupted", 12, {"signal": "SIGINT"}), ("save", 12, {})], "interrupted", "by SIGINT; it can be resumed"),
        ([("save", 12, {})], "unfinished", "was killed"),
        ([("interrupted", 12, {"signal": "SIGINT"}), ("resume", 12, {"changed": []})], "unfinished", "is going on"),
        ([("interrupted", 8, {"signal": "SIGINT"}), ("resume", 8, {}), ("end", 40, {"stopped": None})], "finished", ""),
    ],
)
def test_the_outcome_is_what_the_journal_says_last(tmp_path, events, outcome, sentence):
    folder = make(tmp_path)
    folder.journal.append("start", 0)
    for name, step, fields in events:
        folder.journal.append(name, step, **fields)
    seen = words(page(folder))
    assert f"outcome {outcome} " in seen
    assert sentence in seen
    if outcome != "finished":
        assert "steps 12 of 40" in seen


def test_wall_time_leaves_out_the_time_between_processes(tmp_path):
    folder = make(tmp_path)
    times = [("start", 0, 1000.0), ("save", 8, 1030.0), ("resume", 8, 9000.0), ("end", 40, 9065.5)]
    lines = [json.dumps({"event": e, "step": s, "time": t}) for e, s, t in times]
    folder.journal.path.write_text("\n".join(lines) + "\n")
    assert "wall time 1 min 36 s" in words(page(folder))


def test_what_is_not_finite_and_what_is_constant_and_a_run_of_one_step(tmp_path):
    folder = make(tmp_path, steps=None, epochs=2)
    folder.journal.append("start", 0)
    folder.metrics.append(
        {"step": 1, "epoch": 1 / 3, "loss": math.nan, "grad_norm": math.inf, "acc": -1.0, "partial": True}
    )
    folder.timing.append({"step": 1, "examples_per_s": 3.0, "wait_share": math.nan})
    seen = words(page(folder))
    assert "steps 1 of 6" in seen
    assert "loss nan" in seen
    assert "Gaps are values that are not finite." in seen
    for step in range(2, 7):
        folder.metrics.append(
            {"step": step, "epoch": 1.0, "loss": [1e9, -math.inf, 1e-9, math.nan, 3.0][step - 2], "acc": -1.0}
        )
    values = {row[0]: row[1:] for row in rows_of(page(folder), "Values")}
    assert values["loss"][1:] == ["1.000e-09", "4", "1,000,000,000", "2"]
    assert values["grad_norm"] == ["inf", "–", "–", "–", "–"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [(f"{n}.jsonl", d) for n in ("metrics", "timing", "journal") for d in ("missing", "garbage", "torn")]
    + [("environment.json", "missing"), ("environment.json", "empty"), ("metrics.jsonl", "empty")],
)
def test_a_missing_or_damaged_file_costs_its_own_section_only(tmp_path, name, damage):
    folder = make(tmp_path)
    fill(folder, 3)
    path = folder.path / name
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "garbage": b"\x00garbage\n{}\n", "torn": whole[:-7]}[damage])
    seen = words(page(folder))
    assert "dense/kernel" in seen
    assert "config.lr" in seen
    if damage == "garbage" or name == "environment.json":
        assert "could not be read: " in seen
    if name != "metrics.jsonl":
        assert "validation loss 0.25" in seen
    if name != "journal.jsonl":
        assert "0 start" in seen


def test_long_runs_are_thinned_and_bounded(tmp_path):
    folder = make(tmp_path)
    folder.journal.append("start", 0)
    lines = [json.dumps({"step": s, "loss": 1.0 + (s % 2), **{f"m{i}": s for i in range(13)}}) for s in range(1, 5001)]
    folder.metrics.path.write_text("\n".join(lines) + "\n")
    folder.journal.path.write_text(
        "".join(
            json.dumps({"event": "sample", "step": s, "text": f"text {s}.", "time": 1.0}) + "\n" for s in range(1, 31)
        )
    )
    text = page(folder)
    assert len(figures(text)[1]) == 12
    assert "2 further names are in the table only" in text
    assert len(text) < 1_500_000
    assert text.count("<pre>") == 10
    assert "text 1." in text
    assert "text 30." in text
    assert "10 of 30" in text


def test_a_step_that_was_sampled_again_after_a_resume_shows_its_last_text(tmp_path):
    folder = make(tmp_path)
    for event, step, text in (
        ("sample", 8, "first"),
        ("sample", 12, "lost"),
        ("resume", 8, None),
        ("sample", 12, "second"),
    ):
        folder.journal.append(event, step, text=text)
    samples = page(folder).split("<h2>Samples</h2>")[1].split("<h2>")[0]
    assert re.findall(r"<pre>(.*?)</pre>", samples) == ["first", "second"]


def test_sections_of_the_experiment_and_a_second_writing(tmp_path):
    folder = make(tmp_path)
    fill(folder, 2)
    plain = page(folder)
    assert page(folder) == plain
    sections = [
        Section("Against <gzip>", [("gzip -9", 2.05)], ("what", "bits a byte"), "All files.\n\nEvery byte."),
        Section("Words", text="Only."),
    ]
    text = page(folder, sections=sections)
    assert rows_of(text, "Against &lt;gzip&gt;") == [["what", "bits a byte"], ["gzip -9", "2.050"]]
    assert "<p>Every byte.</p>" in text
    assert "<p>Only.</p>" in text


def test_importing_it_loads_no_matplotlib_and_values_are_not_touched(tmp_path):
    code = "import sys, jaxnn.runs.summary; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    folder = make(tmp_path)
    donated = jax.numpy.ones(3)
    donated.delete()
    assert "total of 1 leaves" in page(folder, {"w": donated})
