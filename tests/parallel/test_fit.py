"""`fit`, `evaluate` and `predict` under the strategies that split the state: one device's rows; any reads any run."""

import jax
import numpy as np
import optax
import pytest

from jaxnn import core, data, losses, metrics, models, parallel, train, tree
from tests.parallel.strategies import SPLIT

CONFIG = models.GPTConfig(vocab=16, length=8, layers=2, heads=2, width=16, mlp_ratio=2, dropout=0.1, scan=True)
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(40, 6)).astype(np.float32)
Y = np.sin(X @ DRAW.normal(size=(6, 2))).astype(np.float32)


def fit(strategy, out=None, steps=12, resume=False, **options):
    task = train.supervised(models.MLP((16, 2)), losses.mse, {"mae": losses.mae})
    return train.fit(
        task,
        optax.adamw(1e-2),
        data.Arrays(X[:32], Y[:32]),
        batch_size=16,
        steps=steps,
        strategy=strategy,
        validation=data.Arrays(X[32:39], Y[32:39]),  # does not divide
        log=train.Log(every=4, progress=False),
        out=out,
        resume=resume,
        **options,
    )


@pytest.mark.parametrize("name", SPLIT)
def test_rows_and_results_are_those_of_one_device(name, devices8):
    one, other = fit(parallel.single()), fit(SPLIT[name]("mlp", None))
    assert len(one.history) == len(other.history) >= 3
    for mine, theirs in zip(one.history, other.history):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert theirs[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    for strategy in (None, SPLIT[name]("mlp", None)):
        values = train.evaluate(other.task, other.state, data.Arrays(X, Y), strategy=strategy)
        assert values == pytest.approx(train.evaluate(one.task, one.state, data.Arrays(X, Y)), rel=1e-4)
        outputs = train.predict(other.task, other.state, X, strategy=strategy)
        np.testing.assert_allclose(outputs, train.predict(one.task, one.state, X), atol=1e-5)


def test_one_strategy_reads_anothers_checkpoint(tmp_path, devices8):
    """A checkpoint holds logical arrays: split, split otherwise, whole, and split again, one run goes on."""
    whole = fit(parallel.single(), steps=16)
    chain = [
        parallel.zero(3, min_size=1),
        parallel.tensor(models.mlp.RULES, 4, model=2),
        parallel.single(),
        parallel.fsdp(2, min_size=1),
    ]
    for i, strategy in enumerate(chain):
        run = fit(strategy, tmp_path / "run", steps=4 * (i + 1), resume=i > 0)
    for path, leaf in tree.leaves_by_path(run.state.params).items():
        np.testing.assert_allclose(leaf, tree.leaves_by_path(whole.state.params)[path], atol=1e-5, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero3", "fsdp"])
def test_stacked_layers_are_gathered_one_by_one_in_evaluation_too(name, devices8):
    """The roles that modules declare must reach every trace, or a stack would be split along its layers."""
    tokens = DRAW.integers(0, 16, (16, 9)).astype(np.int32)
    source = data.Arrays(tokens[:, :-1], tokens[:, 1:])
    task = train.supervised(models.GPT(CONFIG), losses.cross_entropy, {"accuracy": metrics.accuracy})
    options = {"batch_size": 8, "steps": 4, "validation": source, "log": train.Log(every=2, progress=False)}
    one = train.fit(task, optax.sgd(0.1), source, **options)
    other = train.fit(task, optax.sgd(0.1), source, strategy=SPLIT[name]("gpt", None), **options)
    for name in ("loss", "val_loss", "val_accuracy"):
        assert other.column(name)[1] == pytest.approx(one.column(name)[1], rel=1e-5)
    kernel = other.state.params["blocks"]["qkv"]["kernel"]
    assert kernel.addressable_shards[0].data.shape[0] == CONFIG.layers
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size


def test_tasks_of_bare_functions_and_of_nnx_see_whole_parameters(devices8):
    from flax import nnx

    def init(key, x):
        return {"w": jax.random.normal(key, (x.shape[-1], 16)), "v": jax.random.normal(key, (16, 2))}

    functions = core.from_functions(init, lambda p, x: jax.numpy.tanh(x @ p["w"]) @ p["v"], losses.mse)
    module = core.from_nnx(lambda rngs: nnx.Linear(6, 2, rngs=rngs), losses.mse)
    by_hand = core.Task(functions.init, lambda *a: functions.loss(*a), lambda *a: functions.predict(*a))
    batch = {"x": X[:16], "y": Y[:16]}
    for task in (functions, module, by_hand):
        after = []
        for strategy in (parallel.single(), parallel.zero(3, min_size=1), parallel.fsdp(min_size=1)):
            state = core.init_state(task, optax.sgd(0.1), batch, strategy=strategy)
            state, sums = core.make_train_step(task, optax.sgd(0.1), strategy=strategy)(state, batch)
            after.append(jax.device_get((state.params, sums["loss"])))
        for other in after[1:]:
            for a, b in zip(jax.tree.leaves(after[0]), jax.tree.leaves(other)):
                np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
