"""What hurts in optax, a test a point of composition: optax's trouble shown, then its end here.

Where a point has a file of its own under compose/ (5 dtypes, 6 specs, 7 accumulate and skip, 8 migrate), more is there.
The numbers are issues of google-deepmind/optax.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import optim

PARAMS = {"a": jnp.asarray([1.0, 2.0]), "b": jnp.asarray([[3.0, 4.0]])}
GRADS = {"a": jnp.asarray([3.0, 4.0]), "b": jnp.asarray([[6.0, 8.0]])}
HIDDEN = optax.cosine_decay_schedule(0.25, 100)


def norm(values):
    return float(optax.tree.norm(values))


def test_1_parts_of_a_state_are_found_by_name():
    """#964, #1371: what is in a chain's state is found by position, and a name that occurs twice not at all."""
    chain = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(HIDDEN))
    with pytest.raises(KeyError, match="count"):
        optax.tree.get(chain.init(PARAMS), "count")
    before = chain.init(PARAMS)[0]
    longer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale_by_schedule(HIDDEN))
    assert not isinstance(longer.init(PARAMS)[0], type(before))

    parts = {"adam": optim.adam_core(), "lr": optim.scale_by_lr(HIDDEN)}
    for tx in (optim.stages(**parts), optim.stages(clip=optim.clip_by_global_norm(1.0), **parts)):
        _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
        assert int(optim.get(state, "adam.hyper.count")) == int(optim.get(state, "lr.hyper.count")) == 1
        assert norm(optim.get(state, "adam.mu")) > 0
        assert norm(optim.get(optim.reset(state, "adam", tx, PARAMS), "adam.mu")) == 0


def test_2_a_hyperparameter_changes_within_one_program():
    """#577, #353, #197, #932, #412: a rate is in a closure, another one is another program. And what is set over a
    schedule of inject_hyperparams is overwritten, silently."""
    traces = []

    def step(tx, grads, state):
        traces.append(1)
        return tx.update(grads, state, PARAMS)

    jitted = jax.jit(step, static_argnums=0)
    for rate in (0.1, 0.2):
        tx = optax.sgd(rate)
        jitted(tx, GRADS, tx.init(PARAMS))
    assert len(traces) == 2
    tx = optax.inject_hyperparams(optax.sgd)(HIDDEN)
    state = tx.init(PARAMS)
    state.hyperparams["learning_rate"] = jnp.asarray(0.5)
    np.testing.assert_allclose(tx.update(GRADS, state, PARAMS)[0]["a"], -0.25 * GRADS["a"])

    traces.clear()
    tx = optim.sgd(HIDDEN)
    state = tx.init(PARAMS)
    for rate in (0.25, 0.5):
        updates, _ = jitted(tx, GRADS, state if rate == 0.25 else optim.set_hyper(state, lr=rate))
        np.testing.assert_allclose(updates["a"], -rate * GRADS["a"])
    assert len(traces) == 1


def test_3_a_global_clip_stays_global_and_nothing_passes_through_unseen():
    """#160, #175, #1148: clipped group by group, the whole is longer than the bound. #159, #271, #993: what no
    mask covers is the raw gradient, which climbs."""
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    theirs = optax.partition({"x": clipped, "y": clipped}, {"a": "x", "b": "y"})
    assert norm(theirs.update(GRADS, theirs.init(PARAMS), PARAMS)[0]) == pytest.approx(2**0.5)
    masked = optax.masked(optax.sgd(1.0), {"a": True, "b": False})
    np.testing.assert_array_equal(masked.update(GRADS, masked.init(PARAMS), PARAMS)[0]["b"], GRADS["b"])

    ours = optim.stages(
        clip=optim.clip_by_global_norm(1.0),
        groups=optim.groups(x=(optim.path("a"), optim.sgd_core()), y=(optim.path("b"), optim.sgd_core())),
        lr=optim.scale_by_lr(1.0),
    )
    assert norm(ours.update(GRADS, ours.init(PARAMS), PARAMS)[0]) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"'b' .* matches no group"):
        optim.groups(x=(optim.path("a"), optim.sgd_core())).init(PARAMS)


def test_4_the_rate_and_the_norms_come_out_of_the_update():
    """#206, #326: neither is in the state, and must be computed again outside, from a count found by position."""
    tx = optax.adam(HIDDEN)
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    found = [float(x) for x in jax.tree.leaves(state) if jnp.ndim(x) == 0]
    assert not {0.25, norm(GRADS)} & set(found)

    tx = optim.adam(HIDDEN, metrics=("lr", "norms"))
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    assert float(optim.metrics(state)["lr"]) == 0.25
    assert float(optim.metrics(state)["norm/grad"]) == pytest.approx(norm(GRADS))


