"""Tasks from Linen modules (ours and strangers'), NNX modules and functions: what they compute, in training and not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxnn import core, losses, metrics, models, parallel, rng, tree
from jaxnn.core.state import complete
from jaxnn.typing import Loss, Mean

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(8, 3)).astype(np.float32)
Y = DRAW.normal(size=(8, 2)).astype(np.float32)
MASK = np.array([1, 1, 0, 1, 0, 1, 1, 1], np.float32)
BATCH = {"x": X, "y": Y, "mask": MASK, "index": np.arange(8, dtype=np.int32)}
KEY = jax.random.key(3, impl="threefry2x32")


def variables(task):
    return jax.jit(task.init)(KEY, BATCH)


def test_a_supervised_loss_sums_over_the_mask():
    task = core.supervised(models.MLP((4, 2)), losses.mse, {"mae": metrics.mae}, penalty=lambda p: 7.0)
    params, state = variables(task)
    assert state == {}
    outputs = np.asarray(models.MLP((4, 2)).apply({"params": params}, X), np.float64)
    loss = task.loss(params, state, BATCH, KEY, True)
    values = np.mean((outputs - Y) ** 2, axis=1) if np.ndim(losses.mse(Y, Y)) == 1 else (outputs - Y) ** 2
    weights = MASK.reshape(-1, *[1] * (values.ndim - 1))
    np.testing.assert_allclose(loss.total, np.sum(values * weights), rtol=1e-5)
    np.testing.assert_allclose(loss.weight, np.sum(weights * np.ones_like(values)))
    assert loss.penalty == 7.0
    mae = loss.sums["mae"]
    np.testing.assert_allclose(mae.sum / mae.weight, np.mean(np.abs(outputs - Y)[MASK > 0]), rtol=1e-5)
    np.testing.assert_allclose(task.predict(params, state, BATCH), outputs, rtol=1e-5)


def test_padding_enters_neither_the_loss_nor_the_gradient():
    task = core.supervised(models.MLP((4, 2)), losses.mse)
    params, state = variables(task)
    spoiled = {k: np.where(MASK[:, None] > 0, BATCH[k], 1e3).astype(np.float32) for k in ("x", "y")}
    both = jax.jit(jax.value_and_grad(lambda p, b: task.loss(p, state, b, KEY, True).total))
    one, other = both(params, BATCH), both(params, BATCH | spoiled)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)
    lost = BATCH | {"y": np.where(MASK[:, None] > 0, Y, np.nan).astype(np.float32)}
    np.testing.assert_array_equal(both(params, lost)[0], one[0])


def test_weights_of_the_data_multiply_the_mask():
    task = core.supervised(models.MLP((2,)), losses.mse)
    params, state = variables(task)
    weights = np.linspace(0.5, 2, 8).astype(np.float32)
    loss = task.loss(params, state, BATCH | {"weights": weights}, KEY, True)
    one = task.loss(params, state, BATCH | {"mask": MASK * weights}, KEY, True)
    np.testing.assert_allclose([loss.total, loss.weight], [one.total, one.weight], rtol=1e-6)
    assert loss.weight != task.loss(params, state, BATCH, KEY, True).weight


def test_only_training_drops_out():
    task = core.supervised(models.MLP((64, 2), dropout=0.5), losses.mse)
    params, state = variables(task)
    trained = [task.loss(params, state, BATCH, jax.random.key(i, impl="threefry2x32"), True).total for i in (0, 1, 0)]
    assert trained[0] == trained[2] != trained[1]
    plain = core.supervised(models.MLP((64, 2)), losses.mse).loss(params, state, BATCH, KEY, False).total
    assert task.loss(params, state, BATCH, KEY, False).total == plain
    np.testing.assert_array_equal(task.predict(params, state, BATCH), models.MLP((64, 2)).apply({"params": params}, X))


def test_dropout_follows_the_example_not_its_row():
    task = core.supervised(models.MLP((64, 2), dropout=0.5), losses.mse)
    params, state = variables(task)
    order = np.array([5, 2, 7, 0, 1, 6, 3, 4])
    moved = {k: v[order] for k, v in BATCH.items()}
    one, other = (task.loss(params, state, b, KEY, True).total for b in (BATCH, moved))
    np.testing.assert_allclose(one, other, rtol=1e-5)
    same_rows = moved | {"index": BATCH["index"]}
    assert abs(task.loss(params, state, same_rows, KEY, True).total - one) > 1e-3


def test_batch_norm_is_given_the_mask_and_keeps_statistics_in_the_model_state():
    task = core.supervised(models.CNN((2,), (), 2, batch_norm=True), losses.cross_entropy)
    images = DRAW.normal(size=(8, 4, 4, 1)).astype(np.float32)
    batch = BATCH | {"x": images, "y": np.zeros(8, np.int32)}
    params, state = jax.jit(task.init)(KEY, batch)
    spoiled = np.where(MASK[:, None, None, None] > 0, images, 1e4).astype(np.float32)
    step = jax.jit(lambda b, train: task.loss(params, state, b, KEY, train), static_argnums=1)
    one, other = step(batch, True), step(batch | {"x": spoiled}, True)
    np.testing.assert_allclose(one.total, other.total, rtol=1e-5)
    for path, leaf in tree.leaves_by_path(one.model_state).items():
        np.testing.assert_allclose(leaf, tree.leaves_by_path(other.model_state)[path], rtol=1e-5)
        assert np.max(np.abs(leaf - tree.leaves_by_path(state)[path])) > 1e-3
    evaluated = step(batch, False).model_state
    jax.tree.map(np.testing.assert_array_equal, evaluated, state)


class Stranger(nn.Module):
    """A plain flax module that knows nothing of us."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dense(8)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(2)(x)


