"""A population's members spread over devices: each device trains its share of them, and they never talk."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn.parallel.placing import place
from jaxnn.parallel.replicate import AXIS, Replicate, data_mesh
from jaxnn.typing import Array, Batch, ModelState, Params, PyTree, Strategy


@dataclasses.dataclass(frozen=True)
class Members(Replicate):
    """The state's leading axis, of members, split over the devices; every device reads the whole batch.

    Attributes:
        axes: A state's prefix: 0 where leaves have a leading axis of members, None where they are shared.
    """

    axes: Any

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
        # The report, [K, members], is read by the host: whole.
        return jax.jit(chunk, donate_argnums=0, out_shardings=(self._placed(), self.replicated))

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
    return Members(devices[0], data_mesh(devices), axes)