def test_5_a_state_keeps_its_dtypes():
    """#1207, #1098, #1108: with bfloat16 parameters and float32 gradients, they change after the first update.
    #1444: those parameters stand still under updates below half their spacing."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)

    def dtypes(tx):
        state = tx.init(params)
        return [jax.tree.map(jnp.result_type, s) for s in (state, tx.update(GRADS, state, params)[1])]

    before, after = dtypes(optax.adam(0.1))
    assert before != after
    before, after = dtypes(optim.adam(0.1))
    assert before == after


def test_6_a_state_has_shapes_and_places_before_there_are_parameters():
    """#548, #1660: states are laid out by hand, and some optimizers compute with the parameters in `init`."""
    shapes = jax.eval_shape(lambda: PARAMS)
    with pytest.raises((TypeError, ValueError)):
        optax.contrib.prodigy().init(shapes)
    where = optim.state_specs(optim.prodigy(1.0), shapes, zero_axis="data", mesh={"data": 2})
    assert optim.get(where, "mu.a") == jax.sharding.PartitionSpec("data")


def test_7_micro_steps_do_not_run_the_optimizer():
    """#472, #528, #320: MultiSteps runs the inner optimizer on every micro-step, and discards it."""
    ran = []
    inner = optax.stateless(lambda u, _: (jax.debug.callback(lambda: ran.append(1)), u)[1])
    theirs = optax.MultiSteps(inner, 4)
    state = theirs.init(PARAMS)
    for _ in range(4):
        _, state = theirs.update(GRADS, state, PARAMS)
    jax.effects_barrier()
    assert len(ran) == 4

    ran.clear()
    ours = optim.accumulate(inner, 4)
    state = ours.init(PARAMS)
    for _ in range(3):
        state = ours.add(GRADS, state)
    updates, state = ours.emit(GRADS, state, PARAMS)
    jax.effects_barrier()
    assert len(ran) == 1
    np.testing.assert_allclose(updates["a"], GRADS["a"])


def test_8_a_state_survives_another_stage():
    """No number: adding a stage to a chain makes every saved state unusable, with an error from within."""
    old = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(0.1))
    _, state = old.update(GRADS, old.init(PARAMS), PARAMS)
    longer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale_by_learning_rate(0.1))
    with pytest.raises(ValueError, match="states"):
        longer.update(GRADS, state, PARAMS)
    moved, report = optim.migrate(state, old, longer, PARAMS)
    np.testing.assert_array_equal(moved[1].mu["a"], state[0].mu["a"])
    longer.update(GRADS, moved, PARAMS)
    assert report.kept


def test_9_an_optimizer_says_what_it_is_made_of():
    """No number: a chain is closures, and shows neither its parts nor what they will cost."""
    assert "adam" not in repr(optax.adam(0.1))
    shown = str(optim.summary(optim.adam(0.1), PARAMS))
    assert "adam" in shown
    assert "scale_by_lr" in shown


def test_10_a_modifier_goes_around_any_optimizer():
    """#1429: optax.lookahead takes pairs of parameters, so that every step, loss and checkpoint must know of it."""
    theirs = optax.lookahead(optax.sgd(0.1), 5, 0.5)
    with pytest.raises((AttributeError, TypeError)):
        theirs.update(GRADS, theirs.init(PARAMS), PARAMS)
    ours = optim.lookahead(optax.sgd(0.1), 5, 0.5)
    updates, state = ours.update(GRADS, ours.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["a"], -0.1 * GRADS["a"], rtol=1e-6)
    np.testing.assert_array_equal(optim.eval_params(state, PARAMS)["a"], PARAMS["a"])


def test_11_a_program_does_not_grow_with_the_layers():
    """No number: each leaf is computed apart, and compile time grows with depth (96 matrices under Muon: 4.5 s)."""

    def products(tx, layers):
        params = {f"w{i}": jnp.ones((2, 2)) for i in range(layers)}
        return str(jax.make_jaxpr(tx.update)(params, tx.init(params), params)).count("dot_general[")

    assert products(optax.contrib.muon(0.1), 4) > 1.5 * products(optax.contrib.muon(0.1), 2)
    assert products(optim.muon(0.1), 4) == products(optim.muon(0.1), 2)
    assert products(optim.batched(optax.contrib.muon(0.1)), 4) == products(optim.batched(optax.contrib.muon(0.1)), 2)


def test_12_decay_says_what_it_is_coupled_to():
    """#292, #1426, #1291: optax.adamw multiplies the decay by the rate, the paper by the schedule alone; halving the
    rate halves what it shrinks by, also where the strength has a schedule of its own."""
    still = jax.tree.map(jnp.zeros_like, PARAMS)

    def shrinks_by(tx):
        return -float(tx.update(still, tx.init(PARAMS), PARAMS)[0]["a"][0])

    theirs = [shrinks_by(optax.adamw(lr, weight_decay=lambda step: 0.1)) for lr in (0.5, 0.25)]
    assert theirs == pytest.approx([0.05, 0.025])

    def ours(lr, coupling, strength=0.1):
        return shrinks_by(optim.stages(decay=optim.decay(strength, coupling=coupling), lr=optim.scale_by_lr(lr)))

    assert [ours(lr, "lr") for lr in (0.5, 0.25)] == pytest.approx(theirs)
    assert [ours(optim.linear(lr, 0.0, 10), "schedule") for lr in (0.5, 0.25)] == pytest.approx([0.1, 0.1])
    assert [ours(lr, "none") for lr in (0.5, 0.25)] == pytest.approx([0.1, 0.1])
    assert ours(0.5, "none", optim.linear(0.2, 0.0, 10)) == pytest.approx(0.2)
