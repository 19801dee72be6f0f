"""A population's members spread over devices: each device trains its share of them, and they never talk.

On CPU a device trains them in groups, one group after another through all steps of a dispatch: what 16 members of a
small network hold stays in a core's cache, and their arrays stay below the size from which XLA splits each operation
over threads and waits for these. 64 members of the articles' regression network took 0.6 of the CPU time so, with
`train.population.vmapped`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxnn.parallel.placing import place
from jaxnn.parallel.replicate import AXIS, Replicate, data_mesh
from jaxnn.typing import Array, Batch, ModelState, Params, PyTree, Strategy

GROUP, FEWEST = 16, 6  # members that train together on CPU: at most, and at least for groups to be worth it


@dataclasses.dataclass(frozen=True)
class Members(Replicate):
    """The state's leading axis, of members, split over the devices; every device reads the whole batch.

    Attributes:
        axes: A state's prefix: 0 where leaves have a leading axis of members, None where they are shared.
        group: How many members of a device train together; a divisor of its share.
        groups: Groups of a device, trained one after another.
    """

    axes: Any
    group: int
    groups: int

    def _placed(self) -> PyTree:
        """The sharding of a state, as a prefix."""
        split = NamedSharding(self.mesh, P(AXIS))
        return jax.tree.map(lambda a: self.replicated if a is None else split, self.axes, is_leaf=lambda a: a is None)

    def put_state(self, state: PyTree) -> PyTree:
        shardings = self._placed()
        if jax.tree.structure(state) == jax.tree.structure(shardings) or not hasattr(state, "_fields"):
            return place(state, self.replicated)
        return type(state)(*(place(part, sharding) for part, sharding in zip(state, shardings, strict=True)))

    def put_batch(self, batch: PyTree, axis: int = 0) -> PyTree:
        del axis
        return place(batch, self.replicated, alias=True)

    def put_part(self, batch: PyTree) -> PyTree:
        return self.put_batch(batch)

    @property
    def part(self) -> tuple[int, int]:
        return 0, 1

    def put_rows(self, rows: np.ndarray) -> Any:
        return place(rows, self.replicated, alias=True)

    def place_batch(self, batch: PyTree) -> PyTree:
        return batch

    def reduce(self, fn: Callable[..., Any], params: Params, model_state: ModelState, batch: Batch, key: Array) -> Any:
        return fn(params, model_state, batch, key)

    def compile(self, chunk: Callable[..., Any]) -> Callable[..., Any]:
        """Jits `chunk(state, shared, rows, k)` of a group's members, for all of them; donates the state."""
        specs = jax.tree.map(lambda a: P() if a is None else P(AXIS), self.axes, is_leaf=lambda a: a is None)
        own = jax.shard_map(
            self._in_groups(chunk),
            mesh=self.mesh,
            in_specs=(specs, P(), P(), P()),
            out_specs=(specs, P(None, AXIS)),
            check_vma=False,
        )
        # The report, [K, members], is read by the host: whole.
        return jax.jit(own, donate_argnums=0, out_shardings=(self._placed(), self.replicated))

    def _in_groups(self, chunk: Callable[..., Any]) -> Callable[..., Any]:
        """`chunk` of one device's members from that of a group."""
        if self.groups == 1:
            return chunk

        def all_groups(state: Any, shared: PyTree, rows: Array, k: Array) -> tuple[Any, PyTree]:
            def one(held: Any, i: Array) -> tuple[Any, PyTree]:
                cut = lambda x: jax.lax.dynamic_slice_in_dim(x, i * self.group, self.group)  # noqa: E731
                paste = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, i * self.group, 0)  # noqa: E731
                # What is shared begins anew with every group: each is at the same data step.
                parts = [
                    every if axis is None else jax.tree.map(cut, part)
                    for part, every, axis in zip(held, state, self.axes, strict=True)
                ]
                new, report = chunk(type(state)(*parts), shared, rows, k)
                merged = [
                    part if axis is None else jax.tree.map(paste, before, part)
                    for before, part, axis in zip(held, new, self.axes, strict=True)
                ]
                return type(state)(*merged), report

            state, reports = jax.lax.scan(one, state, jnp.arange(self.groups))
            return state, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1), reports)

        return all_groups

    def of_group(self, sums: PyTree) -> PyTree:
        """Shapes of what a group reports, from those of all members."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.group, *x.shape[1:]), x.dtype), sums)

    def compile_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(step, donate_argnums=0, out_shardings=(self._placed(), self.replicated))


def members(strategy: Strategy, count: int, axes: Any) -> Members:
    """The members of a population over the devices of a strategy.

    Raises:
        ValueError: If they do not divide.
    """
    devices = strategy.devices
    if count % len(devices):
        near = max(1, count // len(devices)) * len(devices)
        raise ValueError(
            f"parallel.members: {count} members do not divide over {len(devices)} devices. Use a multiple: {near}, say."
        )
    share = count // len(devices)
    group = max(size for size in range(1, min(GROUP, share) + 1) if share % size == 0)
    if devices[0].platform != "cpu" or group < FEWEST:
        group = share
    return Members(devices[0], data_mesh(devices), axes, group, share // group)
