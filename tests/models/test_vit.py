"""ViT: published sizes, both ways to pool, dropout by example, and what it refuses; values in `test_vision_oracle`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import models, rng, tree

TINY = {"image": 8, "patch": 4, "layers": 1, "heads": 2, "width": 8, "classes": 3, "channels": 1}
X = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "count"), [("vit_tiny", 5_717_416), ("vit_small", 22_050_664), ("vit_base", 86_567_656)]
)
def test_presets_have_the_published_sizes(name, count):
    config = models.ViTConfig.preset(name)
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    assert tree.size(jax.eval_shape(models.ViT(config).init, jax.random.key(0), x)["params"]) == count


def filled(model):
    """Variables whose head is not 0, as it begins."""
    params = jax.jit(model.init)(jax.random.key(0), X)["params"]
    draw = np.random.default_rng(1).standard_normal
    return {"params": {**params, "head": jax.tree.map(lambda p: draw(p.shape).astype(np.float32), params["head"])}}


def test_the_mean_over_patches_does_not_know_their_order_but_by_position():
    model = models.ViT(models.ViTConfig(**TINY, pool="mean"))
    variables = filled(model)
    assert "class_token" not in variables["params"]
    rolled = np.roll(X, 4, axis=2)
    apply = jax.jit(model.apply)
    assert np.abs(apply(variables, X) - apply(variables, rolled)).max() > 1e-6
    params = {**variables["params"], "position_embed": jnp.zeros((4, 8))}
    np.testing.assert_allclose(apply({"params": params}, X), apply({"params": params}, rolled), atol=1e-5)


def test_dropout_is_the_examples_own():
    model = models.ViT(models.ViTConfig(**TINY, dropout=0.5))
    variables = filled(model)

    @jax.jit
    def run(x, index):
        with rng.examples(index):
            return model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})

    whole = run(X, jnp.array([5, 6, 7]))
    np.testing.assert_allclose(run(X[::-1].copy(), jnp.array([7, 6, 5])), whole[::-1], atol=1e-6)
    assert np.abs(whole - model.apply(variables, X)).max() > 1e-3


def test_bad_input_is_told():
    with pytest.raises(ValueError, match=r"patch=5 does not divide image=8.*\[1, 2, 4, 8\]"):
        models.ViTConfig(**{**TINY, "patch": 5})
    with pytest.raises(ValueError, match=r"heads=3 does not divide width=8"):
        models.ViTConfig(**{**TINY, "heads": 3})
    with pytest.raises(ValueError, match=r"pool='max'"):
        models.ViTConfig(**TINY, pool="max")
    model = models.ViT(models.ViTConfig(**TINY))
    with pytest.raises(ValueError, match=r"positions over 8x8 pixels.*data\.resize"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 9, 9, 1)))
    with pytest.raises(ValueError, match="no image"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((0, 8, 8, 1)))
    with pytest.raises(ValueError, match=r"3 channels"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 8, 8, 3)))
