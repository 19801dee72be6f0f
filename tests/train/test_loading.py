import jax
import numpy as np
import optax
import pytest

from jaxnn import data, losses, models, parallel, train

X = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
TASK = train.supervised(models.MLP((4, 1)), losses.mse)


class NoTarget:
    """Examples to predict for."""

    def __len__(self):
        return 5

    def take(self, index):
        return {"x": X[index]}

    def resident(self):
        return None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train.fit(
        TASK,
        optax.adam(1e-2),
        data.Arrays(X, X[:, :1]),
        steps=8,
        batch_size=8,
        out=tmp_path_factory.mktemp("runs") / "run",
        save=train.Checkpointing(every=4),
        log=train.Log(progress=False),
    )


@pytest.mark.parametrize("examples", [NoTarget(), {"x": X[:3]}], ids=["a source", "a batch"])
def test_the_state_comes_back_to_the_bit(run, examples):
    state = train.load_state(run.folder.path, TASK, optax.adam(3.0), examples)
    for a, b in zip(jax.tree.leaves(run.state), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    predicted = train.predict(TASK, state, NoTarget())
    np.testing.assert_array_equal(predicted, train.predict(TASK, run.state, X[:5]))


def test_an_earlier_step_on_two_devices(run):
    state = train.load_state(
        run.folder.path, TASK, optax.adam(1e-2), NoTarget(), step=4, strategy=parallel.replicate(2)
    )
    assert int(state.data_step) == 4
    assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == 2


def test_what_does_not_fit_is_refused(run, tmp_path):
    path = run.folder.path
    with pytest.raises(
        ValueError, match=r"holds another state .*params/head/kernel: float32\[4, 1\] against float32\[5"
    ):
        train.load_state(path, train.supervised(models.MLP((5, 1)), losses.mse), optax.adam(1e-2), NoTarget())
    with pytest.raises(ValueError, match="holds another state"):
        train.load_state(path, TASK, optax.sgd(1e-2), NoTarget())
    with pytest.raises(ValueError, match=r"train\.load_state: there is no run in "):
        train.load_state(tmp_path, TASK, optax.adam(1e-2), NoTarget())
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 5 .*Present: \[4, 8\]"):
        train.load_state(path, TASK, optax.adam(1e-2), NoTarget(), step=5)
    with pytest.raises(TypeError, match=r"train\.load_state: the examples must be a data source, got float32"):
        train.load_state(path, TASK, optax.adam(1e-2), X)
    with pytest.raises(TypeError, match=r"train\.load_state: the first argument must be a Task"):
        train.load_state(path, models.MLP((4, 1)), optax.adam(1e-2), NoTarget())