class Plain(nn.Module):
    """Without keywords at all."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)


def test_a_strangers_module_trains_as_by_hand():
    module, tx = Stranger(), optax.sgd(0.1, momentum=0.9)
    task = core.supervised(module, lambda outputs, y: jnp.square(outputs - y))
    state = core.init_state(task, tx, BATCH | {"mask": np.ones(8, np.float32)}, strategy=parallel.single())
    params, stats, opt_state = state.params, state.model_state["batch_stats"], state.opt_state

    @jax.jit
    def by_hand(params, stats, opt_state, key):
        def objective(p):
            outputs, new = module.apply(
                {"params": p, "batch_stats": stats}, X, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
            )
            return jnp.mean(jnp.square(outputs - Y)), new["batch_stats"]

        grads, stats_new = jax.grad(objective, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats_new, opt_state

    train_step = core.make_train_step(task, tx, strategy=parallel.single())
    copied = jax.tree.map(jnp.array, (params, stats, opt_state))
    for i in range(5):
        copied = by_hand(*copied, rng.step_key(rng.seed_key(0), i))
        state, _ = train_step(state, {"x": X, "y": Y})
    for ours, theirs in ((state.params, copied[0]), (state.model_state["batch_stats"], copied[1])):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), ours, theirs)


def test_a_module_is_given_what_it_takes():
    task = core.supervised(Plain(), losses.mse)
    params, state = variables(task)
    np.testing.assert_allclose(
        task.predict(params, state, BATCH), X @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], rtol=1e-5
    )

    class Segmented(nn.Module):
        @nn.compact
        def __call__(self, x, *, segment=None, **rest):
            assert set(rest) == {"train", "mask"}  # **rest takes whatever there is
            return nn.Dense(2)(x) * segment[:, None]

    segmented = core.supervised(Segmented(), losses.mse)
    batch = BATCH | {"segment": np.zeros(8, np.float32)}
    params, state = segmented.init(KEY, batch)
    assert not np.any(segmented.predict(params, state, batch))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


class Still(Net):
    """The same without randomness, to be compared with a training step written by hand."""

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.first(x))))


def test_from_nnx_trains_as_a_hand_written_nnx_step():
    tx = optax.sgd(0.1, momentum=0.9)
    task = core.from_nnx(lambda rngs: Still(rngs), lambda outputs, y: jnp.square(outputs - y))
    state = core.init_state(task, tx, {"x": X, "y": Y}, seed=2, strategy=parallel.single())
    module = Still(nnx.Rngs(0))
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    nnx.replace_by_pure_dict(params, jax.tree.map(jnp.array, state.params))
    module = nnx.merge(graph, params, rest)
    optimizer = nnx.Optimizer(module, tx, wrt=nnx.Param)

    @nnx.jit
    def by_hand(module, optimizer):
        def objective(m):
            return jnp.mean(jnp.square(m(X) - Y))

        optimizer.update(module, nnx.grad(objective)(module))

    module.train()
    train_step = core.make_train_step(task, tx, strategy=parallel.single())
    for _ in range(5):
        by_hand(module, optimizer)
        state, _ = train_step(state, {"x": X, "y": Y})
    theirs = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    assert tree.leaves_by_path(theirs).keys() == tree.leaves_by_path(state.params).keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), state.params, theirs)
    np.testing.assert_allclose(state.model_state["norm"]["mean"], module.norm.mean[...], rtol=2e-4, atol=1e-6)
    module.eval()
    predicted = task.predict(state.params, state.model_state, BATCH)
    np.testing.assert_allclose(predicted, module(X), rtol=1e-3, atol=1e-5)


def test_from_nnx_drops_out_by_key_and_counts_no_stream_in_its_state():
    task = core.from_nnx(Net, losses.mse)
    params, state = variables(task)
    assert {path.rsplit("/", 1)[-1] for path in tree.leaves_by_path(state)} == {"mean", "var"}
    assert set(tree.leaves_by_path(params)) == {
        f"{layer}/{name}" for layer in ("first", "last") for name in ("kernel", "bias")
    } | {"norm/scale", "norm/bias"}
    total = jax.jit(lambda k: task.loss(params, state, BATCH, k, True).total)
    keys = [jax.random.key(i, impl="threefry2x32") for i in range(2)]
    assert total(keys[0]) == total(keys[0]) != total(keys[1])
    one, other = (task.predict(params, state, BATCH) for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_from_nnx_leaks_no_tracer():
    with jax.checking_leaks():
        task = core.from_nnx(Net, losses.mse)
        params, state = jax.jit(task.init)(KEY, BATCH)
        jax.block_until_ready(jax.jit(lambda p: task.loss(p, state, BATCH, KEY, True).total)(params))


def test_from_functions_hands_on_key_and_train():
    def apply(w, x, key, train):
        noise = jax.random.normal(key, (3, 2)) if train else 0.0
        return x @ (w + noise)

    task = core.from_functions(lambda key, x: jnp.ones((x.shape[1], 2)), apply, losses.mse)
    params, state = variables(task)
    assert state == {}
    np.testing.assert_allclose(task.predict(params, state, BATCH), X @ np.ones((3, 2)), rtol=1e-6)
    noise = np.asarray(jax.random.normal(KEY, (3, 2)))
    loss = task.loss(params, state, BATCH, KEY, True)
    expected = losses.mse(jnp.asarray(X @ (1 + noise)), jnp.asarray(Y))
    np.testing.assert_allclose(loss.total / loss.weight, np.mean(np.asarray(expected)[MASK > 0]), rtol=1e-5)
    plain = core.from_functions(lambda key, x: jnp.ones((3, 2)), lambda w, x: x @ w, losses.mse)
    np.testing.assert_allclose(plain.predict(params, state, BATCH), X @ np.ones((3, 2)), rtol=1e-6)


def test_a_bare_task_trains():
    """The median of the data by gradient descent on its absolute error; weight and reported sums are the task's own."""

    def loss(params, model_state, batch, key, train):
        del key, train
        distance = jnp.abs(batch["x"] - params["m"])
        weight = jnp.sum(batch["mask"])
        total, seen = jnp.sum(distance * batch["mask"]), {"seen": model_state["seen"] + weight}
        return Loss(total, weight, 0.0, seen, {"d": Mean(weight, weight)})

    task = core.Task(lambda key, batch: ({"m": jnp.zeros(())}, {"seen": jnp.zeros(())}), loss, lambda p, s, b: p["m"])
    batch = {"x": np.array([1, 2, 3, 4, 100], np.float32)}
    state = core.init_state(task, optax.sgd(0.5), batch, strategy=parallel.single())
    step = core.make_train_step(task, optax.sgd(0.5), strategy=parallel.single())
    for _ in range(40):
        state, sums = step(state, batch)
    assert abs(float(state.params["m"]) - 3) < 0.6
    assert float(state.model_state["seen"]) == 5 * 40
    assert task.finish("d", jax.device_get(sums["d"])) == 1.0


