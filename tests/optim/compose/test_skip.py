"""Steps that are skipped change nothing, are counted, and cost one reduction that is shared."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import optim

PARAMS = {"w": jnp.ones((64, 32)), "b": jnp.ones((32,))}
GOOD = jax.tree.map(lambda p: 0.1 * p, PARAMS)


def whole():
    return optim.stages(
        clip=optim.clip_by_global_norm(1.0), adam=optim.adam_core(), lr=optim.scale_by_lr(1e-2), metrics=("norms",)
    )


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_step_changes_nothing_and_is_counted(bad):
    tx = optim.skip_nonfinite(whole())
    update = jax.jit(tx.update)
    _, state = update(GOOD, tx.init(PARAMS), PARAMS)
    assert float(optim.metrics(state)["skipped"]) == 0
    updates, after = update(GOOD | {"b": GOOD["b"].at[7].set(bad)}, state, PARAMS)
    assert all(bool((u == 0).all()) for u in jax.tree.leaves(updates))
    same(after.inner, state.inner)
    assert float(optim.metrics(after)["skipped"]) == 1
    updates, after = update(GOOD, after, PARAMS)
    expected, _ = jax.jit(whole().update)(GOOD, state.inner, PARAMS)
    same(updates, expected)


def test_the_norm_is_computed_once():
    """optax's apply_if_finite tests every gradient by itself; skipping, clipping and the metric here share a norm."""

    def products(tx):
        jaxpr = str(jax.make_jaxpr(tx.update)(GOOD, tx.init(PARAMS), PARAMS))
        return len(re.findall(r"= dot_general\[", jaxpr))

    plain = optim.stages(clip=optim.clip_by_global_norm(1.0), adam=optim.adam_core(), lr=optim.scale_by_lr(1e-2))
    assert products(plain) == len(PARAMS)
    assert products(optim.skip_nonfinite(plain)) == len(PARAMS)
    measured = optim.skip_nonfinite(whole())
    assert products(measured) == 3 * len(PARAMS)  # and those of the update and the parameters


def test_it_copies_no_state():
    params = {f"w{i}": jnp.ones((256, 128)) for i in range(4)}
    size = sum(p.nbytes for p in params.values())

    def temporaries(tx):
        def step(grads, state, params):
            updates, state = tx.update(grads, state, params)
            return state, optim.apply_updates(params, updates)

        lowered = jax.jit(step, donate_argnums=(1, 2)).lower(params, tx.init(params), params)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(optim.skip_nonfinite(optim.adamw(1e-3))) < 0.1 * size
    assert temporaries(optax.apply_if_finite(optax.adamw(1e-3), 5)) >= size


def test_loss_scale_adapts_and_the_optimizer_does_not_notice():
    tx = optim.loss_scale(whole(), 2.0**10, period=3)
    update = jax.jit(tx.update)
    state = tx.init(PARAMS)
    alone = whole()
    expected_state = alone.init(PARAMS)
    scales, traces = [], []
    for step in range(8):
        scale = float(optim.get(state, "scale"))
        scales.append(scale)
        grads = jax.tree.map(lambda g, s=scale: g * s, GOOD)
        if step == 4:
            grads = grads | {"b": grads["b"].at[0].set(jnp.inf)}
        updates, state = update(grads, state, PARAMS)
        if step != 4:
            expected, expected_state = alone.update(GOOD, expected_state, PARAMS)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)
            traces.append(step)
    assert scales == [1024, 1024, 1024, 2048, 2048, 1024, 1024, 1024]
    assert optim.metrics(state)["skipped"] == 1
    assert optim.metrics(state)["loss_scale"] == 2048


def test_float16_gradients_that_scaling_saves():
    """Without, a float16 gradient of 1e-8 is 0."""
    params = {"w": jnp.ones((4,))}
    loss = lambda p, scale: (p["w"].astype(jnp.float16) * jnp.float16(1e-4)).sum() * jnp.float16(1e-4) * scale  # noqa: E731
    tx = optim.loss_scale(optim.stages(lr=optim.scale_by_lr(1.0)))
    state = tx.init(params)
    scale = optim.get(state, "scale").astype(jnp.float16)
    grads = jax.grad(loss)(params, scale)
    updates, _ = tx.update(grads, state, params)
    np.testing.assert_allclose(updates["w"], -1e-8, rtol=0.02)


def test_half_precision_gradients_under_strict_promotion():
    grads = jax.tree.map(lambda g: g.astype(jnp.bfloat16), GOOD)
    with jax.numpy_dtype_promotion("strict"):
        for tx in (optim.skip_nonfinite(whole()), optim.loss_scale(whole())):
            tx.update(grads, tx.init(PARAMS), PARAMS)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"optim.loss_scale: initial is -1. Give a number > 0"):
        optim.loss_scale(optim.adam(1e-3), -1.0)
    with pytest.raises(ValueError, match=r"factor 1, .* Give a factor above 1"):
        optim.loss_scale(optim.adam(1e-3), factor=1.0)
    with pytest.raises(TypeError, match=r"optim.skip_nonfinite: 'tx' must be an optax gradient transformation"):
        optim.skip_nonfinite(optim.adam)


def test_what_takes_a_gradient_itself_goes_around():
    """Around it only the first is seen, and what the second one breaks is trained on."""
    params = {"w": jnp.ones(3)}
    tx = optim.sam(optim.skip_nonfinite(optim.sgd(0.1)))
    for grads, scale in ((params, jnp.nan), (jax.tree.map(lambda g: g * jnp.inf, params), 1.0)):
        updates, state = tx.update(grads, tx.init(params), params, value_fn=lambda p, s=scale: s * jnp.sum(p["w"] ** 2))
        assert float(optim.metrics(state)["skipped"]) == 1
        np.testing.assert_array_equal(updates["w"], 0)
