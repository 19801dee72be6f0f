"""Cautious updates: only where the direction agrees with the gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnn.optim.algorithms.adam import adam_core
from jaxnn.optim.compose import select
from jaxnn.optim.compose.rates import descending
from jaxnn.optim.compose.scaling import decay, full, scale_by_lr, times
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import Context, Transformation, apply_part
from jaxnn.optim.compose.wrapping import inner_of, wrap
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree


class CautiousState(NamedTuple):
    """The inner optimizer's state."""

    inner: PyTree


@registered(1e-2, "arXiv:2411.16085", make=lambda lr: stages(adam=cautious(adam_core()), lr=scale_by_lr(lr)))
@registered(
    1e-2,
    "arXiv:2510.12402",
    name="cautious_decay",
    make=lambda lr: stages(adam=adam_core(), decay=decay(0.1, cautious=True), lr=scale_by_lr(lr)),
)
def cautious(tx: optax.GradientTransformation) -> Transformation:
    """Any direction, where it agrees in sign with the gradient, scaled up for what is left out.

    u <- u m / max(mean(m), 1e-3),  m = (u g > 0), the mean over a layer's leaf;  m = (u g < 0) of a whole optimizer

    Around a core, decay is not masked: `stages(adam=cautious(adam_core()), decay=..., lr=...)`. Around a whole
    optimizer, it is.

    Args:
        tx: A core, or a whole optimizer. Which of the two optax's are is tried on a gradient; where that does not tell
            (`probe.descends`), they are taken for cores.

    Source:
        Liang et al. 2024, arXiv:2411.16085, Algorithm 1.
    """
    inner = inner_of("optim.cautious", tx)

    def init(params: Params) -> CautiousState:
        return CautiousState(inner.init(params))

    def update(
        grads: PyTree, state: CautiousState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, CautiousState]:
        updates, new = apply_part(inner, grads, state.inner, params, context or Context(), extra)

        sign = -1 if descending(inner, tried=True) else 1

        def kept(leaf: select.Leaf, u: Array, g: Array) -> Array:
            if not u.size:
                return u
            mask = ((sign * u * full(jnp.conj(g)).astype(u.dtype)).real > 0).astype(jnp.float32)
            share = jnp.mean(mask, tuple(range(leaf.role.stacked, u.ndim)), keepdims=True)
            return times(1 / jnp.maximum(share, 1e-3), u * mask.astype(u.dtype))

        return jax.tree.map(kept, select.leaves(updates), updates, grads), CautiousState(new)

    return wrap("cautious", inner, init, update, "inner")
