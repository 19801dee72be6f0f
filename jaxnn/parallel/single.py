"""One device."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from jaxnn import rng
from jaxnn.parallel import placing
from jaxnn.typing import Array, Batch, ModelState, Params, PyTree, Sums


@dataclasses.dataclass(frozen=True)
class Single:
    """The whole batch on one device; also the base that the other strategies spread out.

    `reduce` is the one thing that differs: how a function of examples is added up over devices.
    """

    device: jax.Device

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        return (self.device,)

    @property
    def shards(self) -> int:
        """Into how many parts a batch is split."""
        return len(self.devices)

    def put_state(self, state: PyTree) -> PyTree:
        """A copy of `state` on the device."""
        return placing.place(state, SingleDeviceSharding(self.device))

    def put_batch(self, batch: PyTree, axis: int = 0) -> PyTree:
        """The host arrays `batch` on the device."""
        del axis
        return jax.device_put(batch, self.device)

    @property
    def part(self) -> tuple[int, int]:
        """(index, count): which of how many slices of a batch this process reads."""
        return 0, 1

    def put_part(self, batch: PyTree) -> PyTree:
        """The host arrays `batch`, this process's part of the global batch, on the devices in global view."""
        return self.put_batch(batch)

    def put_shared(self, arrays: PyTree) -> PyTree:
        """The host arrays on the device."""
        return jax.device_put(arrays, self.device)

    def place_batch(self, batch: PyTree) -> PyTree:
        """Inside a trace: the batch laid out over devices."""
        return batch

    def reduce(self, fn: Callable[..., Any], params: Params, model_state: ModelState, batch: Batch, key: Array) -> Any:
        """`fn(params, model_state, batch, key) -> (summed, state)`: `summed` added over devices, `state` made equal."""
        return fn(params, model_state, batch, key)

    def add_values(
        self, fn: Callable[..., Any], params: Params, model_state: ModelState, batch: Batch, key: Array
    ) -> Any:
        """`fn(params, model_state, batch, key) -> summed`, added over devices; differentiable by `params`."""
        return self.reduce(lambda *arguments: (fn(*arguments), {}), params, model_state, batch, key)[0]

    def gradients(
        self, grad_fn: Callable[..., Any], params: Params, model_state: ModelState, batch: Batch, key: Array
    ) -> tuple[PyTree, Sums, ModelState]:
        """`grad_fn`'s gradients, sums and model state, added over devices: as global views."""

        def summed(params: Params, model_state: ModelState, batch: Batch, key: Array) -> Any:
            grads, sums, model_state = grad_fn(params, model_state, batch, key)
            return (grads, sums), model_state

        (grads, sums), model_state = self.reduce(summed, params, model_state, batch, key)
        return grads, sums, model_state

    def settle(self, state: Any) -> Any:
        """Inside a trace: the state that a step gives, laid out as `put_state` does."""
        return state

    def make_step(
        self, grad_fn: Callable[..., Any], update_fn: Callable[..., Any], value_fn: Callable[..., Any]
    ) -> Callable[..., Any]:
        """The traceable step: gradients and sums reduced over devices, the update on global views."""

        def objective(params: Params, model_state: ModelState, batch: Batch, key: Array) -> Any:
            return value_fn(params, model_state, batch, key)["loss"]

        def step(state: Any, batch: Batch) -> tuple[Any, Sums]:
            key = rng.step_key(state.key, state.data_step)
            batch = self.place_batch(batch)
            grads, sums, model_state = self.gradients(grad_fn, state.params, state.model_state, batch, key)

            def value(params: Params, aux: Sums | None = None) -> Array:
                del aux  # line searches refuse an extra argument that the function does not take
                loss = self.add_values(objective, params, state.model_state, batch, key)
                weight = loss.weight.astype(loss.sum.dtype)
                return loss.sum / jax.numpy.maximum(weight, jax.numpy.finfo(weight.dtype).tiny)

            state, sums = update_fn(state, grads, sums, model_state, value)
            return self.settle(state), sums

        return step

    def traceable(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """`step` in a form that `jax.eval_shape` can trace on global batch shapes."""
        return step

    def compile(self, chunk: Callable[..., Any]) -> Callable[..., Any]:
        """Jits `chunk(state, shared, rows, k)`; donates the state."""
        return jax.jit(chunk, donate_argnums=0)

    def compile_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Jits `step(state, batch)`; donates the state."""
        return jax.jit(step, donate_argnums=0)

    def compile_sums(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Jits `fn(params, model_state, batch, key) -> sums`, added over devices."""

        def total(params: Params, model_state: ModelState, batch: Batch, key: Array) -> Any:
            return self.add_values(fn, params, model_state, self.place_batch(batch), key)

        return jax.jit(total)

    def compile_map(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Jits `fn(params, model_state, batch) -> outputs`; every output leaf has the example axis first."""
        return jax.jit(fn)

    def put_rows(self, rows: np.ndarray) -> Any:
        """Example ids [K, B] for a chunk."""
        return rows
