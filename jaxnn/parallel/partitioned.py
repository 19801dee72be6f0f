"""Strategies that XLA partitions: parameters and activations are constrained, one program is written for all devices.

`fsdp` and `tensor` are this with different layouts; together they use a mesh of two axes.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxnn import sharding, tree
from jaxnn.parallel import layout
from jaxnn.parallel.replicate import AXIS
from jaxnn.parallel.sharded import Sharded
from jaxnn.typing import Array, Batch, ModelState, Params, PyTree, Sums

MODEL = "model"  # the mesh axis of tensor parallelism


def _read(mesh: jax.sharding.Mesh, used: P, kept: P) -> Callable[[Array], Array]:
    """A parameter kept as `kept`, laid out as `used`; its cotangent is added up as `used`, then cut as `kept`.

    Adding and cutting in two words keeps XLA from exchanging activations instead; where the backend can, it makes one
    reduce-scatter of them.
    """
    to = lambda x, spec: lax.with_sharding_constraint(x, NamedSharding(mesh, spec))  # noqa: E731

    @jax.custom_vjp
    def read(part: Array) -> Array:
        return to(part, used)

    read.defvjp(lambda part: (to(part, used), None), lambda _, g: (to(to(g, used), kept),))
    return read


@dataclasses.dataclass(frozen=True)
class Partitioned(Sharded):
    """A state and activations laid out over a mesh with the axes "data" and, where `rules` are given, "model".

    Attributes:
        rules: (pattern, spec) pairs, the first that matches a parameter counts; None leaves parameters whole along
            "model".
        sequence: Whether the residual stream's time axis is split over "model" between layers.
        fsdp: Whether parameters and moments are split over "data" too, and gathered where a layer reads them.
        where: What errors call it.
    """

    rules: tuple[tuple[str, P], ...] | None
    sequence: bool
    fsdp: bool
    where: str

    @property
    def shards(self) -> int:
        return self.mesh.shape[AXIS]

    def _used(self, params: Params) -> dict[str, P]:
        """By path, how each parameter is laid out where it is used."""
        if self.rules is None:
            return dict.fromkeys(tree.leaves_by_path(params), P())
        return layout.matched(params, dict(self.rules), self.mesh, self.where)

    def param_specs(self, params: Params) -> dict[str, P]:
        used = self._used(params)
        return layout.split_params(params, used, AXIS, self.shards, self.min_size) if self.fsdp else used

    @contextlib.contextmanager
    def _placing(self, params: Params) -> Iterator[None]:
        """While tracing inside, models constrain their activations, and read parameters from where they are kept."""
        axes: dict[str, str | tuple[str, ...] | None] = {"batch": AXIS}
        if self.rules is not None:
            axes |= dict.fromkeys(("heads", "mlp", "vocab"), MODEL)
            if self.sequence:
                axes["sequence"] = MODEL
        with contextlib.ExitStack() as stack:
            stack.enter_context(sharding.use(self.mesh, axes))
            if self.fsdp:
                used, kept = self._used(params), self.param_specs(params)
                ranks = {path: x.ndim for path, x in tree.leaves_by_path(params).items()}

                def whole(path: str, part: Array) -> Array:
                    # A layer of a stack lacks the axes that stack.
                    specs = (P(*sharding.padded(s[path], ranks[path])[ranks[path] - part.ndim :]) for s in (used, kept))
                    return _read(self.mesh, *specs)(part)

                stack.enter_context(sharding.reading(whole))
            yield

    def reduce(self, fn: Callable[..., Any], params: Params, model_state: ModelState, batch: Batch, key: Array) -> Any:
        with self._placing(params):
            return fn(params, model_state, batch, key)

    def gradients(
        self, grad_fn: Callable[..., Any], params: Params, model_state: ModelState, batch: Batch, key: Array
    ) -> tuple[PyTree, Sums, ModelState]:
        grads, sums, model_state = super().gradients(grad_fn, params, model_state, batch, key)
        specs = self.param_specs(params)
        keep = lambda path, g: lax.with_sharding_constraint(g, NamedSharding(self.mesh, specs[path]))  # noqa: E731
        return tree.map_by_path(keep, grads), sums, model_state

    def compile_map(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def mapped(params: Params, model_state: ModelState, batch: Batch) -> Any:
            with self._placing(params):
                return fn(params, model_state, self.place_batch(batch))

        return jax.jit(mapped, out_shardings=self.split())