def test_finish_divides_unless_a_metric_knows_better():
    task = core.supervised(models.MLP((2,)), losses.mse, {"perplexity": metrics.perplexity})
    assert task.finish("loss", Mean(6.0, 4.0)) == 1.5
    assert np.isnan(task.finish("loss", Mean(0.0, 0.0)))
    np.testing.assert_allclose(task.finish("perplexity", Mean(6.0, 4.0)), np.exp(1.5))


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"train.supervised: expected a flax.linen.Module, got function.*from_nnx"):
        core.supervised(lambda x: x, losses.mse)
    with pytest.raises(TypeError, match=r"train.supervised: loss must be a function.*got 'mse'"):
        core.supervised(models.MLP((1,)), "mse")
    with pytest.raises(TypeError, match=r"train.from_functions: apply must be a function, got 3"):
        core.from_functions(lambda k, x: 0, 3, losses.mse)
    with pytest.raises(TypeError, match=r"train.from_nnx: make\(rngs\) gave int"):
        core.from_nnx(lambda rngs: 3, losses.mse)
    for name in ("loss", "grad_norm", "step", "epoch"):
        with pytest.raises(ValueError, match=f"a metric cannot be called '{name}'"):
            core.supervised(models.MLP((1,)), losses.mse, {name: losses.mse})
    task = core.supervised(models.MLP((1,)), losses.mse, inputs="image")
    with pytest.raises(ValueError, match=r"the batch has no 'image'; it has \['index', 'mask', 'x', 'y'\]"):
        core.init_state(task, optax.sgd(0.1), BATCH, strategy=parallel.single())


def test_a_batch_is_completed_and_checked():
    batch = complete({"x": X})
    np.testing.assert_array_equal(batch["mask"], np.ones(8, np.float32))
    np.testing.assert_array_equal(batch["index"], np.arange(8))
    assert complete(BATCH)["mask"] is MASK
    for wrong in ({}, {"x": np.float32(1)}, {"x": X, "y": Y[:3]}):
        with pytest.raises(ValueError, match="every array needs the same leading example axis"):
            complete(wrong)
