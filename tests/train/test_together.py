"""What one process of a job cannot read, all refuse; the others are played by what `parallel` tells of them."""

import numpy as np
import optax
import pytest

from jaxnn import data, losses, models, parallel, train
from jaxnn.core.step import make_step
from jaxnn.train import engine, together

B, STEPS = 4, 6


def job_of_two(monkeypatch, other):
    """This process is number 0; number 1 refuses with the text `other`, or nothing."""
    monkeypatch.setattr(parallel, "process_count", lambda: 2)
    monkeypatch.setattr(parallel, "numbers", lambda *x: np.array([x, [other is not None]], np.float64))
    monkeypatch.setattr(parallel, "gather", lambda told: [told, None if other is None else [False, other]])


def unreadable():
    raise TypeError("data.Mine: 3 is no text")


def test_what_one_process_refuses_all_refuse(monkeypatch):
    with pytest.raises(TypeError, match="3 is no text"):  # alone
        together.each_does(unreadable)
    job_of_two(monkeypatch, None)
    assert together.each_does(lambda: 5) == 5
    with pytest.raises(TypeError, match="3 is no text"):
        together.each_does(unreadable)
    job_of_two(monkeypatch, "data.Yours: 4 is no text")
    with pytest.raises(ValueError, match=r"data\.Yours: 4 is no text"):
        together.each_does(lambda: 5)
    with pytest.raises(TypeError, match="3 is no text"):  # its own error, with where it was raised
        together.each_does(unreadable)


def test_evaluation_ends_where_another_process_cannot_go_on(monkeypatch):
    x = np.zeros((6, 2), np.float32)
    task, source = train.supervised(models.MLP((3, 1)), losses.mse), data.Arrays(x, x[:, :1])
    state = train.init_state(task, optax.sgd(0.1), source.take(np.arange(2)), strategy=parallel.single())
    calls = [lambda: train.evaluate(task, state, source), lambda: train.predict(task, state, x)]
    for call in calls:
        call()
    job_of_two(monkeypatch, "train.evaluate: 'x' of batch 0 has 99")
    for call in calls:
        with pytest.raises(ValueError, match="batch 0 has 99"):
            call()


class Failing:
    """Examples of which number `bad` cannot be read."""

    def __init__(self, bad):
        self.bad = bad

    def __len__(self):
        return B * STEPS

    def take(self, index):
        if self.bad in index:
            raise ValueError(f"data.Failing: example {self.bad}")
        return {"x": np.ones((len(index), 2), np.float32), "y": np.ones((len(index), 1), np.float32)}

    def resident(self):
        return None


@pytest.mark.parametrize("alone", [True, False])
def test_a_process_without_its_batch_goes_on_until_all_know(alone):
    """Alone it raises at once; one of several takes part in all steps, and gives numbers that none takes for true."""
    source, strategy, rows = Failing(bad=2 * B), parallel.single(), []
    task = train.supervised(models.MLP((1,)), losses.mse)
    tx = optax.sgd(0.1)
    state = train.init_state(task, tx, source.take(np.arange(1)), strategy=strategy)
    ids = lambda step, count: np.arange(step * B, (step + count) * B).reshape(count, B)  # noqa: E731
    driver = engine.StreamingEngine(
        engine.scalars(make_step(task, tx, strategy)),
        source,
        state,
        0,
        STEPS,
        ids,
        strategy,
        lambda first, sums: rows.append(sums["loss"].sum),
    )
    driver._alone = alone
    try:
        if alone:
            with pytest.raises(ValueError, match="example 8"):
                driver.advance(STEPS, lambda: False)
            assert driver.data_step == 2
            return
        driver.advance(STEPS, lambda: False)
        driver.drain()
    finally:
        driver.close()
    assert driver.data_step == STEPS
    assert str(driver.refused) == "data.Failing: example 8"
    found = np.concatenate(rows)
    assert np.isfinite(found[:2]).all()
    assert np.isnan(found[2:]).all()
    assert int(driver.state.step) == 2  # what weighs nothing known changes nothing
