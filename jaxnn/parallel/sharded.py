"""What the strategies share that keep a state in parts: placing it, keeping it placed, saying where each leaf lies."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxnn.parallel import layout
from jaxnn.parallel.placing import place
from jaxnn.parallel.replicate import Replicate
from jaxnn.typing import Params, PyTree


@dataclasses.dataclass(frozen=True)
class Sharded(Replicate):
    """A state laid out over a mesh, leaf by leaf.

    The layout is a pure function of shapes and of the roles that are declared where it is asked for (`tree.declaring`),
    so that placing a state and tracing a step agree.

    Attributes:
        min_size: Elements below which a leaf stays whole along the data axis.
    """

    min_size: int

    def param_specs(self, params: Params) -> dict[str, P]:
        """By path, how each parameter is split."""
        raise NotImplementedError

    def moment_specs(self, params: Params) -> dict[str, P]:
        """By path, how each parameter's gradient is, and what the optimizer keeps of it."""
        return self.param_specs(params)

    def state_specs(self, state: Any) -> Any:
        """A state of `PartitionSpec`s, from a `core.State` or its shapes."""
        params = state.params
        return layout.state_specs(state, self.param_specs(params), self.moment_specs(params), self.mesh, self.min_size)

    def put_state(self, state: PyTree) -> PyTree:
        if not hasattr(state, "opt_state"):  # what evaluation needs of a state
            return super().put_state(state)
        return place(state, layout.shardings(self.mesh, self.state_specs(state)))

    def settle(self, state: Any) -> Any:
        return lax.with_sharding_constraint(state, layout.shardings(self.mesh, self.state_specs(state)))

    # What is given lies where put_state, put_rows and put_shared have put it; jit takes that as it is.

    def compile(self, chunk: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(chunk, donate_argnums=0, out_shardings=(None, self.replicated))

    def compile_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(step, donate_argnums=0, out_shardings=(None, self.replicated))
