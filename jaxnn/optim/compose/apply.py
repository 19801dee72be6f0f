"""Adding updates to parameters."""

import jax

from jaxnn.optim.compose.scaling import full
from jaxnn.typing import Array, PyTree


def apply_updates(params: PyTree, updates: PyTree) -> PyTree:
    """The parameters after an update: `p + u`, added in float32 at least and given the parameter's dtype.

    Unlike `optax.apply_updates` it takes float32 updates of bfloat16 parameters under strict dtype promotion.

    Args:
        params: Parameters.
        updates: A tree like them.
    """

    def one(p: Array, u: Array) -> Array:
        wide = full(p)
        return (wide + u.astype(wide.dtype)).astype(p.dtype)

    return jax.tree.map(one, params, updates)
