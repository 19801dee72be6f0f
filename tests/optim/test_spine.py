"""The machinery against optax: names, hyperparameters as state, groups, metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxnn import optim, tree


def parameters(dtype=jnp.float32):
    key = jax.random.key(0)
    k = jax.random.split(key, 3)
    return {
        "blocks_0": {"kernel": jax.random.normal(k[0], (4, 6), dtype), "bias": jnp.zeros((6,), dtype)},
        "embedding": jax.random.normal(k[1], (8, 4), dtype),
        "head": {"kernel": jax.random.normal(k[2], (6, 3), dtype)},
    }


def gradients(params, step=0):
    def one(path, p):
        return jax.random.normal(jax.random.fold_in(jax.random.key(len(path)), step), p.shape, p.dtype)

    return tree.map_by_path(one, params)


def run(tx, params, steps=5):
    state = tx.init(params)
    update = jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(gradients(params, step), state, params)
        params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
    return params, state


def close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def issue_chain(**settings):
    return optim.stages(
        clip=optim.clip_by_global_norm(1.0),
        precondition=optim.groups(
            lion=(optim.role("matrix"), optim.lion_core()),
            adam=(optim.otherwise, optim.adamw_core(b2=0.95)),
        ),
        decay=optim.decay(0.1, where=optim.role("matrix"), coupling="lr"),
        lr=optim.scale_by_lr(3e-3),
        metrics=("lr", "norms", "clip"),
        **settings,
    )


def test_adamw_is_optax():
    params = parameters()
    ours, _ = run(optim.adamw(1e-2, weight_decay=0.1), params)
    theirs, _ = run(optax.adamw(1e-2, weight_decay=0.1), params)
    close(ours, theirs)


def test_a_chain_is_optax_composed_by_hand():
    params = parameters()
    labels = tree.map_by_path(lambda p, x: "lion" if tree.guess_role(p, x).name == "matrix" else "adam", params)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition({"lion": optax.scale_by_lion(), "adam": optax.scale_by_adam(b2=0.95)}, labels),
        optax.add_decayed_weights(0.1, mask=jax.tree.map(lambda label: label == "lion", labels)),
        optax.scale_by_learning_rate(3e-3),
    )
    close(run(issue_chain(), params)[0], run(theirs, params)[0])


def test_state_is_read_and_changed_by_name():
    """optax #964, #1371: parts of a state are reached by position, and cannot be reset in place."""
    params = parameters()
    tx = issue_chain()
    _, state = run(tx, params)
    mu = optim.get(state, "precondition.lion.mu")
    assert mu["blocks_0"]["kernel"].shape == (4, 6)
    assert isinstance(mu["embedding"], optax.MaskedNode)
    assert optim.get(state, "adam.nu.embedding").shape == (8, 4)
    state = optim.replace(state, "lion.mu", jax.tree.map(jnp.ones_like, mu))
    assert float(optim.get(state, "lion.mu.blocks_0.kernel")[0, 0]) == 1.0
    state = optim.reset(state, "precondition.lion", tx, params)
    assert float(jnp.abs(optim.get(state, "lion.mu.blocks_0.kernel")).max()) == 0.0
    assert int(optim.get(state, "adam.hyper.count")) == 5


def test_hyperparameters_change_without_compiling_again():
    """optax #577, #353: a new rate is a new program; and a scheduled value cannot be overridden, see test_points.py."""
    params = parameters()
    tx = optim.adamw(optax.linear_schedule(1e-2, 0.0, 100))
    traces = []

    @jax.jit
    def update(grads, state, params):
        traces.append(1)
        return tx.update(grads, state, params)

    state = tx.init(params)
    grads = gradients(params)
    for lr in (None, 1e-4, 2e-4):
        if lr is not None:
            state = optim.set_hyper(state, lr=lr)
        _, state = update(grads, state, params)
        if lr is not None:
            assert float(optim.hyper(state)["lr"]) == pytest.approx(lr)
    state = optim.set_hyper(state, lr=None, b1=0.5)
    _, state = update(grads, state, params)
    assert float(optim.metrics(state)["lr"]) == pytest.approx(1e-2 * (1 - 3 / 100))
    assert float(optim.hyper(state)["b1"]) == 0.5
    assert len(traces) == 1
    with pytest.raises(ValueError, match=r"no hyperparameter 'lrr'. There are .*Did you mean 'lr'"):
        optim.set_hyper(state, lrr=1.0)
    with pytest.raises(ValueError, match=r"b1 is 1. Give a number in \[0, 1\)"):
        optim.set_hyper(state, b1=1.0)


