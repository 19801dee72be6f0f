"""An LSTM over time with a backward pass of its own: one product gives the gradient of the recurrent kernel.

Differentiated as it is written, a scan keeps seven values of every step, each in a stack of its own, and adds up the
kernel's gradient step by step. Here it keeps the states and the gates, in one stack.

Shape suffixes: B examples, T time, H state width.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn.models.products import gradient_of_kernel, matmul
from jaxnn.typing import Array

State = tuple[Array, Array]  # (h, c), each [B, H]


class How(NamedTuple):
    """How it runs.

    Attributes:
        dtype: Of the products' operands; None for that of the gates.
        reverse: Whether time runs from the end.
        unroll: Steps a turn of the loop.
    """

    dtype: Any
    reverse: bool
    unroll: int


def _product(how: How, x: Array, kernel: Array) -> Array:
    return matmul(x, kernel, how.dtype).astype(x.dtype)


def _gates(entering: Array) -> Array:
    """i, f, g and o side by side, of what enters them: a logistic function is a tanh of half its argument.

    In float32 at least: the difference from 1 of a narrow tanh is 0 long before the gate is closed.

    Args:
        entering: [B, 4 H].
    """
    wide = jnp.promote_types(entering.dtype, jnp.float32)
    half = jnp.asarray(np.repeat([0.5, 0.5, 1.0, 0.5], entering.shape[-1] // 4), wide)
    return (half * jnp.tanh(half * entering.astype(wide)) + (1 - half)).astype(entering.dtype)


def _run(how: How, hidden: Array, gates: Array, carry: State, valid: Array | None) -> Any:
    """The last state, and of every time the states and the gates."""

    def step(carry: State, now: tuple[Array, Array | None]) -> tuple[State, tuple[Array, Array, Array]]:
        (h, c), (projected, counts) = carry, now
        opened = _gates(projected + _product(how, h, hidden))
        i, f, g, o = jnp.split(opened, 4, axis=-1)
        new_c = f * c + i * g
        new_h = o * jnp.tanh(new_c)
        if counts is not None:
            new_h, new_c = (jnp.where(counts[:, None], new, old) for new, old in ((new_h, h), (new_c, c)))
        return (new_h, new_c), (new_h, new_c, opened)

    return lax.scan(step, carry, (gates, valid), reverse=how.reverse, unroll=how.unroll)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def lstm_scan(how: How, hidden: Array, gates: Array, carry: State, valid: Array | None) -> tuple[State, Array]:
    """The state after all of time, and h at each time [T, B, H].

    Args:
        how: How it runs.
        hidden: Recurrent kernel [H, 4 H], gates in the order i, f, g, o.
        gates: Projected inputs [T, B, 4 H].
        carry: The state before.
        valid: bool [T, B]: where not, the state stays as it is. None for all.
    """
    last, (h, _, _) = _run(how, hidden, gates, carry, valid)
    return last, h


def _forward(how: How, hidden: Array, gates: Array, carry: State, valid: Array | None) -> Any:
    last, (h, c, opened) = _run(how, hidden, gates, carry, valid)
    return (last, h), (hidden, carry, valid, h, c, opened)


def _backward(how: How, saved: Any, cotangent: Any) -> tuple[Any, ...]:
    hidden, carry, valid, h, c, opened = saved
    d_last, d_h = cotangent
    # States before each step: the first state, then those after the steps before.
    before = [
        jnp.concatenate([s[1:], first[None]] if how.reverse else [first[None], s[:-1]])
        for first, s in zip(carry, (h, c), strict=True)
    ]
    transposed = hidden.T

    def step(carry: State, now: Any) -> tuple[State, Array]:
        (dh, dc), (d_now, old_c, new_c, opened, counts) = carry, now
        dh = dh + d_now
        kept = None
        if counts is not None:
            kept = tuple(jnp.where(counts[:, None], 0, d) for d in (dh, dc))
            dh, dc = (jnp.where(counts[:, None], d, 0) for d in (dh, dc))
        i, f, g, o = jnp.split(opened, 4, axis=-1)
        t = jnp.tanh(new_c)
        dc = dc + dh * o * (1 - t * t)
        parts = [dc * g * i * (1 - i), dc * old_c * f * (1 - f), dc * i * (1 - g * g), dh * t * o * (1 - o)]
        d_gates = jnp.concatenate(parts, axis=-1)
        dh, dc = _product(how, d_gates, transposed), dc * f
        if kept is not None:
            dh, dc = dh + kept[0], dc + kept[1]
        return (dh, dc), d_gates

    times = (d_h, before[1], c, opened, valid)
    d_carry, d_gates = lax.scan(step, d_last, times, reverse=not how.reverse, unroll=how.unroll)
    columns, rows = (x.reshape(-1, x.shape[-1]) for x in (before[0], d_gates))
    return gradient_of_kernel(columns, rows, how.dtype).astype(hidden.dtype), d_gates, d_carry, None


lstm_scan.defvjp(_forward, _backward)
