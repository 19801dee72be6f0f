"""Programs evaluated by NumPy against the compiled ones: bits equal, float32 to the last digits, the rest refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import core, losses, models, optim, parallel, rng, tree
from jaxnn.core import host, init as core_init
from jaxnn.core.state import complete

RAW = np.array([3, 4_000_000_000], np.uint32)
KEY = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))


def both(make, *arguments):
    """By NumPy, and by the compiled program."""
    ours = host.evaluate(jax.make_jaxpr(make)(KEY, *arguments), RAW, *arguments)
    theirs = jax.jit(make)(rng.wrap(RAW), *arguments)
    return ours, [np.asarray(leaf) for leaf in jax.tree.leaves(theirs)]


@pytest.mark.parametrize("shape", [(), (1,), (7, 5), (3, 3, 1, 4), (40_000,)], ids=str)
def test_random_words_are_those_of_jax_bit_for_bit(shape):
    (ours,), (theirs,) = both(lambda key: jax.random.bits(jax.random.fold_in(key, 2**31 + 5), shape))
    assert ours.dtype == theirs.dtype == np.uint32
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("init", "digits"),
    [
        (nn.initializers.lecun_normal(), 1e-6),
        (nn.initializers.he_normal(), 1e-6),
        (nn.initializers.normal(0.02), 1e-6),
        (nn.initializers.truncated_normal(1.0), 1e-6),
        (nn.initializers.glorot_uniform(), 0),
        (nn.initializers.he_uniform(), 0),
        (nn.initializers.constant(1 / 3), 0),
    ],
)
def test_initialisers_agree_with_the_compiled_ones(init, digits):
    (ours,), (theirs,) = both(lambda key: init(key, (120, 70), jnp.float32))
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=digits * np.abs(theirs).max())
    assert np.abs(ours).max() > 0


def test_the_tails_of_the_normal_are_right():
    x = np.array([-1, -0.9999999, -0.9999, -0.5, 0, 1e-6, 0.3, 0.99, 0.99999, 1], np.float32)
    expected = np.asarray(jax.lax.erf_inv(x))
    np.testing.assert_allclose(host._erf_inv(x), expected, rtol=2e-6)


@pytest.mark.parametrize(
    "tx", [optax.adam(1e-3), optax.inject_hyperparams(optax.adamw)(1e-3), optax.ema(0.9), optim.adam(1e-3)]
)
def test_the_first_state_of_an_optimizer_is_the_compiled_one(tx):
    params = {"w": np.full((3, 2), 0.5, np.float32), "b": np.arange(4, dtype=np.float32)}
    jaxpr, shapes = jax.make_jaxpr(lambda p: core_init.strong(tx.init(p)), return_shape=True)(params)
    ours = jax.tree.unflatten(jax.tree.structure(shapes), host.evaluate(jaxpr, *jax.tree.leaves(params)))
    theirs = jax.jit(lambda p: core_init.strong(tx.init(p)))(params)
    assert list(tree.differences(ours, theirs)) == []
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda key: nn.initializers.orthogonal()(key, (4, 4), jnp.float32), "qr"),
        (lambda key: jax.random.bits(key, (4,), jnp.uint8), "bits"),
        (lambda key: jax.random.normal(key, (4,)).astype(jnp.bfloat16), "bfloat16"),
        (lambda key: jax.random.gumbel(key, (4,)), "log"),
    ],
)
def test_what_has_no_rule_is_left_to_the_compiler(make, part):
    with pytest.raises(host.Unknown, match=part):
        host.evaluate(jax.make_jaxpr(make)(KEY), RAW)


def test_a_small_model_begins_without_compiling(count_compiles):
    task = core.supervised(models.MLP((16, 4)), losses.mse)
    batch = complete({"x": np.ones((8, 6), np.float32), "y": np.ones((8, 4), np.float32)})
    with count_compiles() as seen:
        state = core.init_state(task, optax.adam(1e-3), batch, strategy=parallel.single())
    assert seen.compiles == []
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def test_host_and_compiler_give_one_model(monkeypatch):
    task = core.supervised(models.CNN((4, 4), (8,)), losses.cross_entropy)
    batch = complete({"x": np.ones((2, 12, 12, 1), np.float32), "y": np.ones(2, np.int32)})
    ours = core_init.init_variables(task, rng.seed_key(3), batch)[0]
    monkeypatch.setattr(core_init, "HOST_ELEMENTS", 0)
    theirs = core_init.init_variables(task, rng.seed_key(3), batch)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)
