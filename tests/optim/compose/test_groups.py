"""What a group is told of the whole: multipliers and objectives of its own leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import optim

PARAMS = {"a": jnp.asarray([1.0, -2.0]), "b": jnp.asarray([3.0])}
GRADS = jax.tree.map(jnp.zeros_like, PARAMS)


def test_the_multiplier_of_decay_reaches_a_stage_within_the_group():
    own = optim.stages(sgd=optim.sgd_core(), decay=optim.decay(0.1))
    tx = optim.stages(
        groups=optim.groups(
            a=optim.group(optim.path("a"), own, lr=0.5, decay=0.25), b=(optim.otherwise, optim.sgd_core())
        ),
        lr=optim.scale_by_lr(1.0),
    )
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["a"], -0.5 * 0.25 * 0.1 * PARAMS["a"], rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], 0)


def halved(core):
    """One group at half the rate and a quarter of the decay."""
    return optim.groups(a=optim.group(optim.path("a"), core, lr=0.5, decay=0.25), b=(optim.otherwise, optim.sgd_core()))


def around(name):
    sgd = optim.sgd_core()
    return {
        "nothing": lambda: halved(sgd),
        "stages": lambda: optim.stages(deeper=optim.stages(parts=halved(sgd))),
        "groups": lambda: optim.groups(all=(optim.everything, halved(sgd))),
        "a group at half": lambda: optim.groups(all=optim.group(optim.everything, halved(sgd), lr=0.5, decay=0.5)),
        "cautious": lambda: optim.cautious(halved(sgd)),
        "skip_nonfinite": lambda: optim.skip_nonfinite(halved(sgd)),
    }[name]()


@pytest.mark.parametrize("name", ["nothing", "stages", "groups", "a group at half", "cautious", "skip_nonfinite"])
def test_multipliers_reach_the_rate_and_the_decay_around_whatever_lies_between(name):
    """Between `stages` they were 1, in groups the outer ones took the place of the inner, silently."""
    tx = optim.stages(parts=around(name), decay=optim.decay(0.1), lr=optim.scale_by_lr(1.0))
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    half = 0.5 if name == "a group at half" else 1.0
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["a"], -0.5 * half * (1 + 0.25 * half * 0.1 * PARAMS["a"]), rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -half * (1 + half * 0.1 * PARAMS["b"]), rtol=1e-6)


@pytest.mark.parametrize("coupling", ["lr", "schedule", "none"])
def test_what_is_frozen_does_not_decay(coupling):
    """The decay around the groups moved it, silently."""
    parts = optim.groups(a=(optim.path("a"), optim.frozen), b=(optim.otherwise, optim.sgd_core()))
    tx = optim.stages(parts=parts, decay=optim.decay(0.1, coupling=coupling), lr=optim.scale_by_lr(1.0))
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["a"], 0)
    np.testing.assert_allclose(updates["b"], -0.1 * PARAMS["b"], rtol=1e-6)


def test_groups_within_a_group_of_some_leaves():
    """The places of leaves that the outer groups had given to another were counted as the inner ones'."""
    params, sgd = PARAMS | {"c": jnp.ones(3)}, optim.sgd_core()
    inner = optim.groups(b=optim.group(optim.path("b"), sgd, lr=0.5), c=optim.group(optim.path("c"), sgd, decay=0.5))
    outer = optim.groups(late=optim.group(optim.path("b|c"), inner, lr=0.1), early=(optim.path("a"), sgd))
    tx = optim.stages(parts=outer, decay=optim.decay(0.1), lr=optim.scale_by_lr(1.0))
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["a"], -1.1 * params["a"], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -0.05 * 1.1 * params["b"], rtol=1e-6)
    np.testing.assert_allclose(updates["c"], -0.1 * 1.05 * params["c"], rtol=1e-6)


def test_metrics_within_do_not_need_the_rate_around_at_init():
    inside = optim.stages(parts=halved(optim.sgd_core()), shrink=optim.decay(0.1), metrics=("norms",))
    tx = optim.stages(inside=inside, lr=optim.scale_by_lr(1.0))
    updates, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["b"], -0.1 * PARAMS["b"], rtol=1e-6)
    assert float(optim.metrics(state)["norm/param"]) > 0


def test_groups_of_whole_optimizers_multiply_their_own_decay():
    tx = optim.groups(
        a=optim.group(optim.path("a"), optim.adamw(1.0, weight_decay=0.1), decay=0.0),
        b=(optim.otherwise, optim.adamw(1.0, weight_decay=0.1)),
    )
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["a"], 0)
    np.testing.assert_allclose(updates["b"], -0.1 * PARAMS["b"], rtol=1e-6)


@pytest.mark.parametrize("rate", [optax.scale_by_learning_rate(1e-3), None])
def test_a_multiplier_without_a_rate_is_refused(rate):
    parts = halved(optim.sgd_core())
    tx = parts if rate is None else optim.stages(parts=parts, lr=rate)
    with pytest.raises(ValueError, match=r"group 'a' has lr=0.5, and around the groups no rate.*optim.scale_by_lr"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS)


def test_an_objective_is_one_of_the_groups_leaves():
    """SAM in one group looks for the worst point among its own leaves, the others held."""

    def loss(p):
        return jnp.sum(jnp.square(p["a"])) * p["b"][0]

    tx = optim.groups(a=(optim.path("a"), optim.sam(optim.sgd(1.0), 0.5)), b=(optim.otherwise, optim.sgd(1.0)))
    grads = jax.grad(loss)(PARAMS)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, value_fn=loss)
    there = PARAMS["a"] + 0.5 * grads["a"] / jnp.linalg.norm(grads["a"])
    np.testing.assert_allclose(updates["a"], -2 * there * PARAMS["b"], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -grads["b"], rtol=1e-6)


def test_an_objective_may_take_more_than_parameters():
    """As `fit`'s does; optax reads from its signature which arguments are its own."""
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    fn = lambda p, aux: jnp.sum((p["a"] - aux) ** 2) + jnp.sum(p["b"] ** 2)  # noqa: E731
    tx = optim.groups(a=(optim.path("a"), optim.lbfgs()), b=(optim.otherwise, optim.sgd(0.1)))
    more = {"value": jnp.ones(()), "grad": params, "value_fn": fn, "aux": jnp.ones(())}
    updates = jax.eval_shape(lambda: tx.update(params, tx.init(params), params, **more)[0])
    assert jax.tree.map(jnp.shape, updates) == {"a": (2,), "b": (3,)}
