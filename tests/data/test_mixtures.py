"""mixup and cutmix: the weights' identities, the distribution of the shares, and independence of the batch."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxnn import data, losses, metrics
from jaxnn.data.mixtures import beta_shares, boxes

COUNT, CLASSES = 400, 4


def source():
    """Images of one value each: example i is all (i + 1), of class i % 4."""
    x = np.broadcast_to(np.arange(1, COUNT + 1, dtype=np.float32)[:, None, None, None], (COUNT, 6, 8, 1))
    return data.Arrays(np.ascontiguousarray(x), np.arange(COUNT) % CLASSES)


def test_a_mixups_targets_have_the_weights_of_its_images():
    made = data.mixup(source(), CLASSES, alpha=1.0).take(np.arange(COUNT), step=3)
    assert np.ptp(made["x"], axis=(1, 2, 3)).max() == 0
    np.testing.assert_allclose(made["y"].sum(1), 1, atol=1e-6)
    own = made["y"][np.arange(COUNT), np.arange(COUNT) % CLASSES]
    # Where the partner is of another class, value = s (i + 1) + (1 - s) (p + 1): p is an integer of its class.
    other = own < 1
    partner = (made["x"][:, 0, 0, 0] - own * np.arange(1, COUNT + 1))[other] / (1 - own[other])
    far = 1 - own[other] > 0.05
    whole = np.rint(partner[far])
    np.testing.assert_allclose(partner[far], whole, atol=0.02)
    np.testing.assert_array_equal(
        (whole - 1) % CLASSES, np.argsort(made["y"][other][far])[:, -2:].sum(1) - np.flatnonzero(other)[far] % CLASSES
    )


def test_a_cutmixs_targets_have_the_areas():
    made = data.cutmix(source(), CLASSES).take(np.arange(COUNT), step=3)
    mine = made["x"][..., 0] == np.arange(1, COUNT + 1)[:, None, None]
    np.testing.assert_allclose(made["y"].sum(1), 1, atol=1e-6)
    own = made["y"][np.arange(COUNT), np.arange(COUNT) % CLASSES]
    other = own < 1 - 1e-6
    np.testing.assert_allclose(own[other], mine[other].mean((1, 2)), atol=1e-6)
    assert 0.3 < other.mean() < 0.8


def test_boxes_are_rectangles_of_the_area_asked_for():
    words = np.random.default_rng(0).integers(0, 2**32, 500, dtype=np.uint32)
    shares = np.linspace(0, 1, 500, dtype=np.float32)
    inside, left = boxes(shares, words, 32, 48)
    np.testing.assert_allclose(left, 1 - inside.mean((1, 2)), atol=1e-6)
    np.testing.assert_array_equal(inside, inside.any(2)[:, :, None] & inside.any(1)[:, None, :])
    assert (left >= shares - 0.06).all()
    assert not inside[-1].any()
    whole, share = boxes(np.zeros(1, np.float32), np.array([2**15 | 2**31], np.uint32), 32, 48)
    assert whole.all()
    assert share == 0


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_follow_beta(alpha):
    words = np.random.default_rng(0).integers(0, 2**32, 4000, dtype=np.uint32)
    assert scipy.stats.kstest(beta_shares(words, alpha), scipy.stats.beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize("make", [data.mixup, data.cutmix])
def test_an_examples_mixture_is_a_function_of_seed_step_and_id(make):
    moved = data.mapped(source(), data.random_crop_flip(1), random=True, seed=1)
    mixed = make(moved, CLASSES, seed=5)
    whole = mixed.take(np.arange(40), step=2)
    part = mixed.take(np.array([30, 7]), step=2)
    for name in ("x", "y"):
        np.testing.assert_array_equal(part[name], whole[name][[30, 7]])
    for another in (make(moved, CLASSES, seed=6).take(np.arange(40), 2), mixed.take(np.arange(40), 3)):
        assert np.abs(another["y"] - whole["y"]).max() > 0.1
    assert mixed.takes_step
    assert mixed.resident() is None


def test_only_the_share_asked_for_is_mixed():
    made = data.mixup(source(), CLASSES, alpha=1.0, probability=0.25).take(np.arange(COUNT), step=0)
    changed = made["x"][:, 0, 0, 0] != np.arange(1, COUNT + 1)
    assert 0.17 < changed.mean() < 0.33


def test_losses_and_accuracy_take_the_targets():
    y = data.mixup(source(), CLASSES, alpha=1.0).take(np.arange(8), step=0)["y"]
    logits = np.random.default_rng(0).standard_normal((8, CLASSES)).astype(np.float32)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(losses.cross_entropy(jnp.asarray(logits), jnp.asarray(y)), -(y * logs).sum(1), rtol=1e-5)
    right = np.argmax(logits, 1) == np.argmax(y, 1)
    np.testing.assert_array_equal(metrics.accuracy(jnp.asarray(logits), jnp.asarray(y)), right)


def test_mixtures_of_mixtures_and_bad_input():
    twice = data.cutmix(data.mixup(source(), CLASSES), CLASSES, seed=1).take(np.arange(20), step=0)
    np.testing.assert_allclose(twice["y"].sum(1), 1, atol=1e-6)
    with pytest.raises(ValueError, match=r"data\.mixup: .*alpha=0"):
        data.mixup(source(), CLASSES, alpha=0)
    with pytest.raises(ValueError, match=r"class ids from 0 to 3.*Give classes=4"):
        data.mixup(source(), 3).take(np.arange(9))
    soft = data.Arrays(np.zeros((2, 4, 4, 1), np.float32), np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"targets float32\[2, 3\].*\[B, 4\]"):
        data.cutmix(soft, 4).take(np.arange(2))
    with pytest.raises(ValueError, match=r"'x' uint8.*Give images as floats"):
        data.cutmix(data.Arrays(np.zeros((2, 4, 4, 1), np.uint8), np.arange(2)), 4).take(np.arange(2))
