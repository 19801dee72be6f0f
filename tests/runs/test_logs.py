"""Metric files and TensorBoard: strict JSON, one spelling a number, and byte-identical after truncation."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import runs
from jaxnn.runs.logs import encode_row


def strict(line):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_numbers_have_one_spelling_and_read_back_exactly():
    values = [
        0.1,
        np.float64(0.1),
        np.float32(0.1),
        jnp.float32(0.1),
        jnp.bfloat16(0.1),
        np.int64(3),
        jnp.int32(3),
        1e-300,
    ]
    lines = [encode_row({"step": 1, "x": v}) for v in values]
    assert lines[0] == lines[1] == b'{"step": 1, "x": 0.1}\n'
    assert lines[2] == lines[3] == b'{"step": 1, "x": 0.10000000149011612}\n'
    assert lines[5] == lines[6] == b'{"step": 1, "x": 3}\n'
    assert [strict(line)["x"] for line in lines] == [float(v) for v in values]


def test_non_finite_numbers_are_strict_json_and_come_back(tmp_path):
    file = runs.MetricFile(tmp_path / "m.jsonl")
    file.append({"step": np.int64(2), "loss": jnp.nan, "a": -np.inf, "b": np.float32(np.inf), "ok": np.True_, "s": "é"})
    row = strict(file.path.read_text())
    assert row["loss"] is row["a"] is row["b"] is None
    assert row["nonfinite"] == {"loss": "nan", "a": "-inf", "b": "inf"}
    (back,) = file.read()
    assert math.isnan(back.pop("loss"))
    assert back == {"step": 2, "a": -math.inf, "b": math.inf, "ok": True, "s": "é"}


@pytest.mark.parametrize("value", [np.ones(2), [1.0], {"x": 1}, 1j, object()])
def test_what_is_not_a_scalar_is_refused(tmp_path, value):
    file = runs.MetricFile(tmp_path / "m.jsonl")
    with pytest.raises(TypeError, match=r"MetricFile\.append: 'loss' is .*not a scalar or text"):
        file.append({"step": 1, "loss": value})
    assert not file.path.exists()


@pytest.mark.parametrize("row", [{"loss": 1.0}, {"step": 1.5}, {"step": -1}, {"step": True}])
def test_every_row_needs_a_step(row):
    with pytest.raises(ValueError, match="integer step >= 0"):
        encode_row(row)


def test_rows_are_visible_at_once(tmp_path):
    file = runs.MetricFile(tmp_path / "m.jsonl")
    file.append({"step": 1})
    assert (tmp_path / "m.jsonl").read_bytes() == b'{"step": 1}\n'


@pytest.mark.parametrize("torn", ["", '{"step": 5, "lo', '{"step": 5, "loss": 0.25}', "\0\0\0\n"])
def test_truncate_and_append_again_gives_the_same_bytes(tmp_path, torn):
    rows = [{"step": s, "loss": 1 / s} for s in range(1, 8)]
    once, twice = runs.MetricFile(tmp_path / "once.jsonl"), runs.MetricFile(tmp_path / "twice.jsonl")
    for row in rows:
        once.append(row)
    for row in rows[:5]:
        twice.append(row)
    with open(twice.path, "a") as f:
        f.write(torn)
    assert twice.truncate(3) == 2
    for row in rows[3:]:
        twice.append(row)
    assert twice.path.read_bytes() == once.path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["once.jsonl", "twice.jsonl"]


def test_keep_goes_by_rows_and_notices_that_some_are_gone(tmp_path):
    path = tmp_path / "m.jsonl"
    file = runs.MetricFile(path)
    file.keep(0)
    for step in (1, 2, 2):
        file.append({"step": step})
    with open(path, "a") as f:
        f.write('{"step": 3')
    file.keep(2)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    with pytest.raises(ValueError, match=r"m\.jsonl has 2 rows; the checkpoint was written after 3"):
        file.keep(3)


def test_appending_after_a_kill_drops_the_torn_line(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "lo')
    file = runs.MetricFile(path)
    assert file.read() == [{"step": 1}]
    file.append({"step": 2})
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_damage_before_the_last_line_is_an_error(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*m\.jsonl is not a JSON object"):
        runs.MetricFile(path).read()
    assert runs.MetricFile(tmp_path / "none.jsonl").truncate(3) == 0


def test_tensorboard_writes_the_numbers_of_a_row(tmp_path):
    with runs.TensorBoard(tmp_path) as board:
        board.scalars(3, {"step": 3, "loss": 0.125, "name": "x", "none": None})
        board.scalars(4, {"step": 4, "loss": math.nan})
    (events,) = tmp_path.iterdir()
    content = events.read_bytes()
    assert content.count(b"loss") == 2
    assert np.float32(0.125).tobytes() in content
    assert b"name" not in content
    assert b"none" not in content
