"""Small cases that the tests of bench share."""

import jax
import jax.numpy as jnp
import pytest

from jaxnn import bench


@pytest.fixture
def dial():
    """`dial(name, trips)`: a case of `trips` small matrix products; the program is the same whatever the number."""

    def program(x, w, trips):
        return jax.lax.fori_loop(0, trips, lambda _, y: jnp.tanh(y @ w), x)

    def case(name, trips):
        def args(key):
            x, w = (jax.random.normal(k, (32, 32)) / 6 for k in jax.random.split(key))
            return x, w, jnp.int32(trips)

        return bench.Case(name, program, args)

    return case


@pytest.fixture
def measurement(dial):
    """A measurement of some blocks, made in a moment."""
    case = dial("small", 20)
    return bench.measure("small", case.function, args=case.args, max_seconds=0.1, block_s=1e-3)
