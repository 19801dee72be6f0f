"""States go on in another optimizer; what was kept, initialised and dropped is said."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import optim

PARAMS = {"mlp": {"kernel": jnp.ones((64, 32)), "bias": jnp.ones((32,))}, "embedding": jnp.ones((16, 8))}


def after(tx, steps=3, params=PARAMS):
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(steps):
        grads = jax.tree.map(lambda p, s=step: jnp.sin((s + 1) * p), params)
        _, state = update(grads, state, params)
    return state


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


BLOCKS = {f"block_{i}": {"kernel": jnp.full((2, 3), 1.0 + i), "gain": jnp.full((), 0.1 * i)} for i in range(11)}


def grouped(inside):
    return optim.stages(
        direction=optim.groups(
            muon=(optim.ndim(2) & ~optim.path("embed"), inside(optim.muon_core())),
            adam=(optim.otherwise, inside(optim.adam_core())),
        ),
        lr=optim.scale_by_lr(1e-2),
    )


STACKED = {
    "adamw": (optim.adamw(1e-2), optim.stacked(optim.adamw(1e-2))),
    "optax": (optax.adamw(1e-2, weight_decay=0.01), optim.stacked(optim.adamw(1e-2))),
    "groups": (grouped(lambda tx: tx), grouped(optim.stacked)),
    "around": (grouped(lambda tx: tx), optim.ema(optim.stacked(grouped(lambda tx: tx)))),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "adamw" else pytest.mark.slow) for name in STACKED]
)
def test_leaves_go_into_stacks_and_out_of_them(name):
    """Kept for the embedding, begun anew for the layers, Adam's moments made steps of six times the rate."""
    params = {**BLOCKS, "embed": jnp.ones((4, 3))}
    pair = STACKED[name]
    for old, new in [pair, pair[::-1]]:
        state = after(old, 40, params)
        moved, report = optim.migrate(state, old, new, params)
        found, expected = (jax.jit(tx.update)(params, s, params)[0] for tx, s in ((new, moved), (old, state)))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-8), found, expected)
        moments = [path for path in (*report.initialised, *report.dropped) if "/mu/" in path or "/nu/" in path]
        assert not moments
        assert "kept" in str(report)
        assert jax.tree.structure(moved) == jax.tree.structure(new.init(params))


def test_a_stack_of_other_layers_is_none():
    """A layer more: nothing is carried over to a stack of which a part would begin anew."""
    tx, fewer = optim.stacked(optim.adam(1e-2)), {f"block_{i}": BLOCKS[f"block_{i}"] for i in range(3)}
    old = optim.stages(
        adam=optim.groups(a=(optim.path("block_0"), optim.lion_core()), b=(optim.otherwise, optim.adam_core())),
        lr=optim.scale_by_lr(1e-2),
    )
    moved, report = optim.migrate(after(old, 3, fewer), old, tx, fewer)
    assert not any("adam/mu" in path for path in report.kept)
    assert not np.any(optim.get(moved, "adam.mu")["block"]["kernel"])
    assert int(optim.get(moved, "adam.hyper.count")) == 0


def test_a_stage_is_added_and_another_renamed():
    """In optax.chain a state's place is its number: a stage added before breaks every checkpoint."""
    old = optim.stages(adam=optim.adam_core(), lr=optim.scale_by_lr(1e-2))
    new = optim.stages(
        clip=optim.clip_by_global_norm(1.0), direction=optim.adam_core(b2=0.95), rate=optim.scale_by_lr(1e-2)
    )
    state = after(old)
    state = optim.set_hyper(state, lr=5e-3, b1=0.8)
    moved, report = optim.migrate(state, old, new, PARAMS)
    same(optim.get(moved, "direction.mu"), optim.get(state, "adam.mu"))
    same(optim.get(moved, "direction.nu"), optim.get(state, "adam.nu"))
    assert int(optim.get(moved, "direction.hyper.count")) == 3
    assert int(optim.get(moved, "clip.hyper.count")) == 3
    values = {name: float(value) for name, value in optim.hyper(moved).items()}
    assert values["b1"] == np.float32(0.8)  # written alike: what a hook had set stays
    assert values["b2"] == np.float32(0.95)
    assert report.initialised["stages/direction/hyper/values/b2"] == "the new one writes 0.95"
    assert report.kept["stages/direction/mu/embedding"] == "stages/adam/mu/embedding"
    assert not report.dropped
    text = [" ".join(line.split()) for line in str(report).splitlines()]
    assert "kept stages/direction/mu/* 3 from stages/adam/mu/*" in text
    assert "<table>" in report._repr_html_()
    assert len(set(map(id, jax.tree.leaves(moved)))) == len(jax.tree.leaves(moved))  # it may be donated
    jax.jit(new.update)(PARAMS, moved, PARAMS)


def test_a_count_begins_anew_with_the_moments_that_it_corrects():
    """Kept beside moments of 0, it made the first step of Adam after 1,000 ones three times as long."""
    for make in (optim.adam, optim.nadam):
        for old, new in [(make(1e-2), optim.flat(make(1e-2))), (optim.flat(make(1e-2)), make(1e-2))]:
            moved, report = optim.migrate(after(old, 40), old, new, PARAMS)
            found, expected = (new.update(PARAMS, state, PARAMS)[0] for state in (moved, new.init(PARAMS)))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
            assert "its moments begin anew" in report.initialised.values()
            assert int(optim.get(moved, "lr.hyper.count")) == 40
    same_form = optim.flat(optim.adam(1e-2))
    moved, report = optim.migrate(after(same_form), same_form, same_form, PARAMS)
    same(moved, after(same_form))
    assert not report.initialised