def test_metrics_are_those_chosen():
    """optax #206, #326: neither the rate nor a norm is to be had from the state."""
    params = parameters()
    _, state = run(issue_chain(), params, steps=1)
    values = optim.metrics(state)
    assert set(values) == {"lr", "norm/grad", "norm/update", "norm/param", "norm/ratio", "clip"}
    assert float(values["norm/grad"]) == pytest.approx(float(tree.global_norm(gradients(params))), rel=1e-6)
    assert float(values["clip"]) == 1.0


def test_works_inside_optax_and_around_it():
    params = parameters()
    inside = optax.chain(optim.clip_by_global_norm(1.0), optim.adam_core(), optim.scale_by_lr(1e-2))
    around = optim.stages(clip=optax.clip_by_global_norm(1.0), adam=optax.scale_by_adam(), lr=optim.scale_by_lr(1e-2))
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    close(run(inside, params)[0], run(theirs, params)[0])
    close(run(around, params)[0], run(theirs, params)[0])
    assert float(optim.hyper(run(inside, params)[1])["max_norm"]) == 1.0


@pytest.mark.parametrize(("coupling", "factor"), [("lr", 0.5 * 0.1), ("schedule", 0.5 * 0.1 / 0.2), ("none", 0.1)])
def test_decay_says_what_it_is_multiplied_by(coupling, factor):
    """optax #292, #1426, #1291: one coupling, which is not the paper's."""

    class Half:
        peak = 0.2

        def __call__(self, step):
            return jnp.float32(0.5 * 1.0)

    params = {"w": jnp.ones((3,))}
    tx = optim.stages(decay=optim.decay(0.1, coupling=coupling), lr=optim.scale_by_lr(Half()))
    updates, _ = tx.update({"w": jnp.zeros((3,))}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -factor * np.ones(3), rtol=1e-6)


def test_group_multipliers_reach_rate_and_decay():
    """optax #160, #175, #993: a group's own rate is an optimizer of its own."""
    params = {"a": jnp.ones((3,)), "b": jnp.ones((3,))}
    tx = optim.stages(
        groups=optim.groups(
            a=optim.group(optim.path("a"), optax.identity(), lr=0.1, decay=0.0),
            b=(optim.otherwise, optax.identity()),
        ),
        decay=optim.decay(0.5),
        lr=optim.scale_by_lr(1.0),
    )
    grads = {"a": jnp.ones((3,)), "b": jnp.ones((3,))}
    state = tx.init(params)
    updates, state = tx.update(grads, state, params)
    np.testing.assert_allclose(updates["a"], -0.1, rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -1.5, rtol=1e-6)
    updates, _ = tx.update(grads, optim.set_hyper(state, a_lr=0.2), params)
    np.testing.assert_allclose(updates["a"], -0.2, rtol=1e-6)


def test_populations_are_a_vmap():
    params = parameters()
    tx = optim.adamw(1e-2)
    rates = jnp.asarray([1e-2, 1e-3])
    stacked = jax.vmap(lambda lr: optim.set_hyper(tx.init(params), lr=lr))(rates)
    updates, stacked = jax.vmap(lambda s: tx.update(gradients(params), s, params))(stacked)
    for i, lr in enumerate(rates):
        alone = optim.adamw(float(lr))
        close(
            jax.tree.map(lambda u, i=i: u[i], updates), alone.update(gradients(params), alone.init(params), params)[0]
        )


