"""The state: arrays only, strongly typed, kept in shape, and read for what its optimizer reports."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import core, losses, models, parallel, rng, tree
from jaxnn.core.state import abstract, check_same, reported, strong

X, Y = np.ones((4, 3), np.float32), np.ones((4, 1), np.float32)
BATCH = {"x": X, "y": Y}
TASK = core.supervised(models.MLP((1,)), losses.mse)


def first(tx, **options):
    return core.init_state(TASK, tx, BATCH, strategy=parallel.single(), **options)


def test_what_a_state_holds():
    state = first(optax.adam(1e-3), seed=9)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert (state.step.dtype, state.data_step.dtype, int(state.step), int(state.data_step)) == (
        jnp.int32,
        jnp.int32,
        0,
        0,
    )
    np.testing.assert_array_equal(state.key, rng.seed_key(9))
    assert state.key.dtype == jnp.uint32
    assert state.model_state == {}
    assert "params/head/kernel" in tree.leaves_by_path(state)


def test_nothing_is_weakly_typed():
    def init(params):
        return {"weak": jax.lax.full_like(params["head"]["bias"], 1.0) * 2, "scalar": jnp.asarray(3.0)}

    weak = jax.eval_shape(lambda: {"a": 2.0 * jnp.asarray(1.0)})
    assert weak["a"].weak_type  # what an optimizer may make
    state = first(optax.GradientTransformation(init, lambda u, s, p=None: (u, s)))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(jax.eval_shape(strong, {"a": 1.0, "b": jnp.ones(2)})))


def test_abstract_keeps_shapes_and_narrows_as_jax_does():
    shapes = abstract({"a": np.ones((2, 3)), "b": np.zeros(4, np.int64), "c": jnp.ones(1, jnp.bfloat16)})
    assert {k: (v.shape, str(v.dtype)) for k, v in shapes.items()} == {
        "a": ((2, 3), "float32"),
        "b": ((4,), "int32"),
        "c": ((1,), "bfloat16"),
    }


def test_a_changed_leaf_is_named():
    before = {"opt": {"mu": jnp.ones(3), "nu": jnp.ones(2)}}
    after = {"opt": {"mu": jnp.ones(3, jnp.bfloat16), "nu": jnp.ones(2)}}
    check_same(before, before, "here")
    with pytest.raises(TypeError, match=r"here: the step changes.*opt/mu: float32\[3\] against bfloat16\[3\]"):
        check_same(before, after, "here")
    many = {str(i): jnp.ones(1) for i in range(6)}
    with pytest.raises(TypeError, match="and 2 more"):
        check_same(many, {k: jnp.ones(2) for k in many}, "here")


def test_hyperparameters_are_read_by_name():
    tx = optax.inject_hyperparams(optax.adamw)(learning_rate=lambda step: 0.1 / (1 + step), weight_decay=0.2)
    found = {k: float(v) for k, v in reported(first(tx).opt_state).items()}
    assert found["weight_decay"] == pytest.approx(0.2)
    assert found["learning_rate"] == pytest.approx(0.1)
    assert set(found) == {"b1", "b2", "eps", "eps_root", "learning_rate", "weight_decay"}
    assert reported(first(optax.adamw(1e-3)).opt_state) == {}


def test_hyperparameters_of_two_optimizers_are_told_apart_by_path():
    tx = optax.chain(
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.5), optax.inject_hyperparams(optax.sgd)(learning_rate=0.25)
    )
    found = {k: float(v) for k, v in reported(first(tx).opt_state).items()}
    assert sorted(found.values()) == [0.25, 0.5]
    assert all(name.endswith("hyperparams/learning_rate") for name in found)
    assert len(found) == 2
