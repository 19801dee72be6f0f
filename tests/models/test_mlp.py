"""MLP: the formula, its parameters' names, dropout, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import models, rng, tree

X = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)


def test_it_is_the_formula_on_flattened_examples():
    model = models.MLP((5, 4, 2), activation=jnp.tanh)
    params = jax.jit(model.init)(jax.random.key(0), X)["params"]
    shapes = {path: leaf.shape for path, leaf in tree.leaves_by_path(params).items()}
    assert shapes == {
        "hidden_0/kernel": (6, 5),
        "hidden_0/bias": (5,),
        "hidden_1/kernel": (5, 4),
        "hidden_1/bias": (4,),
        "head/kernel": (4, 2),
        "head/bias": (2,),
    }
    h = X.reshape(6, 6).astype(np.float64)
    for name in ("hidden_0", "hidden_1"):
        h = np.tanh(h @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"]))
    want = h @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"])
    np.testing.assert_allclose(model.apply({"params": params}, X), want, atol=1e-5)
    narrow = model.clone(matmul_dtype=jnp.bfloat16)
    np.testing.assert_allclose(narrow.apply({"params": params}, X), want, atol=5e-2)


def test_dropout_acts_in_training_only_by_example_and_by_layer():
    model = models.MLP((64, 64, 1), dropout=0.5)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    key = {"dropout": jax.random.key(1)}
    plain = models.MLP((64, 64, 1)).apply(variables, X)
    np.testing.assert_array_equal(model.apply(variables, X), plain)
    dropped = model.apply(variables, X, train=True, rngs=key)
    assert np.abs(dropped - plain).min() > 0
    with rng.examples(jnp.array([3, 5])):
        np.testing.assert_allclose(
            model.apply(variables, X[[3, 5]], train=True, rngs=key), dropped[jnp.array([3, 5])], rtol=1e-5
        )


def test_layers_drop_different_elements():
    model = models.MLP((64, 64, 64), activation=jnp.ones_like, dropout=0.5)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    eye = jax.tree.map(lambda p: jnp.eye(*p.shape) if p.ndim == 2 else jnp.zeros(p.shape), variables)
    last = model.apply(eye, X, train=True, rngs={"dropout": jax.random.key(1)})
    first = models.MLP((64, 64), activation=jnp.ones_like, dropout=0.5).apply(
        {"params": {k: v for k, v in eye["params"].items() if k != "hidden_1"}},
        X,
        train=True,
        rngs={"dropout": jax.random.key(1)},
    )
    assert set(np.unique(last)) == set(np.unique(first)) == {0.0, 2.0}
    assert (first != last).any()


def test_a_linear_model_has_a_head_only():
    params = models.MLP((1,)).init(jax.random.key(0), X)["params"]
    assert list(params) == ["head"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.MLP(()), r"features=\(\)"),
        (lambda: models.MLP((4, 0)), r"features=\(4, 0\)"),
        (lambda: models.MLP((4, 1), dropout=1.0), r"dropout=1\.0"),
    ],
)
def test_bad_settings_are_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()
