"""Where a value stopped being finite: the first layer in forward order, in programs with loops, scans and devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import core, data, losses, models, parallel, train

X = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
Y = X[:, :1] * 2
EACH = train.Log(every=4, progress=False)


class Poison(nn.Module):
    """Learns one number, and divides by zero once it has passed `limit`."""

    limit: float

    @nn.compact
    def __call__(self, x):
        moved = self.param("moved", nn.initializers.zeros, ())
        return x + moved / jnp.where(jnp.abs(moved) > self.limit, 0.0, 1.0)


class Alphabet(nn.Module):
    """Layers whose forward order is not the alphabet's: z, m, a."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(models.layers.Dense(8, name="z")(x))
        x = Poison(0.01, name="m")(x)
        return models.layers.Dense(1, name="a")(x)


def fit(module, tx=None, steps=40, **settings):
    task = train.supervised(module, losses.mse)
    source = data.Arrays(X, Y)
    return train.fit(task, tx or optax.sgd(0.1), source, batch_size=8, steps=steps, log=EACH, debug=True, **settings)


@pytest.mark.parametrize("dispatch", [None, train.Dispatch(resident=False)], ids=["resident", "streaming"])
def test_the_first_layer_in_forward_order_is_named(dispatch):
    run = fit(Alphabet(), dispatch=dispatch)
    row = run.history[-1]
    assert row["nonfinite_name"] == "outputs/m"
    assert run.stopped == f"outputs/m is not finite at step {row['nonfinite_step']}"
    # It was the first such step: the run up to the one before has moved by no more than the limit.
    before = fit(Alphabet(), steps=row["nonfinite_step"] - 1)
    assert before.stopped is None
    assert abs(float(before.state.params["m"]["moved"])) > 0.01


def test_over_devices_the_same_layer_and_step():
    alone, over = fit(Alphabet()), fit(Alphabet(), strategy=parallel.replicate(jax.devices()[:2]))
    assert over.stopped == alone.stopped


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return Poison(0.01, name="poison")(models.layers.Dense(5, name="dense")(x)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        blocks = nn.scan(nn.remat(Body), variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = blocks(name="blocks")(x, None)
        return models.layers.Dense(1, name="a")(x)


def test_what_a_scan_gives_is_what_the_next_layer_takes():
    assert fit(Scanned()).history[-1]["nonfinite_name"] == "inputs/a"


class Between(nn.Module):
    """The model itself takes the logarithm of a layer's outputs."""

    @nn.compact
    def __call__(self, x):
        return models.layers.Dense(1, name="last")(jnp.log(models.layers.Dense(4, name="first")(x)))


def test_what_happens_between_layers_is_told_from_what_happens_in_one():
    assert fit(Between()).stopped == "inputs/last is not finite at step 1"


def test_data_that_is_not_finite_is_the_models_inputs():
    x = X.copy()
    x[3, 2] = np.nan
    source, task = data.Arrays(x, Y, allow_nonfinite=True), train.supervised(Alphabet(), losses.mse)
    run = train.fit(task, optax.sgd(0.0), source, batch_size=1, steps=16, log=EACH, debug=True)
    assert run.history[-1]["nonfinite_name"] == "inputs/Alphabet"


class Root(nn.Module):
    """Finite outputs of which the gradient is not: the root's at 0."""

    @nn.compact
    def __call__(self, x):
        x = models.layers.Dense(4, name="a")(x)
        x = models.layers.Dense(4, kernel_init=nn.initializers.zeros, name="z")(x)
        return jnp.sqrt(jnp.abs(models.layers.Dense(1, kernel_init=nn.initializers.zeros, name="m")(x)))


def test_of_gradients_the_last_layers_is_named():
    """Backwards it is the first: `m` comes after `a` and `z`, whose gradients are not finite for its sake."""
    run = fit(Root())
    assert run.history[-1]["nonfinite_step"] == 1
    assert run.history[-1]["nonfinite_name"].startswith("grads/m/")


class Masked(nn.Module):
    """-inf on purpose, and nothing wrong."""

    @nn.compact
    def __call__(self, x):
        scores = Hide(name="hide")(models.layers.Dense(4, name="score")(x))
        return jnp.sum(jax.nn.softmax(scores), axis=-1, keepdims=True) * models.layers.Dense(1, name="head")(x)


class Hide(nn.Module):
    @nn.compact
    def __call__(self, scores):
        return jnp.where(jnp.arange(4) < 2, scores, -jnp.inf)


def test_infinities_that_harm_nothing_stop_nothing():
    run = fit(Masked())
    assert run.stopped is None
    assert "nonfinite_step" not in run.history[-1]


def test_the_counts_are_no_reported_values_and_change_no_other():
    task, batch = train.supervised(Alphabet(), losses.mse), {"x": X, "y": Y}
    results = []
    for debug in (False, True):
        state = core.init_state(task, optax.sgd(0.1), batch, strategy=parallel.single())
        step = core.make_train_step(task, optax.sgd(0.1), strategy=parallel.single(), debug=debug)
        results.append(step(state, batch))
    (plain, plain_sums), (watched, sums) = results
    jax.tree.map(np.testing.assert_array_equal, plain, watched)
    assert {name for name in sums if not name.startswith("nonfinite/")} == set(plain_sums)
    layers = [name.partition(":")[2] for name in sorted(sums) if name.startswith("nonfinite/layers/")]
    inner = [f"{what}/{layer}" for layer in "zma" for what in ("inputs", "outputs")]
    assert layers == ["inputs/Alphabet", *inner, "outputs/Alphabet"]
