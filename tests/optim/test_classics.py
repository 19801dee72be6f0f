"""SGD, RMSprop, AdaGrad, RAdam and Adafactor: against optax where it is right, and what they reduce to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import optim
from jaxnn.optim.algorithms.adam_variants import rectification

PARAMS = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)), jnp.float32), "b": jnp.full((3,), 0.1)}


def path(tx, steps=4, params=PARAMS):
    """Parameters after the steps, on gradients that do not depend on them."""

    def step(carry, t):
        params, state = carry
        grads = jax.tree.map(lambda p: jnp.sin(3 * p.size + t + jnp.arange(p.size).reshape(p.shape)), params)
        updates, state = tx.update(grads, state, params)
        return (jax.tree.map(jnp.add, params, updates), state), None

    return jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), jnp.arange(1.0, steps + 1))[0][0])()


def close(a, b, tolerance=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (optim.sgd(0.1, 0.9), optax.sgd(0.1, 0.9)),
        (optim.sgd(0.1, 0.9, nesterov=True), optax.sgd(0.1, 0.9, nesterov=True)),
        (optim.rmsprop(0.1, 0.9, eps_inside=True), optax.rmsprop(0.1)),
        (
            optim.rmsprop(0.1, 0.9, 1e-3, momentum=0.8, centered=True),
            optax.rmsprop(0.1, eps=1e-3, momentum=0.8, centered=True, eps_in_sqrt=False),
        ),
        (optim.adafactor(0.1, min_dim=2), optax.adafactor(0.1, min_dim_size_to_factor=2)),
        (optim.adafactor(0.1, momentum=0.9), optax.adafactor(0.1, momentum=0.9)),
        (
            optim.adafactor(0.1, least_rms=None, weight_decay=0.1),
            optax.adafactor(0.1, multiply_by_parameter_scale=False, weight_decay_rate=0.1 * 0.1),
        ),
    ],
    ids=["momentum", "nesterov", "rmsprop", "centered", "adafactor", "adafactor-momentum", "adafactor-unscaled"],
)
def test_is_optax(ours, theirs):
    close(path(ours), path(theirs))


def test_a_step_of_adamw_moves_no_more_bytes_than_optaxs_and_computes_less():
    """What a step of many large leaves takes is its traffic; the scalars are less than a thousandth of it here."""
    params = {f"layer_{i}": {"kernel": jax.ShapeDtypeStruct((64, 32), jnp.float32)} for i in range(8)}

    def cost(tx):
        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return jax.tree.map(jnp.add, params, updates), state

        program = jax.jit(step, donate_argnums=(0, 1)).lower(params, jax.eval_shape(tx.init, params), params).compile()
        return program.cost_analysis(), program.memory_analysis().temp_size_in_bytes

    (theirs, _), (ours, temporary) = cost(optax.adamw(1e-3, weight_decay=0.01)), cost(optim.adamw(1e-3))
    assert ours["bytes accessed"] < 1.002 * theirs["bytes accessed"]
    assert ours["flops"] < theirs["flops"]
    assert temporary < 1000


def test_without_momentum_is_plain():
    close(path(optim.sgd(0.1)), path(optax.sgd(0.1)))
    close(path(optim.sgd(0.1, 0.0)), path(optim.sgd(0.1)))
    assert optim.sgd_core().init(PARAMS).mu is None
    state = optim.set_hyper(optim.sgd(0.1, 0.0).init(PARAMS), momentum=0.5)
    assert float(optim.hyper(state)["momentum"]) == 0.5


def test_dampening_spares_the_first_update():
    grads, tx = {"w": jnp.ones(2)}, optim.sgd_core(0.5, 0.25)
    first, state = tx.update(grads, tx.init(grads))
    second, _ = tx.update(grads, state)
    np.testing.assert_allclose(first["w"], 1.0)
    np.testing.assert_allclose(second["w"], 0.5 + 0.75)


def test_where_eps_stands():
    """At a first gradient of 0.1 and decay 0.75 the mean square is 0.0025."""
    grads = {"w": jnp.full((2,), 0.1)}
    for inside, expected in ((True, 0.1 / np.sqrt(0.0025 + 0.01)), (False, 0.1 / (0.05 + 0.01))):
        tx = optim.rmsprop_core(0.75, 0.01, eps_inside=inside)
        np.testing.assert_allclose(tx.update(grads, tx.init(grads))[0]["w"], expected, rtol=1e-6)


def test_adagrad_sums_and_does_not_divide_by_nothing():
    grads, tx = {"w": jnp.asarray([3.0, 0.0])}, optim.adagrad_core(0.0, initial=0.0)
    _, state = tx.update(grads, tx.init(grads))
    updates, state = tx.update(jax.tree.map(lambda g: g * 4 / 3, grads), state)
    np.testing.assert_allclose(updates["w"], [4 / 5, 0.0], rtol=1e-6)
    np.testing.assert_allclose(state.nu["w"], [25.0, 0.0])


def test_adafactor_of_a_squared_gradient_of_rank_one_is_exact():
    g = jnp.outer(jnp.asarray([1.0, -2.0, 3.0]), jnp.asarray([0.5, 4.0]))
    tx = optim.adafactor_core(least_rms=None, min_dim=1)
    updates, state = tx.update({"w": g}, tx.init({"w": g}))
    np.testing.assert_allclose(updates["w"], np.sign(g), rtol=1e-5)
    assert state.rows["w"].shape == (3,)
    assert state.cols["w"].shape == (2,)
    assert state.nu["w"].size == 0


@pytest.mark.parametrize("b2", [0.0, 0.5, 0.9, 0.999, 0.9999, 0.99999])
@pytest.mark.parametrize("least", [4, 5])
def test_rectification_is_that_of_float64(b2, least):
    """As it is written, the first factor is off by half at b2 = 0.9999."""
    t = np.array([1, 2, 3, 4, 5, 6, 7, 8, 10, 30, 100, 1000, 10**4, 10**5, 10**6], np.float64)
    trusted, factor = rectification(jnp.float32(b2), jnp.asarray(t, jnp.float32), least)
    exact = np.float64(np.float32(b2))
    power = exact**t
    most = 2 / (1 - exact) - 1
    rho = most - 2 * t * power / (1 - power)
    np.testing.assert_array_equal(trusted, rho > least)
    expected = np.sqrt(np.maximum((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho), 0))
    np.testing.assert_allclose(np.asarray(factor)[rho > least], expected[rho > least], rtol=2e-6)


def test_refusals():
    with pytest.raises(ValueError, match="nesterov and dampening act on momentum, which is None"):
        optim.sgd(0.1, nesterov=True)
    with pytest.raises(ValueError, match=r"optim.adagrad: initial is -1. Give a number >= 0"):
        optim.adagrad(0.1, initial=-1)
    with pytest.raises(ValueError, match=r"update needs the parameters.*least_rms=None"):
        optim.adafactor_core().update(PARAMS, optim.adafactor_core().init(PARAMS))
