"""LAMB, LARS and L-BFGS: against float64 NumPy, and as cores beside others under one rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import optim

RNG = np.random.default_rng(0)
PARAMS = {"w": RNG.normal(size=(4, 3)).astype(np.float32), "b": RNG.normal(size=3).astype(np.float32)}
GRADS = [{k: RNG.normal(size=x.shape).astype(np.float32) for k, x in PARAMS.items()} for _ in range(4)]
RATES = [0.1, 0.05, 0.2, 0.1]
NORM = np.linalg.norm


def scheduled(step):
    return jnp.asarray(RATES)[step]


def path(tx):
    """Parameters after every update."""

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return (params, state), params

    params = jax.tree.map(jnp.asarray, PARAMS)
    grads = jax.tree.map(lambda *xs: jnp.stack(xs), *GRADS)
    return jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), grads)[1])()


def wide(values):
    return {k: x.astype(np.float64) for k, x in values.items()}


def test_lamb_scales_the_decayed_direction_of_each_layer():
    found = path(optim.lamb(scheduled, 0.8, 0.9, 1e-3, 0.1, where=optim.ndim(2)))
    x, mu, nu = wide(PARAMS), dict.fromkeys(PARAMS, 0.0), dict.fromkeys(PARAMS, 0.0)
    for t, grads in enumerate(GRADS):
        for k, g in wide(grads).items():
            mu[k], nu[k] = 0.8 * mu[k] + 0.2 * g, 0.9 * nu[k] + 0.1 * g**2
            r = mu[k] / (1 - 0.8 ** (t + 1)) / (np.sqrt(nu[k] / (1 - 0.9 ** (t + 1))) + 1e-3)
            r = r + (0.1 * x[k] if k == "w" else 0)
            x[k] = x[k] - RATES[t] * NORM(x[k]) / NORM(r) * r
            np.testing.assert_allclose(found[k][t], x[k], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("core", [False, True])
def test_the_rate_is_inside_the_momentum_of_lars_and_outside_of_its_core(core):
    """The paper's Algorithm 1 has it inside; a core's rate is a stage of its own."""
    tx = optim.stages(x=optim.lars_core(0.9, 0.1, 0.02), lr=optim.scale_by_lr(scheduled))
    found = path(tx if core else optim.lars(scheduled, 0.9, 0.1, 0.02))
    x, mu = wide(PARAMS), dict.fromkeys(PARAMS, 0.0)
    for t, grads in enumerate(GRADS):
        for k, g in wide(grads).items():
            size = NORM(x[k])
            d = 0.02 * size / (NORM(g) + 0.1 * size) * (g + 0.1 * x[k]) if k == "w" else g
            mu[k] = 0.9 * mu[k] + (d if core else RATES[t] * d)
            x[k] = x[k] - (RATES[t] * mu[k] if core else mu[k])
            np.testing.assert_allclose(found[k][t], x[k], rtol=1e-5, atol=1e-6)


def test_the_momentum_of_lars_is_in_its_state():
    """optax #412 and others: `optax.lars` has it in a closure."""
    state = optim.lars(0.1, momentum=optim.linear(0.5, 0.9, 10)).init(PARAMS)
    assert float(optim.hyper(state)["momentum"]) == pytest.approx(0.5)
    assert float(optim.hyper(optim.set_hyper(state, momentum=0.7))["momentum"]) == np.float32(0.7)
    with pytest.raises(ValueError, match=r"momentum is 1. Give a number in \[0, 1\)"):
        optim.lars(0.1, momentum=1.0)
    with pytest.raises(ValueError, match=r"optim.lars: update needs the parameters"):
        optim.lars_core().update(PARAMS, optim.lars_core().init(PARAMS))


def test_cores_stand_beside_each_other_under_one_rate():
    """Each group moves as it does alone."""
    for name, core in {
        "lamb": optim.lamb_core(weight_decay=0.1),
        "lars": optim.lars_core(),
        "lbfgs": optim.lbfgs_core(3),
    }.items():
        pair = optim.groups(**{name: (optim.path("w"), core)}, rest=(optim.otherwise, optim.sgd_core()))
        both = path(optim.stages(both=pair, lr=optim.scale_by_lr(0.1)))
        alone = optim.stages(both=optim.groups(x=(optim.path("w"), core), y=(optim.otherwise, optim.frozen)))
        np.testing.assert_allclose(
            both["w"], path(optim.stages(a=alone, lr=optim.scale_by_lr(0.1)))["w"], rtol=1e-6, err_msg=name
        )
        np.testing.assert_allclose(both["b"], path(optim.sgd(0.1))["b"], rtol=1e-6)


def bowl(p):
    return jnp.sum(jnp.square(p["w"] - 3)) + jnp.sum(jnp.square(p["b"] + 1) ** 2) + 0.1 * p["w"][0, 0] * p["b"][0]


def searched(tx, steps, objective=bowl):
    """Parameters after the steps, with what a line search needs."""

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(objective)(params)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=objective)
        return jax.tree.map(jnp.add, params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        params, state = step(params, state)
    return params


@pytest.mark.slow  # to compile
def test_a_line_search_in_a_group_is_one_along_its_leaves():
    """What is asked of the objective is the group's part of the gradient, the other leaves as they are."""
    grouped = optim.groups(w=(optim.path("w"), optim.lbfgs(memory=2)), b=(optim.otherwise, optim.frozen))
    there = searched(grouped, 3)
    alone = searched(optim.lbfgs(memory=2), 3, lambda p: bowl({"w": p["w"], "b": jax.lax.stop_gradient(p["b"])}))
    np.testing.assert_allclose(there["w"], alone["w"], rtol=1e-5)
    np.testing.assert_array_equal(there["b"], PARAMS["b"])
    assert float(bowl(there)) < 0.2 * float(bowl(PARAMS))


def test_a_line_search_says_what_it_needs():
    tx = optim.stages(g=optim.groups(all=(optim.otherwise, optim.lbfgs())))
    given = lambda p: {"value": jnp.ones(()), "grad": p, "value_fn": bowl}  # noqa: E731
    jax.eval_shape(lambda p: tx.update(p, tx.init(p), p, **given(p)), PARAMS)
    with pytest.raises(
        ValueError, match=r"optim.lbfgs: the line search needs grad, value_fn. Write .* optim.lbfgs\(1.0"
    ):
        jax.eval_shape(lambda p: tx.update(p, tx.init(p), p, value=jnp.ones(())), PARAMS)
    measured = optim.lbfgs(metrics=("norms",))  # whose names a trace of the update tells, at init
    assert set(optim.metrics(jax.eval_shape(measured.init, PARAMS))) == {
        f"norm/{name}" for name in ("grad", "update", "param", "ratio")
    }


def test_settings_that_count_are_whole():
    for make, message in (
        (lambda: optim.lbfgs_core(0), "optim.lbfgs: memory is 0. Give a whole number, 1 or more"),
        (lambda: optim.lbfgs(linesearch_steps=0), "optim.lbfgs: linesearch_steps is 0"),
        (lambda: optim.soap_core(max_dim=-3), "optim.soap: max_dim is -3. Give a whole number, 0 or more"),
        (lambda: optim.soap_core(every=1.5), "optim.soap: every is 1.5. Give a whole number, 1 or more"),
        (lambda: optim.psgd_kron_core(max_dim=-3), "optim.psgd_kron: max_dim is -3"),
        (lambda: optim.shampoo_core(block=True), "optim.shampoo: block is True"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
