"""State in fewer bytes, and the dtype contract."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import optim, tree
from jaxnn.optim.registry import OPTIMIZERS

SHAPES = {"w": (256, 300), "b": (300,), "e": (100, 64)}


def parameters(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    return {name: jax.random.normal(k, shape).astype(dtype) for k, (name, shape) in zip(keys, SHAPES.items())}


def per_parameter(tx, params):
    return tree.nbytes(tx.init(params)) / tree.size(params)


def train(tx, params, steps=30):
    target = jax.tree.map(jnp.sin, params)

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda p, t: p - t, params, target)
        updates, state = tx.update(grads, state, params)
        return optim.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state, sum(float(jnp.sum(jnp.square(p - t))) for p, t in zip(params.values(), target.values()))


def test_bytes_a_parameter():
    """optax has one setting, the dtype of Adam's first moment; the second, and eight bits, are not to be had."""
    params = parameters()
    adamw = optim.adamw(1e-3)
    assert per_parameter(adamw, params) == pytest.approx(8, abs=0.01)
    assert per_parameter(optim.with_state_dtype(adamw, jnp.bfloat16), params) == pytest.approx(4, abs=0.01)
    assert per_parameter(optim.with_state_dtype(adamw, optim.q8), params) <= 2.1
    mixed = optim.with_state_dtype(adamw, {"mu": jnp.bfloat16, "adam.nu": optim.q8})
    assert per_parameter(mixed, params) == pytest.approx(3.03, abs=0.02)
    state = mixed.init(params)
    assert optim.get(state, "mu.w").dtype == jnp.bfloat16
    assert optim.get(state, "nu.w.codes").dtype == jnp.uint8
    assert optim.get(state, "nu.b.codes").shape == (10, 30)
    assert optim.get(state, "nu.w").value.shape == (256, 300)
    exponents = jnp.full((10,), 127, jnp.uint8)
    assert optim.replace(state, "nu.b.exponent", exponents).inner.stages["adam"].nu["b"].exponent[0] == 127


def test_optax_states_too():
    params = parameters()
    tx = optim.with_state_dtype(optax.adamw(1e-2), {"mu": optim.q8, "nu": optim.q8})
    assert per_parameter(tx, params) <= 2.1
    assert train(tx, params)[2] < train(optax.adamw(1e-2), params)[2] * 1.02


@pytest.mark.parametrize("storage", [jnp.bfloat16, optim.q8])
def test_a_small_state_trains_as_well(storage):
    params = parameters()
    full = train(optim.adamw(1e-2), params)[2]
    small = train(optim.with_state_dtype(optim.adamw(1e-2), storage), params)[2]
    assert small == pytest.approx(full, rel=0.02)


def test_directions_in_eight_bits_are_those_of_float32():
    """Open loop, on the same gradients: 5 % of noise in a direction and none in its length.

    bitsandbytes' code makes Adam's steps 5 % longer on a small GPT, and 200 times as long in its first steps where a
    second moment is rounded to 0.
    """
    keys, shape = jax.random.split(jax.random.key(0)), (64, 64)
    spread = jnp.exp(jax.random.normal(keys[0], shape[1:]))  # columns of different size
    full, small = optim.adam_core(), optim.with_state_dtype(optim.adam_core(), optim.q8)

    def step(number, carry):
        grads = {"w": spread * (0.3 + jax.random.normal(jax.random.fold_in(keys[1], number), shape))}
        (wanted, one), (found, two) = full.update(grads, carry[0][1]), small.update(grads, carry[1][1])
        return (wanted, one), (found, two)

    zeros = {"w": jnp.zeros(shape)}
    start = (zeros, full.init(zeros)), (zeros, small.init(zeros))
    for steps in (3, 200):
        (wanted, _), (found, _) = jax.jit(lambda n: jax.lax.fori_loop(0, n, step, start))(steps)
        wanted, found = wanted["w"], found["w"]
        assert float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted)) < 0.06
        assert float(jnp.vdot(found, wanted) / jnp.vdot(wanted, wanted)) == pytest.approx(1, abs=0.005)
        assert float(jnp.max(jnp.abs(found))) < 1.5 * float(jnp.max(jnp.abs(wanted)))


@pytest.mark.parametrize(("rounding", "falls"), [("stochastic", True), ("nearest", False)])
def test_a_slow_average_falls_also_in_bfloat16(rounding, falls):
    """A second moment in bfloat16 that is rounded to nearest never falls again: every later step is too small."""
    params = {"w": jnp.ones((1000,))}
    tx = optim.with_state_dtype(optim.adam_core(b2=0.999), jnp.bfloat16, rounding=rounding)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(200):
        grads = {"w": jnp.full((1000,), 1.0 if step < 100 else 0.0)}
        _, state = update(grads, state)
    true = (1 - 0.999**100) * 0.999**100
    mean = float(jnp.mean(optim.get(state, "nu.w").astype(jnp.float32)))
    assert (abs(mean / true - 1) < 0.02) == falls


@pytest.mark.parametrize("storage", [jnp.bfloat16, optim.q8])
def test_hyperparameters_stay_and_nothing_compiles_again(storage):
    """optax #577, #1207: with a state in bfloat16, b2 = 0.999 must not become 1."""
    params = parameters(jnp.bfloat16)
    tx = optim.with_state_dtype(optim.adamw(1e-2), storage)
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = tx.update(params, state, params)
        return optim.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(3):
        params, state = step(params, state)
        state = optim.set_hyper(state, lr=1e-3)
    assert len(traces) == 1
    assert float(optim.hyper(state)["b2"]) == np.float32(0.999)
    assert float(optim.metrics(state)["lr"]) == pytest.approx(1e-3)


