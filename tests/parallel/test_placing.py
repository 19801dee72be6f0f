import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P, SingleDeviceSharding

from jaxnn import parallel


@pytest.fixture
def mesh(devices8):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=devices8)


def aligned(n):
    """An array that XLA:CPU would take as it is: its buffers start at multiples of 64 bytes."""
    raw = np.zeros(4 * n + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + 4 * n].view(np.float32)


def test_a_placed_array_shares_no_memory_with_its_value(mesh):
    values = aligned(4096).reshape(64, 64)
    values[:] = np.arange(4096).reshape(64, 64)
    expected = values.copy()
    one = SingleDeviceSharding(jax.devices()[0])
    for sharding in (NamedSharding(mesh, P("data")), NamedSharding(mesh, P()), one):
        placed = parallel.place({"a": values}, sharding)["a"]
        assert placed.sharding == sharding
        values[:] = -1
        np.testing.assert_array_equal(parallel.fetch(placed), expected)
        values[:] = expected
        again = parallel.place(placed, sharding)
        jax.jit(lambda x: x + 1, donate_argnums=0)(again).block_until_ready()
        np.testing.assert_array_equal(parallel.fetch(placed), expected)


def test_a_tree_of_shardings_is_followed_leaf_by_leaf(mesh):
    shardings = {"a": NamedSharding(mesh, P("model")), "b": NamedSharding(mesh, P())}
    placed = parallel.place({"a": np.arange(4.0), "b": np.int32(3)}, shardings)
    assert {name: x.sharding for name, x in placed.items()} == shardings
    assert placed["a"].dtype == jnp.float32


def test_one_process_reads_the_whole_batch(mesh):
    sharding = NamedSharding(mesh, P(None, "data"))
    assert parallel.batch_part(sharding, 1) == (0, 1)
    rows = np.arange(16).reshape(2, 8)
    placed = parallel.place_batch_rows({"x": rows}, sharding, 1)["x"]
    assert placed.sharding == sharding
    np.testing.assert_array_equal(parallel.fetch(placed), rows)


def test_fetch_gives_host_arrays_of_every_kind(mesh):
    split = jax.device_put(np.arange(8.0), NamedSharding(mesh, P(("data", "model"))))
    found = parallel.fetch({"split": split, "host": np.ones(2), "number": 3})
    assert all(isinstance(x, np.ndarray) for x in found.values())
    np.testing.assert_array_equal(found["split"], np.arange(8))
