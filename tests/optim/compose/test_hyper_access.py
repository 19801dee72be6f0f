"""Setting a hyperparameter compiles nothing, wherever the state lies."""

import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import optim
from jaxnn.optim.hyper import Hypers
from jaxnn.optim.registry import OPTIMIZERS
from jaxnn.typing import Schedule

PARAMS = {"b": jnp.ones(2), "w": jnp.ones((3, 2))}
NEEDED = {"sgd": {"momentum": 0.9}}  # for dampening to have something to act on


def numbers_of(name):
    """The arguments of `optim.NAME` that may follow a schedule, and are numbers by default."""
    if name not in OPTIMIZERS or not hasattr(optim, name):
        return {}
    found = inspect.signature(getattr(optim, name)).parameters.items()
    taken = {key: p.default for key, p in found if Schedule in typing.get_args(p.annotation)}
    if "lr" in taken:
        taken["lr"] = OPTIMIZERS[name].lr
    return NEEDED.get(name, {}) | {key: value for key, value in taken.items() if isinstance(value, float)}


HEAVY = {"lbfgs", "psgd_kron", "shampoo", "soap"}  # to trace
BUILT = [pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in OPTIMIZERS if numbers_of(name)]


def build(name, **numbers):
    """`optim.NAME` with these numbers, around Adam where it wraps."""
    make = getattr(optim, name)
    first = next(iter(inspect.signature(make).parameters))
    return make(optim.adam(1e-2), **numbers) if first == "tx" else make(**numbers)


def held(state):
    """How many hyperparameters a state holds, counted without their names."""
    nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Hypers))
    return sum(len(node.values) for node in nodes if isinstance(node, Hypers))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_hyperparameter_has_a_name_of_its_own(name):
    """optax: `tree.get` raises on duplicates, and two stages have but one count."""
    entry = OPTIMIZERS[name]
    state = jax.eval_shape(entry.make(entry.lr).init, PARAMS)
    assert len(optim.hyper(state)) == held(state)


def test_what_wraps_itself_keeps_its_level_in_the_name():
    state = optim.ema(optim.ema(optim.adam(1e-3), 0.9), 0.99).init(PARAMS)
    assert {name: round(float(x), 4) for name, x in optim.hyper(state).items() if "decay" in name} == {
        "decay": 0.99,
        "inner.decay": 0.9,
    }
    after = optim.hyper(optim.set_hyper(state, **{"inner.decay": 0.5}))
    assert (float(after["inner.decay"]), float(after["decay"])) == (0.5, float(np.float32(0.99)))
    odd = optim.stages(groups=optim.adam_core(0.5), inner=optim.adam_core(0.25)).init(PARAMS)  # names that we leave out
    assert len(optim.hyper(odd)) == held(odd) == 6


@pytest.mark.parametrize("name", BUILT)
def test_what_is_set_is_what_would_have_been_built(name):
    """The same state under the same program, for every number that `optim.NAME` takes: so is all that follows."""
    old = numbers_of(name)
    new = {key: value / 2 if value else 0.25 for key, value in old.items()}
    made, changed = build(name, **old), build(name, **new)
    state = made.init(PARAMS)
    known = optim.hyper(state)
    full = {key: key if key in known else next(x for x in known if x.endswith(f"{name}.{key}")) for key in new}
    state = optim.set_hyper(state, **{full[key]: value for key, value in new.items()})
    jax.tree.map(np.testing.assert_array_equal, state, changed.init(PARAMS))
    loss = lambda p, **_: sum(jnp.sum(x) for x in jax.tree.leaves(p))  # noqa: E731
    extra = {need: {"value_fn": loss, "value": 0.0}[need] for need in OPTIMIZERS[name].needs}
    programs = [
        str(jax.make_jaxpr(lambda s, t=t: t.update(PARAMS, s, PARAMS, **extra))(state)) for t in (made, changed)
    ]
    assert programs[0] == programs[1]


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


@pytest.mark.parametrize("inside", [False, True])
def test_what_a_schedule_of_optax_moves_is_not_set(inside):
    """optax writes its schedule's value over one set by hand, silently."""
    theirs = optax.inject_hyperparams(optax.adam)(learning_rate=optax.constant_schedule(1e-3), b1=0.9)
    state = (optim.stages(adam=theirs) if inside else theirs).init(PARAMS)
    assert float(optim.hyper(optim.set_hyper(state, b1=0.5))["b1"]) == 0.5
    with pytest.raises(ValueError, match=r"learning_rate follows a schedule of optax.*optim.scale_by_lr"):
        optim.set_hyper(state, learning_rate=1e-2)
    with pytest.raises(ValueError, match="learning_rate follows a schedule of optax"):
        optim.grid(learning_rate=[1e-3, 1e-2]).spread(state)
