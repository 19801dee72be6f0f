"""Narrow products: bfloat16 operands everywhere, float32 sums, and forms that XLA:CPU can run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.models.products import matmul


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def loss(x, w, dtype):
    return jnp.sum(jnp.sin(matmul(x, w, dtype)))


def dots(jaxpr) -> list:
    """Every dot_general of a jaxpr and of the jaxprs inside it."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            found.append(eqn)
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += dots(inner)
    return found


@pytest.mark.parametrize("leading", [(8,), (7,), (1,), (2, 6), (2, 3, 2)])
def test_values_and_gradients_are_near_float32(leading):
    x, w = normal(*leading, 16), normal(16, 12, seed=1) / 4
    got = matmul(x, w, jnp.bfloat16)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, x @ w, atol=2e-2)
    for a, b in zip(jax.grad(loss, (0, 1))(x, w, jnp.bfloat16), jax.grad(loss, (0, 1))(x, w, None)):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=2e-2 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("leading", [(8,), (2, 6)])
def test_all_three_products_have_narrow_operands_and_wide_sums(leading):
    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)), static_argnums=2)(normal(*leading, 16), normal(16, 12), jnp.bfloat16)
    found = dots(jaxpr.jaxpr)
    assert len(found) == 3
    for eqn in found:
        assert [v.aval.dtype for v in eqn.invars] == [jnp.bfloat16] * 2
        assert eqn.outvars[0].aval.dtype == jnp.float32


def test_sums_are_wide():
    """1,024 ones and a 1/8 add up in float32; a bfloat16 sum would stop at 256."""
    assert float(matmul(jnp.ones((1, 1024)), jnp.ones((1024, 1)), jnp.bfloat16)[0, 0]) == 1024


def test_the_plain_product_keeps_the_dtype_of_x():
    assert matmul(jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4))).dtype == jnp.bfloat16
    x, w = normal(2, 3), normal(3, 4)
    np.testing.assert_array_equal(matmul(x, w), jnp.matmul(x, w))


@pytest.mark.parametrize("wrap", ["value", "dx", "dw"])
@pytest.mark.parametrize("batched", ["no", "both", "w", "x"])
def test_transposing_a_result_does_not_make_a_program_that_cannot_run(wrap, batched):
    """XLA:CPU folds such transposes into the product and then has no bfloat16 kernel for it."""

    def f(x, w):
        if wrap == "value":
            return matmul(x, w, jnp.bfloat16).T
        return jax.grad(loss, 0 if wrap == "dx" else 1)(x, w, jnp.bfloat16).T

    x, w = normal(8, 16), normal(16, 12)
    axes = {"no": None, "both": (0, 0), "w": (None, 0), "x": (0, None)}[batched]
    if axes is None:
        got, want = jax.jit(f)(x, w), f(x, w)
    else:
        arguments = [np.stack([a, 2 * a]) if axis == 0 else a for a, axis in zip((x, w), axes)]
        got = jax.jit(jax.vmap(f, axes))(*arguments)[0]
        want = f(x, w)
    np.testing.assert_allclose(got, want, atol=1e-5)
