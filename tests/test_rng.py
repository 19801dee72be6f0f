"""Dropout's bits: unbiased, independent across examples, positions, steps and layers, and the same in any layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import rng

SHAPE = (64, 32, 48)


@pytest.fixture
def key():
    return rng.step_key(rng.seed_key(0), jnp.int32(3))


def kept(key, rate: float = 0.3, shape=SHAPE) -> np.ndarray:
    return np.asarray(rng.dropout(key, jnp.ones(shape), rate)) != 0


def z_of_agreement(a: np.ndarray, b: np.ndarray, rate: float) -> float:
    """Standard score of the number of places where two masks agree, were they independent."""
    p = rate**2 + (1 - rate) ** 2
    return (np.sum(a == b) - a.size * p) / np.sqrt(a.size * p * (1 - p))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_the_rate_is_right_overall_and_in_every_example_row_and_column(key, rate):
    dropped = ~kept(key, rate)
    for axes in ((0, 1, 2), (1, 2), (0, 2), (0, 1), (0,)):
        n = np.prod([SHAPE[a] for a in axes])
        z = (dropped.sum(axes) - n * rate) / np.sqrt(n * rate * (1 - rate))
        assert np.abs(np.mean(z)) < 4.5 / np.sqrt(np.size(z))
        if n * rate * (1 - rate) > 20:
            assert np.max(np.abs(z)) < 5
        if np.size(z) > 30:
            assert abs(np.std(z) - 1) < 4.5 / np.sqrt(2 * np.size(z))


def test_masks_are_independent_between_neighbours_steps_and_names(key):
    a = kept(key)
    scores = {
        "examples": z_of_agreement(a[1:], a[:-1], 0.3),
        "far examples": z_of_agreement(a[32:], a[:32], 0.3),
        "rows": z_of_agreement(a[:, 1:], a[:, :-1], 0.3),
        "columns": z_of_agreement(a[:, :, 1:], a[:, :, :-1], 0.3),
        "powers of two": z_of_agreement(a[:, :, 32:], a[:, :, :16], 0.3),
        "steps": z_of_agreement(a, kept(rng.step_key(rng.seed_key(0), jnp.int32(4))), 0.3),
        "seeds": z_of_agreement(a, kept(rng.step_key(rng.seed_key(1), jnp.int32(3))), 0.3),
        "names": z_of_agreement(kept(rng.named_key(key, "a")), kept(rng.named_key(key, "b")), 0.3),
    }
    assert max(map(abs, scores.values())) < 4.5, scores


def test_triples_of_elements_are_independent(key):
    """Parities of triples: a hash that is linear in the position passes pairs and fails these."""
    s = np.where(kept(key, 0.5), 1, -1)
    triples = {
        "along a row": s[:, :, 2:] * s[:, :, 1:-1] * s[:, :, :-2],
        "square": s[:, 1:, 1:] * s[:, 1:, :-1] * s[:, :-1, 1:] * s[:, :-1, :-1],
        "examples": s[2:] * s[1:-1] * s[:-2],
        "cube": s[1:, 1:] * s[:-1, 1:] * s[1:, :-1] * s[:-1, :-1],
    }
    for name, product in triples.items():
        assert abs(product.sum() / np.sqrt(product.size)) < 4.5, name


def test_every_bit_is_fair_and_words_do_not_repeat(key):
    bits = np.asarray(rng.example_bits(key, SHAPE)).reshape(-1)
    ones = (bits[:, None] >> np.arange(32) & 1).sum(0)
    assert np.max(np.abs(ones - bits.size / 2)) < 4.5 * np.sqrt(bits.size) / 2
    within = np.asarray(rng.example_bits(key, (1, 4096)))
    # The hash is a bijection of the position, so one example never repeats a word.
    assert np.unique(within).size == 4096


def test_dropout_keeps_the_mean_and_the_dtype(key):
    for dtype in (jnp.float32, jnp.bfloat16):
        y = rng.dropout(key, jnp.ones(SHAPE, dtype), 0.25)
        assert y.dtype == dtype
        assert set(np.unique(np.asarray(y, np.float32))) == {0.0, float(dtype(1 / 0.75))}
    mean = float(jnp.mean(rng.dropout(key, jnp.ones(SHAPE), 0.25)))
    assert abs(mean - 1) < 4.5 * np.sqrt(0.25 / 0.75 / np.prod(SHAPE))


def test_a_rate_of_zero_is_the_identity(key):
    x = jnp.arange(6.0).reshape(2, 3)
    assert rng.dropout(key, x, 0) is x


def test_an_examples_mask_depends_on_its_index_alone(key):
    whole = kept(key)
    order = np.random.default_rng(0).permutation(SHAPE[0])
    with rng.examples(jnp.asarray(order)):
        np.testing.assert_array_equal(kept(key), whole[order])
    with rng.examples(jnp.arange(48, 64)):
        np.testing.assert_array_equal(kept(key, shape=(16, *SHAPE[1:])), whole[48:])
    np.testing.assert_array_equal(kept(key), whole)


def test_jit_vmap_and_gradient_see_the_same_mask(key):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)
    y = rng.dropout(key, x, 0.5)
    np.testing.assert_array_equal(jax.jit(rng.dropout, static_argnums=2)(key, x, 0.5), y)
    np.testing.assert_array_equal(jax.grad(lambda x: rng.dropout(key, x, 0.5).sum())(x), np.where(y != 0, 2.0, 0.0))


def test_named_keys_are_the_same_in_every_process():
    data = jax.random.key_data(rng.named_key(rng.wrap(rng.seed_key(7)), "blocks_0/qkv"))
    assert data.dtype == jnp.uint32
    np.testing.assert_array_equal(
        data, jax.random.key_data(jax.random.fold_in(jax.random.key(7, impl="threefry2x32"), 1048935694))
    )


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "0"])
def test_a_seed_fits_32_bits(seed):
    error = ValueError if type(seed) is int else TypeError
    with pytest.raises(error, match=r"rng\.seed_key: seed must be .*Any number from 0 to 2\*\*32 - 1"):
        rng.seed_key(seed)
    assert rng.seed_key(np.int64(2**32 - 1)).tolist() == [0, 2**32 - 1]
