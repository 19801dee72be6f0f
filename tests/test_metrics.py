"""Metrics against float64 NumPy formulas over ragged, masked parts that are added up."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import metrics
from jaxnn.typing import Mean

B, T, C = 11, 5, 4


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(B, T, C)).astype(np.float32) * 2
    weights = rng.choice([0.0, 1.0, 0.5], size=(B, T)).astype(np.float32)
    return logits, rng.integers(0, C, size=(B, T)), weights


def in_parts(metric: metrics.Metric, outputs, targets, weights) -> float | np.ndarray:
    """The metric finished from the added sums of a first part of 7 and a second of 4."""
    parts = [jax.jit(metric.sums)(outputs[s], targets[s], weights[s]) for s in (slice(0, 7), slice(7, None))]
    return metric.finish(Mean(*(a + b for a, b in zip(*parts))))


def mean(values: np.ndarray, weights: np.ndarray) -> float:
    weights = np.broadcast_to(weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim)), values.shape)
    return float((values * weights.astype(np.float64)).sum() / weights.sum(dtype=np.float64))


def nats(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    return np.log(np.exp(x).sum(-1)) - np.take_along_axis(x, targets[..., None], -1)[..., 0]


def test_class_metrics_merge_into_the_whole(batch):
    logits, targets, weights = batch
    rank = (logits > np.take_along_axis(logits, targets[..., None], -1)).sum(-1)
    want = {
        metrics.as_metric(metrics.accuracy): mean(logits.argmax(-1) == targets, weights),
        metrics.as_metric(metrics.top_k(2)): mean(rank < 2, weights),
        metrics.as_metric(metrics.bits_per_byte): mean(nats(logits, targets), weights) / math.log(2),
        metrics.perplexity: math.exp(mean(nats(logits, targets), weights)),
    }
    for metric, value in want.items():
        np.testing.assert_allclose(in_parts(metric, logits, targets, weights), value, rtol=1e-5)
        dense = np.eye(C, dtype=np.float32)[targets]
        np.testing.assert_allclose(in_parts(metric, logits, dense, weights), value, rtol=1e-5)


def test_elementwise_metrics_merge_and_every_element_counts(batch):
    outputs, _, _ = batch
    targets = np.random.default_rng(1).normal(size=outputs.shape).astype(np.float32)
    weights = np.array([1, 0, 1, 1, 0.5, 1, 1, 0, 0, 2, 1], np.float32)
    error = outputs.astype(np.float64) - targets
    for metric, values in [
        (metrics.mse, error**2),
        (metrics.mae, abs(error)),
        (metrics.binary_accuracy, (outputs > 0) == (targets > 0.5)),
    ]:
        np.testing.assert_allclose(
            in_parts(metrics.as_metric(metric), outputs, targets, weights), mean(values, weights), rtol=1e-5
        )


def test_confusion_counts_rows_of_the_true_class(batch):
    logits, targets, weights = batch
    want = np.zeros((C, C))
    for true, given, weight in zip(targets.ravel(), logits.argmax(-1).ravel(), weights.ravel()):
        want[true, given] += weight
    metric = metrics.confusion(C)
    np.testing.assert_allclose(in_parts(metric, logits, targets, weights), want, rtol=1e-6)
    # One weight per example counts for each of its tokens.
    per_example = metric.sums(logits, targets, weights[:, 0])
    np.testing.assert_allclose(np.asarray(per_example.sum).sum(), weights[:, 0].sum() * T, rtol=1e-6)
    np.testing.assert_allclose(per_example.weight, weights[:, 0].sum() * T, rtol=1e-6)
    # A label that is no class counts in no row.
    assert metric.finish(metric.sums(logits[:1, :1], np.full((1, 1), -1), np.ones((1, 1)))).sum() == 0


def test_top_k_counts_exactly_k_of_tied_classes_and_not_nan():
    tied = jnp.zeros((C, C))
    assert float(metrics.top_k(3)(tied, jnp.arange(C)).sum()) == 3
    assert float(metrics.top_k(1)(tied.at[:, :].set(jnp.nan), jnp.arange(C)).sum()) == 0


def test_padding_that_is_not_finite_stays_out():
    mean = metrics.weighted(jnp.array([1.0, jnp.nan, jnp.inf, 3.0]), jnp.array([1.0, 0, 0, 1]))
    assert (float(mean.sum), float(mean.weight)) == (4.0, 2.0)


def test_nothing_counted_is_nan(batch):
    logits, targets, _ = batch
    none = np.zeros(B, np.float32)
    assert math.isnan(metrics.perplexity.finish(metrics.perplexity.sums(logits, targets, none)))
    accuracy = metrics.as_metric(metrics.accuracy)
    assert math.isnan(accuracy.finish(accuracy.sums(logits, targets, none)))


def test_perplexity_beyond_the_largest_float_is_infinite():
    assert metrics.perplexity.finish(Mean(1e6, 1.0)) == math.inf


def test_as_metric_lifts_functions_and_keeps_metrics():
    assert metrics.as_metric(metrics.perplexity) is metrics.perplexity
    lifted = metrics.as_metric(lambda outputs, targets: jnp.abs(outputs - targets))
    assert lifted.finish(lifted.sums(jnp.array([1.0, 5.0]), jnp.array([0.0, 2.0]), jnp.array([1.0, 3.0]))) == 2.5
    with pytest.raises(TypeError, match="is no metric"):
        metrics.as_metric("accuracy")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: metrics.weighted(jnp.zeros((3, 2)), jnp.zeros(2)),
            r"weights float32\[2\] against values float32\[3, 2\]",
        ),
        (lambda: metrics.mse(jnp.zeros((3, 1)), jnp.zeros(3)), r"mse: outputs float32\[3, 1\]"),
        (lambda: metrics.accuracy(jnp.zeros((3, 2)), jnp.zeros(3)), r"accuracy: .*targets\.astype\(int\)"),
        (lambda: metrics.accuracy(jnp.zeros((3, 2)), jnp.zeros((3, 1), int)), r"accuracy: "),
        (lambda: metrics.top_k(0), "k=0"),
        (lambda: metrics.top_k(3)(jnp.zeros((3, 2)), jnp.zeros(3, int)), "Write k <= 2"),
        (lambda: metrics.confusion(1), "classes=1"),
        (lambda: metrics.confusion(3).sums(jnp.zeros((3, 2)), jnp.zeros(3, int), jnp.ones(3)), r"confusion\(2\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
