"""The convolution of images, in the form that is fast on the backend: the values are the same in all.

On accelerators it is XLA's. XLA:CPU's is slow inside a loop, for images smaller than the window, and for the kernel's
gradient of many values; these are computed in other ways there.

Shape suffixes: B examples, H W rows and columns, C F channels of the input and of the output.
"""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxnn import tree
from jaxnn.models.pooling import Form, check_images, choose_form, pair, window_slices
from jaxnn.models.products import matmul
from jaxnn.typing import Array

Padding = Literal["SAME", "VALID"] | int | tuple[int, int]
Pads = tuple[tuple[int, int], tuple[int, int]]


def convolve(
    x: Array,
    kernel: Array,
    strides: int | tuple[int, int] = 1,
    padding: Padding = "SAME",
    form: Form | None = None,
    dtype: Any = None,
) -> Array:
    """Cross-correlation of `x` [B, H, W, C] with `kernel` [kh, kw, C, F]: [B, H', W', F].

    Args:
        x: Images.
        kernel: Filters.
        strides: Steps between windows.
        padding: "SAME" (zeros, H' = ceil(H / stride), the odd one after), "VALID" (none), or the zeros on each
            side, one number or (rows, columns), as PyTorch counts them.
        form: "patches" (slices side by side, times a matrix), "lax" (a convolution, where the backend's is not slow for
            this shape), None for the backend's faster one.
        dtype: Precision of the operands; see `matmul`. Serves the form "patches"; "lax" casts the operands alone.

    Raises:
        ValueError: If `x` is not rank 4, the padding or form is unknown, or a "VALID" window exceeds the image.
    """
    window, strides = (kernel.shape[0], kernel.shape[1]), pair(strides)
    check_images("Conv", x, window)
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"layers.Conv: padding={padding!r}. Tried: 'SAME', 'VALID', pixels. Write one of them.")
        pads = lax.padtype_to_pads(x.shape[1:3], window, strides, padding)
    else:
        pads = [(n, n) for n in pair(padding)]
    if any(n + sum(p) < w for n, p, w in zip(x.shape[1:3], pads, window, strict=True)):
        raise ValueError(
            f"layers.Conv: window {window} exceeds x {tree.describe(x)}. Tried: padding={padding!r}. Write "
            "padding='SAME' or a smaller kernel."
        )
    if choose_form(form) == "lax" and not _tiny(x, window):
        if dtype is not None:
            x, kernel = x.astype(dtype), kernel.astype(dtype)
        kernel = kernel.astype(x.dtype)
        (top, bottom), (left, right) = pads
        pads = (top, bottom), (left, right)
        y = (_on_one_cpu if _one_cpu() else _correlate)(x, kernel, strides, pads)
        return y.astype(jnp.float32) if dtype is not None else y
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))

    def product(x: Array, kernel: Array) -> Array:
        patches = jnp.concatenate(window_slices(x, window, strides), axis=-1)
        return matmul(patches, kernel.reshape(-1, kernel.shape[-1]), dtype)

    # The patches are kh kw times as large as the images: the backward pass makes them anew rather than reads them.
    return jax.checkpoint(product)(x, kernel)


def _correlate(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _tiny(x: Array, window: tuple[int, int]) -> bool:
    """Whether images [B, H, W, C] are smaller than the window on a CPU, where XLA's convolution of them is slow.

    It turns the operands round: 2 x 2 images of 512 channels, 3 x 3 to as many, took 440 ms for 32 of them as a
    convolution, and VGG-11's whole gradient takes 460 ms with patches there.
    """
    return jax.default_backend() == "cpu" and (x.shape[1] < window[0] or x.shape[2] < window[1])


def _one_cpu() -> bool:
    """Whether there is one CPU device: over several the examples may be split already, and are left as they are."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


# The kernel's gradient by XLA:CPU is a convolution whose channels are the examples and whose window is the image: it
# reads all of its operands for every few outputs, so that it takes up to ten times as long once they leave the caches.
_LANES = 8  # examples that fill a vector, of which a portion takes a multiple; with 4 it may take twice as long
_PORTION = 1 << 17  # values of the images, or of the output, up to which a portion has more examples than that
_CLIFF = 1 << 18  # values from which on it has fewer, yet no fewer values than the kernel, which each portion adds up
_MOST = 16  # portions: each is a convolution more to compile


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _on_one_cpu(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """`_correlate`, the kernel's gradient in portions of the examples."""
    return _correlate(x, kernel, strides, pads)


def _tangent(
    strides: tuple[int, int], pads: Pads, primals: tuple[Array, Array], tangents: tuple[Any, Any]
) -> tuple[Array, Array]:
    """Of both operands' tangents; the transpose of the second term is the kernel's gradient."""
    (x, kernel), (x_t, kernel_t) = primals, tangents
    y, terms = _on_one_cpu(x, kernel, strides, pads), []
    if not isinstance(x_t, jax.custom_derivatives.SymbolicZero):
        terms.append(_correlate(x_t, kernel, strides, pads))
    if not isinstance(kernel_t, jax.custom_derivatives.SymbolicZero):
        terms.append(jnp.concatenate([_correlate(part, kernel_t, strides, pads) for part in _portions(x, y, kernel)]))
    return y, functools.reduce(jnp.add, terms)


_on_one_cpu.defjvp(_tangent, symbolic_zeros=True)


def _portions(x: Array, y: Array, kernel: Array) -> list[Array]:
    """The examples of `x` [B, H, W, C] in parts whose kernel gradient, given that of `y`, XLA:CPU takes well."""
    each = max(math.prod(x.shape[1:]), math.prod(y.shape[1:]))
    examples = min(max(1, _PORTION // each // _LANES) * _LANES, max(1, _CLIFF // each))
    examples = max(examples, math.ceil(kernel.size / each))
    size = math.ceil(len(x) / min(math.ceil(len(x) / examples), _MOST)) if len(x) else 1
    return [x[i : i + size] for i in range(0, len(x), size)] or [x]
