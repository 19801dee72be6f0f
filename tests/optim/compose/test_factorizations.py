"""LAPACK's factorizations are those of each matrix, and no program hands stacks to threads that wait for each other."""

import os
import re
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from jaxnn import optim
from jaxnn.optim.compose import factorizations

old = pytest.mark.skipif(
    jax.__version_info__ >= factorizations.HANGS_BEFORE, reason="this jaxlib does a stack where it is asked for"
)


def stack(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("vmapped", [False, True])
def test_values_are_those_of_each_matrix(vmapped):
    shape = (2, 3, 5, 5) if vmapped else (3, 5, 5)
    of = jax.vmap if vmapped else lambda f: f
    x = stack(0, *shape)
    symmetric = x + np.swapaxes(x, -1, -2)
    values, vectors = jax.jit(of(factorizations.eigenvectors))(symmetric)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(symmetric.astype(np.float64)), atol=1e-5)
    np.testing.assert_allclose(vectors @ (values[..., None] * np.swapaxes(vectors, -1, -2)), symmetric, atol=1e-5)
    np.testing.assert_allclose(jax.jit(of(factorizations.orthonormal))(x), np.linalg.qr(x)[0], atol=1e-5)
    a = np.triu(x) + 4 * np.eye(5, dtype=np.float32)
    solve = lambda a, b: factorizations.triangular_solve(a, b, left_side=False, transpose_a=False)  # noqa: E731
    np.testing.assert_allclose(jax.jit(of(solve))(a, x) @ a, x, atol=1e-5)


def test_a_stack_beside_one_matrix_for_all():
    a, b = np.triu(stack(0, 3, 4, 4)) + 4 * np.eye(4, dtype=np.float32), stack(1, 2, 3, 4, 4)
    solve = lambda a, b: factorizations.triangular_solve(a, b, left_side=True, transpose_a=True)  # noqa: E731
    x = jax.vmap(solve, (None, 0))(a, b)
    np.testing.assert_allclose(np.swapaxes(a, 1, 2) @ x, b, atol=1e-5)


@old
@pytest.mark.parametrize("tx", [optim.soap(1e-3), optim.shampoo(1e-3), optim.psgd_kron(1e-3)], ids=lambda tx: tx.name)
@pytest.mark.parametrize("members", [None, 3])
def test_lapack_is_given_one_matrix_at_a_time(tx, members):
    """A race of optimizers on two cores stood still: two shapes' QR of five members each, both threads waiting."""
    params = {"a": stack(0, 4, 4), "b": stack(1, 4, 4), "c": stack(2, 4, 6)}
    update = lambda g, s, p: tx.update(g, s, p)  # noqa: E731
    if members is not None:
        params = jax.tree.map(lambda x: np.stack([x] * members), params)
        state, update = jax.vmap(tx.init)(params), jax.vmap(update)
    else:
        state = tx.init(params)
    text = jax.jit(update).lower(params, state, params).as_text()
    calls = re.findall(r"custom_call @lapack_\w+\(.*?: \((tensor<\S+>)", text)
    assert calls
    assert {call.count("x") for call in calls} == {2}  # sides of one matrix: 4x4xf32


@old
@pytest.mark.slow
@pytest.mark.parametrize("name", ["soap", "shampoo", "psgd_kron"])
def test_a_population_on_two_threads_does_not_stand_still(name):
    code = f"""
        import jax, numpy as np
        from jaxnn import optim
        rng = np.random.default_rng(0)
        tx = optim.{name}(1e-3, **({{}} if "{name}" == "psgd_kron" else {{"every": 1}}))
        params = {{str(n): rng.normal(size=(16, 64 + 16 * n, 64 + 16 * n)).astype(np.float32) for n in range(6)}}
        state, update = jax.vmap(tx.init)(params), jax.jit(jax.vmap(tx.update))
        for _ in range(15):
            state = update(params, state, params)[1]
        jax.block_until_ready(state)
        print("done")
    """
    two = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=os.environ | two, capture_output=True, text=True, timeout=240)
    assert done.stdout.split() == ["done"], done.stderr
