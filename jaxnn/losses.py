"""Losses per example: `(outputs, targets) -> values [B, ...]`, never reduced here.

Reduction belongs to the step, which adds weighted values over micro-batches and devices and divides once; a loss that
took its own mean would make ragged masks and token weights wrong. Values are float32 (float64 where the outputs are),
whatever the precision of the outputs. Shapes are compared while tracing, because broadcasting (32, 1) against (32,)
gives a number that trains towards nothing and says so nowhere.
"""

import jax
import jax.numpy as jnp
import optax

from jaxnn import lookups
from jaxnn.tree import describe
from jaxnn.typing import Array

_CLASSES = "Give the model an output for each class, number classes from 0, or give weights that are 0 there."


def _wide(x: Array) -> Array:
    """`x` as float32, or float64 where it is that already."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _real(name: str, what: str, x: Array) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"losses.{name}: {what} are {describe(x)}. Tried: real floating outputs. Give the model's float outputs."
        )
    return _wide(x)


def _advice(outputs: tuple[int, ...], targets: tuple[int, ...]) -> str:
    if outputs == (*targets, 1):
        return "Write targets[..., None], or drop the outputs' last axis: outputs[..., 0]."
    if targets == (*outputs, 1):
        return "Write targets[..., 0], or give the model an output of width 1."
    return "Make the model's output and the targets the same shape."


def _pair(name: str, outputs: Array, targets: Array) -> tuple[Array, Array]:
    outputs, targets = jnp.asarray(outputs), jnp.asarray(targets)
    if outputs.shape != targets.shape:
        raise ValueError(
            f"losses.{name}: outputs {describe(outputs)} against targets {describe(targets)}. Tried: equal shapes: "
            f"broadcasting would pair every output with every target. {_advice(outputs.shape, targets.shape)}"
        )
    outputs = _real(name, "outputs", outputs)
    return outputs, targets.astype(outputs.dtype)


def _check_smoothing(name: str, label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"losses.{name}: label_smoothing={label_smoothing!r}. Tried: a share in [0, 1). Write 0.1, say."
        )


def mse(outputs: Array, targets: Array) -> Array:
    """Squared errors `(outputs - targets)^2`, elementwise.

    Args:
        outputs: Floats [B, ...].
        targets: [B, ...] of the same shape; integers and bools are cast.

    Returns:
        [B, ...], in squared units of the targets.

    Raises:
        ValueError: If the shapes differ.
        TypeError: If the outputs are not real floats.
    """
    return optax.losses.squared_error(*_pair("mse", outputs, targets))


def mae(outputs: Array, targets: Array) -> Array:
    """Absolute errors `|outputs - targets|`, elementwise; shapes, dtypes and errors as `mse`."""
    outputs, targets = _pair("mae", outputs, targets)
    return jnp.abs(outputs - targets)


def huber(outputs: Array, targets: Array, delta: float = 1.0) -> Array:
    """Huber losses: `e^2 / 2` for errors up to `delta`, `delta (|e| - delta / 2)` beyond.

    Args:
        outputs: Floats [B, ...].
        targets: [B, ...] of the same shape.
        delta: Where the parabola turns into a line, in units of the targets; > 0.

    Raises:
        ValueError: If the shapes differ, or `delta` <= 0.
        TypeError: If the outputs are not real floats.

    Source:
        Huber 1964, Annals of Mathematical Statistics 35(1).
    """
    if delta <= 0:
        raise ValueError(f"losses.huber: delta={delta!r}. Tried: a positive error size. Write delta=1.0, say.")
    return optax.losses.huber_loss(*_pair("huber", outputs, targets), delta=delta)


def cross_entropy(logits: Array, targets: Array, label_smoothing: float = 0.0) -> Array:
    """Cross entropies of softmax(logits) in nats, one per example or token.

    Args:
        logits: Floats [B, ..., C], unnormalised; accumulated in float32 at least.
        targets: Integer classes [B, ...], or float probabilities [B, ..., C] that sum to 1 over C; told apart by dtype,
            and the rank must agree. Classes must lie in [0, C), where they weigh something: `fit` and `evaluate`
            refuse others; elsewhere a class of C or more gives NaN, and a negative one counts from the end as NumPy
            indices do.
        label_smoothing: Share of the probability spread evenly over all classes, in [0, 1).

    Returns:
        [B, ...] in nats.

    Raises:
        ValueError: If the shapes do not fit.
        TypeError: If the logits are not real floats, or the targets' dtype contradicts their rank.

    Source:
        Label smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    _check_smoothing("cross_entropy", label_smoothing)
    given_targets, logits, targets = targets, jnp.asarray(logits), jnp.asarray(targets)
    given = f"losses.cross_entropy: logits {describe(logits)} against targets {describe(targets)}"
    if logits.ndim == 0:
        raise ValueError(f"{given}. Tried: logits [B, ..., C]. Give the logits a class axis.")
    logits = _real("cross_entropy", "logits", logits)
    classes = logits.shape[-1]
    if jnp.issubdtype(targets.dtype, jnp.integer):
        if targets.shape == logits.shape:
            raise TypeError(
                f"{given}. Tried: integer classes {list(logits.shape[:-1])}. For one-hot write targets.astype(float), "
                f"or losses.binary_cross_entropy for one logit."
            )
        if targets.shape != logits.shape[:-1]:
            fix = "targets[..., 0]" if targets.shape == (*logits.shape[:-1], 1) else "one class per row of logits"
            raise ValueError(f"{given}. Tried: integer classes {list(logits.shape[:-1])}. Write {fix}.")
        lookups.notice(given_targets, lookups.Lookup(classes, "losses.cross_entropy: classes", _CLASSES, weighed=True))
        values = optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)
        if label_smoothing:
            even = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
            values = (1 - label_smoothing) * values + label_smoothing * even
        return values
    if not jnp.issubdtype(targets.dtype, jnp.floating):
        raise TypeError(f"{given}. Tried: integer classes or float probabilities. Write targets.astype(int).")
    if targets.shape == logits.shape[:-1]:
        raise TypeError(
            f"{given}. Tried: float probabilities {list(logits.shape)}. Write targets.astype(int) for classes."
        )
    if targets.shape != logits.shape:
        raise ValueError(
            f"{given}. Tried: float probabilities {list(logits.shape)}. Give one for each of {classes} classes."
        )
    targets = targets.astype(logits.dtype)
    if label_smoothing:
        targets = (1 - label_smoothing) * targets + label_smoothing / classes
    return optax.losses.softmax_cross_entropy(logits, targets)


def binary_cross_entropy(logits: Array, targets: Array, label_smoothing: float = 0.0) -> Array:
    """Cross entropies of sigmoid(logits) in nats, elementwise, stable at any logit.

    Args:
        logits: Floats [B, ...].
        targets: [B, ...] of the same shape: bools, 0/1 integers, or probabilities of the positive class.
        label_smoothing: In [0, 1): targets t become (1 - s) t + s / 2.

    Returns:
        [B, ...] in nats.

    Raises:
        ValueError: If the shapes differ, or the smoothing is out of range.
        TypeError: If the logits are not real floats.
    """
    _check_smoothing("binary_cross_entropy", label_smoothing)
    logits, targets = _pair("binary_cross_entropy", logits, targets)
    if label_smoothing:
        targets = (1 - label_smoothing) * targets + label_smoothing / 2
    return optax.losses.sigmoid_binary_cross_entropy(logits, targets)