OPTAX = {
    "adam": lambda: optax.adam(1e-2),
    "adamw": lambda: optax.adamw(1e-2),
    "lion": lambda: optax.lion(1e-2),
    "rmsprop": lambda: optax.rmsprop(1e-2),
    "yogi": lambda: optax.yogi(1e-2),
    "lamb": lambda: optax.lamb(1e-2),
    "adafactor": lambda: optax.adafactor(1e-2),
    "momentum": lambda: optax.sgd(1e-2, momentum=0.9),
    "inject": lambda: optax.inject_hyperparams(optax.adamw)(1e-2),
    "schedule_free": lambda: optax.contrib.schedule_free_adamw(1e-2),
}


@pytest.mark.parametrize("name", OPTAX)
def test_the_state_of_optax_keeps_its_dtypes(name):
    """optax #1207, #1098, #1108: dtypes change after the first update, and everything compiles twice; #1414: NaN."""
    params = {"w": jnp.ones((8, 4), jnp.bfloat16), "b": jnp.ones((4,), jnp.bfloat16)}
    for tx in (optim.stable(OPTAX[name]()), optim.stages(x=OPTAX[name]())):
        first = state = tx.init(params)
        for _ in range(2):
            grads = jax.tree.map(lambda p: p.astype(jnp.float32), params)
            updates, state = tx.update(grads, state, params)
            params = optim.apply_updates(params, updates)
        avals = [[(jax.typeof(x), jax.typeof(x).weak_type) for x in jax.tree.leaves(s)] for s in (first, state)]
        assert avals[0] == avals[1]
        assert all(bool(jnp.isfinite(p).all()) for p in jax.tree.leaves(params))


def test_optax_alone_breaks_the_contract():
    """optax #1207, #1098, #1108, #1414: what the tests above end, shown, so that it is known when it ends by itself."""
    params = {"w": jnp.ones((8,), jnp.bfloat16)}
    grads = {"w": jnp.ones((8,), jnp.float32)}
    tx = optax.adam(1e-2)
    _, state = tx.update(grads, tx.init(params), params)
    assert tx.init(params)[0].mu["w"].dtype != state[0].mu["w"].dtype
    tx = optax.inject_hyperparams(optax.adamw)(1e-2)
    updates, _ = tx.update(params, tx.init(params), params)
    assert not bool(jnp.isfinite(updates["w"]).all())


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("storage", [None, optim.q8])
def test_ours_keep_theirs(name, storage):
    entry = OPTIMIZERS[name]
    params = {"w": jnp.ones((8, 8), jnp.bfloat16), "b": jnp.ones((8,), jnp.bfloat16)}
    tx = entry.make(entry.lr)
    if storage is not None:
        tx = optim.with_state_dtype(tx, storage)

    def loss(p, **_):
        return sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(p))

    def step(params, state, key):
        known = {"value": loss(params), "value_fn": loss, "key": key}
        extra = {need: known[need] for need in entry.needs} | ({"grad": params} if "value_fn" in entry.needs else {})
        updates, state = tx.update(params, state, params, **extra)
        return updates, state

    state = jax.jit(tx.init)(params)
    updates, new = jax.jit(step)(params, state, jax.random.key(0))
    kinds = [[(x.dtype, jax.typeof(x).weak_type) for x in jax.tree.leaves(s)] for s in (state, new)]
    assert kinds[0] == kinds[1]
    assert jax.tree.structure(state) == jax.tree.structure(new)
    assert all(bool(jnp.isfinite(u).all()) for u in jax.tree.leaves(updates))


def test_what_does_not_fit_is_refused():
    params = parameters()
    with pytest.raises(ValueError, match=r"nothing in the state is called 'muu'.*Did you mean 'mu'"):
        optim.with_state_dtype(optim.adamw(1e-3), {"muu": jnp.bfloat16}).init(params)
    with pytest.raises(TypeError, match=r"the storage of 'mu' is .*int8.*Give a floating dtype or optim.q8"):
        optim.with_state_dtype(optim.adamw(1e-3), {"mu": jnp.int8})
    with pytest.raises(ValueError, match="rounding is 'up'"):
        optim.with_state_dtype(optim.adamw(1e-3), optim.q8, rounding="up")
    for narrow in (jnp.float16, jnp.float8_e4m3fn):
        with pytest.raises(ValueError, match=r"float.* is rounded to nearest only.*Give jnp.bfloat16 or optim.q8"):
            optim.with_state_dtype(optim.adamw(1e-3), {"nu": narrow})
        optim.with_state_dtype(optim.adamw(1e-3), {"nu": narrow}, rounding="nearest")


@pytest.mark.slow
def test_it_wraps_groups_inside_stages():
    params = parameters()
    tx = optim.stages(
        pre=optim.with_state_dtype(
            optim.groups(
                lion=optim.group(optim.path("w"), optim.lion_core(), lr=0.5), adam=(optim.otherwise, optim.adam_core())
            ),
            {"lion": jnp.bfloat16, "nu": optim.q8},
        ),
        lr=optim.scale_by_lr(1e-2),
        metrics=("lr", "group_norms"),
    )
    updates, state = tx.update(params, tx.init(params), params)
    assert optim.get(state, "lion.mu.w").dtype == jnp.bfloat16
    assert optim.get(state, "adam.mu.b").dtype == jnp.float32
    np.testing.assert_allclose(np.abs(updates["w"]), 0.5e-2, rtol=1e-6)
    rows = {(row.stage, row.group): row.kind for row in optim.summary(tx, params).rows}
    assert rows["pre", "lion"] == "lion"
