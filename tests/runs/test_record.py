"""What can be read of a run's folder is read, what cannot is told, and nothing is touched."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxnn import runs
from jaxnn.runs.record import duration, flat, read_record, stored_params


@pytest.fixture
def folder(tmp_path):
    run = runs.RunFolder.create(tmp_path / "r", {"fit": {"steps": 8}, "config": {"lr": 0.5}}, environment={"x": 1})
    run.journal.append("start", 0)
    for step in range(1, 9):
        run.metrics.append({"step": step, "loss": 1 / step})
    run.journal.append("end", 8, stopped=None)
    return run.path


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_whole_folder_has_no_troubles(folder):
    record = read_record(folder)
    assert record.troubles == []
    assert [row["loss"] for row in record.rows] == [1 / step for step in range(1, 9)]
    assert (record.outcome, record.step, record.planned, record.steps_text) == (("finished", ""), 8, 8, 8)
    assert record.config["config"] == {"lr": 0.5}


@pytest.mark.parametrize(
    ("damage", "told", "left"),
    [
        (lambda b: b[:-5], "The last line of metrics.jsonl is cut short and left out", 7),
        (lambda b: b.replace(b'{"step": 3', b'{"st\x00ep": 3'), "metrics.jsonl: line 3 of 8 could not be read", 7),
        (lambda b: b"\xff\xfe\n" + b"[]\n" + b, "metrics.jsonl: 2 lines (1, 2) of 10 could not be read", 8),
        (lambda b: b"x\n" * 9 + b, "metrics.jsonl: 9 lines (1, 2, 3, 4, 5, ...) of 17 could not be read", 8),
        (lambda b: b'{"step": "one", "loss": 1}\n' + b, "line 1 of 9 could not be read", 8),
        (lambda b: b'{"step": 1, "nonfinite": 3, "loss": null}\n' + b, "line 1 of 9 could not be read", 8),
        (lambda b: b'{"step": 1, "nonfinite": {"loss": "x"}, "loss": null}\n' + b, "line 1 of 9 could not", 8),
    ],
)
def test_torn_and_damaged_lines_cost_themselves_only(folder, damage, told, left):
    path = folder / "metrics.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    before = snapshot(folder)
    record = read_record(folder)
    assert len(record.rows) == left
    assert record.troubles[0].startswith(told) or told in record.troubles[0]
    assert len(record.troubles) == 1
    assert snapshot(folder) == before


@pytest.mark.parametrize("name", ["config.json", "environment.json"])
@pytest.mark.parametrize(("content", "why"), [(None, "it is missing"), ("{", "Expecting"), ("[1]", "no JSON object")])
def test_a_config_or_environment_that_is_not_there_is_told(folder, name, content, why):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    record = read_record(folder)
    (trouble,) = record.troubles
    assert trouble.startswith(f"{name} could not be read: ")
    assert why in trouble
    assert len(record.rows) == 8
    assert record.planned == (None if name == "config.json" else 8)


def test_what_is_no_run_is_refused_in_a_line(folder, tmp_path):
    for path, what in (
        (tmp_path / "none", r"none does not exist\. Give a run's folder"),
        (folder / "config.json", "is a file; give the folder that it is in"),
        (tmp_path, r"holds no run .*It holds runs: r; give those"),
    ):
        with pytest.raises(ValueError, match=f"runs\\.read_record: .*{what}") as error:
            read_record(path)
        assert "\n" not in str(error.value)


def test_parameters_are_those_of_the_newest_checkpoint_that_can_be_read(tmp_path):
    run = runs.RunFolder.create(tmp_path / "r", {}, environment={})
    assert stored_params(run.path) == {}
    with run.checkpoints() as saved:
        for step in (1, 2):
            saved.save(step, {"params": {"w": np.zeros((step, 2), np.float32)}, "step": np.int32(step)}, {})
    assert stored_params(run.path) == {"w": jax.ShapeDtypeStruct((2, 2), np.float32)}
    (run.path / "checkpoints" / "00000002" / "manifest" / "metadata").write_text("{")
    assert stored_params(run.path) == {"w": jax.ShapeDtypeStruct((1, 2), np.float32)}


def test_names_of_nested_values():
    assert dict(flat({"a": {"b": 1, "c": {}}, "command": ["x", "y"], "t": "text"})) == {
        "a.b": "1",
        "a.c": "{}",
        "command": "x y",
        "t": "text",
    }


def test_spans_of_time():
    assert [duration(s) for s in (None, 3.21, 61, 3599, 7300)] == [
        None,
        "3.2 s",
        "1 min 01 s",
        "59 min 59 s",
        "2 h 02 min",
    ]


def test_a_record_of_strange_config_still_tells_its_outcome(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"fit": 3}))
    record = read_record(Path(tmp_path))
    assert (record.planned, record.outcome[0], record.device, record.wall_s) == (None, "unfinished", None, None)
