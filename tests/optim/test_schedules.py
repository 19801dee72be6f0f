"""Schedules against float64 NumPy and optax; their peak, end and text."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import optim

T = np.arange(120, dtype=np.float64)


def cos(a, b, s):
    return b + (a - b) * 0.5 * (1 + np.cos(np.pi * np.clip(s, 0, 1)))


CASES = {
    "constant": (optim.constant(0.3), np.full(120, 0.3)),
    "linear": (optim.linear(1.0, 0.1, 100), 0.1 + 0.9 * (1 - np.minimum(T / 100, 1))),
    "polynomial": (optim.polynomial(1.0, 0.0, 100, 2.0), (1 - np.minimum(T / 100, 1)) ** 2),
    "cosine": (optim.cosine(1.0, 100, 0.1), cos(1.0, 0.1, T / 100)),
    "exponential": (optim.exponential(1.0, 0.9, every=10), 0.9 ** (T / 10)),
    "inverse_sqrt": (optim.inverse_sqrt(2.0, 10), 2.0 * np.minimum((T + 1) / 10, np.sqrt(10 / (T + 1)))),
    "warmup": (
        optim.warmup(optim.cosine(1.0, 100), 10),
        np.where(T < 10, (T + 1) / 11, cos(1.0, 0.0, (T - 10) / 100)),
    ),
    "warmup_stable_decay": (
        optim.warmup_stable_decay(1.0, 100, warmup=10, decay=0.2),
        np.where(T < 10, (T + 1) / 11, 1 - np.clip((T - 80) / 20, 0, 1)),
    ),
    "warmup_stable_decay sqrt": (
        optim.warmup_stable_decay(1.0, 100, warmup=0.1, decay=20, shape="sqrt"),
        np.where(T < 10, (T + 1) / 11, 1 - np.sqrt(np.clip((T - 80) / 20, 0, 1))),
    ),
    "piecewise": (optim.piecewise(1.0, {20: 0.1, 50: 0.5}), np.where(T < 20, 1, np.where(T < 50, 0.1, 0.05))),
    "joined": (
        optim.joined((optim.linear(0.0, 1.0, 10), 10), (optim.cosine(1.0, 90), None)),
        np.where(T < 10, T / 10, cos(1.0, 0.0, (T - 10) / 90)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values(name):
    schedule, expected = CASES[name]
    np.testing.assert_allclose(schedule.values(120), expected, rtol=2e-5, atol=2e-6)
    assert schedule(jnp.int32(7)).shape == ()
    np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(7)), expected[7], rtol=2e-5, atol=2e-6)
    assert schedule.peak == pytest.approx(expected.max(), rel=0.02)


def test_one_cycle_is_torchs_two_phases():
    schedule = optim.one_cycle(0.1, 100)
    low, last = 0.1 / 25, 0.1 / 25 / 1e4
    t = np.arange(100)
    expected = np.where(t <= 29, cos(low, 0.1, t / 29), cos(0.1, last, (t - 29) / 70))
    np.testing.assert_allclose(schedule.values(), expected, rtol=1e-4, atol=1e-7)


def test_against_optax():
    theirs = optax.schedules.cosine_decay_schedule(1.0, 100, alpha=0.1)
    np.testing.assert_allclose(optim.cosine(1.0, 100, 0.1).values(120), jax.vmap(theirs)(jnp.arange(120)), atol=1e-6)


def test_where_they_end():
    assert optim.linear(1.0, 0.0, 10).ends == 10
    assert optim.warmup(optim.cosine(1.0, 100), 10).ends == 110
    assert optim.joined((optim.linear(0.0, 1.0, 10), 10), (optim.cosine(1.0, 90), None)).ends == 100
    assert optim.constant(1.0).ends is None
    assert optim.joined((optim.cosine(1.0, 90), 90), (optim.constant(0.1), None)).ends is None


def test_they_print_and_plot():
    schedule = optim.warmup_stable_decay(peak=3e-4, steps=10_000)
    text = "warmup_stable_decay(0.0003, steps=10000, warmup=200, decay=2000, end=0, shape='linear')"
    assert repr(schedule) == text
    axes = schedule.plot().axes[0]
    assert axes.get_title() == text
    assert len(axes.lines[0].get_xdata()) == 10_000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.linear(1.0, 0.0, 0), "steps is 0. Give a whole number of updates, 1 or more"),
        (lambda: optim.cosine(-1.0, 10), "peak is -1. Give a number >= 0"),
        (lambda: optim.warmup_stable_decay(1.0, 10, warmup=6, decay=6), "warmup=6 and decay=6 are more than steps=10"),
        (lambda: optim.joined((optim.constant(1.0), None), (optim.constant(1.0), None)), "only the last may have None"),
        (lambda: optim.cosine("high", 10), "peak is 'high'. Give a finite number"),
        (lambda: optim.linear(1.0, -1.0, 10), "optim.linear: end is -1"),
        (lambda: optim.one_cycle(1.0, 10, warmup=11), "optim.one_cycle: warmup=11 is more than steps=10"),
        (lambda: optim.one_cycle(1.0, 10, warmup=math.nan), "optim.one_cycle: warmup is nan. Give a finite number"),
        (lambda: optim.warmup_stable_decay(1.0, 10, decay="x"), "decay is 'x'. Give a finite number"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_grows_for_ever_has_no_peak():
    """Over an infinite one decay shrank nothing, and the rate of Muon's others was 0."""
    growing = optim.exponential(1e-3, 1.1)
    assert growing.peak is None
    assert optim.joined((optim.constant(1.0), 10), (growing, None)).peak is None
    assert optim.warmup(growing, 10).peak is None
    tx = optim.stages(decay=optim.decay(0.1, coupling="schedule"), lr=optim.scale_by_lr(growing))
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"optim.decay: coupling=\"schedule\" .* has no `peak`"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match=r"optim.muon: adam_lr=.* has no `peak`"):
        optim.muon(growing, adam_lr=1e-3)


def test_the_peak_of_joined_parts_is_one_that_they_reach():
    """A part that is cut off on its way up: decay(coupling="schedule") was as much too weak."""
    cut = optim.joined((optim.linear(0.0, 1.0, 100), 11), (optim.constant(0.05), None))
    assert cut.peak == pytest.approx(0.1)
    assert jax.jit(lambda t: optim.joined((optim.linear(0.0, 1.0, 100), 11), (cut, 5)).peak * t)(1.0) == cut.peak
    assert optim.joined((optim.exponential(1e-3, 2.0), 4), (optim.constant(1e-3), None)).peak == pytest.approx(8e-3)
    assert optim.joined((optim.cosine(0.1, 90), 90), (optim.constant(0.01), None)).peak == 0.1


def test_a_schedule_is_a_value_in_the_state():
    tx = optim.adam(optim.linear(1.0, 0.0, 10), b1=optim.linear(0.9, 0.5, 10))
    params = {"w": jnp.ones(3)}
    state = tx.init(params)
    for step in range(3):
        _, state = tx.update(params, state, params)
        found = optim.hyper(state)
        assert float(found["lr"]) == pytest.approx(1 - step / 10)
        assert float(found["b1"]) == pytest.approx(0.9 - 0.04 * step)
