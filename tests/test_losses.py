"""Losses against float64 NumPy formulas, and the shapes and dtypes that they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import losses


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, bool])
def test_regression_losses_are_the_formulas_and_cast_integers(rng, dtype):
    outputs = rng.normal(size=(5, 3)).astype(np.float32) * 3
    targets = (rng.normal(size=(5, 3)) * 2).astype(dtype)
    error = outputs.astype(np.float64) - targets
    huber = np.where(abs(error) <= 0.7, error**2 / 2, 0.7 * (abs(error) - 0.35))
    np.testing.assert_allclose(losses.mse(outputs, targets), error**2, rtol=1e-6)
    np.testing.assert_allclose(losses.mae(outputs, targets), abs(error), rtol=1e-6)
    np.testing.assert_allclose(losses.huber(outputs, targets, delta=0.7), huber, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_cross_entropy_of_integers_and_of_their_one_hot_rows_is_the_formula(rng, smoothing, shape):
    logits = rng.normal(size=(*shape, 4)).astype(np.float32) * 5
    targets = rng.integers(0, 4, size=shape)
    dense = np.eye(4)[targets]
    want = -(((1 - smoothing) * dense + smoothing / 4) * log_softmax(logits)).sum(-1)
    np.testing.assert_allclose(losses.cross_entropy(logits, targets, smoothing), want, rtol=1e-5)
    np.testing.assert_allclose(losses.cross_entropy(logits, dense.astype(np.float32), smoothing), want, rtol=1e-5)


def test_cross_entropy_of_probabilities(rng):
    logits = rng.normal(size=(6, 4)).astype(np.float32)
    dense = rng.dirichlet(np.ones(4), size=6).astype(np.float32)
    np.testing.assert_allclose(losses.cross_entropy(logits, dense), -(dense * log_softmax(logits)).sum(-1), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_is_the_formula_and_stable(rng, smoothing):
    logits = np.append(rng.normal(size=5), [200.0, -200.0]).astype(np.float32)
    targets = np.array([0, 1, 1, 0, 1, 1, 1])
    t = (1 - smoothing) * targets + smoothing / 2
    x = logits.astype(np.float64)
    want = t * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x)
    got = losses.binary_cross_entropy(logits, targets, smoothing)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert np.isfinite(jax.grad(lambda x: losses.binary_cross_entropy(x, targets).sum())(logits)).all()


def test_narrow_outputs_give_float32_values(rng):
    """A sum of 256 exponentials kept in bfloat16 would be off by more than a hundredth."""
    logits = jnp.asarray(rng.normal(size=(8, 256)), jnp.bfloat16)
    targets = rng.integers(0, 256, size=8)
    values = losses.cross_entropy(logits, targets)
    want = -np.take_along_axis(log_softmax(np.asarray(logits, np.float64)), targets[:, None], -1)[:, 0]
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, want, rtol=1e-5)
    assert losses.mse(logits, np.zeros((8, 256))).dtype == jnp.float32


def test_a_class_out_of_range_is_nan_not_a_number():
    assert np.isnan(losses.cross_entropy(jnp.zeros((1, 4)), jnp.array([4])))[0]


def test_gradient_of_cross_entropy_is_softmax_minus_one_hot(rng):
    logits = rng.normal(size=(5, 4)).astype(np.float32)
    targets = np.array([0, 3, 1, 1, 2])
    got = jax.grad(lambda x: losses.cross_entropy(x, targets).sum())(logits)
    np.testing.assert_allclose(got, np.exp(log_softmax(logits)) - np.eye(4)[targets], atol=1e-6)


F, I = np.float32, np.int32  # noqa: E741


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "error", "message"),
    [
        (losses.mse, (F, 32, 1), (F, 32), ValueError, r"mse: outputs float32\[32, 1\].*targets\[\.\.\., None\]"),
        (losses.mae, (F, 32), (F, 32, 1), ValueError, r"mae: .*Write targets\[\.\.\., 0\]"),
        (losses.huber, (F, 32, 2), (F, 32, 3), ValueError, r"huber: .*same shape"),
        (losses.binary_cross_entropy, (F, 8, 1), (I, 8), ValueError, r"binary_cross_entropy: .*Write targets"),
        (losses.mse, (I, 32), (F, 32), TypeError, r"outputs are int32\[32\]"),
        (losses.cross_entropy, (I, 8, 4), (I, 8), TypeError, r"logits are int32"),
        (losses.cross_entropy, (F, 8, 4), (F, 8), TypeError, r"Write targets\.astype\(int\)"),
        (losses.cross_entropy, (F, 8, 4), (bool, 8), TypeError, r"bool\[8\].*Write targets\.astype\(int\)"),
        (losses.cross_entropy, (F, 8, 4), (I, 8, 4), TypeError, r"targets\.astype\(float\)"),
        (losses.cross_entropy, (F, 8, 4), (I, 8, 1), ValueError, r"Write targets\[\.\.\., 0\]"),
        (losses.cross_entropy, (F, 8, 4), (I, 7), ValueError, r"integer classes \[8\]"),
        (losses.cross_entropy, (F, 8, 4), (F, 8, 5), ValueError, r"Give one for each of 4 classes"),
        (losses.cross_entropy, (F,), (I,), ValueError, r"class axis"),
    ],
)
def test_what_does_not_fit_is_refused_while_tracing(loss, outputs, targets, error, message):
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for dtype, *shape in (outputs, targets)]
    with pytest.raises(error, match=message):
        jax.eval_shape(loss, *shapes)


def test_settings_out_of_range_are_refused():
    x = jnp.zeros(3)
    with pytest.raises(ValueError, match=r"label_smoothing=1\.0"):
        losses.cross_entropy(jnp.zeros((3, 2)), jnp.zeros(3, int), label_smoothing=1.0)
    with pytest.raises(ValueError, match="label_smoothing=-0"):
        losses.binary_cross_entropy(x, x, label_smoothing=-0.1)
    with pytest.raises(ValueError, match="delta=0"):
        losses.huber(x, x, delta=0)
