"""The journal: every event on the disk, in order, whatever a kill left at the end."""

import time

import pytest

from jaxnn import runs


def test_events_come_back_in_order_with_their_time(tmp_path):
    journal = runs.Journal(tmp_path / "j.jsonl")
    assert journal.read() == []
    before = time.time()
    journal.append("start", 0, strategy="single")
    journal.append("save", 10, good=True)
    rows = runs.Journal(tmp_path / "j.jsonl").read()
    assert [(r["event"], r["step"]) for r in rows] == [("start", 0), ("save", 10)]
    assert rows[0]["strategy"] == "single"
    assert before - 0.01 <= rows[0]["time"] <= rows[1]["time"] <= time.time() + 0.01
    assert [r["step"] for r in journal.read("save")] == [10]


def test_a_torn_last_line_is_left_out_and_then_cut_off(tmp_path):
    path = tmp_path / "j.jsonl"
    runs.Journal(path).append("start", 0)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "sa')
    journal = runs.Journal(path)
    assert len(journal.read()) == 1
    journal.append("resume", 0)
    assert path.read_bytes().startswith(whole)
    assert [r["event"] for r in journal.read()] == ["start", "resume"]


def test_a_field_that_is_not_json_is_refused_and_nothing_is_written(tmp_path):
    journal = runs.Journal(tmp_path / "j.jsonl")
    with pytest.raises(TypeError):
        journal.append("start", 0, thing=object())
    with pytest.raises(ValueError, match="JSON compliant"):
        journal.append("start", 0, loss=float("nan"))
    assert journal.read() == []
