"""Metrics as mergeable means: `sums` on the device, `finish` on the host.

A metric of a whole data set is not the mean of the batches' metrics: the last batch is ragged, tokens are masked,
devices hold different numbers of examples, and a perplexity is not a mean at all. So a metric gives (sum, weight) for
what it was shown, those are added over batches and devices, and only the total is finished into the figure that people
read.

Most metrics are means of a value per example; for those a plain function `(outputs, targets) -> values [B, ...]` is
enough, and `as_metric` makes it a `Metric`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn.tree import describe
from jaxnn.typing import Array, Mean

Values = Callable[[Array, Array], Array]
# By exact name: "precision", "recall" or "topic_loss" would be told wrong by any part of theirs.
SMALLER = ("loss", "mse", "mae", "huber", "cross_entropy", "binary_cross_entropy", "perplexity", "bits_per_byte")
LARGER = ("accuracy", "binary_accuracy")


def better(name: str) -> Literal["min", "max"] | None:
    """Whether the smaller or the larger value is the better one, of this library's losses and metrics by name.

    With or without "val_", and "top_N"; None for any other name.
    """
    plain = name.removeprefix("val_")
    if plain in SMALLER:
        return "min"
    return "max" if plain in LARGER or re.fullmatch(r"top_\d+", plain) else None


def weighted(values: Array, weights: Array) -> Mean:
    """The weighted sum of `values` and the sum of the weights, every element of `values` counting.

    Values under a weight of 0 are dropped, not multiplied: a NaN in padding stays out of the sum.

    Args:
        values: [B, ...], any real dtype; summed in float32 (float64 where they are that).
        weights: float32, of a shape that is a prefix of the values' shape ([B] for [B, T]); broadcast over the rest.

    Returns:
        Mean of two scalars.

    Raises:
        ValueError: If the weights' shape is not a prefix of the values' shape.
    """
    values, weights = jnp.asarray(values), jnp.asarray(weights)
    if weights.shape != values.shape[: weights.ndim]:
        raise ValueError(
            f"metrics.weighted: weights {describe(weights)} against values {describe(values)}. Tried: the beginning "
            f"of the values' shape. Give one weight per example [B], or per token [B, T]."
        )
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    weights = weights.astype(values.dtype)
    each = math.prod(values.shape[weights.ndim :])
    total = jnp.sum(weights) * each
    weights = weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim))
    return Mean(jnp.sum(jnp.where(weights != 0, values, 0) * weights), total)


def ratio(mean: Mean) -> float:
    """`sum / weight` on the host; NaN where the weight is 0."""
    weight = float(mean.weight)
    return float(mean.sum) / weight if weight else math.nan


@dataclass(frozen=True)
class Metric:
    """A figure over many batches.

    Attributes:
        sums: `(outputs, targets, weights) -> Mean`, traceable; two Means add up to that of the two batches as one.
            `weights` is float32 [B, ...], a prefix of the values' shape; 0 for padding.
        finish: `Mean -> float | numpy.ndarray`, on the host, from the added sums; NaN where nothing was counted.
    """

    sums: Callable[[Array, Array, Array], Mean]
    finish: Callable[[Mean], float | np.ndarray] = ratio


def as_metric(f: Metric | Values) -> Metric:
    """`f` itself if it is a `Metric`; else the weighted mean of the values `f(outputs, targets) -> [B, ...]`.

    Raises:
        TypeError: If `f` is neither.
    """
    if isinstance(f, Metric):
        return f
    if not callable(f):
        raise TypeError(
            f"metrics.as_metric: {f!r:.80} is no metric. Tried: a Metric, or (outputs, targets) -> values [B, ...]. "
            f"Write metrics.accuracy, say, without calling it."
        )
    return Metric(lambda outputs, targets, weights: weighted(f(outputs, targets), weights))


def _same(name: str, outputs: Array, targets: Array) -> tuple[Array, Array]:
    outputs, targets = jnp.asarray(outputs), jnp.asarray(targets)
    if outputs.shape != targets.shape:
        raise ValueError(
            f"metrics.{name}: outputs {describe(outputs)} against targets {describe(targets)}. Tried: equal shapes. "
            f"Write targets.reshape(outputs.shape) where both list the same values."
        )
    wide = jnp.promote_types(outputs.dtype, jnp.float32)
    return outputs.astype(wide), targets.astype(wide)


def _classes(name: str, logits: Array, targets: Array) -> tuple[Array, Array]:
    """Logits [B, ..., C] and integer classes [B, ...], from classes or from dense targets."""
    logits, targets = jnp.asarray(logits), jnp.asarray(targets)
    if logits.ndim and targets.shape == logits.shape:
        return logits, jnp.argmax(targets, axis=-1)
    if not logits.ndim or targets.shape != logits.shape[:-1] or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(
            f"metrics.{name}: logits {describe(logits)} against targets {describe(targets)}. Tried: integer classes "
            f"{list(logits.shape[:-1])} or probabilities {list(logits.shape)}. Write targets.astype(int), or [..., 0]."
        )
    return logits, targets


def mse(outputs: Array, targets: Array) -> Array:
    """Squared errors, elementwise; outputs and targets [B, ...] of equal shape, else ValueError."""
    outputs, targets = _same("mse", outputs, targets)
    return jnp.square(outputs - targets)


def mae(outputs: Array, targets: Array) -> Array:
    """Absolute errors, elementwise, in units of the targets; shapes as `mse`."""
    outputs, targets = _same("mae", outputs, targets)
    return jnp.abs(outputs - targets)


def accuracy(logits: Array, targets: Array) -> Array:
    """1.0 where the largest of `logits` [B, ..., C] is the true class, else 0.0; ties go to the first class.

    Args:
        logits: [B, ..., C].
        targets: Integer classes [B, ...], or dense [B, ..., C] whose largest entry is the true class.

    Raises:
        ValueError: If the shapes do not fit.
    """
    logits, targets = _classes("accuracy", logits, targets)
    return (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)


def binary_accuracy(logits: Array, targets: Array) -> Array:
    """1.0 where `logits > 0` agrees with `targets > 0.5`, elementwise; shapes as `mse`."""
    logits, targets = _same("binary_accuracy", logits, targets)
    return ((logits > 0) == (targets > 0.5)).astype(jnp.float32)


def top_k(k: int) -> Values:
    """A metric: 1.0 where the true class is among the `k` largest logits.

    A class counts by the number of classes whose logit is larger, plus the earlier ones that tie with it, so that
    exactly `k` classes are in.

    Args:
        k: How many guesses; >= 1.

    Raises:
        ValueError: If `k` < 1, or on use if `k` exceeds the number of classes.
    """
    if k < 1:
        raise ValueError(f"metrics.top_k: k={k!r}. Tried: a number of guesses. Write top_k(5), say.")

    def values(logits: Array, targets: Array) -> Array:
        logits, targets = _classes("top_k", logits, targets)
        if k > logits.shape[-1]:
            raise ValueError(f"metrics.top_k: k={k} for logits {describe(logits)}. Write k <= {logits.shape[-1]}.")
        mine = jnp.take_along_axis(logits, targets[..., None], axis=-1)
        earlier = jnp.arange(logits.shape[-1]) < targets[..., None]
        ahead = jnp.sum((logits > mine) | ((logits == mine) & earlier), axis=-1)
        # A NaN logit compares false with everything, and would otherwise count as the best guess.
        return ((ahead < k) & ~jnp.isnan(mine[..., 0])).astype(jnp.float32)

    return values


def _nats(name: str, logits: Array, targets: Array) -> Array:
    dense = jnp.shape(targets) == jnp.shape(logits)
    if dense:
        logits, targets = _same(name, logits, targets)
        return optax.losses.softmax_cross_entropy(logits, targets)
    logits, targets = _classes(name, logits, targets)
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.losses.softmax_cross_entropy_with_integer_labels(wide, targets)


def bits_per_byte(logits: Array, targets: Array) -> Array:
    """Cross entropy in bits (nats / ln 2) per token, which is per byte where the tokens are bytes.

    Args:
        logits: [B, ..., C].
        targets: Integer classes [B, ...], or probabilities [B, ..., C].

    Raises:
        ValueError: If the shapes do not fit.
    """
    return _nats("bits_per_byte", logits, targets) / math.log(2)


def _exp_ratio(mean: Mean) -> float:
    nats = ratio(mean)
    return math.exp(nats) if nats < 700 else (math.inf if nats >= 700 else math.nan)


# The exponential is taken after all batches are added: a mean of the batches' perplexities is another number.
perplexity = Metric(
    lambda logits, targets, weights: weighted(_nats("perplexity", logits, targets), weights), _exp_ratio
)


def confusion(classes: int) -> Metric:
    """The confusion matrix [C, C]: entry (i, j) is the weight of examples of true class i that were given class j.

    Args:
        classes: C; >= 2. Targets outside [0, C) count in no row.

    Raises:
        ValueError: If `classes` < 2, or on use if the logits have another number of classes.
    """
    if classes < 2:
        raise ValueError(f"metrics.confusion: classes={classes!r}. Tried: two or more. Write confusion(10), say.")

    def sums(logits: Array, targets: Array, weights: Array) -> Mean:
        logits, targets = _classes("confusion", logits, targets)
        if logits.shape[-1] != classes:
            raise ValueError(
                f"metrics.confusion: logits {describe(logits)} for C={classes}. Write confusion({logits.shape[-1]})."
            )
        given = jnp.argmax(logits, axis=-1)
        total = weighted(jnp.ones(targets.shape, jnp.float32), weights).weight
        each = jnp.broadcast_to(weights.reshape(weights.shape + (1,) * (targets.ndim - weights.ndim)), targets.shape)
        true = jax.nn.one_hot(targets.reshape(-1), classes) * each.reshape(-1, 1)
        matrix = jnp.matmul(true.T, jax.nn.one_hot(given.reshape(-1), classes), precision=jax.lax.Precision.HIGHEST)
        return Mean(matrix, total)

    return Metric(sums, lambda mean: np.asarray(mean.sum))
