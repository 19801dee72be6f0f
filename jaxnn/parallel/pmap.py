"""Data parallelism by `jax.pmap`, for those who have pmap code; in maintenance mode in JAX, kept honest here by
tests."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxnn.parallel.placing import fetch, place, place_batch_rows
from jaxnn.parallel.replicate import AXIS, Replicate, add_up
from jaxnn.typing import Array, Batch, ModelState, Params, PyTree


# Inside pmap the transpose of a psum is a psum, so that each device would get its own part of a gradient, times N: a
# line search's loop then ends at another step on every device, and its all-reduce waits for ever.
@jax.custom_vjp
def _enter(params: Params) -> Params:
    """`params`, whose cotangents are added over the devices."""
    return params


@jax.custom_vjp
def _leave(values: PyTree) -> PyTree:
    """`values` added over the devices; a cotangent goes back to each as it is."""
    return jax.lax.psum(values, AXIS)


_enter.defvjp(lambda params: (params, None), lambda _, cotangents: (jax.lax.psum(cotangents, AXIS),))
_leave.defvjp(lambda values: (jax.lax.psum(values, AXIS), None), lambda _, cotangents: (cotangents,))


@dataclasses.dataclass(frozen=True)
class Pmap(Replicate):
    """`jax.pmap` over the whole chunk: every device runs the update too; gradients are added inside.

    Batches carry a device axis: [N, B / N, ...]. The state goes in and comes out whole (`in_axes=None`), replicated.
    """

    def _spread(self, x: Any, axis: int = 0, n: int | None = None) -> Any:
        n = len(self.devices) if n is None else n
        return x.reshape(*x.shape[:axis], n, x.shape[axis] // n, *x.shape[axis + 1 :])

    def put_batch(self, batch: PyTree, axis: int = 0) -> PyTree:
        return place(jax.tree.map(lambda x: self._spread(np.asarray(x), axis), batch), self.split(axis), alias=True)

    def put_part(self, batch: PyTree) -> PyTree:
        n = len(self.devices) // self.part[1]
        return place_batch_rows(jax.tree.map(lambda x: self._spread(np.asarray(x), 0, n), batch), self.split())

    def place_batch(self, batch: PyTree) -> PyTree:
        return batch

    def reduce(self, fn: Callable[..., Any], params: Params, model_state: ModelState, batch: Batch, key: Array) -> Any:
        return add_up(fn)(params, model_state, batch, key)

    def add_values(
        self, fn: Callable[..., Any], params: Params, model_state: ModelState, batch: Batch, key: Array
    ) -> Any:
        return _leave(fn(_enter(params), model_state, batch, key))

    def traceable(self, step: Callable[..., Any]) -> Callable[..., Any]:
        mapped = self._pmap(step, (None, 0), None)
        return lambda state, batch: mapped(state, jax.tree.map(self._spread, batch))

    def _pmap(
        self, fn: Callable[..., Any], in_axes: Any, out_axes: Any, donate: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        return jax.pmap(
            fn, axis_name=AXIS, in_axes=in_axes, out_axes=out_axes, donate_argnums=donate, devices=self.devices
        )

    def compile(self, chunk: Callable[..., Any]) -> Callable[..., Any]:
        return self._pmap(chunk, (None, None, 1, None), None, donate=(0,))

    def compile_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        return self._pmap(step, (None, 0), None, donate=(0,))

    def compile_sums(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def total(params: Params, model_state: ModelState, batch: Batch, key: Array) -> Any:
            return jax.lax.psum(fn(params, model_state, batch, key), AXIS)

        return self._pmap(total, (None, None, 0, None), None)

    def compile_map(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        mapped = self._pmap(fn, (None, None, 0), 0)

        def whole(params: Params, model_state: ModelState, batch: Batch) -> PyTree:
            outputs = mapped(params, model_state, batch)
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), fetch(outputs))

        return whole

    def put_rows(self, rows: np.ndarray) -> Any:
        return place(self._spread(rows, 1), self.split(1), alias=True)
