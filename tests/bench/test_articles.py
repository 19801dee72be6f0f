"""The benchmark of the articles' programs: what it says of samples, how it goes on, and that our arms do train."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import article_jax, article_report, article_worker, articles
from benchmarks.article_programs import CACHE, PROGRAMS, Program, write_data


def sample(phase, program, arm, number, cache="none", **values):
    return {"phase": phase, "program": program, "arm": arm, "cache": cache, "round": number} | values


def steady(program, **arms):
    return [sample("steady", program, arm, n, us=us) for arm, row in arms.items() for n, us in enumerate(row)]


def test_ratios_are_of_the_same_round():
    ratio = article_report.ratio({0: 2.0, 1: 30.0, 2: 2.2}, {0: 1.0, 1: 10.0, 3: 1.0})
    assert (ratio.value, ratio.low, ratio.high) == (2.5, 2.0, 3.0)
    assert article_report.ratio({0: 1.0}, {1: 1.0}) is None
    # Nine rounds: the sign test at 95 % leaves out the lowest and the highest.
    nine = article_report.ratio({n: float(n) for n in range(9)}, dict.fromkeys(range(9), 1.0))
    assert (nine.low, nine.value, nine.high) == (1.0, 4.0, 7.0)


def test_the_best_floor_counts_and_what_is_missed_is_told():
    rows = steady("mnist_cnn", fit=[12, 12], loop=[9, 9], scan=[11, 11], keras_tensorflow=[13, 13], torch=[10, 10])
    found = {(v.what, v.must): v for v in article_report.verdicts(rows)}
    floor = found["step: fit / jitted loop", True]
    assert floor.value.value == pytest.approx(12 / 9)
    assert not floor.met
    assert found["step: Keras, TensorFlow / fit", True].met
    torch = found["step: PyTorch / fit", False]  # for the CNN a goal, for the others a must
    assert not torch.met
    other = {(v.what, v.must) for v in article_report.verdicts(steady("mnist_mlp", fit=[1], torch=[2]))}
    assert other == {("step: PyTorch / fit", True)}


def test_the_whole_program_is_compared_cold():
    whole = [
        sample("whole", "wide_mlp", arm, 0, cache, seconds=s, import_s=1.0, first_s=0.5, rest_s=0.1, values={"loss": 1})
        for arm, cache, s in (("fit", "cold", 2.0), ("fit", "warm", 1.0), ("keras_tensorflow", "none", 3.0))
    ]
    (verdict,) = article_report.verdicts(whole)
    assert (verdict.value.value, verdict.met, verdict.must) == (1.5, False, True)
    text = article_report.tables(whole)
    assert "MISSED" in text
    assert "jaxnn fit, warm" in text


def test_stretches_grow_until_they_are_long_enough():
    told, heard = [], iter([True, True, False])
    turn = article_worker.stretches(lambda **v: told.append(v), lambda: next(heard))
    assert turn(0, 0.0) == 1
    assert turn(1, 1e-4) == 64
    assert turn(64, 0.1) == 307
    assert turn(307, 0.6) == 307  # long enough: ready, and waits to be asked
    assert told == [{"ready": True}]
    assert turn(307, 0.55) == 307
    assert turn(307, 0.2) is None  # told however short it is, once the length is settled
    assert told[1:] == [{"epochs": 307, "seconds": 0.55}, {"epochs": 307, "seconds": 0.2}]


def test_a_second_start_does_what_is_missing(tmp_path, monkeypatch):
    done = []

    class Worker:
        def __init__(self, arm):
            self.arm = arm

        def stretch(self):
            done.append(self.arm)
            return {"epochs": 2, "seconds": 1e-3}

    monkeypatch.setattr(
        articles,
        "workers",
        lambda cfg, program: articles.contextlib.nullcontext({arm: Worker(arm) for arm in cfg.arms}),
    )
    ran = []
    result = {"import_s": 1.0, "first_s": 1.0, "rest_s": 1.0, "values": {"loss": 0.1}}
    monkeypatch.setattr(articles, "run_whole", lambda cfg, arm, *_: ran.append(arm) or {"seconds": 3.0, **result})
    monkeypatch.setattr(articles, "versions", lambda cfg: {})
    peers = tmp_path / "python"
    peers.touch()
    cfg = articles.Config(programs=("linear_regression",), rounds=2, whole=1, out=tmp_path, peers=peers)
    articles.main(cfg)
    assert sorted(done) == sorted(2 * cfg.arms)
    # The warm one may find no folder to be warm from, and then runs twice.
    assert sorted(ran) == sorted([*(arm for arm, _, _ in articles.WHOLE), "fit"])
    path = tmp_path / "samples.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while it wrote
    done.clear()
    ran.clear()
    articles.main(dataclasses.replace(cfg, whole=2))
    assert sorted(done) == sorted(cfg.arms)  # the round that was cut short, by all of its arms
    assert set(ran) == {"fit", "torch", "keras_tensorflow"}
    content = json.loads((tmp_path / "articles.json").read_text())
    keys = [articles.key(s) for s in content["samples"]]
    assert len(keys) == len(set(keys))
    assert (tmp_path / "articles.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fit", "loop", "scan", "scans"])
def test_our_arms_train_in_stretches_and_as_a_whole(kind, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path))
    monkeypatch.setattr(article_jax.session.Session, "deliver", article_jax.session.Session.deliver)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3)).astype(np.float32)
    data = {"x": x, "y": (x[:, 0] > 0).astype(np.int32), "x_test": x, "y_test": (x[:, 0] > 0).astype(np.int32)}
    program = Program(dense=(8, 2), loss="cross_entropy", optimizer="adam", lr=0.03, batch=8, epochs=8, against_keras=1)
    arm = article_jax.make(kind)
    firsts = []
    values = arm.whole(program, data, lambda: firsts.append(1))
    assert values["accuracy"] > 0.9
    assert values["loss"] < 0.3
    assert firsts
    asked = []

    def turn(epochs, seconds):
        asked.append((epochs, seconds))
        return (2, 2, 4, 4, None)[len(asked) - 1]

    arm.steady(program, data, turn)
    lengths = [epochs for epochs, _ in asked[1:]]
    assert len(lengths) == 4
    assert all(seconds > 0 for _, seconds in asked[1:])
    if kind != "scans":
        assert lengths == [2, 2, 4, 4]


def test_every_epoch_has_whole_batches(tmp_path):
    for name in PROGRAMS:
        with np.load(write_data(name, tmp_path)) as file:
            assert len(file["x"]) % PROGRAMS[name].batch == 0
            assert len(file["x"]) == len(file["y"])
            assert len(file["x_test"]) == len(file["y_test"]) > 0
