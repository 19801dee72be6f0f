"""Schedule-free averaging over any optimizer: against float64 NumPy, and where it may stand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import optim

RNG = np.random.default_rng(0)
PARAMS = {"w": RNG.normal(size=(4, 3)).astype(np.float32), "b": RNG.normal(size=3).astype(np.float32)}
GRADS = [{k: RNG.normal(size=x.shape).astype(np.float32) for k, x in PARAMS.items()} for _ in range(5)]


def run(tx, grads=tuple(GRADS)):
    params = jax.tree.map(jnp.asarray, PARAMS)
    state, update = tx.init(params), jax.jit(tx.update)
    for g in grads:
        updates, state = update(g, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


def test_any_optimizer_is_averaged_by_the_largest_rate_so_far():
    """Lion's signs with decay at y, a rate that rises and falls, weights t lr_max^2: z, y and x as in the paper.

    b1 changes too, and then is set: x stays what it is.
    """
    rates = np.asarray([0.1, 0.2, 0.3, 0.2, 0.1])
    b1 = np.asarray([0.8, 0.6, 0.9, 0.9, 0.5])
    base = optim.stages(
        lion=optim.lion_core(0.0, 0.9), decay=optim.decay(0.1), lr=optim.scale_by_lr(lambda t: jnp.asarray(rates)[t])
    )
    params, state = run(optim.schedule_free(base, lambda t: jnp.asarray(b1)[t], r=1.0))
    state = optim.set_hyper(state, b1=0.99)
    for k, start in PARAMS.items():
        x = y = z = start.astype(np.float64)
        weights = 0.0
        for t, g in enumerate(GRADS):
            z = z - rates[t] * (np.sign(g[k]) + 0.1 * y)
            weight = (t + 1) * rates[: t + 1].max() ** 2
            weights += weight
            x = x + weight / weights * (z - x)
            y = (1 - b1[t]) * z + b1[t] * x
        np.testing.assert_allclose(params[k], y, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(optim.eval_params(state, params)[k], x, rtol=1e-5, atol=1e-6)


def test_what_optax_hides_is_averaged_with_equal_weights():
    """optax.contrib.schedule_free over optax.sgd; it cannot do so over a schedule without being told it twice."""
    params, state = run(optim.schedule_free(optax.sgd(0.1), 0.9, weight_power=0.0))
    theirs = optax.contrib.schedule_free(optax.sgd(0.1), 0.1, b1=0.9, weight_lr_power=0.0)
    there, after = run(theirs)
    average = optax.contrib.schedule_free_eval_params(after, there)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, there)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), optim.eval_params(state, params), average
    )
    assert "weight_power" not in optim.hyper(state)


def test_one_group_is_averaged_beside_another_that_is_not():
    free = optim.schedule_free_sgd(0.1)
    tx = optim.groups(w=(optim.path("w"), free), b=(optim.otherwise, optim.sgd(0.1)))
    params, state = run(tx)
    found = optim.eval_params(state, params)
    alone, alone_state = run(free)
    np.testing.assert_allclose(found["w"], optim.eval_params(alone_state, alone)["w"], rtol=1e-6)
    np.testing.assert_array_equal(found["b"], params["b"])
    np.testing.assert_allclose(params["b"], run(optim.sgd(0.1))[0]["b"], rtol=1e-6)


def test_bytes_and_the_rate_in_effect():
    """Only y and z are kept beside the second moment: 8 bytes a parameter, as AdamW."""
    tx = optim.schedule_free_adamw(optim.warmup(0.1, 10))
    assert optim.get(tx.init(PARAMS), "adam").mu is None
    assert float(optim.metrics(run(tx)[1])["lr"]) == pytest.approx(0.1 * 5 / 11)
    rectified = optim.metrics(run(optim.schedule_free_radam(0.1))[1])["lr"]
    assert 0 <= float(rectified) < 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: optim.schedule_free(optim.adam_core()),
            r"optim.schedule_free: adam has no rate.*Give a whole optimiz",
        ),
        (lambda: optim.schedule_free(optax.adam(1e-3)), r"the rate of optax.* is not known.*weight_power=0.0, or"),
        (lambda: optim.schedule_free_sgd(0.1, 0.0), r"b1 is 0. Give a number in \(0, 1\)"),
        (lambda: optim.adam_core(None, nesterov=True), r"optim.adam: nesterov looks ahead.*b1 is None"),
        (
            lambda: optim.stages(
                g=optim.groups(a=(optim.otherwise, optim.schedule_free_sgd(0.1))), lr=optim.scale_by_lr(1.0)
            ),
            r"'g.a.schedule_free.lr' has a rate, and so has 'lr': each multiplies by minus its own",
        ),
    ],
)
def test_where_it_cannot_stand(make, message):
    with pytest.raises(ValueError, match=message):
        make()