def test_a_scheduled_rate_is_scaled_as_a_whole():
    params = parameters()
    tx = optim.adam(optim.linear(1e-2, 0.0, 100))
    state = optim.set_hyper(tx.init(params), lr_multiplier=3.0)
    for step in range(3):
        updates, state = tx.update(gradients(params), state, params)
        assert float(optim.hyper(state)["lr"]) == pytest.approx(3e-2 * (1 - step / 100), rel=1e-6)
    other = optim.adam(optim.linear(3e-2, 0.0, 100))
    after = other.init(params)
    for _ in range(3):
        expected, after = other.update(gradients(params), after, params)
    close(updates, expected)
    state = optim.set_hyper(state, lr=0.5)
    _, state = tx.update(gradients(params), state, params)
    assert float(optim.hyper(state)["lr"]) == 0.5


def test_metrics_of_groups_without_leaves_are_none():
    parts = optim.groups(a=(optim.otherwise, optim.adam_core()))
    tx = optim.stages(parts=parts, lr=optim.scale_by_lr(1e-3), metrics=("group_norms",))
    assert optim.metrics(tx.init({})) == {}
    with pytest.raises(ValueError, match=r"metrics has \"group_norms\", but no stage is an optim.groups"):
        optim.stages(lr=optim.scale_by_lr(1e-3), metrics=("group_norms",)).init({})


def test_one_optimizer_from_its_stages_to_its_migration(devices8):
    """Everything that may be asked of a composed optimizer, in the order in which a program asks it."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params = {"mlp": {"kernel": jnp.ones((16, 8)), "bias": jnp.zeros((8,))}, "embedding": jnp.ones((8, 8))}
    param_specs = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), params)
    grads = tree.map_by_path(lambda path, p: jnp.cos(jnp.arange(p.size) + len(path)).reshape(p.shape), params)
    tx = optim.stages(
        clip=optim.clip_by_global_norm(1.0),
        precondition=optim.groups(
            muon=(optim.role("matrix"), optim.muon_core()),
            adam=(optim.otherwise, optim.adamw_core(b2=0.95)),
        ),
        decay=optim.decay(0.1, where=optim.role("matrix"), coupling="lr"),
        lr=optim.scale_by_lr(optim.warmup_stable_decay(peak=3e-4, steps=10_000)),
        metrics=("lr", "norms", "clip"),
    )
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    text = str(optim.summary(tx, params))
    assert all(part in text for part in ("precondition", "muon", "adam", "every role is a guess"))
    traces = []

    @jax.jit
    def update(grads, state, params):
        traces.append(1)
        return tx.update(grads, state, params)

    state = tx.init(params)
    updates, state = update(grads, state, params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert set(optim.metrics(state)) == {"lr", "norm/grad", "norm/update", "norm/param", "norm/ratio", "clip"}
    assert optim.get(state, "precondition.muon.mu")["mlp"]["kernel"].shape == (16, 8)
    assert float(optim.hyper(state)["lr"]) == pytest.approx(3e-4 / 201, rel=1e-5)
    state = optim.set_hyper(state, lr=1e-4)
    _, state = update(grads, state, params)
    assert float(optim.metrics(state)["lr"]) == pytest.approx(1e-4)
    specs = optim.state_specs(tx, params, param_specs, zero_axis="data")
    assert optim.get(specs, "precondition.muon.mu.mlp.kernel") == PartitionSpec("data")
    placed = jax.device_put(state, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))
    close(update(grads, state, params)[0], jax.jit(tx.update)(grads, placed, params)[0])
    old_tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    _, old_state = old_tx.update(grads, old_tx.init(params), params)
    state, report = optim.migrate(old_state, old_tx, tx, params)
    np.testing.assert_array_equal(optim.get(state, "adam.mu.embedding"), old_state[1][0].mu["embedding"])
    assert any(path.startswith("stages/precondition/groups/muon") for path in report.initialised)
    assert update(grads, state, params)[0].keys() == params.keys()
    assert len(traces) == 1
