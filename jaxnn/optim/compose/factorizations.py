"""LAPACK on stacks of matrices: eigenvectors, QR, triangular systems, without the deadlock of some jaxlibs on CPU.

Before 0.11.2 jaxlib gives the matrices of a stack to XLA's threads, and the thread that has called it waits for them. A
program that calls it for as many stacks at once as there are threads (two shapes of a model, on two cores) leaves
nobody to do the work, and hangs. One matrix is done by the thread that asks. So there stacks are gone through in a
loop, also where `vmap` makes stacks of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.typing import Array

HANGS_BEFORE = (0, 11, 2)  # jaxlib/cpu/lapack_kernels.cc


def eigenvectors(x: Array) -> tuple[Array, Array]:
    """Eigenvalues [B, d], ascending, and eigenvectors [B, d, d] as columns, of symmetric [B, d, d]."""
    return _safe(lambda one: tuple(jnp.linalg.eigh(one)))(x)


def orthonormal(x: Array) -> Array:
    """Q of the QR factorization of square [B, d, d]."""
    return _safe(lambda one: jnp.linalg.qr(one)[0])(x)


def triangular_solve(a: Array, b: Array, *, left_side: bool, transpose_a: bool) -> Array:
    """X of A X = B, or of X A = B, for upper triangular A [B, d, d], or its transpose, and B [B, m, n]."""

    def one(a: Array, b: Array) -> Array:
        return jax.lax.linalg.triangular_solve(a, b, left_side=left_side, lower=False, transpose_a=transpose_a)

    return _safe(one)(a, b)


def _safe(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, which takes matrices or stacks of them, for stacks [B, ...]."""
    if jax.default_backend() != "cpu" or jax.__version_info__ >= HANGS_BEFORE:
        return fn

    @jax.custom_batching.custom_vmap
    def mapped(*stacks: Array) -> Any:
        return jax.lax.map(lambda matrices: fn(*matrices), stacks)

    @mapped.def_vmap
    def of_stacks(size: int, batched: list[bool], *stacks: Array) -> tuple[Any, Any]:
        wide = [x if is_stack else jnp.broadcast_to(x, (size, *x.shape)) for x, is_stack in zip(stacks, batched)]
        made = mapped(*(x.reshape(-1, *x.shape[2:]) for x in wide))
        made = jax.tree.map(lambda y: y.reshape(size, -1, *y.shape[1:]), made)
        return made, jax.tree.map(lambda _: True, made)

    return mapped
