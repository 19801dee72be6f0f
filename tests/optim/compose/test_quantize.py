"""Eight-bit storage: errors bounded, in expectation none, exact zeros, visible failures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.optim.compose.quantize import blocks_of, dequantize, quantize
from jaxnn.optim.compose.rounding import hash_bits

RNG = np.random.default_rng(0)
WIDE = RNG.normal(size=(40, 33)) * np.exp(RNG.normal(size=(40, 33)))  # about 4 decades in a block


@pytest.mark.parametrize("signed", [True, False])
def test_the_relative_error_is_that_of_four_bits(signed):
    x = jnp.asarray(WIDE if signed else WIDE**2, jnp.float32)
    back = dequantize(quantize(x, signed=signed))
    assert back.shape == x.shape
    big = jnp.abs(x) > 1e-4 * jnp.abs(x).max()
    assert float(jnp.max(jnp.where(big, jnp.abs(back - x) / jnp.abs(x), 0))) <= 1 / 16 + 1e-6
    if not signed:
        assert float(back.min()) > 0  # a second moment that became 0 would divide by it


@pytest.mark.parametrize("signed", [True, False])
def test_stochastic_rounding_is_right_in_expectation(signed):
    x = jnp.asarray(WIDE if signed else WIDE**2, jnp.float32)
    shape = blocks_of(x.size)

    def one(step):
        return dequantize(quantize(x, hash_bits(shape, 7, step), signed=signed))

    mean = jnp.mean(jax.lax.map(one, jnp.arange(512)), axis=0)
    big = jnp.abs(x) > 1e-4 * jnp.abs(x).max()
    bias = jnp.where(big, (mean - x) / jnp.abs(x), 0)
    assert abs(float(bias.mean())) < 3e-4  # 4 standard errors
    assert float(jnp.abs(bias).max()) < 0.02


def test_what_is_below_the_smallest_number_is_kept_in_expectation():
    x = jnp.concatenate([jnp.ones(1), jnp.full(255, 1e-5)])
    means = [float(dequantize(quantize(x, hash_bits((1, 256), 0, i)))[1:].mean()) for i in range(64)]
    assert np.mean(means) == pytest.approx(1e-5, rel=0.1)
    assert float(dequantize(quantize(x))[1]) in (0.0, pytest.approx(2**-15 * 1.125 / 1.875))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_visible(bad):
    x = jnp.ones((512,)).at[3].set(bad)
    back = dequantize(quantize(x))
    assert not bool(jnp.isfinite(back[3]))
    assert bool((back[256:] == 1).all())


@pytest.mark.parametrize("size", [64, 255, 256, 257, 300, 1000])
def test_blocks_waste_less_than_an_element_each(size):
    count, block = blocks_of(size)
    assert block <= 256
    assert size <= count * block < size + count
    x = jnp.arange(size, dtype=jnp.float32)
    back = dequantize(quantize(x))
    assert back[0] == 0
    np.testing.assert_allclose(back, x, rtol=1 / 16)


def test_random_bits_go_by_position_seed_and_step():
    bits = hash_bits((64, 64), 0, 1)
    assert abs(float(np.mean(np.asarray(bits)) / 2**32) - 0.5) < 0.02
    assert len(np.unique(np.asarray(bits))) == 64 * 64
    assert not bool((hash_bits((64, 64), 0, 2) == bits).any())
    assert not bool((hash_bits((64, 64), 1, 1) == bits).any())
