"""The first screen of the README in small, under every strategy: what shows that a lane works at all."""

import chex
import numpy as np
import optax
import pytest

from jaxnn import data, losses, metrics, models, parallel, train

pytestmark = pytest.mark.smoke

RNG = np.random.default_rng(0)
X = RNG.normal(size=(70, 4)).astype(np.float32)
Y = (X @ [[1.0], [-2.0], [0.5], [3.0]]).astype(np.float32)


@pytest.mark.parametrize(
    "strategy", [parallel.single, parallel.replicate, parallel.pmap], ids=lambda make: make.__name__
)
def test_fit_evaluate_and_predict(strategy, devices8):
    task = train.supervised(models.MLP((16, 1)), loss=losses.mse, metrics={"mae": metrics.mae})
    source = data.Arrays(X, Y)
    tx = optax.adam(0.03)
    start = train.init_state(task, tx, source.take(np.arange(16)), seed=0, strategy=strategy())
    before = train.evaluate(task, start, source, batch_size=16)
    run = train.fit(task, tx, source, steps=200, batch_size=16, seed=0, strategy=strategy())
    after = train.evaluate(task, run.state, source, batch_size=16)
    assert int(run.state.step) == 200
    assert after["loss"] < 0.02 * before["loss"]
    predicted = train.predict(task, run.state, X, batch_size=16)
    assert predicted.shape == (70, 1)
    np.testing.assert_allclose(np.mean((predicted - Y) ** 2), after["loss"], rtol=1e-4)
    np.testing.assert_allclose(np.mean(np.abs(predicted - Y)), after["mae"], rtol=1e-4)


def test_a_run_folder_is_resumed(tmp_path):
    task = train.supervised(models.MLP((16, 1)), loss=losses.mse)
    source, tx = data.Arrays(X, Y), optax.sgd(0.01)
    whole = train.fit(task, tx, source, steps=20, batch_size=16, seed=0)
    train.fit(task, tx, source, steps=10, batch_size=16, seed=0, out=tmp_path / "run")
    rest = train.fit(task, tx, source, steps=20, batch_size=16, seed=0, out=tmp_path / "run", resume=True)
    assert int(rest.state.step) == 20
    chex.assert_trees_all_equal(whole.state.params, rest.state.params)
