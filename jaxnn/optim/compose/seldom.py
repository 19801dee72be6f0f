"""What is done in some updates only stays a branch under `vmap`: a population makes new bases when a member is due."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.typing import Array, PyTree


@jax.custom_batching.custom_vmap
def of_any(due: Array) -> Array:
    """`due`; under `vmap` whether it holds of any member, one bool for all of them."""
    return due


@of_any.def_vmap
def _of_any(size: int, batched: list[bool], due: Array) -> tuple[Array, bool]:
    del size, batched
    return of_any(jnp.any(due, 0)), False


def where_due(due: Array, make: Callable[[PyTree], PyTree], old: PyTree) -> PyTree:
    """`make(old)` where `due`, else `old`.

    A `lax.cond` of a predicate that `vmap` has mapped is a select, of which both sides are computed in every update.
    Here the branch is taken where any member is due, and only in it do members select.

    Args:
        due: Bool scalar.
        make: `make(old) -> new`, of the same structure, shapes and dtypes.
        old: A tree of arrays.
    """

    def made(old: PyTree) -> PyTree:
        return jax.tree.map(lambda new, x: jnp.where(due, new, x), make(old), old)

    def kept(old: Any) -> Any:
        return old

    return jax.lax.cond(of_any(due), made, kept, old)
