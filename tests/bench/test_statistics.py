"""Intervals cover, early looks raise no false alarm, under noise that is neither normal nor independent."""

import math

import numpy as np
import pytest
from scipy import stats

from jaxnn.bench import statistics
from jaxnn.bench.statistics import Interval

TRIALS = 120


def noise(kind, rng, n=240):
    """Paired log-ratios whose true median is 0; about 2 % wide."""
    e = 0.02 * rng.standard_normal(n)
    if kind == "heavy tails":
        return 0.02 * rng.standard_t(2, n)
    if kind == "autocorrelated":
        for i in range(1, n):
            e[i] += 0.5 * e[i - 1]
        return e
    if kind == "bursts":  # another process comes and goes
        busy = np.cumsum(rng.random(n) < 0.05) % 2 == 1
        return np.where(busy, 10 * e, e / 2)
    if kind == "skewed outliers":  # one in ten rounds is hit, whichever arm runs
        return e + rng.choice([0, -0.5, 0.5], n, p=[0.9, 0.05, 0.05])
    return e


def trial(x, truth, tolerance=0.03, alpha=0.05):
    """The verdict of a sequential comparison, and whether every interval on the way covered."""
    x, covered, look = x + truth, True, 0
    for due in statistics.look_sizes(3):
        look, n = look + 1, min(due, len(x))
        interval = statistics.median_interval(x[:n], 1 - statistics.spent(look, alpha), look)
        covered &= truth in interval
        verdict = statistics.decide(float(np.median(x[:n])), interval, tolerance, n == len(x))
        if verdict != "inconclusive" or n == len(x):
            return verdict, covered
    raise AssertionError


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "autocorrelated", "bursts", "skewed outliers"])
def test_verdicts_and_coverage(kind):
    rng = np.random.default_rng(7)
    for truth, right, wrong in ((0.0, "ok", "regress"), (math.log(1.04), "regress", "ok"), (-0.06, "improve", "ok")):
        verdicts, covered = zip(*[trial(noise(kind, rng), truth) for _ in range(TRIALS)])
        assert verdicts.count(wrong) <= TRIALS / 40
        assert verdicts.count(right) >= 0.85 * TRIALS
        # 95 % less three standard errors of 120 trials
        assert np.mean(covered) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / TRIALS)


def test_strong_autocorrelation_is_inconclusive_rather_than_wrong():
    rng = np.random.default_rng(3)
    verdicts = []
    for _ in range(TRIALS):
        e = 0.02 * rng.standard_normal(240)
        for i in range(1, len(e)):
            e[i] += 0.8 * e[i - 1]
        verdicts.append(trial(e, 0.0)[0])
    assert verdicts.count("regress") <= TRIALS / 40
    assert verdicts.count("inconclusive") > TRIALS / 20


def test_looking_without_spending_would_raise_false_alarms():
    """The mutation: each look at the full 5 % misses far more often than 5 %."""
    rng = np.random.default_rng(0)
    missed = {True: 0, False: 0}
    for _ in range(TRIALS):
        x = 0.02 * rng.standard_normal(800)
        for spend in missed:
            levels = [(look, statistics.spent(look, 0.05) if spend else 0.05) for look in range(1, 31)]
            intervals = [statistics.sign_interval(x[: 20 + 26 * (look - 1)], 1 - alpha) for look, alpha in levels]
            missed[spend] += any(0.0 not in interval for interval in intervals)
    assert missed[True] <= 0.05 * TRIALS + 3 * math.sqrt(0.05 * 0.95 * TRIALS)
    assert missed[False] > 0.12 * TRIALS


def test_counting_correlated_rounds_as_independent_would_not_cover(monkeypatch):
    """The mutation: without the effective number of rounds the interval of a correlated series is too narrow."""
    rng = np.random.default_rng(2)
    series = []
    for _ in range(TRIALS):
        e = rng.standard_normal(150)
        for i in range(1, len(e)):
            e[i] += 0.7 * e[i - 1]
        series.append(e)

    def coverage():
        return np.mean([0.0 in statistics.sign_interval(x, 0.95) for x in series])

    assert coverage() >= 0.90
    monkeypatch.setattr(statistics, "effective_size", lambda x: float(len(x)))
    assert coverage() < 0.80


