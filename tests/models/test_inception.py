"""Inception v3: the published size, the second head and its loss, and what it refuses; values in the oracle's tests."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import losses, metrics, models, tree
from jaxnn.models import inception

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}


def init(config, side):
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(lambda x: models.Inception(config).init(KEYS, x), x)


def sizes(config, side):
    """Pixels a side of what goes into each module."""
    seen = {}

    def watch(next_call, args, kwargs, context):
        if isinstance(context.module, inception.Mixed):
            seen[context.module.name] = args[0].shape[1]
        return next_call(*args, **kwargs)

    with nn.intercept_methods(watch):
        variables = init(config, side)
    return seen, {path: leaf.shape for path, leaf in tree.leaves_by_path(variables).items()}


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_small_stem_keeps_every_pixel_and_has_the_same_parameters(whole, monkeypatch):
    if not whole:
        halved, kept = [inception.Branch(pool="max")], [inception.Branch([inception.Unit("branch1x1", 2)])]
        thin = {name: halved if name in ("Mixed_6a", "Mixed_7a") else kept for name in inception.MIXED}
        monkeypatch.setattr(inception, "MIXED", thin)
    config = functools.partial(models.InceptionConfig, classes=10, aux=False)
    published, theirs = sizes(config(), 75)
    small, ours = sizes(config(stem="small"), 32)
    assert ours == theirs
    shown = ("Mixed_5b", "Mixed_6b", "Mixed_7b")
    assert [published[name] for name in shown] == [7, 3, 1]
    assert [small[name] for name in shown] == [32, 15, 7]
    assert sizes(config(stem="small"), 7)[0]["Mixed_7b"] == 1


class Stem(nn.Module):
    """The small stem and a head, of flax's own layers."""

    @nn.compact
    def __call__(self, x):
        for unit in (*inception.FIRST, *inception.SECOND):
            x = nn.Conv(unit.features, unit.kernel, use_bias=False, name=f"{unit.name}_conv")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name=f"{unit.name}_bn")(x))
        return nn.Dense(3, name="fc")(x.mean((1, 2)))


def test_the_small_stem_is_that_of_flaxs_layers_with_gradients(monkeypatch):
    monkeypatch.setattr(inception, "MIXED", {})
    ours = models.Inception(models.InceptionConfig(classes=3, aux=False, stem="small", form="lax"))
    x = np.random.default_rng(1).standard_normal((2, 7, 8, 3)).astype(np.float32)
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: ours.init(KEYS, x))
    variables = jax.tree.map(lambda leaf: draw.uniform(-0.2, 1, leaf.shape).astype(np.float32) ** 2, shapes)
    flat = {
        kind: {
            **{f"{name}_{part}": parts[part] for name, parts in units.items() if name != "fc" for part in parts},
            **{name: parts for name, parts in units.items() if name == "fc"},
        }
        for kind, units in variables.items()
    }
    first = variables["params"]["Conv2d_1a_3x3"]["conv"]["kernel"]

    def run(apply, variables, set_first):
        def total(kernel, x):
            y = apply(set_first(variables, kernel), x)
            return jnp.sum(y * y), y

        return jax.jit(jax.grad(total, (0, 1), has_aux=True))(first, x)

    def ours_with(v, kernel):
        params = {**v["params"], "Conv2d_1a_3x3": {**v["params"]["Conv2d_1a_3x3"], "conv": {"kernel": kernel}}}
        return {**v, "params": params}

    def theirs_with(v, kernel):
        return {**v, "params": {**v["params"], "Conv2d_1a_3x3_conv": {"kernel": kernel}}}

    found, wanted = run(ours.apply, variables, ours_with), run(Stem().apply, flat, theirs_with)
    for value, kept in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.abs(kept).max() > 0
        np.testing.assert_allclose(value, kept, rtol=1e-4, atol=1e-4 * np.abs(kept).max())


