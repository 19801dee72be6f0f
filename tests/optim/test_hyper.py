"""Setting a hyperparameter compiles nothing, wherever the state lies."""

import jax
import jax.numpy as jnp
import pytest

from jaxnn import optim


@pytest.mark.parametrize("placed", [False, True])
def test_setting_compiles_nothing(placed, count_compiles):
    """optax #577, #353: a new rate is a new program. Nor may a state that lies anywhere become bound to a device."""
    params = {"w": jnp.ones((4,))}
    tx = optim.adam(optim.cosine(1e-2, 10))
    update = jax.jit(tx.update)
    state = tx.init(params)
    if placed:
        params, state = jax.device_put((params, state), jax.devices()[1])
    changes = [{"lr": 1e-3}, {"lr": None, "b2": 0.9}, {"b2": jnp.float32(0.5)}]
    _, state = update(params, state, params)
    for change in changes:
        state = optim.set_hyper(state, **change)
        with count_compiles() as seen:
            _, state = update(params, state, params)
        assert not seen.compiles
        assert not seen.traces
        assert all(x.committed == placed for x in jax.tree.leaves(state))
    assert float(optim.hyper(state)["b2"]) == 0.5


def test_constants_are_those_that_no_schedule_moves():
    params = {"w": jnp.ones(2)}
    assert sorted(optim.constants(optim.adam(1e-2).init(params))) == sorted(optim.hyper(optim.adam(1e-2).init(params)))
    scheduled = optim.stages(
        first=optim.adam_core(), one=optim.decay(optim.cosine(1e-2, 9)), two=optim.decay(0.5)
    ).init(params)
    found = optim.constants(scheduled)
    assert float(found["two.weight_decay"]) == 0.5
    assert "one.weight_decay" in optim.hyper(scheduled)
    assert "one.weight_decay" not in found
    assert "b1" in found
