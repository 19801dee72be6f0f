"""Layers against flax.linen, lax and float64 NumPy, with gradients; masked BatchNorm against the unpadded batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxnn import tree
from jaxnn.models import layers

KEY = jax.random.key(0)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(a, b, tolerance: float = 1e-5) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(y).max())))


def test_every_parameter_declares_its_role(monkeypatch):
    seen = {}
    param = nn.Module.param

    def spy(self, name, init, *args, **kwargs):
        seen[f"{type(self).__name__}/{name}"] = init.role
        return param(self, name, init, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "param", spy)
    x, image = normal(2, 4), normal(2, 5, 5, 3)
    for module, value in [
        (layers.Dense(3), x),
        (layers.Embed(7, 3), np.array([1])),
        (layers.LayerNorm(), x),
        (layers.RMSNorm(), x),
        (layers.BatchNorm(), x),
        (layers.Conv(2), image),
    ]:
        module.init(KEY, value)
    assert {k: r.name for k, r in seen.items()} == {
        "Dense/kernel": "matrix",
        "Dense/bias": "vector",
        "Embed/embedding": "embedding",
        "LayerNorm/scale": "vector",
        "LayerNorm/bias": "vector",
        "RMSNorm/scale": "vector",
        "BatchNorm/scale": "vector",
        "BatchNorm/bias": "vector",
        "Conv/kernel": "conv",
        "Conv/bias": "vector",
    }
    assert layers.declare(nn.initializers.ones, "matrix", 1).role == tree.Role("matrix", 1)
    with pytest.raises(ValueError, match="role 'weight' is unknown"):
        layers.declare(nn.initializers.ones, "weight")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (layers.Dense(3), nn.Dense(3)),
        (layers.Dense(3, use_bias=False), nn.Dense(3, use_bias=False)),
        (layers.LayerNorm(), nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)),
        (layers.RMSNorm(), nn.RMSNorm(epsilon=1e-6)),
        (layers.Conv(3, strides=2), nn.Conv(3, (3, 3), strides=2)),
    ],
)
def test_layers_are_flaxs_with_gradients(ours, theirs):
    x = normal(2, 6, 5, 4) * 3 + 1
    params = jax.tree.map(lambda p: p + 0.1 * normal(*p.shape, seed=1), theirs.init(KEY, x))
    close(ours.init(KEY, x), theirs.init(KEY, x))

    def outputs(module):
        return jax.value_and_grad(lambda p, x: jnp.sum(jnp.sin(module.apply(p, x))), (0, 1))(params, x)

    close(ours.apply(params, x), theirs.apply(params, x))
    close(outputs(ours), outputs(theirs))


def test_embed_reads_rows_and_attends_to_them():
    embed = layers.Embed(5, 4)
    params = embed.init(KEY, np.array([0]))
    table = params["params"]["embedding"]
    np.testing.assert_array_equal(embed.apply(params, np.array([[3, 0]])), table[np.array([[3, 0]])])
    x = normal(2, 4)
    close(embed.apply(params, x, method="attend"), x @ table.T)
    for wrong in (5, -1):
        assert np.isnan(jax.jit(embed.apply)(params, np.array([wrong]))).all()
        with pytest.raises(ValueError, match=f"are {wrong} to {wrong}"):
            embed.apply(params, np.array([wrong]))
    # A number of rows that 8 bits do not hold.
    assert np.isnan(jax.jit(lambda i: layers.rows_of(jnp.ones((300, 1)), i, "", ""))(np.array([-1], np.int8))).all()
    with pytest.raises(TypeError, match=r"tokens are float32\[2, 4\]"):
        embed.apply(params, x)


def test_norms_of_narrow_activations_take_float32_statistics():
    x = jnp.asarray(normal(4, 512) + 100, jnp.bfloat16)
    want = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32).apply(
        {"params": {"scale": np.ones(512), "bias": np.zeros(512)}}, x
    )
    norm = layers.LayerNorm()
    got = norm.apply(norm.init(KEY, x), x)
    assert got.dtype == jnp.bfloat16
    close(got.astype(jnp.float32), want, 1e-2)


class TestBatchNorm:
    x = normal(6, 3, 4, 5) * 2 + 3

    def run(self, module, x, *args, **kwargs):
        """Outputs, new statistics and gradients with respect to parameters and inputs."""
        params = {"scale": normal(5, seed=1), "bias": normal(5, seed=2)}
        stats = {"mean": normal(5, seed=3), "var": abs(normal(5, seed=4))}

        def f(params, x):
            y, new = module.apply({"params": params, "batch_stats": stats}, x, *args, **kwargs, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y) * (args[0][:, None, None, None] if args else 1)), (y, new)

        (_, (y, new)), grads = jax.value_and_grad(f, (0, 1), has_aux=True)(params, x)
        return y, new["batch_stats"], grads

    def test_full_mask_equals_flax(self):
        want = self.run(nn.BatchNorm(use_running_average=False, momentum=0.9, use_fast_variance=False), self.x)
        close(self.run(layers.BatchNorm(), self.x, np.ones(6), train=True), want)
        close(self.run(layers.BatchNorm(), self.x, train=True), want)

    def test_evaluation_equals_flax(self):
        want = self.run(nn.BatchNorm(use_running_average=True, momentum=0.9), self.x)
        close(self.run(layers.BatchNorm(), self.x), want)

    def test_masked_rows_are_as_if_absent(self):
        mask = np.array([1, 0, 1, 1, 0, 1], np.float32)
        x = np.where(mask[:, None, None, None] == 0, 1e6, self.x).astype(np.float32)
        y, stats, (dparams, dx) = self.run(layers.BatchNorm(), x, mask, train=True)
        kept = mask == 1
        want_y, want_stats, (want_dparams, want_dx) = self.run(layers.BatchNorm(), self.x[kept], train=True)
        close((y[kept], stats, dparams, dx[kept]), (want_y, want_stats, want_dparams, want_dx))
        assert (np.asarray(dx)[~kept] == 0).all()

    def test_nothing_counted_keeps_the_statistics_and_stays_finite(self):
        y, stats, grads = self.run(layers.BatchNorm(), self.x, np.zeros(6, np.float32), train=True)
        np.testing.assert_array_equal(stats["mean"], normal(5, seed=3))
        np.testing.assert_array_equal(stats["var"], abs(normal(5, seed=4)))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, grads)))

    def test_a_large_mean_leaves_the_variance_its_digits(self):
        x = (self.x + 5000).astype(np.float32)
        _, stats, _ = self.run(layers.BatchNorm(momentum=0.0), x, train=True)
        close(stats["var"], x.astype(np.float64).var((0, 1, 2)), 1e-4)

    def test_statistics_span_the_devices_of_a_manual_region(self, devices8):
        mask = np.array([1, 0, 1, 1, 0, 0, 1, 1], np.float32)
        x = normal(8, 5) + 2
        variables = {
            "params": {"scale": normal(5, seed=1), "bias": normal(5, seed=2)},
            "batch_stats": {"mean": normal(5, seed=3), "var": abs(normal(5, seed=4))},
        }

        def f(x, mask):
            return layers.BatchNorm().apply(variables, x, mask, train=True, mutable=["batch_stats"])

        def grads(x, mask):
            return jax.grad(lambda x: jnp.sum(jnp.sin(f(x, mask)[0]) * mask[:, None]))(x)

        rows = PartitionSpec("data")
        mesh = Mesh(np.array(devices8[:4]), ("data",))
        sharded = [
            jax.jit(jax.shard_map(g, mesh=mesh, in_specs=(rows, rows), out_specs=specs, check_vma=False))
            for g, specs in ((f, (rows, PartitionSpec())), (grads, rows))
        ]
        close(sharded[0](x, mask), f(x, mask))
        close(sharded[1](x, mask), grads(x, mask))

    def test_a_mask_of_another_shape_is_refused(self):
        with pytest.raises(ValueError, match=r"mask float64\[3\]|mask float32\[3\]"):
            self.run(layers.BatchNorm(), self.x, jnp.ones(3), train=True)


@pytest.mark.parametrize("pool", [layers.max_pool, layers.avg_pool])
@pytest.mark.parametrize(
    ("size", "window", "strides"),
    [((6, 6), 2, None), ((7, 5), 2, None), ((7, 8), (3, 2), None), ((7, 7), 3, 2), ((7, 7), 2, 3), ((4, 5), 1, None)],
)
def test_pooling_forms_agree_with_gradients(pool, size, window, strides):
    x = normal(2, *size, 3)

    def run(form):
        def f(x):
            y = pool(x, window, strides, form)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.value_and_grad(f, has_aux=True))(x)

    close(run("patches"), run("lax"))


@pytest.mark.parametrize(("window", "strides"), [(2, None), (3, 2)])
def test_max_pool_keeps_nan_and_gives_a_tie_to_the_first(window, strides):
    x = np.zeros((1, 6, 6, 2), np.float32)
    x[0, 2, 3, 0] = np.nan

    def run(form):
        y, back = jax.vjp(lambda x: layers.max_pool(x, window, strides, form), x)
        return y, back(jnp.ones_like(y))[0][..., 1]

    got, want = run("patches"), run("lax")
    assert np.isnan(got[0]).sum() in (1, 2)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: layers.max_pool(x[0], 2), r"max_pool: x is float32\[4, 4, 3\].*Write x\[\.\.\., None\]"),
        (lambda x: layers.avg_pool(x, 5), r"window \(5, 5\) exceeds"),
        (lambda x: layers.max_pool(x, 2, form="fast"), "form='fast'"),
        (lambda x: layers.convolve(x, jnp.zeros((5, 5, 3, 1)), padding="VALID"), r"window \(5, 5\) exceeds"),
        (lambda x: layers.convolve(x, jnp.zeros((3, 3, 3, 1)), padding="same"), "padding='same'"),
        (lambda x: layers.Conv(2).init(KEY, x[0]), r"Conv: x is float32\[4, 4, 3\]"),
    ],
)
def test_what_is_no_image_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((2, 4, 4, 3)))
