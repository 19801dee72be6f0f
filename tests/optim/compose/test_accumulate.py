"""Micro-batches that add up to one big batch, at the cost of adding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import optim, tree


def parameters():
    return {"w": jax.random.normal(jax.random.key(0), (300, 40)), "b": jnp.ones((40,))}


def micro(step):
    return jax.tree.map(lambda p: jnp.cos((step + 1) * p), parameters())


def whole():
    return optim.stages(
        clip=optim.clip_by_global_norm(1.0), adam=optim.adam_core(), lr=optim.scale_by_lr(1e-2), metrics=("norms",)
    )


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (5, 1, 3, 7)])
def test_k_micro_batches_are_one_big_one(weights):
    """optax #472, #528, #320: MultiSteps runs the inner optimizer on every micro-step, and weighs all the same."""
    params = parameters()
    tx = optim.accumulate(whole(), 4)
    update = jax.jit(tx.update)
    state = tx.init(params)
    for i, weight in enumerate(weights * 2):
        updates, state = update(micro(i % 4), state, params, weight=weight)
        if i % 4 < 3:
            assert all(bool((u == 0).all()) for u in jax.tree.leaves(updates))
            assert int(optim.get(state, "adam.hyper.count")) == i // 4
    mean = jax.tree.map(lambda *g: sum(w * x for w, x in zip(weights, g)) / sum(weights), *map(micro, range(4)))
    big = whole()
    _, once = big.update(mean, big.init(params), params)
    expected, twice = big.update(mean, once, params)
    close(updates, expected)
    close(state.inner, twice)
    assert float(optim.metrics(state)["norm/grad"]) == pytest.approx(float(tree.global_norm(mean)), rel=1e-5)


def test_its_halves_are_the_same_update():
    params = parameters()
    tx = optim.accumulate(whole(), 4)
    state, other = tx.init(params), tx.init(params)
    add, emit = jax.jit(tx.add, donate_argnums=1), jax.jit(tx.emit)
    for i in range(4):
        updates, state = tx.update(micro(i), state, params)
    for i in range(3):
        other = add(micro(i), other)
    in_halves, other = emit(micro(3), other, params)
    close((updates, state), (in_halves, other))
    for i in range(3):
        other = add(micro(i), other)
    ragged, _ = emit(None, other, params)  # an epoch that ends early: three of four
    assert float(tree.global_norm(ragged)) > 0


@pytest.mark.parametrize("halves", [False, True], ids=["update", "halves"])
@pytest.mark.parametrize("k", [1, 2])
def test_an_update_of_no_weight_is_none(k, halves):
    """Parameters do not move by momentum or decay, nothing is counted as an update, and the metric tells; a mean over
    no tokens, NaN, does not get in."""
    params = parameters()
    tx = optim.accumulate(optim.stages(adam=optim.adam_core(), decay=optim.decay(0.1), lr=optim.scale_by_lr(1e-2)), k)
    one = jax.jit(tx.update)

    def run(state, grads, weight):
        if not halves:
            for _ in range(k):
                updates, state = one(grads, state, params, weight=weight)
            return updates, state
        for _ in range(k):
            state = tx.add(grads, state, weight)
        return tx.emit(None, state, params)

    _, before = run(tx.init(params), micro(0), 3)
    empty = jax.tree.map(lambda p: p * jnp.nan, params)
    updates, after = run(before, empty, 0)
    assert all(not u.any() for u in jax.tree.leaves(updates))
    jax.tree.map(np.testing.assert_array_equal, after.inner, before.inner)
    assert [float(optim.metrics(s)["empty"]) for s in (before, after)] == [0, 1]
    assert not any(x.any() for x in jax.tree.leaves((after.count, after.weight, after.total)))
    close(run(after, micro(1), 2)[0], run(before, micro(1), 2)[0])


def test_a_micro_batch_of_no_weight_adds_nothing():
    params = parameters()
    tx = optim.accumulate(whole(), 2)
    _, state = tx.update(jax.tree.map(lambda p: p * jnp.nan, params), tx.init(params), params, weight=0)
    updates, state = tx.update(micro(0), state, params, weight=5)
    expected, inner = whole().update(micro(0), whole().init(params), params)
    close((updates, state.inner), (expected, inner))
    assert float(optim.metrics(state)["empty"]) == 0


def test_adding_is_in_place():
    """optax #472, #528, #320: out of memory. A micro-step of MultiSteps needs room for a second state."""
    params = {f"w{i}": jnp.ones((256, 128)) for i in range(4)}
    size = tree.nbytes(params)

    def temporaries(fn, *args, donate):
        return jax.jit(fn, donate_argnums=donate).lower(*args).compile().memory_analysis().temp_size_in_bytes

    tx = optim.accumulate(optim.adamw(1e-3), 4)
    theirs = optax.MultiSteps(optax.adamw(1e-3), 4)
    assert temporaries(tx.add, params, tx.init(params), donate=1) < 0.05 * size
    assert temporaries(tx.update, params, tx.init(params), params, donate=1) < 2.1 * size
    assert temporaries(theirs.update, params, theirs.init(params), params, donate=1) > 2 * size


def test_half_precision_micro_batches_add_up_in_float32():
    params = {"w": jnp.zeros((8,), jnp.bfloat16)}
    tx = optim.accumulate(optim.stages(lr=optim.scale_by_lr(1.0)), 257)
    state = tx.init(params)
    with jax.numpy_dtype_promotion("strict"):
        for _ in range(256):
            state = jax.jit(tx.add)({"w": jnp.ones((8,), jnp.bfloat16)}, state)
        updates, _ = tx.emit({"w": jnp.ones((8,), jnp.bfloat16)}, state, params)
    np.testing.assert_array_equal(updates["w"], -1.0)  # bfloat16 counts to 256


def test_what_does_not_fit_is_refused():
    for bad in (0, 1.5, True):
        with pytest.raises(ValueError, match=r"optim.accumulate: k is .*Give a whole number, 1 or more"):
            optim.accumulate(optim.adam(1e-3), bad)
    with pytest.raises(TypeError, match="must be an optax gradient transformation"):
        optim.accumulate(optim.adam, 2)
