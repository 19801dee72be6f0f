"""Two strategies on two devices: the losses of one, a report with every run, and nothing is trained twice."""

import dataclasses

import numpy as np
import pytest

from experiments import data_parallel


@pytest.mark.slow
def test_two_strategies_and_a_resumption(tmp_path, monkeypatch):
    cfg = data_parallel.Config(
        strategies=("replicate", "zero2"), devices=(1, 2), steps=3, batch=4, layers=1, width=32, length=16
    )
    cfg = dataclasses.replace(cfg, out=str(tmp_path))
    runs = data_parallel.main(cfg)
    assert [(run["strategy"], run["devices"]) for run in runs] == [("single", 1), ("replicate", 2), ("zero2", 2)]
    for run in runs[1:]:
        np.testing.assert_allclose(run["losses"], runs[0]["losses"], rtol=1e-5)
    one, whole, split = (run["keeps"] for run in runs)
    assert whole["optimizer"] == one["optimizer"]
    assert one["optimizer"] / 2 < split["optimizer"] < 0.6 * one["optimizer"]
    assert split["parameters"] == one["parameters"]
    assert {kind for kind, *_ in runs[1]["sends"]} == {"all-reduce"}
    assert {kind for kind, *_ in runs[2]["sends"]} == {"all-reduce", "all-gather", "reduce-scatter"}
    assert (tmp_path / "report.html").read_text().count("zero2") > 3
    card = (tmp_path / "card.md").read_text()
    for said in ("zero2 on 2, last loss", "reduce-scatter", "`lr`", "optax", "card_2_devices_less_one.png"):
        assert said in card

    monkeypatch.setattr(data_parallel, "trained", pytest.fail)  # what is there is not trained again
    assert data_parallel.main(dataclasses.replace(cfg, resume=True)) == runs


def test_other_settings_or_a_run_that_is_there_are_refused(tmp_path, monkeypatch):
    def trained(name, devices, setup, cfg):
        keeps = {"parameters": 0, "optimizer": 0, "temporaries": 0}
        return {"losses": [1.0], "keeps": keeps, "sends": []}

    monkeypatch.setattr(data_parallel, "trained", trained)
    out = str(tmp_path / "run")
    cfg = data_parallel.Config(strategies=("zero2",), devices=(1, 2), steps=1, out=out)
    data_parallel.main(cfg)
    with pytest.raises(ValueError, match="already holds a run"):
        data_parallel.main(cfg)
    again = dataclasses.replace(cfg, resume=True)
    with pytest.raises(ValueError, match=r"config.steps: 1 -> 2; config.width: 64 -> 32\. Resume with the old values"):
        data_parallel.main(dataclasses.replace(again, steps=2, width=32))
    more = data_parallel.main(dataclasses.replace(again, strategies=("zero2", "zero3")))
    assert [(run["strategy"], run["devices"]) for run in more] == [("single", 1), ("zero2", 2), ("zero3", 2)]
