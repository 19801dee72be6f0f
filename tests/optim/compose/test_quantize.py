"""Eight-bit storage: errors bounded, on average none, exact zeros, visible failures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.optim.compose.quantize import blocks_of, dequantize, quantize
from jaxnn.optim.compose.rounding import dither, hash_bits

RNG = np.random.default_rng(0)
WIDE = RNG.normal(size=(40, 33)) * np.exp(RNG.normal(size=(40, 33)))  # about 4 decades in a block


@pytest.mark.parametrize("signed", [True, False])
def test_the_relative_error_is_that_of_four_bits(signed):
    x = jnp.asarray(WIDE if signed else WIDE**2, jnp.float32)
    q = quantize(x, signed=signed)
    assert (q.codes.dtype, q.exponent.dtype, q.exponent.shape) == (jnp.uint8, jnp.uint8, (44,))
    back = dequantize(q)
    assert back.shape == x.shape
    largest = jnp.repeat(jnp.max(jnp.abs(x).reshape(44, 30), axis=1), 30).reshape(x.shape)
    octaves = 7 if signed else 15
    error = jnp.abs(back - x)
    assert float(jnp.max(jnp.where(jnp.abs(x) >= largest * 2.0 ** (1 - octaves), error / jnp.abs(x), 0))) <= 1 / 32
    assert float(jnp.max(error / largest)) <= 1 / 32
    if not signed:
        assert float(back.min()) > 0  # a second moment that became 0 would divide by it


@pytest.mark.parametrize("signed", [True, False])
def test_what_was_stored_once_is_stored_exactly(signed):
    """The grid does not move: also with other random bits, and where the largest element has grown by two octaves."""
    x = jnp.asarray(WIDE if signed else WIDE**2, jnp.float32)
    back = dequantize(quantize(x, signed=signed)).reshape(-1)
    again = dequantize(quantize(back, jnp.full(blocks_of(back.size), 2**32 - 1, jnp.uint32), signed=signed))
    np.testing.assert_array_equal(again, back)
    grown = back.reshape(44, 30).at[:, 0].set(4 * jnp.max(jnp.abs(back.reshape(44, 30)), axis=1))
    fine = jnp.abs(grown) >= grown[:, :1] * 2.0**-6
    kept = dequantize(quantize(grown, signed=signed))
    np.testing.assert_array_equal(jnp.where(fine, kept, 0), jnp.where(fine, grown, 0))


@pytest.mark.parametrize("signed", [True, False])
def test_dithered_rounding_is_right_on_average(signed):
    """Within 64 steps already, which independent bits would need 1000 for; below the smallest normal number, too."""
    x = jnp.asarray(WIDE if signed else WIDE**2, jnp.float32)
    shape = blocks_of(x.size)
    back = jax.lax.map(lambda step: dequantize(quantize(x, dither(shape, step, 7), signed=signed)), jnp.arange(64))
    big = jnp.abs(x) > 1e-2 * jnp.max(jnp.abs(x))
    assert float(jnp.max(jnp.where(big, jnp.abs(jnp.mean(back, axis=0) / x - 1), 0))) < 0.05 / 16
    low = jnp.concatenate([jnp.ones(1), jnp.full(63, 1e-4)])
    lows = jax.lax.map(lambda step: dequantize(quantize(low, dither((2, 32), step, 0)))[1:32], jnp.arange(64))
    assert float(lows.mean()) == pytest.approx(1e-4, rel=0.05)
    assert float(lows.max()) == 2.0**-10


def test_a_slow_average_stays_near_what_it_averages():
    """Independent bits let it wander twice as far: a tenth of a second moment in 500 steps."""
    truth, names = jnp.exp(jnp.linspace(-2, 2, 1024)), ("dither", "hash_bits")
    shape = blocks_of(1024)
    errors = []
    for name in names:
        make = dither if name == "dither" else hash_bits

        def step(number, x, make=make):
            moved = 0.999 * x + 0.001 * truth * (1 + jnp.sin(number * 1.3 + jnp.arange(1024)))
            return dequantize(quantize(moved, make(shape, number, 3), signed=False))

        x = jax.lax.fori_loop(0, 500, step, truth)
        errors.append(float(jnp.sqrt(jnp.mean(jnp.square(x / truth - 1)))))
    assert errors[0] < 0.06, errors
    assert errors[0] < errors[1] / 1.5, errors


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("signed", [True, False])
def test_what_is_not_finite_stays_visible(bad, signed):
    x = jnp.ones((128,)).at[3].set(bad)
    back = dequantize(quantize(x, signed=signed))
    assert bool(jnp.isnan(back[:32]).all())
    assert bool((back[32:] == 1).all())


@pytest.mark.parametrize("scale", [0.0, 1e-37, 1e-30, 1e38])
@pytest.mark.parametrize("signed", [True, False])
def test_the_ends_of_float32(scale, signed):
    x = scale * jnp.linspace(0.5, 3, 64)
    back = dequantize(quantize(x, signed=signed))
    np.testing.assert_allclose(back, x, rtol=1 / 32, atol=2.0**-101)
    if scale and not signed:
        assert float(back.min()) > 0


@pytest.mark.parametrize("size", [64, 255, 256, 257, 300, 1000])
def test_blocks_waste_less_than_an_element_each(size):
    count, block = blocks_of(size)
    assert block <= 32
    assert size <= count * block < size + count
    x = jnp.arange(size, dtype=jnp.float32)
    back = dequantize(quantize(x))
    assert back[0] == 0
    np.testing.assert_allclose(back, x, rtol=1 / 32)


def test_random_bits_go_by_position_seed_and_step():
    bits = hash_bits((64, 64), 0, 1)
    assert abs(float(np.mean(np.asarray(bits)) / 2**32) - 0.5) < 0.02
    assert len(np.unique(np.asarray(bits))) == 64 * 64
    assert not bool((hash_bits((64, 64), 0, 2) == bits).any())
    assert not bool((hash_bits((64, 64), 1, 1) == bits).any())
