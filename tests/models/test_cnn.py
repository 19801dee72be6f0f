"""CNN: against flax's layers, with masked BatchNorm, dropout, and what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import models, rng, tree

X = np.random.default_rng(0).normal(size=(4, 12, 11, 2)).astype(np.float32)
SMALL = {"channels": (3, 4), "dense": (6,), "classes": 5}


class Flax(nn.Module):
    """The same network of flax's own layers; parameters by the same names."""

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate((3, 4)):
            x = nn.relu(nn.Conv(width, (3, 3), padding="VALID", name=f"conv_{i}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(6, name="dense_0")(x.reshape(x.shape[0], -1)))
        return nn.Dense(5, name="head")(x)


def test_values_and_gradients_are_those_of_flaxs_layers():
    variables = jax.jit(Flax().init)(jax.random.key(0), X)

    def run(model):
        return jax.jit(jax.value_and_grad(lambda v: jnp.sum(jnp.sin(model.apply(v, X)))))(variables)

    for a, b in zip(jax.tree.leaves(run(models.CNN(**SMALL))), jax.tree.leaves(run(Flax())), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


def test_the_gradient_goes_through_pooling_whatever_is_fused():
    """A fusion may compute anew, and another way, what a maximum was taken of."""
    model = models.CNN((4,), (8,), 3, batch_norm=True)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(512, 6, 6, 1)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    params = jax.tree.map(lambda p: p * draw.normal(1, 0.1, p.shape).astype(np.float32) + 0.01, variables["params"])

    def loss(p):
        y, _ = model.apply({**variables, "params": p}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y))

    for a, b in zip(jax.tree.leaves(jax.jit(jax.grad(loss))(params)), jax.tree.leaves(jax.grad(loss)(params))):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_the_default_is_the_articles_network():
    shapes = jax.eval_shape(models.CNN().init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    assert {path: leaf.shape for path, leaf in tree.leaves_by_path(shapes).items() if path.endswith("kernel")} == {
        "conv_0/kernel": (3, 3, 1, 32),
        "conv_1/kernel": (3, 3, 32, 64),
        "dense_0/kernel": (1600, 128),
        "head/kernel": (128, 10),
    }


def test_padding_enters_no_statistic_and_no_gradient():
    model = models.CNN(**SMALL, batch_norm=True)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    assert "bias" not in variables["params"]["conv_0"]

    @jax.jit
    def run(x, mask):
        def loss(params):
            y, state = model.apply({**variables, "params": params}, x, train=True, mask=mask, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y) * mask[:, None]), state

        return jax.grad(loss, has_aux=True)(variables["params"])

    padded = np.concatenate([X, 100 * np.ones_like(X[:2])])
    got, want = run(padded, np.array([1, 1, 1, 1, 0, 0.0])), run(X, np.ones(4))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


def test_dropout_acts_in_training_only_and_by_example():
    model = models.CNN(**SMALL, dropout=0.5)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    key = {"dropout": jax.random.key(1)}
    dropped = model.apply(variables, X, train=True, rngs=key)
    assert (dropped != model.apply(variables, X)).any()
    with rng.examples(jnp.array([2])):
        np.testing.assert_allclose(model.apply(variables, X[2:3], train=True, rngs=key), dropped[2:3], rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.CNN(channels=(0,)), r"channels=\(0,\)"),
        (lambda: models.CNN(dropout=-0.1), r"dropout=-0\.1"),
        (lambda: models.CNN().init(jax.random.key(0), X[..., 0]), r"x is float32\[4, 12, 11\]"),
        (lambda: models.CNN().init(jax.random.key(0), X[:, :7, :7]), "at least 10 pixels a side"),
    ],
)
def test_bad_settings_and_inputs_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
