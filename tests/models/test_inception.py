"""Inception v3: the published size, the second head and its loss, and what it refuses; values in the oracle's tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import losses, metrics, models, tree

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}


def init(config, side):
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(lambda x: models.Inception(config).init(KEYS, x), x)


@pytest.mark.slow
def test_it_has_torchvisions_size_and_two_heads_in_training():
    config = models.InceptionConfig()
    variables = init(config, 299)
    assert tree.size(variables["params"]) == 27_161_264
    x = jax.ShapeDtypeStruct((2, 299, 299, 3), jnp.float32)

    def run(train):
        apply = lambda v, x: models.Inception(config).apply(  # noqa: E731
            v, x, train=train, rngs={"dropout": KEYS["dropout"]}, mutable=["batch_stats"]
        )
        return jax.eval_shape(apply, variables, x)[0]

    assert [y.shape for y in run(True)] == [(2, 1000), (2, 1000)]
    assert run(False).shape == (2, 1000)
    assert "AuxLogits" not in init(models.InceptionConfig(aux=False), 75)["params"]


def test_the_second_heads_loss_counts_in_part():
    first, second = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    y = np.array([0, 2, 1])
    both = models.inception.with_aux(losses.cross_entropy)
    one = losses.cross_entropy(first, y)
    np.testing.assert_allclose(both((first, second), y), one + 0.4 * losses.cross_entropy(second, y), rtol=1e-6)
    np.testing.assert_array_equal(both(first, y), one)
    np.testing.assert_array_equal(
        models.inception.with_aux(metrics.accuracy, 0)((first, second), y), metrics.accuracy(first, y)
    )


def test_bad_input_is_told():
    with pytest.raises(ValueError, match=r"at least 299 pixels"):
        init(models.InceptionConfig(), 224)
    with pytest.raises(ValueError, match=r"at least 75 pixels"):
        init(models.InceptionConfig(aux=False), 32)
    with pytest.raises(ValueError, match=r"classes=0"):
        models.InceptionConfig(classes=0)