@pytest.mark.slow
def test_the_smallest_images_leave_a_pixel_and_a_gradient_to_the_first_kernel():
    model = models.Inception(models.InceptionConfig(classes=3, aux=False, stem="small", dropout=0.0, form="lax"))
    x = np.random.default_rng(1).standard_normal((4, 7, 7, 3)).astype(np.float32)
    variables = jax.jit(model.init)(KEYS, x)

    def total(params):
        y, _ = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return losses.cross_entropy(y, np.array([0, 1, 2, 0])).sum()

    grads = jax.jit(jax.grad(total))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert np.abs(grads["Conv2d_1a_3x3"]["conv"]["kernel"]).max() > 1e-6


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


class Reference(nn.Module):
    """Branches side by side, of flax's own layers."""

    branches: tuple

    @nn.compact
    def __call__(self, x):
        def unit(y, u):
            pad = [(n, n) for n in u.pad]
            y = nn.Conv(u.features, u.kernel, (u.stride, u.stride), pad, use_bias=False, name=f"{u.name}_conv")(y)
            return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name=f"{u.name}_bn")(y))

        found = []
        for branch in self.branches:
            y = x if branch.pool is None else nn.avg_pool(x, (3, 3), padding=((1, 1), (1, 1)))
            for u in branch.units:
                y = unit(y, u)
            found += [unit(y, u) for u in branch.ends] or [y]
        return jnp.concatenate(found, axis=-1)


def test_a_module_is_that_of_flaxs_layers_with_gradients():
    """Rows and columns, branches that part at their ends, and the mean; the whole net's values: the oracle."""
    thin = lambda branch: branch._replace(  # noqa: E731
        units=[u._replace(features=3 + i) for i, u in enumerate(branch.units)],
        ends=[u._replace(features=4 + i) for i, u in enumerate(branch.ends)],
    )
    branches = tuple(thin(branch) for branch in (inception._c(8)[1], inception._e()[1], inception._e()[3]))
    x = np.random.default_rng(1).standard_normal((2, 5, 6, 3)).astype(np.float32)
    ours = inception.Mixed(models.InceptionConfig(form="lax"), branches, False)
    drawn = jax.eval_shape(lambda: ours.init(KEYS, x, None))
    draw = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: draw.uniform(0.2, 1.2, leaf.shape).astype(np.float32), drawn)
    flat = {
        kind: {f"{name}_{part}": leaves for name, parts in units.items() for part, leaves in parts.items()}
        for kind, units in variables.items()
    }

    def with_gradients(apply, variables):
        params = variables.pop("params")
        size = lambda p, x: (y := apply({"params": p, **variables}, x), (y * y).sum())[::-1]  # noqa: E731
        return jax.jit(jax.value_and_grad(size, (0, 1), has_aux=True))(params, x)

    (_, found), (grads, dx) = with_gradients(lambda v, x: ours.apply(v, x, None), dict(variables))
    (_, wanted), (theirs, dx_wanted) = with_gradients(Reference(branches).apply, dict(flat))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    np.testing.assert_allclose(dx, dx_wanted, rtol=1e-4, atol=1e-4 * np.abs(dx_wanted).max())
    for name, parts in grads.items():
        for part, leaves in parts.items():
            for leaf, value in leaves.items():
                kept = theirs[f"{name}_{part}"][leaf]
                np.testing.assert_allclose(value, kept, rtol=1e-4, atol=1e-4 * np.abs(kept).max())


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
    with pytest.raises(ValueError, match=r"at least 299 .*aux=False \(from 75\), or write stem='small' \(from 35\)\."):
        init(models.InceptionConfig(), 224)
    with pytest.raises(ValueError, match=r"at least 75 .*images, or write stem='small' \(from 7\)\."):
        init(models.InceptionConfig(aux=False), 32)
    with pytest.raises(ValueError, match=r"at least 35 .*images, or write aux=False \(from 7\)\."):
        init(models.InceptionConfig(stem="small"), 32)
    with pytest.raises(ValueError, match=r"at least 7 .*Resize the images\."):
        init(models.InceptionConfig(stem="small", aux=False), 6)
    with pytest.raises(ValueError, match=r"stem='tiny'\. Tried: 'imagenet', 'small'"):
        models.InceptionConfig(stem="tiny")
    with pytest.raises(ValueError, match=r"classes=0"):
        models.InceptionConfig(classes=0)
