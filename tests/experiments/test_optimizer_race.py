"""The race runs, resumes what is missing, and ranks at each optimizer's best rate."""

import dataclasses

import numpy as np
import pytest

from experiments import optimizer_race as race


@pytest.mark.slow
def test_a_race_of_two(tmp_path, monkeypatch):
    cfg = race.Config(
        optimizers=("adamw", "schedule-free adamw"),
        multipliers=(0.3, 1.0),
        steps=6,
        warmup=2,
        batch=4,
        time_s=0,
        out=str(tmp_path),
    )
    rows = race.main(cfg)
    assert {row.optimizer for row in rows} == set(cfg.optimizers)
    assert rows[0].last.mean() <= rows[1].last.mean()
    assert "Ranking" in (tmp_path / "report.html").read_text()
    card = (tmp_path / "card.md").read_text()
    for said in (
        "schedule-free adamw, bits a byte",
        "one seed",
        "best rate",
        "`seeds`",
        "optax",
        "card_over_the_rates.png",
    ):
        assert said in card
    assert (tmp_path / "card_over_the_steps.png").stat().st_size > 10_000
    spread = race.main(dataclasses.replace(cfg, strategy="replicate", devices=2, out=str(tmp_path / "spread")))
    for one, two in zip(*(sorted(r, key=lambda row: row.optimizer) for r in (rows, spread)), strict=True):
        np.testing.assert_allclose(two.curve, one.curve, rtol=1e-4)
    again = dataclasses.replace(cfg, resume=True)
    with pytest.raises(ValueError, match=r"another config: config.steps: 6 -> 7"):
        race.main(dataclasses.replace(again, steps=7))
    monkeypatch.setattr(race, "heat", pytest.fail)  # what is there is not run again; it is measured
    shown = race.main(dataclasses.replace(again, time_s=0.3))
    assert [row.optimizer for row in shown] == [row.optimizer for row in rows]
    assert "MB a step" in (tmp_path / "card.md").read_text()


def heat(name, seed, bits):
    return {"optimizer": name, "seed": seed, "steps": [10, 20, 30], "bits": bits}


def test_the_ranking_is_at_the_best_rate_over_the_seeds():
    cfg = race.Config(multipliers=(0.1, 1.0, 10.0), seeds=(0, 1))
    heats = [
        heat("adamw", 0, [[5, 4, 3.0], [5, 3, 2.0], [5, 4, np.nan]]),
        heat("adamw", 1, [[5, 4, 3.0], [5, 3, 2.2], [5, 4, 9.0]]),
        heat("muon", 0, [[5, 2.0, 1.8], [5, 4, 3.0], [5, 4, 3.0]]),
        heat("muon", 1, [[5, 2.2, 2.0], [5, 4, 3.0], [5, 4, 3.0]]),
    ]
    rows = race.ranked(heats, cfg)
    muon, adamw = rows
    assert (muon.optimizer, adamw.optimizer) == ("muon", "adamw")
    np.testing.assert_allclose(adamw.last, [2.0, 2.2])
    assert adamw.rate == race.RACERS["adamw"][0]
    assert muon.edge
    assert not adamw.edge
    cells = race.table(rows, {}, cfg)
    assert [row[4] for row in cells] == [20, 30]
    assert cells[0][3] == "0.0003 (edge of the sweep)"


def test_an_unknown_racer():
    with pytest.raises(ValueError, match="no racer 'adamm'"):
        race.main(race.Config(optimizers=("adamm",)))
