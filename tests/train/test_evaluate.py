"""`evaluate` and `predict`: exact over every example once, whatever the batch size, the devices and the ragged end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import data, losses, metrics, models, parallel, train

CLASSES = 4


def examples(n, seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, 5)).astype(np.float32), draw.integers(0, CLASSES, n).astype(np.int32)


def classifier():
    named = {
        "accuracy": metrics.accuracy,
        "top_2": metrics.top_k(2),
        "confusion": metrics.confusion(CLASSES),
        "perplexity": metrics.perplexity,
    }
    return train.supervised(models.MLP((8, CLASSES), dropout=0.5), losses.cross_entropy, named)


TASK = classifier()


def placed(strategy, task=TASK, batch=None):
    x, y = examples(8)
    return train.init_state(task, optax.sgd(0.1), batch or {"x": x, "y": y}, seed=0, strategy=strategy)


def forward(params, x):
    """The classifier in float64 NumPy."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    hidden = np.maximum(x @ p["hidden_0"]["kernel"] + p["hidden_0"]["bias"], 0)
    return hidden @ p["head"]["kernel"] + p["head"]["bias"]


def expected(params, x, y):
    logits = forward(params, x)
    nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]
    given = logits.argmax(1)
    confusion = np.zeros((CLASSES, CLASSES))
    np.add.at(confusion, (y, given), 1)
    return {
        "loss": nats.mean(),
        "accuracy": np.mean(given == y),
        "top_2": np.mean((np.argsort(-logits, 1)[:, :2] == y[:, None]).any(1)),
        "perplexity": np.exp(nats.mean()),
        "confusion": confusion,
    }


STRATEGIES = {"single": parallel.single, "replicate": parallel.replicate, "pmap": parallel.pmap}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("n", "batch_size"), [(1, 256), (7, 3), (256, 64), (257, 64), (257, 256), (257, 1000)])
def test_every_example_counts_once(n, batch_size, strategy):
    x, y = examples(n, seed=n)
    strategy = STRATEGIES[strategy]()
    state = placed(strategy)
    found = train.evaluate(TASK, state, data.Arrays(x, y), batch_size=batch_size, strategy=strategy)
    wanted = expected(state.params, x, y)
    assert found.keys() == wanted.keys()
    np.testing.assert_array_equal(found.pop("confusion"), wanted.pop("confusion"))
    assert found["accuracy"] == pytest.approx(wanted["accuracy"], abs=1e-12)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert all(type(value) is float for value in found.values())
    outputs = train.predict(TASK, state, x, batch_size=batch_size, strategy=strategy)
    assert outputs.shape == (n, CLASSES)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, forward(state.params, x), rtol=1e-4, atol=1e-5)


def test_the_strategy_is_that_of_the_state_where_none_is_given(devices8):
    x, y = examples(21)
    on_all, on_one = placed(parallel.replicate()), placed(parallel.single())
    several = train.evaluate(TASK, on_all, data.Arrays(x, y), batch_size=8)
    one = train.evaluate(TASK, on_one, data.Arrays(x, y), batch_size=8)
    np.testing.assert_array_equal(several.pop("confusion"), one.pop("confusion"))
    assert several == pytest.approx(one, rel=1e-6)
    on_third = jax.device_put(on_one, devices8[3])
    third = train.evaluate(TASK, on_third, data.Arrays(x, y), batch_size=8)
    assert third["loss"] == one["loss"]
    assert train.evaluation.strategy_of(on_third).devices == (devices8[3],)


@pytest.mark.parametrize("given", [*STRATEGIES, "two"])
@pytest.mark.parametrize("held", STRATEGIES)
def test_a_state_is_evaluated_on_other_devices_than_its_own(held, given):
    x, y = examples(21)
    state = placed(STRATEGIES[held]())
    strategy = parallel.replicate(2) if given == "two" else STRATEGIES[given]()
    found = train.evaluate(TASK, state, data.Arrays(x, y), batch_size=8, strategy=strategy)
    assert found["loss"] == pytest.approx(expected(state.params, x, y)["loss"], rel=1e-5)
    outputs = train.predict(TASK, state, x, batch_size=8, strategy=strategy)
    np.testing.assert_allclose(outputs, forward(state.params, x), rtol=1e-4, atol=1e-5)


