"""Data parallelism by a manual region: parameters on every device, the batch split, gradients added by one all-
reduce."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from jaxnn.parallel.placing import batch_part, place, place_batch_rows
from jaxnn.parallel.single import Single
from jaxnn.typing import Array, Batch, ModelState, Params, PyTree

AXIS = "data"


def data_mesh(devices: tuple[jax.Device, ...]) -> Mesh:
    """A mesh of one axis, "data"."""
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def add_up(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn(...) -> (summed, state)` for a manual region: adds `summed` over the axis and averages floating `state`.

    Our BatchNorm's statistics are equal on every device already; a stranger's layer that keeps statistics a device
    apart gets their average.
    """

    def added(*arguments: Any) -> Any:
        return over_devices(*fn(*arguments))

    return added


def over_devices(summed: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
    """Inside a manual region: `summed` added over the axis and floating `state` averaged, in one all-reduce."""
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    share = 1 / jax.lax.axis_size(AXIS)
    parts = jax.tree.map(lambda x: x * jnp.asarray(share, x.dtype) if floating(x) else jnp.zeros((), x.dtype), state)
    summed, means = jax.lax.psum((summed, parts), AXIS)
    return summed, jax.tree.map(lambda mean, x: mean if floating(x) else x, means, state)


@dataclasses.dataclass(frozen=True)
class Replicate(Single):
    """Level 0 of data parallelism: everything but the batch on every device."""

    mesh: Mesh

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        return tuple(self.mesh.devices.flat)

    @functools.cached_property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())

    def split(self, axis: int = 0) -> NamedSharding:
        """The sharding of arrays whose `axis` is the example axis."""
        return NamedSharding(self.mesh, P(*(None,) * axis, AXIS))

    def put_state(self, state: PyTree) -> PyTree:
        return place(state, self.replicated)

    def put_batch(self, batch: PyTree, axis: int = 0) -> PyTree:
        return place(batch, self.split(axis), alias=True)

    def put_part(self, batch: PyTree) -> PyTree:
        return place_batch_rows(batch, self.split())

    @property
    def part(self) -> tuple[int, int]:
        return batch_part(self.split())

    def put_shared(self, arrays: PyTree) -> PyTree:
        return place(arrays, self.replicated, alias=True)

    def place_batch(self, batch: PyTree) -> PyTree:
        return jax.lax.with_sharding_constraint(batch, self.split())

    def reduce(self, fn: Callable[..., Any], params: Params, model_state: ModelState, batch: Batch, key: Array) -> Any:
        # check_vma=True would already add the gradient of replicated parameters over the axis, silently.
        region = jax.shard_map(
            add_up(fn), mesh=self.mesh, in_specs=(P(), P(), P(AXIS), P()), out_specs=P(), check_vma=False
        )
        return region(params, model_state, batch, key)

    def compile(self, chunk: Callable[..., Any]) -> Callable[..., Any]:
        whole = self.replicated
        return jax.jit(
            chunk, donate_argnums=0, in_shardings=(whole, whole, self.split(1), whole), out_shardings=(whole, whole)
        )

    def compile_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        whole = self.replicated
        return jax.jit(step, donate_argnums=0, in_shardings=(whole, self.split()), out_shardings=(whole, whole))

    def compile_map(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        # Parameters that another strategy has split are gathered here.
        region = jax.shard_map(fn, mesh=self.mesh, in_specs=(P(), P(), P(AXIS)), out_specs=P(AXIS), check_vma=False)
        return jax.jit(region, out_shardings=self.split())

    def put_rows(self, rows: np.ndarray) -> Any:
        return place(rows, self.split(1), alias=True)
