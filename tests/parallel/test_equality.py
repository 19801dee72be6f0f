"""Every strategy gives the numbers of one device: 50 steps with ragged masks, empty shards, token weights, dropout, an
L2 penalty, BatchNorm's statistics over all devices, and clipping by the global norm.

AdamW divides a gradient by its own size, so that a leaf whose true gradient is zero walks by rounding alone: such
leaves are listed, and left out where parameters are compared after AdamW. Their losses agree all the same.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import core, losses, models, optim, parallel, tree
from tests.parallel.cases import BATCH, STEPS, Trained, case, start, train
from tests.parallel.strategies import EVERY, SPLIT

MODELS = ["mlp", "cnn", "gpt"]
# Parts of a leaf whose true gradient is zero but for the penalty's: without rotary positions, the keys' bias adds the
# same to every score of a query.
ZERO_GRADIENT = {"gpt": {"blocks_0/qkv/bias": np.r_[8:16, 32:40]}}  # of each head: queries, keys, values

# Clipping at 0.5 binds in most of these steps; momentum gives rounding a memory.
SGD = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9))
ADAMW = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(3e-3, weight_decay=1e-2))
OPTIMIZERS = {"sgd": SGD, "adamw": ADAMW, "muon": optim.muon(3e-3)}


@functools.cache
def trained(name: str, optimizer: str, strategy: str, devices: int | None = None) -> Trained:
    return train(name, OPTIMIZERS[optimizer], EVERY[strategy](name, devices))


def assert_equal_first(one: Trained, other: Trained) -> None:
    for path, leaf in tree.leaves_by_path(one.first).items():
        np.testing.assert_array_equal(leaf, tree.leaves_by_path(other.first)[path], err_msg=path)


def assert_losses_close(one: Trained, other: Trained) -> None:
    np.testing.assert_allclose(other.weights, one.weights, rtol=1e-6)
    np.testing.assert_allclose(other.losses, one.losses, atol=1e-5)


def assert_close(one: Trained, other: Trained, leave_out: dict[str, np.ndarray]) -> None:
    assert_losses_close(one, other)
    assert int(one.state.step) == int(other.state.step) == STEPS - 1  # the step without examples was none
    assert int(one.state.data_step) == int(other.state.data_step) == STEPS
    ours = tree.leaves_by_path((one.state.params, one.state.model_state))
    theirs = tree.leaves_by_path((other.state.params, other.state.model_state))
    for path, leaf in ours.items():
        left, right = np.array(leaf), np.array(theirs[path])
        for name, part in leave_out.items():
            if path.endswith(name):
                left[part] = right[part] = 0
        np.testing.assert_allclose(right, left, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("strategy", ["replicate", "pmap"])
@pytest.mark.parametrize("name", MODELS)
def test_sgd_is_that_of_one_device(name, strategy):
    one, other = trained(name, "sgd", "single"), trained(name, "sgd", strategy)
    assert_equal_first(one, other)
    assert_close(one, other, {})
    moved = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), one.first.params, one.state.params)
    assert min(jax.tree.leaves(moved)) > 1e-4  # otherwise equality says nothing


@pytest.mark.parametrize("strategy", ["replicate", pytest.param("pmap", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "gpt" else ()) for n in MODELS])
def test_adamw_is_that_of_one_device(name, strategy):
    assert_close(trained(name, "adamw", "single"), trained(name, "adamw", strategy), ZERO_GRADIENT.get(name, {}))


def test_the_listed_leaves_have_no_gradient_of_their_own():
    task, source = case("gpt")
    state = start("gpt", optax.sgd(0.1), parallel.single())
    batch = core.state.complete(source.take(np.arange(BATCH)))
    fn = jax.jit(jax.grad(lambda p: task.loss(p, {}, batch, jax.random.key(0), True).total))
    gradient = tree.leaves_by_path(fn(state.params))
    for path, part in ZERO_GRADIENT["gpt"].items():
        queries = np.max(np.abs(gradient[path][:8]))
        assert np.max(np.abs(gradient[path][part])) < 1e-4 * queries


SLOW = pytest.mark.slow
QUICK = {"mlp": SPLIT, "cnn": ("zero3", "fsdp"), "gpt": ("fsdp_tensor",)}
SPLIT_MODELS = [
    pytest.param(name, split, marks=() if split in QUICK[name] else SLOW) for name in MODELS for split in SPLIT
]


@pytest.mark.parametrize(("name", "strategy"), SPLIT_MODELS)
def test_sgd_over_split_states_is_that_of_one_device(name, strategy):
    one, other = trained(name, "sgd", "single"), trained(name, "sgd", strategy)
    assert_equal_first(one, other)
    assert_close(one, other, {})


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("strategy", SPLIT)
@pytest.mark.parametrize("name", MODELS)
def test_two_and_four_devices_over_split_states(name, strategy, devices):
    assert_close(trained(name, "sgd", "single"), trained(name, "sgd", strategy, devices), {})


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("strategy", ["replicate", "pmap", *SPLIT])
@pytest.mark.parametrize("name", MODELS)
def test_losses_of_other_optimizers_over_split_states(name, strategy, optimizer):
    assert_losses_close(trained(name, optimizer, "single"), trained(name, optimizer, strategy))


@pytest.mark.parametrize("devices", [2, 3])
def test_two_and_three_devices(devices):
    assert_close(trained("mlp", "sgd", "single"), trained("mlp", "sgd", "replicate", devices), {})


# ---- each property by itself, on a linear model whose gradient NumPy knows

X = np.random.default_rng(2).normal(size=(24, 3))
Y = np.random.default_rng(3).normal(size=(24, 1))
MASK = np.ones(24, np.float32)
MASK[[0, 1, 2, 7, 20, 21]] = 0  # the first of 8 shards is empty, others are ragged


def one_step(
    tx: optax.GradientTransformation, strategy: object, penalty: object = None
) -> tuple[np.ndarray, np.ndarray]:
    """The linear model's weights [3, 1] before and after one step."""
    task = core.supervised(models.MLP((1,)), losses.mse, penalty=penalty)
    batch = {"x": X, "y": Y, "mask": MASK}
    state = core.init_state(task, tx, batch, seed=1, strategy=strategy)
    before = np.asarray(state.params["head"]["kernel"], np.float64)
    state, _ = core.make_train_step(task, tx, strategy=strategy)(state, batch)
    return before, np.asarray(state.params["head"]["kernel"], np.float64)


