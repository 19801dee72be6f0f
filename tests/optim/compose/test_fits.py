"""Gradients, states and leaves that do not fit are refused by name: optax broadcasts, or fails inside jax.

Without the parameters only the state tells what would fit; an optimizer that remembers nothing of them cannot know.
"""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxnn import optim

PARAMS = {"a": jnp.ones((2, 2)), "b": jnp.ones(2)}
WAYS = {
    "core": optim.adam_core,
    "stages": lambda: optim.adam(1e-3),
    "groups": lambda: optim.groups(m=(optim.path("a"), optim.lion_core()), r=(optim.otherwise, optim.adam_core())),
    "wrapper": lambda: optim.cautious(optim.adam_core()),
    "average": lambda: optim.ema(optim.adam(1e-3)),
    "skip": lambda: optim.skip_nonfinite(optim.adam_core()),
    "accumulate": lambda: optim.accumulate(optim.adam_core(), 2),
    "stored": lambda: optim.with_state_dtype(optim.adam_core(), jnp.bfloat16),
}
each_way = pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)


@each_way
@pytest.mark.parametrize("given", [True, False], ids=["params", "no-params"])
@pytest.mark.parametrize(
    ("grads", "leaf"),
    [
        ({"a": PARAMS["a"]}, "b"),
        ({"a": PARAMS["a"], "c": PARAMS["b"]}, "c"),
        (PARAMS | {"a": jnp.ones(5)}, "a"),
        (PARAMS | {"a": jnp.ones((2, 1))}, "a"),
    ],
    ids=["missing", "renamed", "shape", "broadcastable"],
)
def test_gradients_that_do_not_fit(make, given, grads, leaf):
    tx = make()
    state = jax.eval_shape(tx.init, PARAMS)
    with pytest.raises(ValueError, match=rf"^optim\.\w+: .*\b{leaf}: float32\[.*(only in the|against).*Give"):
        jax.eval_shape(tx.update, grads, state, PARAMS if given else None)


@each_way
def test_leaves_and_gradients_that_are_not_floating(make):
    tx = make()
    steps = {"n": jnp.ones(3, jnp.int32)}
    with pytest.raises(TypeError, match=r"^optim\.\w+: leaf 'n' int32\[3\] is not floating.*model state"):
        tx.init(PARAMS | steps)
    grads = PARAMS | {"b": jnp.ones(2, jnp.int32)}
    with pytest.raises(TypeError, match=r"^optim\.\w+: the gradient of 'b' is int32\[2\]. Give one that is floating"):
        tx.update(grads, tx.init(PARAMS), PARAMS)


@each_way
def test_states_that_do_not_fit(make):
    """Of other parameters, and of another optimizer: optax says KeyError, or nothing at all."""
    tx = make()
    for others in ({"a": PARAMS["a"], "c": PARAMS["b"]}, PARAMS | {"a": jnp.ones((1, 2))}):
        state = jax.eval_shape(tx.init, others)
        with pytest.raises(ValueError, match=r"the state is none of this optimizer.*\b(a|c): float32\["):
            jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    with pytest.raises(ValueError, match=r"^optim\.\w+: the state is none of .* only in the .*optim.migrate"):
        tx.update(PARAMS, optim.sgd(1e-3, 0.9).init(PARAMS), PARAMS)


@each_way
def test_two_leaves_of_one_path(make):
    """What goes by path (masks, specs, summaries) took the one for the other."""
    with pytest.raises(ValueError, match=r"^optim\.\w+: two leaves have the path 'a/b'"):
        make().init({"a/b": jnp.ones(3), "a": {"b": jnp.ones((3, 2))}})


def test_an_error_that_is_not_of_the_state_stays():
    tx = optim.lars(1e-3)
    with pytest.raises(ValueError, match=r"optim.lars: update needs the parameters"):
        tx.update(PARAMS, tx.init(PARAMS))


def test_micro_batches_that_do_not_fit_the_sum():
    tx = optim.accumulate(optim.adamw(1e-3), 2)
    state = tx.init(PARAMS)
    for half in (tx.add, tx.emit):
        with pytest.raises(ValueError, match=r"optim.accumulate: .*\bb: float32\[2\] is only in the second"):
            half({"a": PARAMS["a"]}, state)
        with pytest.raises(ValueError, match=r"optim.accumulate: .*\ba: float32\[2, 1\] against float32\[2, 2\]"):
            half(PARAMS | {"a": jnp.ones((2, 1))}, state)


OWN = {
    "schedule_free": lambda: optim.schedule_free_sgd(1.0),
    "prodigy": lambda: optim.prodigy(1.0),
    "lbfgs": lambda: optim.lbfgs(1.0, 1),
    "loss_scale": lambda: optim.loss_scale(optim.sgd(1.0)),
    "optax": lambda: optim.stable(optax.contrib.prodigy(1.0)),
}


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_a_state_holds_each_array_once_and_none_of_the_parameters(make):
    """XLA refuses to be donated a buffer twice: the first step of a loop that donates failed."""
    leaves = jax.tree.leaves((PARAMS, make().init(PARAMS)))
    assert len(set(map(id, leaves))) == len(leaves)


def test_a_first_state_may_be_donated():
    tx = optim.schedule_free_sgd(1.0)
    step = jax.jit(lambda s, p: tx.update(p, s, p), donate_argnums=0)
    _, state = step(tx.init(PARAMS), PARAMS)
    assert float(optim.get(state, "weights")) == 1
