"""Floating-point operations of one primitive, from its shapes alone.

Conventions, the same for every backend:
- A multiply-add is 2. A product is 2 for every pair of numbers that meet: [M, K] x [K, N] is 2 M K N.
- A convolution counts the taps that meet a real element: not padding, not the zeros between dilated elements. XLA
  counts so too; 2 x outputs x kernel, which other tools report, also counts the padding.
- Elementwise arithmetic is 1 an element, an integer power its multiplications, a transcendental function (exp, tanh,
  sqrt, ...) 1 as well, and its share is also kept apart. Comparisons, selection, casts and movement are 0.
- A reduction of n elements to m is n - m.
- Integers and booleans are 0: random bits, indices and hashes aren't floating-point work.
- Complex numbers count their real operations: an addition 2, a multiplication 6, a multiply-add 8, a
  factorization 4 times its real one.
- Collectives are 0 here: `cost.collectives` counts their bytes.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxnn.cost import factorizations, primitives, windows


class Work(NamedTuple):
    """FLOPs, and how many of them are transcendental functions."""

    flops: float
    transcendentals: float = 0


_COMPLEX = {"mul": 6, "square": 6, "div": 11, "abs": 4}


def is_float(dtype: Any) -> bool:
    """Whether arithmetic on this dtype is floating-point work (bfloat16, float8 and complex included)."""
    return jnp.issubdtype(dtype, jnp.inexact)


def _is_complex(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.complexfloating)


def _dtype(eqn: Any) -> Any:
    return eqn.invars[0].aval.dtype


def _each(eqn: Any, name: str) -> float:
    """What one element costs: 0 for integers, the real operations for complex numbers."""
    if not is_float(_dtype(eqn)):
        return 0
    return _COMPLEX.get(name, 2) if _is_complex(_dtype(eqn)) else 1


def _elementwise(eqn: Any) -> Work:
    return Work(_each(eqn, eqn.primitive.name) * eqn.outvars[0].aval.size)


def _transcendental(eqn: Any) -> Work:
    count = eqn.outvars[0].aval.size if is_float(_dtype(eqn)) else 0
    return Work(count, count)


def _integer_pow(eqn: Any) -> Work:
    """Multiplications of repeated squaring, and a division for a negative exponent."""
    power = abs(eqn.params["y"])
    products = max(power.bit_length() + power.bit_count() - 2, 0)
    each = products * _each(eqn, "mul") + (eqn.params["y"] < 0) * _each(eqn, "div")
    return Work(each * eqn.outvars[0].aval.size)


def _polynomial(eqn: Any) -> Work:
    """Horner's rule: a multiply-add for each coefficient after the first."""
    terms = max(len(eqn.invars) - 2, 0)
    return Work(2 * terms * bool(_each(eqn, "mul")) * eqn.outvars[0].aval.size)


def _reduction(eqn: Any) -> Work:
    fewer = eqn.invars[0].aval.size - eqn.outvars[0].aval.size
    return Work(max(fewer, 0) * _each(eqn, {"reduce_prod": "mul"}.get(eqn.primitive.name, "add")))


def _cumulative(eqn: Any) -> Work:
    aval = eqn.outvars[0].aval
    length = aval.shape[eqn.params["axis"]]
    steps = aval.size - aval.size // max(length, 1)
    if eqn.primitive.name == "cumlogsumexp":
        # log(e^a + e^b) is max, subtract, exp, log1p, add.
        return Work(5 * steps, 2 * steps)
    return Work(steps * _each(eqn, {"cumprod": "mul"}.get(eqn.primitive.name, "add")))


def _scatter(eqn: Any) -> Work:
    """One operation for each element of the updates."""
    name = "mul" if eqn.primitive.name == "scatter-mul" else "add"
    return Work(eqn.invars[2].aval.size * _each(eqn, name))


def multiply_adds(eqn: Any) -> float:
    """Multiply-adds of a matrix product or convolution."""
    lhs, rhs = eqn.invars[0].aval, eqn.invars[1].aval
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return eqn.outvars[0].aval.size * math.prod(lhs.shape[i] for i in contracted)
    if eqn.primitive.name == "ragged_dot_general":
        # Each element of lhs meets the free columns of its own group only, whichever axis is ragged.
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        (_, contracted), (_, batch) = numbers.dot_dimension_numbers
        bound = {*contracted, *batch, *numbers.rhs_group_dimensions}
        return lhs.size * math.prod(n for i, n in enumerate(rhs.shape) if i not in bound)
    if eqn.primitive.name == "scaled_matmul":
        return eqn.outvars[0].aval.size * lhs.shape[-1]
    return _convolution(eqn)