def test_what_is_written_inside_a_wrapper_is_seen():
    old, new = (optim.stages(a=optim.cautious(optim.adam_core(b1)), lr=optim.scale_by_lr(1e-2)) for b1 in (0.9, 0.5))
    moved, report = optim.migrate(after(old), old, new, PARAMS)
    assert float(optim.hyper(moved)["b1"]) == 0.5
    assert report.initialised["stages/a/inner/hyper/values/b1"] == "the new one writes 0.5"
    twice = optim.ema(optim.ema(new, 0.9), 0.99), optim.ema(optim.ema(new, 0.8), 0.99)
    _, report = optim.migrate(after(twice[0]), *twice, PARAMS)
    assert report.initialised["inner/hyper/values/decay"] == "the new one writes 0.99 and 0.8"


def test_from_an_optax_chain():
    old = optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale_by_learning_rate(lambda t: 1e-2)
    )
    new = optim.adamw(optim.linear(1e-2, 0.0, steps=100))
    state = after(old)
    moved, report = optim.migrate(state, old, new, PARAMS)
    same(optim.get(moved, "adam.mu"), state[1].mu)
    assert int(optim.get(moved, "adam.hyper.count")) == 3
    assert int(optim.get(moved, "lr.hyper.count")) == 3
    assert not report.dropped
    updates, _ = new.update(PARAMS, moved, PARAMS)
    assert all(bool(jnp.isfinite(u).all()) for u in jax.tree.leaves(updates))


def test_from_inject_hyperparams_and_partition():
    """optax #1371: states inside a partition cannot be taken out or put back."""
    labels = {"mlp": {"kernel": "lion", "bias": "adam"}, "embedding": "adam"}
    old = optax.inject_hyperparams(
        lambda learning_rate: optax.chain(
            optax.partition({"lion": optax.scale_by_lion(), "adam": optax.scale_by_adam()}, labels),
            optax.scale_by_learning_rate(learning_rate),
        )
    )(1e-2)
    new = optim.stages(
        pre=optim.groups(lion=(optim.role("matrix"), optim.lion_core()), adam=(optim.otherwise, optim.adam_core())),
        lr=optim.scale_by_lr(1e-3),
    )
    state = after(old)
    moved, report = optim.migrate(state, old, new, PARAMS)
    parts = state.inner_state[0].inner_states
    same(optim.get(moved, "lion.mu.mlp.kernel"), parts["lion"].inner_state.mu["mlp"]["kernel"])
    same(optim.get(moved, "adam.nu.embedding"), parts["adam"].inner_state.nu["embedding"])
    assert int(optim.get(moved, "adam.hyper.count")) == 3
    assert float(optim.hyper(moved)["lr"]) == np.float32(1e-3)
    assert "stages/lr/hyper/values/lr" in report.initialised


def test_a_parameter_changes_its_group():
    """A moment stays with its algorithm: Adam's first moment is no momentum of Lion's."""

    def grouped(pattern):
        return optim.groups(lion=(optim.path(pattern), optim.lion_core()), adam=(optim.otherwise, optim.adam_core()))

    old, new = grouped("mlp/kernel"), grouped("kernel|embedding")
    state = after(old)
    moved, report = optim.migrate(state, old, new, PARAMS)
    same(optim.get(moved, "lion.mu.mlp.kernel"), optim.get(state, "lion.mu.mlp.kernel"))
    same(optim.get(moved, "adam.mu.mlp.bias"), optim.get(state, "adam.mu.mlp.bias"))
    assert report.initialised == {"groups/lion/mu/embedding": "no counterpart"}
    assert set(report.dropped) == {"groups/adam/mu/embedding", "groups/adam/nu/embedding"}
    assert float(jnp.abs(optim.get(moved, "lion.mu.embedding")).max()) == 0


@pytest.mark.slow
def test_into_eight_bits_and_out_of_them():
    old = optim.adamw(1e-2)
    new = optim.skip_nonfinite(optim.with_state_dtype(optim.adamw(1e-2), optim.q8))
    state = after(old)
    small, report = optim.migrate(state, old, new, PARAMS)
    assert not report.dropped
    value = optim.get(small, "mu.mlp.kernel").value
    np.testing.assert_allclose(value, optim.get(state, "mu.mlp.kernel"), rtol=1 / 16)
    back, report = optim.migrate(small, new, old, PARAMS)
    same(optim.get(back, "mu.mlp.kernel"), value)
    assert optim.get(back, "mu.mlp.bias").dtype == jnp.float32
    assert jax.tree.structure(back) == jax.tree.structure(state)


def test_new_algorithms_start_anew():
    old, new = optim.lion(1e-2), optim.adamw(1e-2)
    moved, report = optim.migrate(after(old), old, new, PARAMS)
    assert int(optim.get(moved, "adam.hyper.count")) == 0  # bias correction counts from the first moment's start
    assert int(optim.get(moved, "lr.hyper.count")) == 3
    assert "stages/lion/mu/embedding" in report.dropped


def test_a_state_of_another_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"optim.migrate: old_state is no state of old_tx.*stages/adam/hyper/count"):
        optim.migrate(after(optim.lion(1e-2)), optim.adamw(1e-2), optim.lion(1e-2), PARAMS)