def test_the_state_is_only_read(devices8):
    x, y = examples(9)
    state = placed(parallel.replicate())
    before = jax.tree.map(np.array, state)
    train.evaluate(TASK, state, data.Arrays(x, y), batch_size=8)
    train.predict(TASK, state, x, batch_size=8)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.array, state), before)


def test_example_weights_count():
    x, y = examples(23)
    weights = np.random.default_rng(1).uniform(0, 2, 23).astype(np.float32)
    weights[::5] = 0
    state = placed(parallel.single())
    found = train.evaluate(TASK, state, data.Arrays(x, y, weights=weights), batch_size=4)
    logits = forward(state.params, x)
    nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(23), y]
    assert found["loss"] == pytest.approx(np.average(nats, weights=weights), rel=1e-5)
    assert found["accuracy"] == pytest.approx(np.average(logits.argmax(1) == y, weights=weights), rel=1e-5)


def test_many_equal_values_do_not_lose_digits():
    """Sums are added in float64: 0.1 over 40,000 examples is 0.1 in float32, not what float32 addition makes of it."""
    n = 40_000
    task = train.from_functions(lambda key, x: {"w": jnp.zeros(())}, lambda p, x: x + p["w"], losses.mae)
    values = np.full((n,), 0.1, np.float32)
    state = placed(parallel.single(), task, {"x": values[:2], "y": values[:2]})
    found = train.evaluate(task, state, data.Arrays(values, np.zeros(n, np.float32)), batch_size=16)
    assert found["loss"] == pytest.approx(float(np.float32(0.1)), rel=5e-7)


def pair_task():
    loss = lambda outputs, targets: losses.mse(outputs["sum"], targets)  # noqa: E731
    init = lambda key, x: {"scale": jnp.ones(())}  # noqa: E731
    apply = lambda p, x: {"sum": p["scale"] * x.sum(-1), "parts": (2 * x, x[:, :1])}  # noqa: E731
    return train.from_functions(init, apply, loss)


@pytest.mark.parametrize("strategy", ["single", "replicate"])
def test_outputs_may_be_a_pytree(strategy):
    x = np.random.default_rng(0).normal(size=(19, 3)).astype(np.float32)
    task, strategy = pair_task(), STRATEGIES[strategy]()
    state = placed(strategy, task, {"x": x[:8], "y": x[:8, 0]})
    outputs = train.predict(task, state, x, batch_size=8, strategy=strategy)
    np.testing.assert_allclose(outputs["sum"], x.sum(-1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(outputs["parts"][0], 2 * x)
    np.testing.assert_array_equal(outputs["parts"][1], x[:, :1])


class Streamed:
    """A source that is no array."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def take(self, index):
        return {"x": self.x[index], "y": self.y[index]}

    def resident(self):
        return None


def test_inputs_may_be_an_array_a_mapping_or_a_source_and_keep_their_order():
    x, y = examples(13)
    state = placed(parallel.single())
    wanted = forward(state.params, x)
    for given in (x, x.tolist(), jnp.asarray(x), {"x": x}, data.Arrays(x), Streamed(x, y)):
        found = train.predict(TASK, state, given, batch_size=5)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    streamed = train.evaluate(TASK, state, Streamed(x, y), batch_size=5)
    in_memory = train.evaluate(TASK, state, data.Arrays(x, y), batch_size=5)
    np.testing.assert_equal(streamed, in_memory)


def test_a_task_without_examples_of_weight_gives_nan_and_not_an_error():
    x, y = examples(3)
    found = train.evaluate(TASK, placed(parallel.single()), data.Arrays(x, y, weights=np.zeros(3, np.float32)))
    assert np.isnan(found["loss"])
    assert np.isnan(found["perplexity"])


def test_batch_norm_uses_its_running_statistics_and_dropout_is_off():
    """The prediction for an example does not depend on its company."""
    draw = np.random.default_rng(0)
    images, y = draw.normal(size=(11, 8, 8, 1)).astype(np.float32), draw.integers(0, 3, 11).astype(np.int32)
    task = train.supervised(models.CNN((4,), dense=(), classes=3, batch_norm=True), losses.cross_entropy)
    log = train.Log(progress=False)
    run = train.fit(task, optax.sgd(0.1), data.Arrays(images, y), batch_size=11, steps=3, log=log)
    together = train.predict(task, run.state, images, batch_size=11)
    alone = train.predict(task, run.state, images, batch_size=1)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    assert jax.tree.leaves(run.state.model_state), "this test needs statistics"