def _convolution(eqn: Any) -> float:
    p, lhs, rhs, out = eqn.params, eqn.invars[0].aval.shape, eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    numbers = p["dimension_numbers"]
    out_batch, out_features, *out_space = (out[i] for i in numbers.out_spec)
    _, in_features, *kernel = (rhs[i] for i in numbers.rhs_spec)
    size = [lhs[i] for i in numbers.lhs_spec[2:]]
    meets = windows.pairs(
        size, kernel, out_space, p["window_strides"], p["padding"], p["lhs_dilation"], p["rhs_dilation"]
    )
    # The kernel already holds one group's input features, and the output one batch group's examples.
    return out_batch * out_features * in_features * meets


def _product(eqn: Any) -> Work:
    if not is_float(_dtype(eqn)) or not is_float(eqn.outvars[0].aval.dtype):
        return Work(0)
    return Work((8 if _is_complex(eqn.outvars[0].aval.dtype) else 2) * multiply_adds(eqn))


def window_pairs(eqn: Any) -> int:
    """Pairs (window, element) of a reduce_window."""
    p, size, out = eqn.params, eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return windows.pairs(
        size,
        p["window_dimensions"],
        out,
        p["window_strides"],
        p["padding"],
        p.get("base_dilation"),
        p.get("window_dilation"),
    )


def _reduce_window(eqn: Any) -> Work:
    return Work(max(window_pairs(eqn) - eqn.outvars[0].aval.size, 0) * _each(eqn, "add"))


def _select_and_scatter(eqn: Any) -> Work:
    """Finding each window's largest element, then one addition: as many operations as pairs."""
    p = eqn.params
    if eqn.primitive.name == "select_and_scatter_add":
        windowed, operand = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
    elif eqn.primitive.name == "select_and_scatter":
        operand, windowed = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
    else:
        operand, windowed = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    pairs = windows.pairs(
        operand,
        p["window_dimensions"],
        windowed,
        p["window_strides"],
        p["padding"],
        p.get("base_dilation"),
        p.get("window_dilation"),
    )
    return Work(pairs * _each(eqn, "add"))


def _fft(eqn: Any) -> Work:
    """5 n log2 n for a complex transform of n points, half of it for a real one."""
    lengths = eqn.params["fft_lengths"]
    points = math.prod(lengths)
    source, result = eqn.invars[0].aval, eqn.outvars[0].aval
    # The real side, of the two, has all the points of each transform; the complex side of a real transform has half.
    full = source if not _is_complex(source.dtype) else result
    real = not (_is_complex(source.dtype) and _is_complex(result.dtype))
    return Work(full.size * 5 * math.log2(max(points, 1)) / (2 if real else 1))


def _factorization(count: Callable[[Any], float]) -> Callable[[Any], Work]:
    return lambda eqn: Work(count(eqn) * (4 if _is_complex(_dtype(eqn)) else 1))


RULES: dict[str, Callable[[Any], Work]] = {
    **dict.fromkeys(primitives.ARITHMETIC, _elementwise),
    **dict.fromkeys(primitives.TRANSCENDENTAL, _transcendental),
    **dict.fromkeys(primitives.ZERO, lambda eqn: Work(0)),
    **dict.fromkeys(["argmax", "argmin", "reduce_max", "reduce_min", "reduce_prod", "reduce_sum"], _reduction),
    **dict.fromkeys(["cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"], _cumulative),
    **dict.fromkeys(["scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub"], _scatter),
    **dict.fromkeys(primitives.PRODUCTS, _product),
    **dict.fromkeys(["reduce_window_max", "reduce_window_min", "reduce_window_sum"], _reduce_window),
    **{name: _factorization(count) for name, count in factorizations.RULES.items()},
    **dict.fromkeys(("select_and_gather_add", "select_and_scatter", "select_and_scatter_add"), _select_and_scatter),
    "addupdate": lambda eqn: Work(eqn.invars[1].aval.size * is_float(eqn.invars[1].aval.dtype)),
    "integer_pow": _integer_pow,
    "polynomial": _polynomial,
    "one_minus_square": lambda eqn: Work(2 * _elementwise(eqn).flops),
    "fft": _fft,
}


def nbytes(aval: Any) -> int:
    """Bytes of one value; 0 for tokens and others that have no shape."""
    shape, dtype = getattr(aval, "shape", None), getattr(aval, "dtype", None)
    return 0 if shape is None or dtype is None else math.prod(shape) * dtype.itemsize


def traffic(eqn: Any) -> int:
    """Bytes of an equation's operands and results; what takes a part of an operand reads that part."""
    results = sum(nbytes(v.aval) for v in eqn.outvars)
    if eqn.primitive.name in ("gather", "dynamic_slice", "slice"):
        return 2 * results + sum(nbytes(v.aval) for v in eqn.invars[1:])
    return results + sum(nbytes(v.aval) for v in eqn.invars)
