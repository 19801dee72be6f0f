"""Windows over images: pooling, and the slices that pooling and convolution are made of on CPU.

XLA:CPU runs convolutions inside a loop 5 to 19 times slower than outside one, and `reduce_window` slowly anywhere.
There, slices and reshapes do the same work; on accelerators the lax forms do.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxnn import tree
from jaxnn.typing import Array

Form = Literal["patches", "lax"]


def choose_form(form: Form | None) -> Form:
    """Patches and a matrix product on CPU, where XLA's convolution is 5-19 times slower inside a loop; else lax."""
    if form not in ("patches", "lax", None):
        raise ValueError(
            f"layers.Conv: form={form!r} is unknown. Tried: 'patches', 'lax', None. Write None for the backend's own."
        )
    return form or ("patches" if jax.default_backend() == "cpu" else "lax")


def pair(n: int | Sequence[int]) -> tuple[int, int]:
    """(rows, columns) from one number for both, or from two."""
    a, b = (n, n) if isinstance(n, int) else n
    return a, b


def check_images(name: str, x: Array, window: tuple[int, int]) -> None:
    """Raises ValueError unless `x` is [B, H, W, C] and the window at least one pixel."""
    if x.ndim != 4:
        raise ValueError(
            f"layers.{name}: x is {tree.describe(x)}. Tried: images [B, H, W, C]. Write x[..., None] for one channel."
        )
    if min(window) < 1:
        raise ValueError(f"layers.{name}: window {window}. Tried: at least 1 in each direction. Write (3, 3), say.")


def window_slices(x: Array, window: tuple[int, int], strides: tuple[int, int]) -> list[Array]:
    """For each offset in the window, in row order, the elements of `x` [B, H, W, C] at that offset in every window."""
    (kh, kw), (sh, sw) = window, strides
    rows, columns = (x.shape[1] - kh) // sh + 1, (x.shape[2] - kw) // sw + 1
    return [
        lax.slice(
            x,
            (0, i, j, 0),
            (x.shape[0], i + (rows - 1) * sh + 1, j + (columns - 1) * sw + 1, x.shape[3]),
            (1, sh, sw, 1),
        )
        for i in range(kh)
        for j in range(kw)
    ]


def _pool_setup(
    name: str, x: Array, window: int | tuple[int, int], strides: int | tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    window = pair(window)
    strides = window if strides is None else pair(strides)
    check_images(name, x, window)
    if x.shape[1] < window[0] or x.shape[2] < window[1]:
        raise ValueError(f"layers.{name}: window {window} exceeds x {tree.describe(x)}. Write a smaller window.")
    return window, strides


def _blocks(x: Array, window: tuple[int, int]) -> Array:
    """`x` [B, H, W, C] cut into windows side by side: [B, H', kh, W', kw, C], without what does not fill a window."""
    (kh, kw), (rows, columns) = window, (x.shape[1] // window[0], x.shape[2] // window[1])
    return x[:, : rows * kh, : columns * kw].reshape(x.shape[0], rows, kh, columns, kw, x.shape[3])


def _larger(a: Array, b: Array) -> Array:
    """The larger of each two elements, `a` where they are equal, NaN where one is.

    Not jnp.max or jnp.maximum: their gradient goes to what equals the result, and in a jitted program on XLA:CPU may go
    astray, because a fusion computes the operand anew and another way: Inception v3 lost 1.5 % of its gradient's norm,
    and where no element of a window equals its maximum, 0 / 0 is NaN. A choice gives its gradient to one of the two.
    """
    return jnp.where((b > a) | (b != b), b, a)


def max_pool(
    x: Array,
    window: int | tuple[int, int],
    strides: int | tuple[int, int] | None = None,
    form: Form | None = None,
) -> Array:
    """The largest element of each window of `x` [B, H, W, C], without padding: [B, H', W', C].

    Where elements tie, the first of them gets the gradient.

    Args:
        x: Images.
        window: Rows and columns of a window.
        strides: Steps between windows; None for windows side by side.
        form: None chooses by backend.

    Raises:
        ValueError: If `x` is not rank 4 or smaller than the window.
    """
    window, strides = _pool_setup("max_pool", x, window, strides)
    if choose_form(form) == "lax":
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *strides, 1), "VALID")
    (kh, kw), (sh, sw) = window, strides
    if window == strides:
        x = _blocks(x, window)
        columns, rows = [x[:, :, :, :, j] for j in range(kw)], lambda y: [y[:, :, i] for i in range(kh)]
    else:
        columns, rows = window_slices(x, (1, kw), (1, sw)), lambda y: window_slices(y, (kh, 1), (sh, 1))
    return functools.reduce(_larger, rows(functools.reduce(_larger, columns)))


def avg_pool(
    x: Array,
    window: int | tuple[int, int],
    strides: int | tuple[int, int] | None = None,
    form: Form | None = None,
) -> Array:
    """The mean of each window of `x` [B, H, W, C]; arguments and errors as `max_pool`."""
    window, strides = _pool_setup("avg_pool", x, window, strides)
    if choose_form(form) == "lax":
        sums = lax.reduce_window(x, 0.0, lax.add, (1, *window, 1), (1, *strides, 1), "VALID")
        return sums / math.prod(window)
    if window == strides:
        return jnp.mean(_blocks(x, window), axis=(2, 4))
    return functools.reduce(jnp.add, window_slices(x, window, strides)) / math.prod(window)
