"""Filters of logits against their definitions, and draws that are each example's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.models.sampling import draw, filter_logits

PROBABILITIES = np.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25], [0.0, 0.9, 0.05, 0.05]])
LOGITS = np.log(np.maximum(PROBABILITIES, 1e-30)).astype(np.float32)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, ["0123", "0123", "0123"]),
        ({"top_k": 2}, ["13", "0123", "123"]),  # ties stay
        ({"top_p": 0.65}, ["13", "0123", "1"]),
        ({"top_p": 0.75}, ["123", "0123", "1"]),
        ({"top_p": 1e-6}, ["1", "0123", "1"]),
        ({"top_k": 3, "top_p": 0.75}, ["13", "0123", "1"]),  # 0.4 / 0.9 + 0.3 / 0.9 are more than 0.75
    ],
)
def test_filters_keep_what_they_say(settings, kept):
    got = np.isfinite(filter_logits(LOGITS, **settings))
    assert ["".join(map(str, np.flatnonzero(row))) for row in got] == kept


def test_draws_have_the_distribution_and_are_each_keys_own():
    keys = jax.random.split(jax.random.key(0), 4000)
    logits = jnp.broadcast_to(LOGITS[0], (4000, 4))
    f = jax.jit(lambda keys, logits: draw(keys, logits, 2.0, top_p=0.95))
    drawn = np.asarray(f(keys, logits))
    weights = np.sqrt(PROBABILITIES[0])
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, weights / weights.sum(), atol=0.03)
    assert (f(keys[::-1], logits)[::-1] == drawn).all()
    assert (draw(keys[:3], jnp.asarray(LOGITS), 0.0) == np.array([1, 0, 1])).all()
