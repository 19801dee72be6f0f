"""VGG: published sizes, small images, and what it refuses; values in `test_vision_oracle`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import models, tree


def init(config, shape):
    return jax.eval_shape(models.VGG(config).init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize(("name", "count"), [("vgg11", 132_863_336), ("vgg16", 138_357_544), ("vgg19_bn", 143_678_248)])
def test_presets_have_torchvisions_sizes(name, count):
    assert tree.size(init(models.VGGConfig.preset(name), (1, 224, 224, 3))["params"]) == count


def test_small_images_go_through_the_small_head():
    config = models.VGGConfig.preset("vgg11", head="small", classes=10, channels=1, widths=(16,) * 5, form="lax")
    variables = jax.jit(models.VGG(config).init)(jax.random.key(0), jnp.zeros((2, 28, 28, 1)))
    x = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
    logits = models.VGG(config).apply(variables, x)
    assert logits.shape == (2, 10)
    assert np.ptp(logits, axis=0).max() > 0


def test_dropout_is_drawn_in_training_only():
    config = models.VGGConfig((1,), (2,), norm=False, head="imagenet", dense=8, classes=3, channels=1, form="lax")
    model, x = models.VGG(config), jnp.ones((2, 14, 14, 1))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    run = jax.jit(lambda key: model.apply(variables, x, train=True, rngs={"dropout": key}))
    assert np.abs(run(jax.random.key(1)) - run(jax.random.key(2))).max() > 0
    np.testing.assert_array_equal(model.apply(variables, x), model.apply(variables, x))


def test_bad_input_is_told():
    with pytest.raises(ValueError, match=r"models\.VGG: x is float32\[1, 28, 28, 3\].*at least 32 .*head='small'"):
        init(models.VGGConfig.preset("vgg11"), (1, 28, 28, 3))
    with pytest.raises(ValueError, match=r"channels=1 in the config"):
        init(models.VGGConfig.preset("vgg11"), (1, 64, 64, 1))
    with pytest.raises(ValueError, match=r"'vgg12' is unknown"):
        models.VGGConfig.preset("vgg12")
    with pytest.raises(ValueError, match=r"dropout=1"):
        models.VGGConfig(dropout=1)
    with pytest.raises(ValueError, match=r"one width a stage"):
        models.VGGConfig(stages=(1, 1))
