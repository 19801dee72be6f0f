"""Ghost BatchNorm: each group is the plain layer on its examples, the same on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxnn.models.batch_norm import BatchNorm

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(16, 3, 4)).astype(np.float32) * 2 + 1
MASK = np.ones(16, np.float32)
MASK[[0, 5, 8, 9, 10, 11]] = 0  # of 4 groups the third is empty, others are ragged
VARIABLES = {
    "params": {"scale": np.linspace(0.5, 2, 4, dtype=np.float32), "bias": np.linspace(-1, 1, 4, dtype=np.float32)},
    "batch_stats": {"mean": np.arange(4, dtype=np.float32), "var": np.arange(1, 5, dtype=np.float32)},
}


def run(layer, x, mask):
    """Outputs, new statistics, and the gradient by scale and bias summed over the examples that count, and by x."""

    def f(params, x):
        variables = {**VARIABLES, "params": params}
        y, new = layer.apply(variables, x, mask, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y) * mask[:, None, None]), (y, new["batch_stats"])

    (_, (y, stats)), (dparams, dx) = jax.value_and_grad(f, (0, 1), has_aux=True)(VARIABLES["params"], x)
    return y, stats, dparams, dx


def close(got, want, atol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5), got, want)


def test_each_group_is_the_layer_on_its_examples():
    y, stats, dparams, dx = run(BatchNorm(groups=4), X, MASK)
    parts = [run(BatchNorm(), X[i : i + 4], MASK[i : i + 4]) for i in range(0, 16, 4)]
    close(y, np.concatenate([part[0] for part in parts]))
    close(dx, np.concatenate([part[3] for part in parts]))
    close(dparams, jax.tree.map(lambda *g: sum(g), *(part[2] for part in parts)))
    counted = [part[1] for i, part in enumerate(parts) if i != 2]  # the empty group has no statistics
    close(stats, jax.tree.map(lambda *s: np.mean(s, axis=0), *counted))
    whole = run(BatchNorm(), X, MASK)
    assert np.max(np.abs(np.asarray(y - whole[0]))) > 0.1  # groups do differ


def test_no_example_keeps_the_statistics():
    y, stats, _, dx = run(BatchNorm(groups=4), X, np.zeros(16, np.float32))
    close(stats, VARIABLES["batch_stats"], atol=0)
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_the_same_on_several_devices(devices, devices8):
    def local(x, mask):
        y, stats, dparams, dx = run(BatchNorm(groups=4), x, mask)
        return y, stats, jax.lax.psum(dparams, "data"), dx

    rows, whole = PartitionSpec("data"), PartitionSpec()
    mesh = Mesh(np.array(devices8[:devices]), ("data",))
    specs = (rows, whole, whole, rows)
    region = jax.shard_map(local, mesh=mesh, in_specs=(rows, rows), out_specs=specs, check_vma=False)
    close(jax.jit(region)(X, MASK), run(BatchNorm(groups=4), X, MASK))


def test_what_does_not_divide_is_refused(devices8):
    with pytest.raises(ValueError, match=r"16 examples do not divide over groups=3.*multiple of 3"):
        run(BatchNorm(groups=3), X, MASK)
    with pytest.raises(ValueError, match=r"layers\.BatchNorm: groups=0"):
        BatchNorm(groups=0)
    rows = PartitionSpec("data")
    mesh = Mesh(np.array(devices8[:8]), ("data",))
    region = jax.shard_map(
        lambda x, mask: run(BatchNorm(groups=4), x, mask)[0], mesh=mesh, in_specs=(rows, rows), out_specs=rows
    )
    with pytest.raises(ValueError, match=r"groups=4 do not divide over 8 devices.*a multiple of 8"):
        jax.eval_shape(region, X, MASK)
