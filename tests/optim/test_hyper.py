"""Hyperparameters as state: built of numbers, wherever they are built."""

import copy
import pickle

import jax
import jax.numpy as jnp
import pytest

from jaxnn import optim

PARAMS = {"b": jnp.ones(2), "w": jnp.ones((3, 2))}


def test_domains_are_the_same_object_wherever_they_have_been():
    """A jitted step compares them in every call, and would compile again for others."""
    states = [optim.adam(1e-3).init(PARAMS) for _ in range(2)]
    states += [copy.deepcopy(states[0]), pickle.loads(pickle.dumps(jax.device_get(states[0])))]
    held = [optim.get(state, "adam.hyper.domains") for state in states]
    assert all(domains is held[0] for domains in held)
    assert repr(held[0]).startswith("Domains(b1: a number in [0, 1), ")


def test_a_schedule_may_be_made_where_jax_traces():
    made = jax.jit(lambda params: optim.hyper(optim.sgd(optim.cosine(1e-2, 10)).init(params)))({"w": jnp.ones(2)})
    assert float(made["lr"]) == pytest.approx(1e-2)


@pytest.mark.parametrize("make", [optim.adam, lambda lr: optim.adam(lambda step: lr * 0.5)], ids=["number", "schedule"])
def test_a_traced_number_is_for_the_state(make):
    """jax's own error told of concrete values and of no way to have them."""
    params = {"w": jnp.ones(2)}
    with pytest.raises(TypeError, match=r"lr( at step 0)? is traced.*optim.set_hyper\(tx.init\(params\)"):
        jax.vmap(lambda lr: optim.hyper(make(lr).init(params)))(jnp.ones(2))
    swept = jax.vmap(lambda lr: optim.hyper(optim.set_hyper(optim.adam(1.0).init(params), lr=lr))["lr"])(
        jnp.arange(2.0)
    )
    assert swept.tolist() == [0, 1]
