"""The benchmark of the model families: what it says of samples, what it refuses, and that our arms train alike."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import model_jax, model_report, models
from benchmarks.articles import Store
from benchmarks.model_families import FAMILIES, TOLERANCE, Family, arms, examples

TINY = Family(
    about="MLP 6-5-3", sizes={"features": (5, 3)}, batch=4, x=(6,), y=(), classes=3, batches=3, ours=("loop", "step")
)


def steady(family, arm, seconds, **values):
    return [
        {**models.sample("steady", family, arm, n), "seconds": s, "cpu_s": 2 * s, **values}
        for n, s in enumerate(seconds)
    ]


def test_a_speed_is_of_the_same_rounds_and_judged_by_the_wall_clock():
    samples = steady("lstm", "loop", [1.0, 10.0, 1.0], peak_s=0.5, peak_cpu_s=1.0, peak_flops=4.0)
    samples += steady("lstm", "eager", [0.7, 7.0, 0.7]) + steady("lstm", "compiled", [0.6, 6.0, 0.6])
    samples.append(models.sample("work", "lstm", "all", 0) | {"flops": 4.0})
    found = {row[0]: row[2:] for row in model_report.verdicts(samples)}
    assert found["lstm / PyTorch eager"] == [">= 0.8", "must", "MISSED"]
    assert found["lstm / PyTorch, compiled"] == [">= 1", "goal", "MISSED"]  # the faster of the two
    assert model_report.peak(samples) == 8.0
    assert model_report.share(samples, "lstm", "loop", "seconds") == pytest.approx(0.5)
    assert model_report.share(samples, "lstm", "eager", "seconds") == pytest.approx(0.5 / 0.7)
    (row,) = model_report.rows(samples)
    assert row[:4] == ["lstm", "1,000", "700", "600"]


def test_what_differs_is_refused_and_what_failed_is_told(tmp_path):
    same = {"loop": [1.0, 0.9, 0.8], "step": [1.0, 0.9, 0.8], "eager": [1.0, 0.9, 0.8 * (1 + 0.9 * TOLERANCE)]}
    assert models.differ(same, 3) is None
    for wrong in ([1.0, 0.9, 0.8 * (1 + 1.1 * TOLERANCE)], [1.0, 0.9, float("nan")]):
        assert "eager" in (models.differ(same | {"eager": wrong}, 3) or "")
    late = same | {"eager": [1.0, 0.9, 0.7]}
    assert models.differ(late, 2) is None
    assert models.differ(late, 3)
    refused = models.sample("proof", "lstm", "all", 0) | {"wrong": "the first losses differ"}
    failed = models.sample("first", "mlp", "compiled", 0) | {"failed": "no compiler"}
    versions = {"cpu": "a CPU", "cpus": 2}
    assert not model_report.write([refused, failed], versions, tmp_path, None, "the command")
    text = (tmp_path / "models_speed.md").read_text()
    for words in ("refused", "no compiler", "lstm: the same losses", "the command"):
        assert words in text
    assert json.loads((tmp_path / "models.json").read_text())["samples"] == [refused, failed]


def test_what_was_written_by_hand_stays(tmp_path):
    card = tmp_path / "card.md"
    card.write_text(f"old figures\n\n{model_report.BY_HAND}\n\nThe softmax.\n")
    assert model_report.write([], {"cpu": "a CPU", "cpus": 2}, tmp_path, card, "the command")
    text = card.read_text()
    assert "old figures" not in text
    assert text.endswith(f"{model_report.BY_HAND}\n\nThe softmax.\n")


def test_our_arms_begin_alike_and_go_on_where_they_were(tmp_path, monkeypatch):
    monkeypatch.setitem(model_jax.__dict__, "module", lambda name, family: model_jax.models.MLP(**family.sizes))
    path = tmp_path / "tiny.npz"
    # Forward and for the kernels both layers, for the input the head alone.
    assert model_jax.write("mlp", TINY, path) == 4 * 2 * (2 * 6 * 5 + 3 * 5 * 3)
    with np.load(path) as file:
        data = dict(file)
    assert data["w:hidden_0.weight"].shape == (5, 6)
    assert data["w:head.bias"].any()  # what begins at 0 would not show that it was forgotten
    runs = [model_jax.make(arm, "mlp", TINY, data) for arm in TINY.ours]
    one = [runs[0](1) for _ in range(5)]
    assert sum(one) == pytest.approx(runs[1](5), rel=1e-5)
    assert one[3] < one[0]  # the first batch again, learned from


def test_every_family_has_data_of_its_shapes():
    for name, family in FAMILIES.items():
        small = dataclasses.replace(family, batch=1, batches=2)
        data = examples(small)
        assert data["x"].shape == (2, *family.x), name
        assert data["y"].max() < family.classes
        assert family.vocab == 0 or 0 < data["x"].min() <= data["x"].max() < family.vocab
        assert arms(family)[0] in ("loop", "step")


def test_a_sample_that_is_there_once_is_the_newest(tmp_path):
    store = Store(tmp_path / "samples.jsonl")
    which = models.sample("extra", "curve", "all", 0)
    models.once(store, which, lambda: {"losses": {}})
    models.once(store, which, lambda: pytest.fail("measured twice"))
    models.note(store, which, losses={"float32": [1.0]})
    assert model_report.one(store.samples, "extra", "curve")["losses"] == {"float32": [1.0]}
