"""What is done seldom is a branch in a population too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from jaxnn import optim
from jaxnn.optim.compose.seldom import where_due

FACTORS = {"eigh", "qr", "geqrf", "householder_product", "triangular_solve"}
PARAMS = {"a": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
GRADS = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=jnp.float32)).reshape(p.shape), PARAMS)


def primitives(jaxpr, inside=()):
    """(name, names of what it is in) of every equation at any depth."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name, inside
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: isinstance(x, (core.Jaxpr, core.ClosedJaxpr))):
            below = getattr(value, "jaxpr", value)
            if isinstance(below, core.Jaxpr):
                yield from primitives(below, (*inside, eqn.primitive.name))


def twice(x):
    return 2 * x + 1


def test_it_is_a_branch_of_whoever_is_due():
    """Under vmap `lax.cond` is a select: every member's side is computed in every update."""
    due, old = jnp.asarray([True, False, False]), jnp.arange(3.0)
    run = jax.vmap(lambda d, x: where_due(d, twice, x))
    np.testing.assert_array_equal(run(due, old), [1, 1, 2])
    np.testing.assert_array_equal(run(~due, old), [0, 3, 5])
    np.testing.assert_array_equal(run(due & False, old), old)
    np.testing.assert_array_equal(
        jax.vmap(run)(jnp.stack([due, due & False]), jnp.stack([old, old])), [[1, 1, 2], [0, 1, 2]]
    )
    assert where_due(jnp.asarray(True), twice, 1.0) == 3
    for nested, given in ((run, (due, old)), (jax.vmap(run), (due[None], old[None]))):
        found = primitives(jax.make_jaxpr(nested)(*given).jaxpr)
        assert {"cond" in inside for name, inside in found if name == "mul"} == {True}


@pytest.mark.parametrize("make", [optim.soap, optim.shampoo, optim.psgd_kron])
def test_a_population_factorizes_when_it_is_due(make):
    """Eight members of SOAP took forty times as long: eigenvectors and QR in every update."""
    tx = optim.skip_nonfinite(make(1e-3))
    state = optim.grid(lr=[1e-3, 1e-2]).spread(tx.init(PARAMS))
    stacked = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)
    found = list(primitives(jax.make_jaxpr(jax.vmap(tx.update, (None, 0, 0)))(GRADS, state, stacked).jaxpr))
    at = {"cond" in inside for name, inside in found if name in FACTORS}
    assert at == {True}


@pytest.mark.slow
def test_members_that_are_not_in_step():
    """One that has skipped an update is due in another than the others."""
    tx = optim.skip_nonfinite(optim.soap(1e-2, every=2))
    bad = jax.tree.map(lambda g: g * jnp.nan, GRADS)
    steps = [jax.tree.map(lambda a, b: jnp.stack([a, b]), GRADS, bad if t == 1 else GRADS) for t in range(5)]

    def run(grads):
        def step(carry, g):
            params, state = carry
            updates, state = tx.update(g, state, params)
            return (optim.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), grads)[0][0]

    both = jax.tree.map(lambda *xs: jnp.stack(xs, 1), *steps)
    together = jax.jit(jax.vmap(run))(both)
    for member in range(2):
        alone = jax.jit(run)(jax.tree.map(lambda x, m=member: x[m], both))
        jax.tree.map(lambda a, b, m=member: np.testing.assert_allclose(a[m], b, rtol=1e-5, atol=1e-6), together, alone)


def test_it_is_cut_into_programs_as_before():
    tx = optim.stateless(lambda u, p: where_due(jnp.ones((), bool), lambda x: jax.tree.map(twice, x), u), "odd")
    params, _ = optim.chunked_step(tx, donate=False)(PARAMS, (), GRADS)
    jax.tree.map(lambda p, g, x: np.testing.assert_allclose(x, p + 2 * g + 1, rtol=1e-6), PARAMS, GRADS, params)
