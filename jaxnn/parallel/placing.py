"""Host values to arrays over devices and back, in one process or in many.

The functions take pytrees. Those that say so are collective: in a job of several processes all of them call it, in the
same order, or it waits for ever.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jaxnn.typing import PyTree


def process_count() -> int:
    """Processes of the job; 1 where there is no other."""
    # Not before a job is joined: the question would start the backend.
    return jax.process_count() if jax.distributed.is_initialized() else 1


def process_index() -> int:
    """This process's number among `process_count()`; number 0 writes files and talks."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def place(value: PyTree, sharding: Any, *, alias: bool = False) -> PyTree:
    """Arrays with `sharding` that hold `value`, in global view; collective where an array of several processes is
    given.

    Args:
        value: Pytree of NumPy arrays or arrays of this process, the same on every process; or of arrays over all. Also
            of what has a shape and a dtype and gives NumPy arrays by index: no more is asked of it than is placed here.
        sharding: One for all leaves, or a pytree of them.
        alias: Whether the result may share memory with `value`. Without it nothing that happens to the one (donation, a
            reused buffer) shows in the other.
    """
    if isinstance(sharding, Sharding):
        return jax.tree.map(lambda x: _placed(x, sharding, alias), value)
    return jax.tree.map(lambda x, s: _placed(x, s, alias), value, sharding)


def _placed(x: Any, sharding: Sharding, alias: bool) -> jax.Array:
    by_index = hasattr(x, "__array__") and not isinstance(x, jax.Array | np.ndarray | np.generic)
    if sharding.is_fully_addressable:
        if by_index:
            x = np.asarray(x)
        elif isinstance(x, np.ndarray) and not alias:
            x = x.copy()  # on CPU an aligned NumPy array is aliased whatever `may_alias` says (jax 0.10.2 and 0.12)
        return jax.device_put(x, sharding, may_alias=None if alias else False)
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x if alias and x.sharding == sharding else _copied(sharding)(x)
    host = x if by_index else _plain(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: np.array(host[index]))


@functools.lru_cache(maxsize=256)
def _copied(sharding: Sharding) -> Any:
    # A jit that gives its argument back forwards the very buffers: a donation of the one would delete the other.
    return jax.jit(jnp.copy, out_shardings=sharding)


def _plain(x: Any) -> np.ndarray:
    host = np.asarray(x)
    return host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)


def batch_part(sharding: Sharding, axis: int = 0) -> tuple[int, int]:
    """(index, count): which of how many equal contiguous slices of a batch this process has to read.

    (0, 1), all of it, where the rows that its devices hold are no such slice. Processes that share rows (a model split
    over them) have the same index.

    Args:
        sharding: Of the batch.
        axis: Its example axis.
    """
    if sharding.is_fully_addressable:
        return 0, 1
    devices = len(sharding.device_set)
    shape = (1,) * axis + (devices,)  # each device's share of this many rows tells its place
    rows = {
        row
        for index in sharding.addressable_devices_indices_map(shape).values()
        for row in range(*(index or (slice(None),) * (axis + 1))[axis].indices(devices))
    }
    first, size = min(rows), len(rows)
    if max(rows) - first + 1 != size or devices % size or first % size:
        return 0, 1
    return first // size, devices // size


def place_batch_rows(batch: PyTree, sharding: Sharding, axis: int = 0) -> PyTree:
    """Arrays in global view from the rows that each process read.

    Args:
        batch: Pytree of host arrays: the slice `batch_part(sharding, axis)` of the global batch along `axis`.
        sharding: Of the global batch.
        axis: The example axis.
    """
    if sharding.is_fully_addressable:
        return place(batch, sharding, alias=True)
    part, count = batch_part(sharding, axis)

    def global_view(x: Any) -> jax.Array:
        host = _plain(x)
        rows = host.shape[axis]
        shape = (*host.shape[:axis], rows * count, *host.shape[axis + 1 :])

        def of_device(index: Any) -> np.ndarray:
            start, stop, _ = index[axis].indices(rows * count)
            here = slice(start - part * rows, stop - part * rows)
            return np.array(host[(*index[:axis], here, *index[axis + 1 :])])

        return jax.make_array_from_callback(shape, sharding, of_device)

    return jax.tree.map(global_view, batch)


def fetch(value: PyTree) -> PyTree:
    """`value` as NumPy arrays, whole, on every process; collective where a leaf is split over processes.

    One split leaf at a time is on the devices whole.
    """

    def here(x: Any) -> bool:
        return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated

    for x in jax.tree.leaves(value):
        if isinstance(x, jax.Array) and here(x):
            x.copy_to_host_async()
    return jax.tree.map(lambda x: np.asarray(x) if here(x) else _gathered(x), value)


def _gathered(x: jax.Array) -> np.ndarray:
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
