"""State in vectors that is written in place gives the updates by leaves, from a program that copies nothing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import optim
from jaxnn.optim.compose.in_place import update_in_place

CORES = {
    "adam": lambda: optim.adam_core(nesterov=True),
    "adagrad": optim.adagrad_core,
    "ademamix": optim.ademamix_core,
    "amsgrad": optim.amsgrad_core,
    "lion": optim.lion_core,  # its update reads the old momentum: not in place
    "nadam": optim.nadam_core,
    "radam": optim.radam_core,
    "rmsprop": lambda: optim.rmsprop_core(centered=True, momentum=0.9),
    "sgd": lambda: optim.sgd_core(0.9, nesterov=True),
}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def parameters():
    """Two small leaves, and three in a vector that is written in place."""
    shapes = {"a": (128, 64), "b": (3,), "c": (8_192,), "d": (2, 3), "e": (64, 128)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {name: jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}


def steps(tx, params):
    def one(carry, k):
        params, state = carry
        updates, state = tx.update(jax.tree.map(lambda p: jnp.sin(k * p), params), state, params)
        return (optim.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(one, (params, tx.init(params)), jnp.arange(2.0, 5.0))
    return params, state


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("adam", "lion") else pytest.mark.slow) for n in CORES]
)
def test_updates_and_state_are_those_by_leaves(name):
    params = parameters()
    core = optim.stages(
        clip=optim.clip_by_global_norm(1.0),
        core=CORES[name](),
        decay=optim.decay(0.1),
        lr=optim.scale_by_lr(1e-2),
        metrics=("lr", "norms", "clip"),
    )
    (expected, plain), (found, state) = (jax.jit(lambda tx=tx: steps(tx, params))() for tx in (core, optim.flat(core)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), expected, found)
    for measured, value in optim.metrics(plain).items():
        np.testing.assert_allclose(optim.metrics(state)[measured], value, rtol=1e-5)
    whole = jax.tree.leaves(optim.get(plain, "core"))
    vectors = jax.tree.leaves(optim.get(state, "core"))
    np.testing.assert_allclose(
        *(sum(float(jnp.sum(jnp.abs(x))) for x in leaves if x.ndim > 0) for leaves in (whole, vectors)), rtol=1e-5
    )


def test_a_step_that_is_skipped_leaves_the_vectors_as_they_were():
    params = parameters()
    tx = optim.flat(optim.skip_nonfinite(optim.adamw(1e-2)))
    state = tx.init(params)
    _, state = tx.update(params, state, params)
    bad = {**params, "c": params["c"].at[7].set(jnp.nan)}
    updates, after = jax.jit(tx.update)(bad, state, params)
    assert all(not jnp.any(u) for u in jax.tree.leaves(updates))
    assert optim.metrics(after)["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, *(optim.get(s, "adam") for s in (state, after)))


def test_a_population_of_it_is_its_members():
    params = {"a": jnp.ones((128, 64)), "b": jnp.full((64, 128), 2.0)}
    tx = optim.flat(optim.sgd(1e-2, momentum=0.9))
    many = jax.tree.map(lambda p: jnp.stack([p, 3 * p]), params)
    found, _ = jax.vmap(lambda p: steps(tx, p))(many)
    for k in range(2):
        expected, _ = steps(tx, jax.tree.map(lambda p, k=k: p[k], many))
        jax.tree.map(lambda a, b, k=k: np.testing.assert_allclose(a[k], b, rtol=1e-6), found, expected)


@pytest.mark.parametrize("around", [lambda tx: tx, optim.skip_nonfinite], ids=["plain", "skip"])
def test_a_donated_step_copies_no_array_and_takes_few(around):
    """Of 64 leaves, AdamW's moments are two arrays; a copy of one would be all of them once more."""
    tx = optim.flat(
        around(
            optim.stages(
                clip=optim.clip_by_global_norm(1.0),
                adam=optim.adamw_core(),
                decay=optim.decay(0.1),
                lr=optim.scale_by_lr(1e-3),
            )
        )
    )
    params = {f"layer_{i}": jax.ShapeDtypeStruct((128, 64), jnp.float32) for i in range(16)}
    state = jax.eval_shape(tx.init, params)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optim.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    text = compiled.as_text()
    assert not re.findall(r"= f32\[\d\S* copy\(", text)
    entry = text.split("ENTRY")[1]
    assert len(re.findall(r"= f32\[131072\]\S* fusion\(", entry)) == 32  # a moment's part is one kernel
    assert compiled.memory_analysis().temp_size_in_bytes < 8_192
    assert [x.shape for x in jax.tree.leaves(state) if x.ndim] == [(131_072,), (131_072,)]


def test_over_devices_vectors_are_not_taken_apart(monkeypatch):
    monkeypatch.undo()
    tx, params = optim.flat(optim.adamw(1e-2)), parameters()
    assert "dynamic_update_slice" not in str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))


def test_what_reads_old_parts_of_others_is_left_alone():
    state = {"a": jnp.arange(6.0), "b": jnp.ones(6), "count": jnp.zeros(())}
    by_parts = {"a": [jnp.zeros(2), jnp.zeros(4)], "b": [jnp.zeros(2), jnp.zeros(4)], "count": jnp.zeros(())}
    grads = [jnp.ones(2), jnp.full(4, 2.0)]

    def run(a, b, update=lambda new, _: new):
        def whole(held, grads):
            new_a = [a(x, y, g) for x, y, g in zip(held["a"], held["b"], grads, strict=True)]
            new_b = [b(x, y, z) for x, y, z in zip(held["b"], new_a, held["a"], strict=True)]
            updates = [update(n, o) for n, o in zip(new_a, held["a"], strict=True)]
            return updates, {"a": new_a, "b": new_b, "count": held["count"] + 1}

        return update_in_place(whole, state, by_parts, grads)

    found = run(lambda x, _, g: x + g, lambda y, new, _: y * new)
    assert found is not None
    updates, new = found
    np.testing.assert_array_equal(new["a"], [1, 2, 4, 5, 6, 7])
    np.testing.assert_array_equal(new["b"], [1, 2, 4, 5, 6, 7])  # from the finished `a`
    np.testing.assert_array_equal(jnp.concatenate(updates), new["a"])
    assert new["count"] == 1
    assert run(lambda x, y, g: x + y + g, lambda y, *_: 2 * y) is None  # a new `a` from an old `b`
    assert run(lambda x, _, g: x + g, lambda y, _, old: y * old) is None
    assert run(lambda x, _, g: x + g, lambda y, *_: 2 * y, lambda new, old: new - old) is None
    assert run(lambda x, *_: x, lambda y, *_: 2 * y) is None  # not computed
