"""The benchmark of the benchmark: a true dial, trials that are resumed, musts that are counted."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks import bench_of_bench as bob
from jaxnn import bench


def test_the_dial_turns_one_program():
    from jaxnn.bench.compilation import build

    base, head = (build(bob.case("dial", trips, 8)) for trips in (200, 208))
    assert base.compile.program == head.compile.program
    x, w, _ = base.args
    y = np.asarray(x, np.float64)
    for _ in range(3):
        y = np.tanh(y @ np.asarray(w, np.float64))
    np.testing.assert_allclose(jax.jit(bob.dial)(x, w, 3), y, rtol=1e-5, atol=1e-6)


def test_a_second_start_does_what_is_missing(tmp_path, monkeypatch, capsys):
    short = bench.compare
    monkeypatch.setattr(bench, "compare", lambda cases, **kw: short(cases, **kw, max_seconds=0.0, block_s=1e-3))
    cfg = bob.Config(trials=1, slowdowns=(0.0, 0.04), width=8, out=tmp_path / "trials.jsonl", raw=True)
    bob.main(cfg)
    before = (tmp_path / "trials.jsonl").read_text() + '{"condition": "qui'  # killed while it wrote
    (tmp_path / "trials.jsonl").write_text(before)
    bob.main(dataclasses.replace(cfg, trials=2))
    lines = (tmp_path / "trials.jsonl").read_text()
    assert lines.startswith(before)
    trials = bob.read(tmp_path / "trials.jsonl")
    assert [(t["slowdown"], t["trial"]) for t in trials] == [(0.0, 0), (0.04, 0), (0.0, 1), (0.04, 1)]
    assert np.shape(trials[0]["wall"])[0] == 3
    assert "quiet: +4 % passed as ok at most 1 in 80: 0 of 2" in capsys.readouterr().out


def test_musts_are_counted():
    def trials(verdicts, slowdown, condition="quiet"):
        return [{"condition": condition, "slowdown": slowdown, "verdict": v, "seconds": 4.0} for v in verdicts]

    rows = trials(["ok"] * 79 + ["regress"], 0.0) + trials(["regress"] * 67 + ["inconclusive"] * 11 + ["ok"] * 2, 0.04)
    found = {what: good for what, _, good in bob.musts(rows)}
    assert list(found.values()) == [True, False, False, None, None, True]


def test_a_condition_that_does_not_exist():
    with pytest.raises(ValueError, match="no condition 'noisy'"), bob.load("noisy"):
        pass
