"""Matrix products with narrow operands and float32 sums, forward and backward.

bfloat16 operands in products are the one place where narrow arithmetic pays on CPU: elementwise bfloat16 is slower
there than float32. The forms below are the ones that XLA:CPU was measured to run, and to run fast.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnn import sharding
from jaxnn.typing import Array

_operands: contextvars.ContextVar[tuple[Any, list[str]] | None] = contextvars.ContextVar("jaxnn_operands", default=None)


@contextlib.contextmanager
def operands(dtype: Any) -> Iterator[list[str]]:
    """While tracing inside, products that are given no dtype of their own cast their operands to `dtype`.

    What it gives holds an entry a product, those with a dtype of their own among them.
    """
    found: list[str] = []
    token = _operands.set((dtype, found))
    try:
        yield found
    finally:
        _operands.reset(token)


def _is_float(dtype: Any) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False


def operand_dtype(own: Any, x: Array, name: str = "matmul") -> Any:
    """The dtype of a product's operands: its own, the one in force, that of `x` where it is narrow; None for `x`'s.

    A narrow `x` is told apart from a wide one because XLA:CPU cannot run every plain product of narrow operands.
    """
    current = _operands.get()
    if current is not None:
        current[1].append(name)
    if own is not None and not _is_float(own):
        raise ValueError(
            f"models.layers: matmul_dtype={own!r}. Tried: a dtype of floats, for the operands of products. Write "
            f"jnp.bfloat16, or None."
        )
    dtype = jnp.dtype(own if own is not None else current[0] if current is not None else x.dtype)
    return dtype if (dtype.itemsize < 4 and jnp.issubdtype(dtype, jnp.floating)) or own is not None else None


def narrow_dot(a: Array, b: Array, dimensions: Any) -> Array:
    """`lax.dot_general` of operands of one narrow dtype, summed in float32.

    The barrier is for XLA:CPU: it folds a transpose of the result into the product, into a form that it then refuses to
    run in bfloat16 ("Unsupported element type for DotThunk").
    """
    return lax.optimization_barrier(lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _narrow_matmul(dtype: Any, x: Array, w: Array) -> Array:
    return _narrow_matmul_fwd(dtype, x, w)[0]


def _narrow_matmul_fwd(dtype: Any, x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    x, w = x.astype(dtype), w.astype(dtype)
    return narrow_dot(x, w, (((x.ndim - 1,), (0,)), ((), ()))), (x, w)


def _narrow_matmul_bwd(dtype: Any, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, w = saved
    g = g.astype(dtype)
    dx = narrow_dot(g, w, (((g.ndim - 1,), (1,)), ((), ())))
    if x.ndim == 2 and x.shape[0] % 2 == 0 and jax.default_backend() == "cpu":
        # A product of a transposed narrow matrix falls back to float32 there; over two summed axes XLA lays the matrix
        # out anew and stays narrow, in half the time.
        x, g = (a.reshape(2, a.shape[0] // 2, a.shape[1]) for a in (x, g))
    leading = tuple(range(x.ndim - 1))
    return dx, narrow_dot(x, g, ((leading, leading), ((), ())))


_narrow_matmul.defvjp(_narrow_matmul_fwd, _narrow_matmul_bwd)


def _wide_matmul(x: Array, w: Array) -> Array:
    """`x @ w`.

    For the gradient of `w` XLA:CPU sums over several leading axes by laying the cotangent out anew first: of one
    layer's products and their gradients that was 10 to 48 % of the time. So there they are made one axis.
    """
    if x.ndim < 3 or jax.default_backend() != "cpu" or sharding.constraining():
        return jnp.matmul(x, w)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return jnp.matmul(rows, w).reshape(*x.shape[:-1], w.shape[-1])


def matmul(x: Array, w: Array, dtype: Any = None) -> Array:
    """`x @ w` over the last axis of `x` [..., K] with `w` [K, N].

    Given a `dtype` (jnp.bfloat16, say), the operands of the product and of both in its backward pass are cast to
    it and summed in float32. The cotangent is cast as well: left in float32 it would meet a bfloat16 operand, and
    mixed products are slow on CPU. Such a product has a reverse-mode derivative only.

    Args:
        x: [..., K].
        w: [K, N].
        dtype: Of the operands; None for what `operands` has put in force, else the dtype of `x`.

    Returns:
        [..., N], float32 where `dtype` is given, else in the dtype of `x`.
    """
    narrow = operand_dtype(dtype, x)
    if narrow is None:
        return _wide_matmul(x, w.astype(x.dtype))
    y = _narrow_matmul(narrow, x.astype(jnp.float32), w.astype(jnp.float32))
    return y if dtype is not None else y.astype(x.dtype)


def gradient_of_kernel(x: Array, g: Array, dtype: Any = None) -> Array:
    """`x^T g`, [K, N], of `x` [n, K] and `g` [n, N]: what a product `x @ w` with cotangent `g` gives its kernel.

    XLA:CPU sums over rows at half its speed where a row of `g` is a multiple of 4 KiB; there `x` is laid out anew
    first, which costs 2 to 10 % of the product (measured: 34 GFLOP/s become 45 to 50, on one thread).

    Args:
        x: What was multiplied.
        g: The cotangent.
        dtype: As in `matmul`.
    """
    columns = x.T
    if jax.default_backend() == "cpu" and g.shape[1] * g.dtype.itemsize % 4096 == 0:
        columns = lax.optimization_barrier(columns)
    return matmul(columns, g, dtype)
