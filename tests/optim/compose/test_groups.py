"""What a group is told of the whole: multipliers and objectives of its own leaves."""

import jax
import jax.numpy as jnp
import numpy as np

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
