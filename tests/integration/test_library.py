"""The library under jax's strict modes: one fit of a small model each, on paths that a user takes.

The modes find what ordinary tests do not: arrays of different rank or dtype that meet by accident, tracers that escape,
NaN that is computed and thrown away.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import core, data, losses, metrics, models, parallel, train, tree

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(20, 3)).astype(np.float32)
Y = (X @ np.array([[1.0], [-2.0], [0.5]])).astype(np.float32)


def fit(strategy=None, task=None, source=None, **options):
    """Dropout, a ragged last batch, a penalty, validation, evaluate and predict."""
    task = task or train.supervised(
        models.MLP((8, 1), dropout=0.1),
        losses.mse,
        {"mae": metrics.mae},
        penalty=lambda params: 1e-4 * optax.tree.norm(params, squared=True),
    )
    source = source or data.Arrays(X, Y)
    # optax.adam itself promotes dtypes.
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
    settings = {"batch_size": 8, "epochs": 20, "seed": 0, "log": train.Log(progress=False), "validation": source[:6]}
    run = train.fit(task, tx, source, strategy=strategy, **settings | options)
    values = train.evaluate(task, run.state, source, batch_size=8)
    predicted = train.predict(task, run.state, source, batch_size=8)
    assert jax.tree.leaves(predicted)[0].shape[0] == len(source)
    first, last = run.history[0]["loss"], values["loss"]
    assert np.isfinite(last)
    assert last < 0.9 * first
    return run, values


@contextlib.contextmanager
def debug_nans():
    with jax.debug_nans(True), jax.debug_infs(True):
        yield


MODES = {
    "rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype_promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "leaks": jax.checking_leaks,
    "nans": debug_nans,
    "float64": lambda: jax.enable_x64(True),
}
STRATEGIES = {"single": parallel.single, "replicate": lambda: parallel.replicate(2)}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("mode", [pytest.param(m, marks=pytest.mark.slow if m == "leaks" else ()) for m in MODES])
def test_fit_under_strict_modes(mode, strategy):
    with MODES[mode]():
        fit(STRATEGIES[strategy](), epochs=8)


@pytest.mark.parametrize("mode", ["rank_promotion", "dtype_promotion"])
def test_streaming_and_saving_under_strict_modes(mode, tmp_path):
    with MODES[mode]():
        run, _ = fit(out=tmp_path / "run", dispatch=train.Dispatch(resident=False), epochs=8)
        resumed, _ = fit(out=tmp_path / "run", resume=True, epochs=9)
    assert int(resumed.state.data_step) == int(run.state.data_step) + 3


class TestModels:
    """The other families, for a few steps: what is strict for an MLP need not be for a scan or a convolution."""

    def test_cnn(self):
        images, classes = DRAW.normal(size=(20, 6, 6, 1)).astype(np.float32), DRAW.integers(0, 3, 20)
        module = models.CNN((4,), (8,), 3, batch_norm=True, dropout=0.1)
        task = train.supervised(module, losses.cross_entropy, {"accuracy": metrics.accuracy})
        with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
            fit(task=task, source=data.Arrays(images, classes))

    def test_gpt(self):
        tokens = np.tile(np.arange(5, dtype=np.int32), (20, 1))
        config = models.GPTConfig(vocab=8, length=4, layers=1, heads=1, width=8, mlp_ratio=1, dropout=0.1)
        task = train.supervised(models.GPT(config), losses.cross_entropy, {"bits": metrics.bits_per_byte})
        with jax.numpy_dtype_promotion("strict"):  # positions and attention broadcast ranks on purpose
            fit(task=task, source=data.Arrays(tokens[:, :-1], tokens[:, 1:]), epochs=5)


def test_float64_data_train_a_float64_model():
    with jax.enable_x64(True):
        x, y = X.astype(np.float64), Y.astype(np.float64)
        init = lambda key, x: jax.random.normal(key, (3, 1), jnp.float64)  # noqa: E731
        task = train.from_functions(init, lambda w, x: x @ w, losses.mse)
        run = train.fit(task, optax.lbfgs(), data.Arrays(x, y), batch_size=20, steps=12, log=train.Log(progress=False))
        assert run.state.params.dtype == np.float64
        np.testing.assert_allclose(run.state.params[:, 0], np.linalg.lstsq(x, y, rcond=None)[0][:, 0], atol=1e-10)


@pytest.mark.smoke
def test_replicate_is_single(devices8):
    """Ten steps of SGD by the train step, ragged masks included."""
    task = core.supervised(models.MLP((8, 1), dropout=0.2), losses.mse)
    mask = np.array([1, 0, 1, 1, 1, 1, 0, 0], np.float32)
    ends = []
    for strategy in (parallel.single(), parallel.replicate(), parallel.pmap()):
        batch, tx = {"x": X[:8], "y": Y[:8], "mask": mask}, optax.sgd(0.1)
        state = core.init_state(task, tx, batch, seed=1, strategy=strategy)
        step = core.make_train_step(task, tx, strategy=strategy)
        for _ in range(10):
            state, _ = step(state, batch)
        ends.append(tree.leaves_by_path(jax.device_get(state.params)))
    for path, leaf in ends[0].items():
        for other in ends[1:]:
            np.testing.assert_allclose(other[path], leaf, atol=1e-5, err_msg=path)
