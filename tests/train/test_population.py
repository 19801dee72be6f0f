"""Populations: each member is its solo run; resumable; a member that diverges is on its own; spread over devices."""

import json

import jax
import numpy as np
import pytest

from jaxnn import data, losses, metrics, models, optim, parallel, train

X = np.random.default_rng(0).normal(size=(96, 4)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)
LOG = train.Log(progress=False, every=6)
RATES = [1e-3, 1e-2, 3e-2, 1e-1]


def task():
    return train.supervised(models.MLP((8, 1)), losses.mse, {"mae": metrics.mae})


def fit(tx, **settings):
    settings = {"batch_size": 16, "steps": 30, "log": LOG, "validation": data.Arrays(X[:32], Y[:32])} | settings
    return train.fit(task(), tx, data.Arrays(X, Y), **settings)


def tx(lr=1e-3, b2=0.999):
    return optim.adam(lr, b2=b2)


def plain(lr):
    return optim.stages(lr=optim.scale_by_lr(lr), metrics=("lr",))


def test_members_are_their_solo_runs():
    population = optim.grid(lr=RATES[:2], b2=[0.9, 0.99])
    run = fit(tx(), population=population)
    for i in range(4):
        alone = fit(tx(**population[i]))
        together = run.member(i)
        assert [row["step"] for row in together.history] == [row["step"] for row in alone.history]
        for name in ("loss", "mae", "val_loss", "val_mae", "lr"):
            np.testing.assert_allclose(together.column(name)[1], alone.column(name)[1], rtol=1e-4, err_msg=name)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), together.state, alone.state)
    best = min(run.member(i).column("val_loss")[1][-1] for i in range(4))
    assert run.column("val_loss")[1][-1] == best


@pytest.mark.parametrize("resident", [True, False])
def test_over_devices_and_streamed_it_is_the_same(resident):
    population = optim.members(lr=RATES)
    one = fit(tx(), population=population)
    many = fit(
        tx(),
        population=population,
        strategy=parallel.replicate(jax.devices()[:4]),
        dispatch=train.Dispatch(resident=resident),
    )
    assert len(jax.tree.leaves(many.state.params)[0].sharding.device_set) == 4
    for a, b in zip(one.history, many.history, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose([a[k] for k in a], [b[k] for k in a], rtol=1e-4)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_in_groups_each_member_is_its_solo_run(devices):
    rates = np.geomspace(1e-3, 1e-1, 18 * devices).tolist()
    population = optim.members(lr=rates)
    strategy = parallel.replicate(jax.devices()[:devices])
    spread = parallel.members(strategy, len(rates), None)
    assert (spread.group, spread.groups) == (9, 2)
    settings = {"steps": 12, "validation": None}
    run = fit(tx(), population=population, strategy=strategy, **settings)
    assert int(run.state.data_step) == 12
    assert run.state.step.tolist() == [12] * len(rates)
    for i in (0, 9, len(rates) - 1):  # of the first and the last group
        alone = fit(tx(rates[i]), **settings)
        np.testing.assert_allclose(run.member(i).column("loss")[1], alone.column("loss")[1], rtol=1e-4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), run.member(i).state, alone.state
        )


def test_members_may_weigh_their_examples_apart():
    """Weights [B, T], as a language model's: rows of floats, which each member has a copy of."""
    weights = np.random.default_rng(1).uniform(0.5, 1, Y.shape).astype(np.float32)
    source = data.Arrays({"x": X, "y": Y, "weights": weights})
    settings = {"batch_size": 16, "steps": 12, "log": LOG}
    run = train.fit(task(), tx(), source, population=optim.members(lr=RATES[:2]), **settings)
    assert int(run.state.data_step) == 12
    for i in range(2):
        alone = train.fit(task(), tx(RATES[i]), source, **settings)
        np.testing.assert_allclose(run.member(i).column("loss")[1], alone.column("loss")[1], rtol=1e-4)


def test_a_member_that_diverges_does_not_stop_the_others():
    run = fit(plain(1e-2), population=optim.members(lr=[1e-2, 1e6, 2e-2]), steps=60)
    assert run.stopped is None
    steps = [row for row in run.history if "nonfinite_step@1" in row]
    assert len(steps) == 1
    assert not np.isfinite(run.member(1).column("loss")[1][-1])
    for i, lr in ((0, 1e-2), (2, 2e-2)):
        alone = fit(plain(lr), steps=60)
        np.testing.assert_allclose(run.member(i).column("loss")[1], alone.column("loss")[1], rtol=1e-4)
    assert np.isfinite(run.column("loss")[1][-1])


def test_all_diverged_is_the_end():
    run = fit(plain(1e-2), population=optim.members(lr=[1e6, 2e6]), steps=400)
    assert run.stopped is not None
    assert int(run.state.data_step) < 400


def test_a_population_resumes_to_the_byte(tmp_path):
    settings = {"population": optim.members(lr=RATES), "save": train.Checkpointing(every=10)}
    whole = fit(tx(), out=tmp_path / "whole", **settings)
    fit(tx(), out=tmp_path / "parts", steps=15, **settings)
    again = fit(tx(), out=tmp_path / "parts", resume=True, **settings)
    jax.tree.map(np.testing.assert_array_equal, whole.state, again.state)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert any("loss@3" in row for row in rows)
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "Members" in page
    assert "of the 4 best members" in page
    with pytest.raises(ValueError, match="population"):
        fit(tx(), out=tmp_path / "parts", resume=True, steps=40, population=optim.members(lr=RATES[::-1]))


@pytest.mark.parametrize(
    ("population", "settings", "error", "message"),
    [
        ({"lr": [1e-3]}, {}, TypeError, r"population must be optim.grid\(lr=\[...\]\)"),
        (optim.members(rate=[1e-3, 1e-2]), {}, ValueError, "no hyperparameter 'rate'"),
        (optim.members(b1=[0.5, 1.0]), {}, ValueError, r"b1 is 1. Give a number in \[0, 1\)"),
        (
            optim.members(lr=[1e-3, 1e-2, 1e-1]),
            {"strategy": parallel.replicate(jax.devices()[:2])},
            ValueError,
            "3 members do not divide over 2 devices",
        ),
        (
            optim.members(lr=[1e-3, 1e-2]),
            {"hooks": [train.ReduceOnPlateau("loss")]},
            ValueError,
            "changes the state of one run",
        ),
        (optim.members(lr=[1e-3, 1e-2]), {"debug": True}, ValueError, "debug=True looks into one run"),
    ],
)
def test_bad_input(population, settings, error, message):
    with pytest.raises(error, match=message):
        fit(tx(), population=population, **settings)


def test_grids():
    population = optim.grid(lr=[1, 2], b1=[0.5, 0.6, 0.7])
    assert len(population) == 6
    assert population[4] == {"lr": 2.0, "b1": 0.6}
    assert population.label(4) == "lr=2, b1=0.6"
    for make, message in (
        (lambda: optim.grid(), "no hyperparameter"),
        (lambda: optim.grid(lr=[]), "one value or more"),
        (lambda: optim.members(lr=[1, 2], b1=[0.5]), "same number of values"),
        (lambda: optim.grid(lr=[-1.0]), r"lr is -1. Give a number >= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="sequence of numbers"):
        optim.grid(lr=1e-3)
