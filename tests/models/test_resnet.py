"""ResNet: published sizes, masks in every BatchNorm, both forms and sizes of images, roles, and what it refuses.

Values and gradients are held against torchvision in `test_vision_oracle`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import core, losses, models, train, tree

CONFIG = models.ResNetConfig(stages=(1, 1), widths=(4, 8), classes=3, channels=2, form="lax")
X = np.random.default_rng(0).normal(size=(4, 7, 6, 2)).astype(np.float32)


def shapes(config, side=32):
    key = jax.eval_shape(lambda: jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, side, side, config.channels), jnp.float32)
    return jax.eval_shape(models.ResNet(config).init, key, x)


# Parameters of torchvision's models, and of He et al.'s table 6 (0.27 M for 20 layers, 1.7 M for 110).
@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("resnet20", 269_722)],
)
def test_presets_have_the_published_sizes(name, count):
    assert tree.size(shapes(models.ResNetConfig.preset(name))["params"]) == count


def test_padding_enters_no_statistic_and_no_gradient():
    model = models.ResNet(CONFIG)
    variables = jax.jit(model.init)(jax.random.key(0), X)

    @jax.jit
    def run(x, mask):
        def loss(params):
            y, state = model.apply({**variables, "params": params}, x, train=True, mask=mask, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y) * mask[:, None]), state

        return jax.grad(loss, has_aux=True)(variables["params"])

    padded = np.concatenate([X, 100 * np.ones_like(X[:2])])
    whole, masked = run(X, np.ones(4, np.float32)), run(padded, np.array([1, 1, 1, 1, 0, 0], np.float32))
    for path, leaf in tree.leaves_by_path(masked).items():
        np.testing.assert_allclose(leaf, tree.leaves_by_path(whole)[path], atol=2e-5, rtol=1e-4, err_msg=path)


def test_both_forms_give_the_same_at_odd_sizes():
    variables = jax.jit(models.ResNet(CONFIG).init)(jax.random.key(0), X)
    given, other = (
        jax.jit(models.ResNet(dataclasses.replace(CONFIG, form=form)).apply)(variables, X)
        for form in ("lax", "patches")
    )
    np.testing.assert_allclose(given, other, atol=1e-5)


def test_roles_are_declared():
    task = train.supervised(models.ResNet(models.ResNetConfig.preset("resnet18")), losses.cross_entropy)
    batch = {"x": np.zeros((1, 32, 32, 3), np.float32), "y": np.zeros(1, np.int32)}
    found = {path: role.name for path, role in core.roles(task, batch).items()}
    assert found["layer2_0/conv1/kernel"] == found["layer2_0/downsample/kernel"] == "conv"
    assert found["head/kernel"] == "head"
    assert {found[p] for p in found if p.endswith(("scale", "bias"))} == {"vector"}


def test_bad_input_is_told():
    with pytest.raises(ValueError, match=r"models\.ResNetConfig\.preset: 'resnet19' is unknown.*resnet18"):
        models.ResNetConfig.preset("resnet19")
    with pytest.raises(ValueError, match="one width a stage"):
        models.ResNetConfig(stages=(1, 1))
    with pytest.raises(ValueError, match=r"shortcut='projection'"):
        models.ResNetConfig(block="bottleneck")
    with pytest.raises(ValueError, match=r"stem='tiny'"):
        models.ResNetConfig(stem="tiny")
    with pytest.raises(ValueError, match=r"stages=\(\)"):
        models.ResNetConfig(stages=(), widths=())
    init = lambda x: jax.eval_shape(models.ResNet(CONFIG).init, jax.random.key(0), x)  # noqa: E731
    with pytest.raises(ValueError, match=r"models\.ResNet: x is float32\[4, 7, 6, 3\], 3 channels.*channels=3"):
        init(jnp.zeros((4, 7, 6, 3)))
    with pytest.raises(ValueError, match=r"channels lie first"):
        init(jnp.zeros((4, 2, 7, 6)))
    with pytest.raises(ValueError, match=r"\[B, H, W, 2\]"):
        init(jnp.zeros((7, 6, 2)))