def test_levels_of_all_looks_add_up_to_alpha():
    assert sum(statistics.spent(look, 0.05) for look in range(1, 10_000)) == pytest.approx(0.05, rel=2e-4)


def test_sign_interval_is_the_inverted_sign_test():
    x = np.random.default_rng(0).permutation(np.arange(40.0))
    interval = statistics.sign_interval(x, 0.95)
    inside = [m for m in x if stats.binomtest(int(np.sum(x > m - 0.5)), 40).pvalue > 0.05]
    assert abs(interval.low - min(inside)) <= 1
    assert abs(interval.high - max(inside)) <= 1
    assert not math.isfinite(statistics.sign_interval(x[:5], 0.95).low)


def test_binomial_tail_is_scipys():
    for n in (1, 8, 101, 1200):
        exact = stats.binom.cdf(np.arange(n + 1), n, 0.5)
        np.testing.assert_allclose(statistics._tail(n), exact, rtol=1e-9, atol=1e-200)


def test_effective_size():
    rng = np.random.default_rng(1)
    white = rng.standard_normal(4000)
    red = white.copy()
    for i in range(1, len(red)):
        red[i] += 0.8 * red[i - 1]
    assert statistics.effective_size(white) > 3000
    # signs of a Gaussian AR(1) have autocorrelation 2/pi asin(0.8^k)
    expected = 4000 / (1 + 2 * sum(2 / math.pi * math.asin(0.8**k) for k in range(1, 60)))
    assert statistics.effective_size(red) == pytest.approx(expected, rel=0.35)
    assert statistics.effective_size(np.ones(50)) == 50


@pytest.mark.parametrize(
    ("estimate", "low", "high", "early", "late"),
    [
        (0.05, 0.035, 0.06, "regress", "regress"),
        (0.043, 0.029, 0.056, "inconclusive", "regress"),
        (0.035, 0.010, 0.06, "inconclusive", "inconclusive"),
        (0.025, 0.020, 0.04, "inconclusive", "inconclusive"),
        (0.00, -0.020, 0.02, "ok", "ok"),
        (-0.02, -0.050, 0.01, "inconclusive", "ok"),
        (-0.05, -0.060, -0.04, "improve", "improve"),
        (-0.04, -0.060, -0.02, "inconclusive", "improve"),
        (0.00, -math.inf, math.inf, "inconclusive", "inconclusive"),
    ],
)
def test_decisions(estimate, low, high, early, late):
    assert statistics.decide(estimate, Interval(low, high), 0.03, False) == early
    assert statistics.decide(estimate, Interval(low, high), 0.03, True) == late


def test_outliers_are_classified_by_tukeys_fences():
    x = np.concatenate([np.linspace(9, 11, 101), [5.0, 7.6, 13.0, 12.4, 20.0]])
    found = statistics.outliers(x)
    first, third = np.quantile(x, [0.25, 0.75])
    severe = (x < first - 3 * (third - first)) | (x > third + 3 * (third - first))
    assert found.low_severe + found.high_severe == severe.sum()
    assert found == statistics.Outliers(1, 1, 2, 1)
    assert found.total == 5


def test_drift_is_seen_and_not_invented():
    rng = np.random.default_rng(5)
    steady = [statistics.drifts(noise(kind, rng)) for kind in ("normal", "autocorrelated") for _ in range(TRIALS)]
    assert sum(steady) <= 2
    moving = [statistics.drifts(0.01 * rng.standard_normal(120) + np.linspace(0, 0.05, 120)) for _ in range(40)]
    assert sum(moving) >= 36


def test_interval():
    a, b = Interval(1.0, 2.0, 0.99), Interval(1.5, 3.0, 0.95)
    assert a.hull(b) == Interval(1.0, 3.0, 0.95)
    assert a.widened(0.5) == Interval(0.5, 2.5, 0.99)
    assert 1.0 in a
    assert 2.1 not in a
    assert a.half == 0.5
    assert Interval(0.0, math.log(2)).exp().high == pytest.approx(2)
    assert str(Interval(8.8312, 9.02)) == "[8.831, 9.02]"
