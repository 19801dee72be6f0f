"""Small programs without a compiler: a jaxpr of what initialisers are made of, evaluated by NumPy.

Compiling the initialiser of one small matrix costs half a second of a CPU, more than training the model that it belongs
to may take. Random bits are jax's own (threefry, bit for bit); what follows them is float32 arithmetic in the same
order, so that values agree with the compiled program's to the last digit or two. Whatever is not known here is left to
the compiler.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Values = list[Any]
_BLOCK = 16384  # words that are hashed at once: their temporaries stay in a core's cache
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


class Unknown(Exception):
    """A program that is left to the compiler; says which part."""


def threefry(key: np.ndarray, high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The threefry 2x32 hash of the words (high, low) [N] uint32 under a key [2] uint32: two words [N].

    Source:
        Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; 20 rounds.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    a, b = high + keys[0], low + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            a += b
            b = (b << np.uint32(rotation)) | (b >> np.uint32(32 - rotation))
            b ^= a
        with np.errstate(over="ignore"):
            a += keys[(group + 1) % 3]
            b += keys[(group + 2) % 3] + np.uint32(group + 1)
    return a, b


def _bits(key: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Random words of a shape, each a function of the key and its position."""
    count = math.prod(shape)
    words = np.empty(count, np.uint32)
    for start in range(0, count, _BLOCK):
        low = np.arange(start, min(count, start + _BLOCK), dtype=np.uint32)
        a, b = threefry(key, np.zeros_like(low), low)
        words[start : start + _BLOCK] = a ^ b
    return words.reshape(shape)


def fold_in(key: np.ndarray, data: Any) -> np.ndarray:
    """The key of `fold_in(key, data)`."""
    words = np.zeros(1, np.uint32), np.asarray(data).astype(np.uint32).reshape(1)
    return np.concatenate(threefry(key, *words))


_NEAR = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_FAR = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)


def _erf_inv(x: np.ndarray) -> np.ndarray:
    """The inverse of the error function in float32, by the polynomials that XLA uses.

    Source:
        Giles 2010, "Approximating the erfinv function", table 5.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        w = -np.log1p(-x * x)
        near = w < 5
        w = np.where(near, w - np.float32(2.5), np.sqrt(w) - np.float32(3))
        p = np.zeros_like(w)
        for inner, outer in zip(_NEAR, _FAR):
            p = np.where(near, np.float32(inner), np.float32(outer)) + p * w
        return np.where(np.abs(x) == 1, x * np.float32(np.inf), p * x)


def _erf(x: np.ndarray) -> np.ndarray:
    if x.size > 16:
        raise Unknown("erf")
    return np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype)


def _divide(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if np.issubdtype(x.dtype, np.integer):  # jax's division of integers truncates
        raise Unknown("div of integers")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(x, y)


def _broadcast(x: np.ndarray, shape: Sequence[int], broadcast_dimensions: Sequence[int], **_: Any) -> np.ndarray:
    sizes = [1] * len(shape)
    for place, size in zip(broadcast_dimensions, x.shape):
        sizes[place] = size
    return np.broadcast_to(x.reshape(sizes), shape)


def _random_bits(key: Any, bit_width: int, shape: Sequence[int], **_: Any) -> np.ndarray:
    if bit_width != 32:
        raise Unknown(f"random_bits of {bit_width} bits")
    return _bits(key, shape)


def _identity(x: Any, **_: Any) -> Any:
    return x


def _binary(ufunc: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y, **_: ufunc(x, y)


# What initialisers are made of, by primitive: `(values of the operands, **parameters) -> value`.
_RULES: dict[str, Callable[..., Any]] = {
    "add": _binary(np.add),
    "sub": _binary(np.subtract),
    "mul": _binary(np.multiply),
    "div": _binary(_divide),
    "max": _binary(np.maximum),
    "min": _binary(np.minimum),
    "and": _binary(np.bitwise_and),
    "or": _binary(np.bitwise_or),
    "xor": _binary(np.bitwise_xor),
    "shift_right_logical": _binary(np.right_shift),
    "nextafter": _binary(np.nextafter),
    "neg": lambda x, **_: np.negative(x),
    "sqrt": lambda x, **_: np.sqrt(x),
    "erf": lambda x, **_: _erf(x),
    "erf_inv": lambda x, **_: _erf_inv(x),
    "stop_gradient": _identity,
    "copy": _identity,
    "copy_p": _identity,
    "convert_element_type": lambda x, new_dtype, **_: x.astype(new_dtype),
    "bitcast_convert_type": lambda x, new_dtype, **_: x.view(new_dtype),
    "broadcast_in_dim": _broadcast,
    "reshape": lambda x, new_sizes, **_: x.reshape(new_sizes),
    "squeeze": lambda x, dimensions, **_: x.squeeze(dimensions),
    "random_wrap": _identity,
    "random_unwrap": _identity,
    "random_fold_in": lambda key, data, **_: fold_in(key, data),
    "random_bits": _random_bits,
}
_WIDTHS = (np.bool_, np.int32, np.uint32, np.float32)


def _known(variable: Any) -> bool:
    """Whether NumPy computes with values of this kind as XLA does."""
    dtype = variable.aval.dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return str(dtype) == "key<fry>" and variable.aval.shape == ()
    return dtype in _WIDTHS


def _equations(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        inner = eqn.params.get("jaxpr") if eqn.primitive.name in ("jit", "pjit") else None
        yield from [eqn] if inner is None else _equations(inner.jaxpr)


def check(closed: Any) -> None:
    """Refuses a program before any of it is evaluated.

    Raises:
        Unknown: If it has a primitive or a dtype that has no rule.
    """
    if not getattr(jax.config, "jax_threefry_partitionable", False):
        raise Unknown("random bits that depend on the shape")
    for eqn in _equations(closed.jaxpr):
        if eqn.primitive.name not in _RULES:
            raise Unknown(eqn.primitive.name)
        for variable in (*eqn.invars, *eqn.outvars):
            if not _known(variable):
                raise Unknown(f"{eqn.primitive.name} of {variable.aval}")


def evaluate(closed: Any, *arguments: Any) -> Values:
    """The outputs of a closed jaxpr as NumPy arrays; typed keys are their raw uint32[2].

    Args:
        closed: What `jax.make_jaxpr` gives.
        arguments: NumPy arrays, flat.

    Raises:
        Unknown: If it has a part that has no rule.
    """
    check(closed)
    return [np.array(value) for value in _evaluate(closed.jaxpr, closed.consts, arguments)]


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> Values:
    held: dict[Any, Any] = {}

    def value(variable: Any) -> Any:
        literal = getattr(variable, "val", None)
        return np.asarray(literal, variable.aval.dtype) if literal is not None else held[variable]

    held.update(zip(jaxpr.constvars, map(np.asarray, consts)))
    held.update(zip(jaxpr.invars, arguments))
    for eqn in jaxpr.eqns:
        operands = [value(variable) for variable in eqn.invars]
        if eqn.primitive.name in ("jit", "pjit"):
            inner = eqn.params["jaxpr"]
            results = _evaluate(inner.jaxpr, inner.consts, operands)
        else:
            results = [np.asarray(_RULES[eqn.primitive.name](*operands, **eqn.params))]
        held.update(zip(eqn.outvars, results))
    return [value(variable) for variable in jaxpr.outvars]
