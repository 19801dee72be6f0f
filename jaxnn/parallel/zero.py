"""ZeRO: data parallelism in which each device keeps its share of what data parallelism would keep everywhere.

Stage 1 splits the optimizer's state, stage 2 also the gradients, stage 3 also the parameters. Gradients are computed in
a manual region, which says exactly what is sent: the gradients are reduce-scattered and the new parameters gathered
(stage 3: where a layer uses them, forward and backward). The update is computed on global views, so that an optimizer
sees whole matrices and global norms.

Source:
    Rajbhandari et al. 2020, arXiv:1910.02054.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxnn import sharding, tree
from jaxnn.parallel import layout
from jaxnn.parallel.replicate import AXIS, Replicate, over_devices
from jaxnn.parallel.sharded import Sharded
from jaxnn.typing import Array, Batch, ModelState, Params, PyTree, Sums


def _axis(spec: P) -> int | None:
    """The axis that is split over the devices."""
    return next((i for i, entry in enumerate(spec) if AXIS in sharding.axes_of(entry)), None)


@dataclasses.dataclass(frozen=True)
class Zero(Sharded):
    """ZeRO over all devices of a mesh of one axis.

    Attributes:
        stage: 1, 2 or 3.
    """

    stage: int

    def moment_specs(self, params: Params) -> dict[str, P]:
        return layout.split_params(params, {}, AXIS, self.shards, self.min_size)

    def param_specs(self, params: Params) -> dict[str, P]:
        return self.moment_specs(params) if self.stage == 3 else dict.fromkeys(tree.leaves_by_path(params), P())

    def _in_specs(self, params: Params) -> PyTree:
        specs = self.param_specs(params)
        return tree.map_by_path(lambda path, _: specs[path], params)

    def _reading(self, params: Params) -> contextlib.AbstractContextManager[None]:
        """Parts that are gathered where they are read; their cotangents are reduce-scattered by transposition."""
        if self.stage < 3:
            return contextlib.nullcontext()
        specs, ranks = self.param_specs(params), {p: x.ndim for p, x in tree.leaves_by_path(params).items()}

        def gather(path: str, part: Array) -> Array:
            axis = _axis(specs[path])
            if axis is None:
                return part
            return lax.all_gather(part, AXIS, axis=axis - (ranks[path] - part.ndim), tiled=True)  # a layer of a stack

        return sharding.reading(gather)

    def _region(self, fn: Callable[..., Any], params: Params, out_specs: Any) -> Callable[..., Any]:
        # check_vma=True would already add the gradient of replicated parameters over the axis, silently.
        return jax.shard_map(
            fn,
            mesh=self.mesh,
            in_specs=(self._in_specs(params), P(), P(AXIS), P()),
            out_specs=out_specs,
            check_vma=False,
        )

    def reduce(self, fn: Callable[..., Any], params: Params, model_state: ModelState, batch: Batch, key: Array) -> Any:
        def local(*arguments: Any) -> Any:
            with self._reading(params):
                return over_devices(*fn(*arguments))

        return self._region(local, params, P())(params, model_state, batch, key)

    def gradients(
        self, grad_fn: Callable[..., Any], params: Params, model_state: ModelState, batch: Batch, key: Array
    ) -> tuple[PyTree, Sums, ModelState]:
        axes = {path: _axis(spec) if self.stage > 1 else None for path, spec in self.moment_specs(params).items()}

        def local(*arguments: Any) -> Any:
            with self._reading(params):
                grads, sums, model_state = grad_fn(*arguments)
            flat = tree.leaves_by_path(grads)
            alike = {path: g for path, g in flat.items() if axes[path] is None}
            (alike, sums), model_state = over_devices((alike, sums), model_state)
            if self.stage == 2:
                scattered = {
                    path: lax.psum_scatter(g, AXIS, scatter_dimension=axes[path], tiled=True)
                    for path, g in flat.items()
                    if path not in alike
                }
                flat |= scattered
            return tree.map_by_path(lambda path, _: (flat | alike)[path], grads), sums, model_state

        specs = {path: P() if axis is None else self.moment_specs(params)[path] for path, axis in axes.items()}
        grad_specs = tree.map_by_path(lambda path, _: specs[path], params)
        return self._region(local, params, (grad_specs, P(), P()))(params, model_state, batch, key)

    def settle(self, state: Any) -> Any:
        if self.stage < 3:
            # The parameters' share first, then the whole: or XLA may gather the gradients instead, and update in full.
            specs = self.moment_specs(state.params)
            part = lambda path, x: lax.with_sharding_constraint(x, NamedSharding(self.mesh, specs[path]))  # noqa: E731
            state = state._replace(params=tree.map_by_path(part, state.params))
        return super().settle(state)

    def compile_map(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        if self.stage < 3:
            return Replicate.compile_map(self, fn)

        def mapped(params: Params, model_state: ModelState, batch: Batch) -> Any:
            def local(params: Params, model_state: ModelState, batch: Batch) -> Any:
                with self._reading(whole):
                    return fn(params, model_state, batch)

            whole = params
            specs = (self._in_specs(params), P(), P(AXIS))
            region = jax.shard_map(local, mesh=self.mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False)
            return region(params, model_state, batch)

        return jax.jit(mapped, out_shardings=self.split())