def gradient(kernel: np.ndarray, penalty: float = 0.0) -> np.ndarray:
    error = (X @ kernel - Y) * MASK[:, None]
    return 2 * X.T @ error / MASK.sum() + 2 * penalty * kernel


@pytest.mark.parametrize("name", EVERY)
def test_the_gradient_has_the_scale_of_one_device(name):
    before, after = one_step(optax.sgd(1.0), EVERY[name]("mlp", None))
    np.testing.assert_allclose(before - after, gradient(before), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_the_penalty_counts_once(name):
    penalty = lambda params: 0.3 * jnp.sum(jnp.square(params["head"]["kernel"]))  # noqa: E731
    before, after = one_step(optax.sgd(1.0), EVERY[name]("mlp", None), penalty)
    np.testing.assert_allclose(before - after, gradient(before, 0.3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_clipping_sees_the_global_norm(name):
    kernel_only = optax.partition(
        {"k": optax.identity(), "b": optax.set_to_zero()}, {"head": {"kernel": "k", "bias": "b"}}
    )
    tx = optax.chain(kernel_only, optax.clip_by_global_norm(0.01), optax.sgd(1.0))
    before, after = one_step(tx, EVERY[name]("mlp", None))
    expected = gradient(before)
    assert np.linalg.norm(expected) > 0.1
    np.testing.assert_allclose(before - after, 0.01 * expected / np.linalg.norm(expected), rtol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_value_fn_has_the_gradient_of_the_objective(name):
    """What a line search follows, on every device: under pmap a plain psum would give each its own part."""

    def update(updates, state, params=None, *, value_fn, **extra):
        del updates, extra
        return jax.tree.map(jnp.negative, jax.grad(value_fn)(params)), state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    penalty = lambda params: 0.3 * jnp.sum(jnp.square(params["head"]["kernel"]))  # noqa: E731
    before, after = one_step(tx, EVERY[name]("mlp", None), penalty)
    np.testing.assert_allclose(before - after, gradient(before, 0.3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("tensor", "sequence", "fsdp_tensor")])
def test_float64_is_float64_throughout(name):
    with jax.enable_x64(True):
        task = core.from_functions(
            lambda key, x: jax.random.normal(key, (3, 1), x.dtype), lambda w, x: x @ w, losses.mse
        )
        batch = {"x": X, "y": Y, "mask": MASK}
        strategy, tx = EVERY[name]("mlp", None), optax.sgd(1.0)
        state = core.init_state(task, tx, batch, seed=1, strategy=strategy)
        before = np.asarray(state.params)
        state, _ = core.make_train_step(task, tx, strategy=strategy)(state, batch)
        after = np.asarray(state.params)
    assert before.dtype == after.dtype == np.float64
    np.testing.assert_allclose(before - after, gradient(before), rtol=1e-13)
