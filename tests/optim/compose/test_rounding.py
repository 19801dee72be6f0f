"""bfloat16 parameters move, and land exactly where they should."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import optim
from jaxnn.optim.compose import layers, select
from jaxnn.optim.compose.rounding import hash_bits, round_stochastically

TINY = 1e-4  # of a parameter of size 1, whose spacing is 2^-7 below and above it 2^-8


def steps(tx, apply, count=100, dtype=jnp.bfloat16):
    params = {"w": jnp.ones((1 << 14,), dtype)}
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update({"w": jnp.ones((1 << 14,), jnp.float32)}, state, params)
        return apply(params, updates), state

    for _ in range(count):
        params, state = step(params, state)
    return params["w"].astype(jnp.float32), state


def by_hand(params, updates):
    """As the step of `fit` does it."""
    return jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)


APPLIES = {"optim": optim.apply_updates, "optax": optax.apply_updates, "fit": by_hand}


def test_optax_stands_still():
    """optax #1444: bfloat16 parameters ignore every update below half their spacing."""
    moved, _ = steps(optax.sgd(TINY), optax.apply_updates)
    assert bool((moved == 1).all())


@pytest.mark.parametrize("apply", APPLIES)
def test_stochastic_rounding_moves_by_the_whole_update(apply):
    """optax #1444."""
    moved, _ = steps(optim.stochastic_rounding(optim.stages(lr=optim.scale_by_lr(TINY))), APPLIES[apply])
    # 100 draws of a step of 2^-8 at a chance of 0.026 each: over 2^14 elements the mean's standard error is 4.8e-5.
    assert float(1 - moved.mean()) == pytest.approx(100 * TINY, abs=2e-4)
    assert len(np.unique(moved)) > 2


@pytest.mark.parametrize("apply", APPLIES)
def test_master_weights_are_those_of_a_float32_run(apply):
    """optax #1444."""
    tx = optim.adamw(TINY, weight_decay=0.1)
    moved, state = steps(optim.master_weights(tx), APPLIES[apply])
    full, _ = steps(tx, APPLIES[apply], dtype=jnp.float32)
    np.testing.assert_array_equal(optim.get(state, "master.w"), full)
    np.testing.assert_array_equal(moved, full.astype(jnp.bfloat16).astype(jnp.float32))


def test_the_update_lands_on_the_rounded_value():
    """p + u, rounded to nearest, is the stochastically rounded number: also where the two differ by many octaves."""
    p = jnp.asarray(np.random.default_rng(0).normal(size=4000) * 10.0 ** np.arange(-20, 20).repeat(100), jnp.bfloat16)
    target = jax.random.permutation(jax.random.key(0), p).astype(jnp.float32) * 1.001
    tx = optim.stochastic_rounding(optax.stateless(lambda u, _: u), seed=3)
    updates, _ = tx.update({"w": target - p.astype(jnp.float32)}, tx.init({"w": p}), {"w": p})
    new = optim.apply_updates({"w": p}, updates)["w"]
    reached = p.astype(jnp.float32) + (target - p.astype(jnp.float32))
    (number,) = layers.numbers(jax.tree.leaves(select.leaves({"w": p})))
    expected = round_stochastically(reached, hash_bits(p.shape, np.uint32(3), 0, number))
    np.testing.assert_array_equal(new.astype(jnp.float32), expected.astype(jnp.float32))


def test_rounding_is_right_in_expectation_and_keeps_what_is_not_finite():
    x = jnp.linspace(1.0, 2.0, 97)
    mean = jnp.mean(
        jax.vmap(lambda i: round_stochastically(x, hash_bits(x.shape, i)).astype(jnp.float32))(jnp.arange(4096)), axis=0
    )
    np.testing.assert_allclose(mean, x, atol=4e-4)
    odd = jnp.asarray([np.nan, np.inf, -np.inf, 0.0, 1.0], jnp.float32)
    ones = jnp.full((5,), 0xFFFF, jnp.uint32)
    np.testing.assert_array_equal(round_stochastically(odd, ones).astype(jnp.float32), odd)


def test_float32_parameters_are_left_alone():
    params = {"w": jnp.ones((4,)), "b": jnp.ones((4,), jnp.bfloat16)}
    for wrap in (optim.stochastic_rounding, optim.master_weights):
        tx = wrap(optim.adam(1e-3))
        updates, state = tx.update(params, tx.init(params), params)
        np.testing.assert_array_equal(
            updates["w"], optim.adam(1e-3).update(params, optim.adam(1e-3).init(params), params)[0]["w"]
        )
        with pytest.raises(ValueError, match="update needs the parameters"):
            tx.update(params, state)
    assert isinstance(optim.get(optim.master_weights(optim.adam(1e-3)).init(params), "master")["w"], optax.MaskedNode)


def test_strict_promotion():
    """optax.apply_updates raises for float32 updates of bfloat16 parameters under strict promotion."""
    params = {"w": jnp.ones((4,), jnp.bfloat16)}
    updates = {"w": jnp.ones((4,), jnp.float32)}
    with jax.numpy_dtype_promotion("strict"):
        assert optim.apply_updates(params, updates)["w"].dtype == jnp.bfloat16
        for wrap in (optim.stochastic_rounding, optim.master_weights):
            tx = optim.with_state_dtype(wrap(optim.adamw(1e-3)), optim.q8)
            tx.update(updates, tx.init(params), params)
