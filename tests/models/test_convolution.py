"""Convolution: its forms against lax with gradients, and the derivatives that are computed another way on one CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.models import convolution
from jaxnn.models.convolution import convolve
from jaxnn.models.pooling import pair


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(a, b, tolerance: float = 1e-5) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(y).max())))


CASES = [
    ((5, 7), (3, 3), 1, "SAME"),
    ((5, 7), (3, 3), 1, "VALID"),
    ((6, 7), (3, 3), 2, "SAME"),
    ((6, 7), (3, 2), (2, 3), "VALID"),
    ((4, 5), (1, 1), 1, "SAME"),
    ((4, 5), (1, 1), 2, "VALID"),
    ((5, 5), (2, 4), 1, "SAME"),
    ((2, 2), (3, 3), 1, "SAME"),
    ((8, 9), (3, 3), 2, 1),
    ((9, 8), (5, 4), (3, 1), (2, 0)),
]


@pytest.fixture
def one_cpu(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def plain(strides, padding):
    """`lax.conv_general_dilated` as `convolve` means it."""
    pads = padding if isinstance(padding, str) else [(n, n) for n in pair(padding)]
    names = ("NHWC", "HWIO", "NHWC")
    return lambda x, k: jax.lax.conv_general_dilated(x, k, pair(strides), pads, dimension_numbers=names)


def number(convolve):
    return lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel)))


def convolved(convolve, x, kernel):
    """The output, and the gradients of both operands."""
    return jax.jit(lambda x, kernel: (convolve(x, kernel), jax.grad(number(convolve), (0, 1))(x, kernel)))(x, kernel)


def count(f, *args) -> int:
    """Convolutions in the program."""
    return str(jax.make_jaxpr(lambda *args: f(*args))(*args)).count("conv_general_dilated[")


@pytest.mark.parametrize(("size", "window", "strides", "padding"), CASES)
def test_forms_agree_with_gradients(size, window, strides, padding):
    x, kernel = normal(2, *size, 3), normal(*window, 3, 4, seed=1)
    expected = convolved(plain(strides, padding), x, kernel)
    for form in ("patches", "lax"):
        close(convolved(lambda x, k, form=form: convolve(x, k, strides, padding, form), x, kernel), expected)


@pytest.mark.parametrize(("size", "window", "strides", "padding"), CASES)
def test_one_cpu_gives_the_same_derivatives(one_cpu, monkeypatch, size, window, strides, padding):
    """Gradients by portions of 2, 2 and 1 images; forward mode; a vmap; and the derivative of a gradient."""
    monkeypatch.setattr(convolution, "_LANES", 2)
    monkeypatch.setattr(convolution, "_PORTION", 1)
    x, kernel = normal(5, *size, 3), normal(*window, 3, 4, seed=1)
    x_t, kernel_t = normal(*x.shape, seed=2), normal(*kernel.shape, seed=3)

    def derivatives(convolve):
        def run(x, kernel):
            along = jax.jvp(convolve, (x, kernel), (x_t, kernel_t))
            grad = jax.grad(number(convolve), (0, 1))
            twice = jax.jvp(grad, (x, kernel), (x_t, kernel_t))
            several = jax.vmap(grad, (0, None))(jnp.stack([x, x_t]), kernel)
            return along, twice, several

        return jax.jit(run)(x, kernel)

    close(derivatives(lambda x, k: convolve(x, k, strides, padding, "lax")), derivatives(plain(strides, padding)), 2e-5)


def test_kernel_gradients_go_in_portions_on_one_cpu_alone(monkeypatch):
    """8 images a portion, more while they are small, fewer where they are large; 16 at most, none below the kernel."""

    def portions(examples, size, width=16):
        shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((examples, *size, width), (3, 3, width, width))]
        gradient = jax.grad(number(lambda x, k: convolve(x, k, form="lax")), 1)
        return count(gradient, *shapes) - 1  # the images have no gradient: no convolution for it

    assert portions(64, (32, 32)) == 1  # eight devices, over which the batch may be split
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert portions(64, (32, 32)) == 8
    assert portions(60, (32, 32)) == 8  # the last of 4
    assert portions(64, (16, 16)) == 2
    assert portions(8, (16, 16)) == 1
    assert portions(8, (128, 128)) == 8
    assert portions(32, (4, 4), 512) == 1  # the kernel is larger than all images
    assert portions(512, (32, 32)) == 16
    assert portions(1, (512, 512)) == 1  # an example is not cut


def test_images_below_the_window_are_no_convolution_on_cpu():
    """XLA:CPU turns their operands round, and takes many times as long."""
    found = [
        count(
            lambda x, k: convolve(x, k, form="lax"),
            np.zeros((2, n, n, 3), np.float32),
            np.zeros((3, 3, 3, 4), np.float32),
        )
        for n in (2, 3)
    ]
    assert found == [0, 1]


def test_narrow_convolution_is_close_in_both_forms(one_cpu):
    x, kernel = normal(2, 6, 6, 8), normal(3, 3, 8, 4, seed=1)
    want = convolve(x, kernel)
    for form in ("patches", "lax"):
        got = convolve(x, kernel, form=form, dtype=jnp.bfloat16)
        assert got.dtype == jnp.float32
        close(got, want, 1e-2)
