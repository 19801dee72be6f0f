"""Rules against what the operation itself does to ones, against gradients, against XLA and against textbook counts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnn import cost
from jaxnn.cost import windows

CONVOLUTIONS = {
    "valid": {"padding": "VALID"},
    "same": {"padding": "SAME"},
    "strided": {"padding": "SAME", "window_strides": (2, 3)},
    "dilated": {"padding": ((2, 2), (3, 1)), "rhs_dilation": (2, 3)},
    "transposed": {"padding": ((2, 1), (1, 2)), "lhs_dilation": (2, 3)},
    "both dilated": {"padding": ((3, 4), (2, 2)), "lhs_dilation": (3, 2), "rhs_dilation": (2, 2)},
    "cropped": {"padding": ((-1, 2), (0, -2))},
    "grouped": {"padding": "SAME", "feature_group_count": 2},
    "depthwise": {"padding": "SAME", "feature_group_count": 4, "window_strides": (2, 1)},
    "batch groups": {"padding": "SAME", "batch_group_count": 2},
}


def convolution(options):
    options = {"window_strides": (1, 1), **options}
    groups, batches = options.get("feature_group_count", 1), options.get("batch_group_count", 1)
    x, w = jnp.ones((4, 7, 6, 4)), jnp.ones((3, 2, 4 // groups, 8))

    def f(x, w):
        return lax.conv_general_dilated(x, w, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    assert 8 % (groups * batches) == 0
    return f, x, w


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_counts_the_taps_that_meet_elements(name):
    f, x, w = convolution(CONVOLUTIONS[name])
    pairs = float(jnp.sum(f(x, w)))  # each output of ones with ones is the number of its true products
    found = cost.of(f, x, w)
    assert found.flops == found.products == 2 * pairs


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_and_its_gradients_are_three_convolutions(name):
    f, x, w = convolution(CONVOLUTIONS[name])
    both = cost.of(jax.value_and_grad(lambda x, w: jnp.sum(f(x, w) ** 2), (0, 1)), x, w)
    assert both.products == 3 * cost.of(f, x, w).products


@pytest.mark.parametrize("name", ["valid", "same", "transposed", "grouped"])
def test_xla_counts_a_convolution_the_same(name):
    f, x, w = convolution(CONVOLUTIONS[name])
    found = cost.of(f, x, w)
    assert found.xla_flops == pytest.approx(found.flops, rel=1e-4)


def test_window_pairs_against_a_loop():
    rng = np.random.default_rng(0)
    for _ in range(300):
        size, window, stride, base, dilation = (int(n) for n in rng.integers(1, 6, 5))
        low, out = int(rng.integers(-3, 5)), int(rng.integers(1, 9))
        real = {i * base for i in range(size)}
        expected = sum((o * stride + k * dilation - low) in real for o in range(out) for k in range(window))
        assert windows.taps(size, window, out, stride, low, base, dilation) == expected


def test_products():
    x, y = jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5))
    assert cost.of(lambda x, y: x @ y, x, y).flops == 2 * 2 * 3 * 4 * 5
    assert cost.of(lambda x: jnp.einsum("bij,bkj->bik", x, x), x).products == 2 * 2 * 3 * 3 * 4
    assert cost.of(lambda x, y: x @ y, x.astype(complex), y.astype(complex)).flops == 8 * 2 * 3 * 4 * 5
    assert cost.of(lambda x, y: x @ y, x.astype(int), y.astype(int)).flops == 0
    assert cost.of(lambda x, y: x @ y, x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)).flops == 2 * 2 * 3 * 4 * 5
    ragged = cost.of(
        lambda x, w, n: lax.ragged_dot(x, w, n), jnp.ones((6, 4)), jnp.ones((3, 4, 5)), jnp.array([1, 2, 3])
    )
    assert ragged.flops == 2 * 6 * 4 * 5


def test_windowed_reductions():
    x = jnp.ones((2, 9, 7, 3))
    options = ((1, 3, 2, 1), (1, 2, 2, 1), "SAME")
    pooled = lax.reduce_window(x, 0.0, lax.add, *options)
    combined = float(pooled.sum()) - pooled.size
    assert cost.of(lambda x: lax.reduce_window(x, 0.0, lax.add, *options), x).flops == combined
    assert cost.of(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, *options), x).flops == combined
    own = cost.of(lambda x: lax.reduce_window(x, 1.0, lambda a, b: jnp.sin(a) * b + b, *options), x)
    assert own.flops == 3 * combined
    assert own.transcendentals == combined
    gradient = cost.of(jax.grad(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, *options).sum()), x)
    assert gradient.flops_by["select_and_scatter_add"] == float(pooled.sum())


def test_elementwise_and_reductions():
    x = jnp.ones((3, 5))
    for f, flops, transcendentals in [
        (lambda x: x + 1, 15, 0),
        (lambda x: jnp.exp(x), 15, 15),
        (lambda x: x**3, 30, 0),
        (lambda x: x**-4, 45, 0),
        (lambda x: x > 0, 0, 0),
        (lambda x: jnp.where(x > 0, x, 0), 0, 0),
        (lambda x: x.astype(jnp.bfloat16), 0, 0),
        (lambda x: x.T.reshape(-1), 0, 0),
        (lambda x: x.sum(), 14, 0),
        (lambda x: x.max(1), 12, 0),
        (lambda x: jnp.argmax(x, 0), 10, 0),
        (lambda x: jnp.cumsum(x, 1), 12, 0),
        (lambda x: lax.cumlogsumexp(x), 50, 20),
        (lambda x: lax.reduce(x, 0.0, lambda a, b: jnp.tanh(a) + b, (0,)), 20, 10),
        (lambda x: x.at[jnp.array([0, 0])].add(x[:2]), 10, 0),
        (lambda x: x.at[0].set(x[1]), 0, 0),
        (lambda x: lax.sort(x), 0, 0),
        (lambda x: (x * 1j) * (x * 1j), 15 * 6 * 3, 0),
    ]:
        found = cost.of(f, x)
        assert (found.flops, found.transcendentals) == (flops, transcendentals), found
        assert not found.unknown


def test_integers_are_no_floating_point_work():
    x = jnp.arange(12).reshape(3, 4)
    assert cost.of(lambda x: (x * x + 1).sum() // 3, x).flops == 0
    assert cost.of(lambda k: jax.random.bits(k, (100,)), jax.random.key(0)).flops == 0
    assert cost.of(lambda x: jnp.sort(x), x).bytes_by["sort"] == 2 * 12 * 4


def test_fourier_transforms():
    x = jnp.ones((3, 64))
    full = 3 * 5 * 64 * math.log2(64)
    assert cost.of(jnp.fft.fft, x.astype(jnp.complex64)).flops_by["fft"] == full
    assert cost.of(jnp.fft.rfft, x).flops_by["fft"] == full / 2
    assert cost.of(lambda x: jnp.fft.irfft(x), jnp.ones((3, 33), jnp.complex64)).flops_by["fft"] == full / 2
    assert cost.of(jnp.fft.fft2, jnp.ones((8, 16), jnp.complex64)).flops_by["fft"] == 5 * 128 * math.log2(128)


def test_factorizations():
    n, b = 6, 2
    a = jnp.ones((b, n, n))
    for f, name, each in [
        (lax.linalg.cholesky, "cholesky", n**3 / 3),
        (lax.linalg.lu, "lu", 2 * n**3 / 3),
        (lax.linalg.eigh, "eigh", 9 * n**3),
        (lambda a: lax.linalg.svd(a, full_matrices=False), "svd", 22 * n**3),
        (lambda a: lax.linalg.svd(a, compute_uv=False), "svd", 8 * n**3 / 3),
        (lambda a: lax.linalg.qr(a, full_matrices=False), "qr", 4 * n**3 / 3 + 4 * n**3 / 3),
        (lambda a: lax.linalg.triangular_solve(a, a, left_side=True), "triangular_solve", n**3),
    ]:
        assert cost.of(f, a).flops_by[name] == pytest.approx(b * each), name
    tall = cost.of(lambda a: lax.linalg.qr(a, full_matrices=False), jnp.ones((10, 4)))
    assert tall.flops_by["qr"] == pytest.approx(2 * 2 * 16 * (10 - 4 / 3))
    solve = cost.of(jnp.linalg.solve, jnp.eye(n), jnp.ones((n, 3)))
    assert solve.flops_by["lu"] == pytest.approx(2 * n**3 / 3)
    assert solve.flops_by["triangular_solve"] == 2 * n**2 * 3
    assert not solve.unknown
    assert not solve.flags
    diagonal = jnp.ones((1, n))
    thomas = cost.of(lambda d, b: lax.linalg.tridiagonal_solve(d, d, d, b), diagonal, jnp.ones((1, n, 3)))
    assert thomas.flops_by["tridiagonal_solve"] == 8 * n * 3


def test_what_has_no_rule_is_listed():
    x = jnp.ones((4, 4))
    found = cost.of(lambda x: jax.pure_callback(np.sin, x, x) @ x, x)
    assert found.unknown == {"pure_callback": 1}
    assert found.flops == 2 * 4**3
    gamma = cost.of(lambda k: jax.random.gamma(k, 2.0, (3,)), jax.random.key(0))
    assert "random_gamma" in gamma.unknown
    looped = cost.of(lambda x: lax.scan(lambda c, _: (jax.pure_callback(np.sin, x, c), None), x, None, length=5)[0], x)
    assert looped.unknown == {"pure_callback": 5}
