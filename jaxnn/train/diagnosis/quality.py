"""How much of the targets a model explains, and how much something simple explains of the same examples."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnn.core import Task

FEATURES = 512  # random ones, of a reference that takes some tens of milliseconds
MOST_INPUTS = 4096  # per example; with more, a reference of dense features would take seconds
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # per example, over features of variance 1


@dataclasses.dataclass(frozen=True)
class Targets:
    """Targets as vectors, and how outputs are compared with them.

    Attributes:
        values: [N, C]: numbers, or classes as one-hot vectors.
        kind: "numbers", "classes" or "labels" (0 or 1 each).
    """

    values: np.ndarray
    kind: str

    def predicted(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs as what they say of `values`: logits become probabilities."""
        x = np.asarray(outputs, np.float64)
        x = x.reshape(-1, x.shape[-1]) if self.kind == "classes" else x.reshape(len(x), -1)
        if self.kind == "classes":
            x = np.exp(x - x.max(-1, keepdims=True))
            return x / x.sum(-1, keepdims=True)
        return 0.5 * (1 + np.tanh(0.5 * x)) if self.kind == "labels" else x


def targets_of(task: Task, examples: Mapping[str, Any], outputs: Any) -> Targets | None:
    """The targets of some examples; None where the task's loss says nothing of how outputs and targets compare."""
    y, loss = examples.get(task.about.get("targets", "")), task.about.get("loss", "")
    if y is None or not isinstance(outputs, np.ndarray) or "weights" in examples:
        return None
    if loss == "cross_entropy":
        classes = outputs.shape[-1]
        if y.shape == outputs.shape:
            return Targets(np.asarray(y, np.float64).reshape(-1, classes), "classes")
        if y.shape == outputs.shape[:-1] and y.dtype.kind in "iu":
            return Targets(np.eye(classes)[np.clip(y.reshape(-1), 0, classes - 1)], "classes")
        return None
    if y.shape != outputs.shape:
        return None
    kind = {"binary_cross_entropy": "labels", "mse": "numbers", "mae": "numbers", "huber": "numbers"}.get(loss)
    return None if kind is None else Targets(np.asarray(y, np.float64).reshape(len(y), -1), kind)


def explained(predicted: np.ndarray, values: np.ndarray) -> float:
    """Which part of the targets' variance predictions explain: 1 all of it, 0 what the mean of the targets would, less
    than 0 where they are worse than that. Of classes, of one-hot vectors and probabilities (a Brier skill score)."""
    about = np.sum((values - values.mean(0)) ** 2)
    return float(1 - np.sum((predicted - values) ** 2) / about) if about > 0 else float("nan")


def reference(inputs: np.ndarray, values: np.ndarray, seed: int = 0) -> float | None:
    """What ridge regression on the inputs and random features of them explains of examples it was not fitted to.

    The features are cos(W x + b) of standardised inputs: a model that is fitted in a moment, and that a network which
    learns ought to match.

    Args:
        inputs: [N, ...], numbers.
        values: [N, C].
        seed: Of the features, and of which quarter is held out.

    Returns:
        The best over a few ridges; None of too many inputs or too few examples.

    Source:
        Rahimi and Recht 2007, "Random features for large-scale kernel machines".
    """
    x = np.asarray(inputs, np.float64).reshape(len(inputs), -1)
    n, width = x.shape
    if not 1 <= width <= MOST_INPUTS or n < 64 or len(values) != n or not np.isfinite(x).all():
        return None
    draw = np.random.default_rng(seed)
    shuffled = draw.permutation(n)
    held, fitted = shuffled[: n // 4], shuffled[n // 4 :]
    mean, spread = x[fitted].mean(0), x[fitted].std(0)
    x = (x - mean) / np.where(spread > 0, spread, 1)
    hidden = np.cos(x @ (draw.normal(size=(width, FEATURES)) / width**0.5) + draw.uniform(0, 2 * np.pi, FEATURES))
    features = np.concatenate([x, hidden], 1)
    centre = features[fitted].mean(0)
    features -= centre
    about = values[fitted].mean(0)
    left, s, right = np.linalg.svd(features[fitted], full_matrices=False)
    found = []
    for ridge in RIDGES:
        weights = right.T @ ((s / (s**2 + ridge * len(fitted)))[:, None] * (left.T @ (values[fitted] - about)))
        found.append(explained(features[held] @ weights + about, values[held]))
    return max(found)
