"""Attention and rotary positions against float64 NumPy, in one chunk and in several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import rng as rngs
from jaxnn.models.attention import attention, rotary


def qkv(length: int, heads: int = 2, width: int = 8) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(2, length, heads, width)).astype(np.float32) for _ in range(3)]


def reference(q, k, v, causal, segment=None) -> np.ndarray:
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    t = np.arange(q.shape[1])
    allowed = (t[:, None] >= t)[None, None] if causal else np.ones((1, 1, t.size, t.size), bool)
    if segment is not None:
        allowed = allowed & (segment[:, None, :, None] == segment[:, None, None, :])
    weights = np.where(allowed, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v)


def segments(length: int) -> np.ndarray:
    return np.stack([np.arange(length) * 3 // length, np.arange(length) * 2 // length])


# 150 positions make three chunks, the last of them short; 1 and 9 make one.
@pytest.mark.parametrize("length", [1, 9, 150])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_values_are_the_formula(length, causal, packed):
    q, k, v = qkv(length)
    segment = segments(length) if packed else None
    want = reference(q, k, v, causal, segment)
    np.testing.assert_allclose(attention(q, k, v, causal=causal, segment=segment), want, atol=1e-5)
    narrow = attention(q, k, v, causal=causal, segment=segment, matmul_dtype=jnp.bfloat16)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, want, atol=3e-2)


@pytest.mark.parametrize("length", [9, 150])
def test_gradients_are_those_of_plain_softmax_attention(length):
    q, k, v = qkv(length)
    segment = segments(length)
    t = jnp.arange(length)
    allowed = (t[:, None] >= t)[None, None] & (segment[:, None, :, None] == segment[:, None, None, :])

    def plain(q, k, v):
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / jnp.sqrt(q.shape[-1])
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.where(allowed, scores, -1e30)), v)

    def grads(f):
        return jax.jit(jax.grad(lambda q, k, v: jnp.sum(jnp.sin(f(q, k, v))), (0, 1, 2)))(q, k, v)

    want = grads(plain)
    for dtype, tolerance in ((None, 1e-5), (jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)):
        got = grads(lambda q, k, v, d=dtype: attention(q, k, v, causal=True, segment=segment, matmul_dtype=d))
        for a, b in zip(got, want):
            np.testing.assert_allclose(a, b, atol=tolerance * max(1, float(jnp.abs(b).max())))


def test_every_narrow_product_has_narrow_operands():
    q, k, v = qkv(150)

    def f(q, k, v):
        return jnp.sum(attention(q, k, v, causal=True, matmul_dtype=jnp.bfloat16))

    text = str(jax.make_jaxpr(jax.grad(f, (0, 1, 2)))(q, k, v))
    # Three chunks: two products forward, four backward each.
    assert text.count("dot_general[") == 18
    assert "preferred_element_type=float32" in text
    assert " = dot_general[" in text
    for line in jax.make_jaxpr(jax.grad(f, (0, 1, 2)))(q, k, v).jaxpr.eqns:
        if line.primitive.name == "dot_general":
            assert [x.aval.dtype for x in line.invars] == [jnp.bfloat16] * 2


def test_scores_of_any_size_stay_finite():
    q, k, v = qkv(70)
    for dtype in (None, jnp.bfloat16):
        got = jax.value_and_grad(lambda q, d=dtype: jnp.sum(attention(q * 1e4, k, v, causal=True, matmul_dtype=d)))(q)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))


def test_rotary_rotates_pairs_and_products_depend_on_distance_only():
    x = qkv(5)[0]
    got = rotary(x, jnp.arange(5))
    angle = np.arange(5)[:, None] * 10_000.0 ** (-np.arange(4) / 4)
    pairs = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)[None, :, None]
    np.testing.assert_allclose(got, np.concatenate([pairs.real, pairs.imag], -1), atol=1e-5)
    q, k, _ = qkv(5)

    def products(shift):
        return jnp.einsum("bthd,bshd->bhts", rotary(q, jnp.arange(5) + shift), rotary(k, jnp.arange(5) + shift))

    np.testing.assert_allclose(products(0), products(37), atol=1e-4)


def test_rotary_takes_positions_per_example():
    x = qkv(5)[0]
    positions = np.array([[0, 1, 2, 0, 1], [4, 3, 2, 1, 0]])
    for i in range(2):
        np.testing.assert_allclose(rotary(x, positions)[i], rotary(x[i : i + 1], positions[i])[0], atol=1e-6)


def test_what_does_not_fit_is_refused():
    q, k, v = qkv(4)
    with pytest.raises(ValueError, match=r"q float32\[2, 4, 2, 8\], k float32\[2, 3, 2, 8\]"):
        attention(q, k[:, :3], v, causal=True)
    with pytest.raises(ValueError, match="segment"):
        attention(q, k, v, causal=True, segment=jnp.zeros((2, 5), int))
    with pytest.raises(ValueError, match="even head width"):
        rotary(q[..., :7], jnp.arange(4))


@pytest.mark.parametrize("matmul_dtype", [None, jnp.bfloat16])
def test_dropout_of_weights_by_example_against_numpy(matmul_dtype):
    gen = np.random.default_rng(0)
    q, k = (gen.normal(size=(3, 7, 2, 4)).astype(np.float32) for _ in range(2))
    v = np.broadcast_to(np.eye(7, dtype=np.float32)[None, :, None], (3, 7, 2, 7))  # the output is the weights

    def weights(q, k, index, seed=1, **options):
        key = None if seed is None else jax.random.key(seed)
        wide = jnp.concatenate([q, np.zeros((*q.shape[:3], 3), np.float32)], -1)  # D as wide as the values
        keys = np.concatenate([k, np.zeros((*k.shape[:3], 3), np.float32)], -1)
        with rngs.examples(index):
            call = functools.partial(attention, causal=False, scale=0.5, matmul_dtype=matmul_dtype)
            return jax.jit(lambda q, k: call(q, k, v[: len(q)], dropout=0.25, key=key, **options))(wide, keys)

    got = np.asarray(weights(q, k, np.arange(3)))
    scores = np.einsum("bthd,bshd->bths", q.astype(np.float64), k.astype(np.float64)) / 2
    plain = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    kept = got != 0
    np.testing.assert_allclose(got, np.where(kept, plain / 0.75, 0), atol=1e-5 if matmul_dtype is None else 0.02)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / kept.size)
    # Gradients, the choice being what it was.
    cotangent = gen.normal(size=got.shape).astype(np.float32)

    def dropped(q):
        p = jax.nn.softmax(jnp.einsum("bthd,bshd->bths", q, k) / 2) / 0.75
        return jnp.sum(jnp.where(kept, p, 0) * cotangent)

    grads = jax.grad(lambda q: jnp.sum(weights(q, k, np.arange(3)) * cotangent))(jnp.asarray(q))
    np.testing.assert_allclose(grads, jax.grad(dropped)(q), atol=1e-5 if matmul_dtype is None else 0.03)
    # An example's own, wherever it lies in the batch; another at another step.
    swapped = np.asarray(weights(q[::-1], k[::-1], np.arange(3)[::-1]))
    np.testing.assert_allclose(swapped[::-1], got, atol=1e-6)
    assert ((np.asarray(weights(q, k, np.arange(3), seed=2)) != 0) != kept).any()
    with pytest.raises(ValueError, match=r"dropout=0\.25, form='linear'"):
        weights(q, k, np.arange(3), form="linear")
    with pytest.raises(ValueError, match="key=None"):
        weights(q, k, np.arange(3), seed=None)
