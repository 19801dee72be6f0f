"""Arrays joined along their first axis, and one taken apart again, in a program that compiles fast.

XLA's CPU compiler compiles equal kernels once, and slices that start at different constants are different kernels:
taking a stack of 96 matrices apart takes 2 s to compile, and 0.2 s where the starts are numbers that it cannot know.
A kernel that joins 3,000 arrays takes 3.9 s; 50 equal ones that join 60, and one that joins these, 1.4 s.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.typing import Array

Start = int | Array


def starts(*lists: Sequence[int]) -> list[list[Start]]:
    """For each list of sizes, where its parts start in the array that they fill.

    Equal sizes in succession have hidden starts, sums of two scalars each: 96 parts need 20 scalars.

    Returns:
        Whole numbers, or int32 scalars (where those hold all of them), which `part` takes.
    """
    places = [list(itertools.accumulate(sizes, initial=0))[:-1] for sizes in lists]
    found: list[list[Start]] = [list(part) for part in places]
    if jax.default_backend() != "cpu" or max(map(sum, lists), default=0) > np.iinfo(np.int32).max:
        return found
    runs = []
    for which, sizes in enumerate(lists):
        first = 0
        for size, same in itertools.groupby(sizes):
            count = len(list(same))
            if count > 1:
                runs.append((which, first, count, size, math.isqrt(count - 1) + 1))
            first += count
    tables = [
        [places[which][first] + size * k for k in range(0, count, base)] + [size * k for k in range(base)]
        for which, first, count, size, base in runs
    ]
    hidden = iter(_hidden([n for table in tables for n in table]))
    for (which, first, count, _, base), table in zip(runs, tables, strict=True):
        numbers = [next(hidden) for _ in table]
        high, low = numbers[:-base], numbers[-base:]
        for k in range(count):
            found[which][first + k] = jax.lax.add(high[k // base], low[k % base])
    return found


_BUNCH = 64  # parts that one kernel joins


def joined(parts: Sequence[Array]) -> Array:
    """The parts below each other; many of them in bunches first, which costs a second copy."""
    parts = list(parts)
    if len(parts) > _BUNCH and jax.default_backend() == "cpu":
        bunches = [parts[i : i + _BUNCH] for i in range(0, len(parts), _BUNCH)]
        # Behind a barrier, as the compiler would make one kernel of it again.
        parts = list(jax.lax.optimization_barrier([jax.lax.concatenate(bunch, 0) for bunch in bunches]))
    return jax.lax.concatenate(parts, 0)


def part(whole: Array, start: Start, size: int) -> Array:
    """`size` entries from `start`, all of which there are."""
    if isinstance(start, int):
        return jax.lax.slice_in_dim(whole, start, start + size)
    at = (start, *(np.int32(0),) * (whole.ndim - 1))  # as `start`, where 64 bits are allowed too
    return jax.lax.dynamic_slice(whole, at, (size, *whole.shape[1:]), allow_negative_indices=False)


def _hidden(numbers: Sequence[int]) -> list[Array]:
    """Scalars that the compiler cannot see through: a loop multiplies them by one."""
    if not numbers:
        return []

    def again(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        turn, one, *rest = carry
        return (turn + 1, one * one, *(jax.lax.mul(n, one) for n in rest))

    start = tuple(jnp.asarray(n, jnp.int32) for n in (0, 1, *numbers))
    _, _, *hidden = jax.lax.while_loop(lambda carry: carry[0] < 2, again, start)
    return hidden
