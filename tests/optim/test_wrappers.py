"""Wrappers against float64 NumPy and against what they must reduce to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import data, losses, models, optim, train, tree

RNG = np.random.default_rng(0)
PARAMS = {"w": RNG.normal(size=(4, 3)).astype(np.float32), "b": RNG.normal(size=3).astype(np.float32)}
GRADS = [{k: RNG.normal(size=x.shape).astype(np.float32) for k, x in PARAMS.items()} for _ in range(8)]


def run(tx, steps=8, **extra):
    """Parameters after every step, as NumPy, and the last state."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = tx.init(params)
    path = []
    for grads in GRADS[:steps]:
        updates, state = tx.update(grads, state, params, **extra)
        params = jax.tree.map(jnp.add, params, updates)
        path.append(jax.tree.map(np.asarray, params))
    return path, state, params


def close(a, b, tolerance=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def test_ema_is_the_corrected_average_of_the_path():
    path, state, params = run(optim.ema(optim.adam(0.1), 0.9))
    weights = 0.9 ** np.arange(7, -1, -1.0)
    for k in PARAMS:
        expected = sum(w * p[k].astype(np.float64) for w, p in zip(weights, path, strict=True)) / weights.sum()
        np.testing.assert_allclose(optim.eval_params(state, params)[k], expected, rtol=1e-5)
    close(path, run(optim.adam(0.1))[0], 0)


def test_tail_average_is_the_mean_from_there_on():
    tx = optim.tail_average(optim.adam(0.1), 5)
    path, state, params = run(tx)
    for k in PARAMS:
        np.testing.assert_allclose(optim.eval_params(state, params)[k], np.mean([p[k] for p in path[5:]], 0), rtol=1e-5)
    early, state, params = run(tx, 5)
    close(optim.eval_params(state, params), early[-1], 0)


def test_lookahead_meets_every_k():
    path, state, params = run(optim.lookahead(optim.sgd(0.1), 4, 0.5))
    slow = {k: x.astype(np.float64) for k, x in PARAMS.items()}
    fast = dict(slow)
    for step, grads in enumerate(GRADS):
        fast = {k: fast[k] - 0.1 * grads[k] for k in fast}
        if step % 4 == 3:
            slow = {k: slow[k] + 0.5 * (fast[k] - slow[k]) for k in slow}
            fast = dict(slow)
    close(path[-1], fast)
    close(optim.eval_params(state, params), slow)


def test_lookahead_that_goes_none_of_the_way_starts_anew():
    """alpha 0: the fast parameters went on instead."""
    path, state, params = run(optim.lookahead(optim.sgd(0.1), 4, 0.0))
    close(path[-1], PARAMS)
    close(optim.eval_params(state, params), PARAMS)


def test_cautious_keeps_what_agrees_and_makes_up_for_the_rest():
    tx = optim.cautious(optim.lion_core(0.9, 0.5))
    state = tx.init(PARAMS)
    _, state = tx.update(GRADS[0], state, PARAMS)
    updates, _ = tx.update(GRADS[1], state, PARAMS)
    for k in PARAMS:
        u = np.sign(0.9 * 0.5 * GRADS[0][k].astype(np.float64) + 0.1 * GRADS[1][k])
        mask = u * GRADS[1][k] > 0
        assert 0 < mask.mean() < 1
        np.testing.assert_allclose(updates[k], u * mask / mask.mean(), rtol=1e-6)


def test_cautious_goes_around_a_whole_optimizer():
    """The same direction, once before the rate and once after it."""
    core = optim.stages(lion=optim.cautious(optim.lion_core()), lr=optim.scale_by_lr(0.1))
    close(run(optim.cautious(optim.lion(0.1)))[0], run(core)[0])
    close(run(optim.cautious(optax.lion(0.1, weight_decay=0.0)))[0], run(core)[0])  # whose rate does not show


def test_cautious_decay_shrinks_only_what_the_update_shrinks():
    grads = {k: np.where(np.arange(x.size).reshape(x.shape) % 2, np.sign(x), -np.sign(x)) for k, x in PARAMS.items()}
    for coupling, scale in (("lr", 0.1 * 0.5), ("none", 0.1)):
        tx = optim.stages(decay=optim.decay(0.1, coupling=coupling, cautious=True), lr=optim.scale_by_lr(0.5))
        updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
        for k, x in PARAMS.items():
            expected = -0.5 * grads[k] - np.where(grads[k] * x > 0, scale * x, 0)
            np.testing.assert_allclose(updates[k], expected, rtol=1e-6)


def test_hyperball_stays_on_the_sphere_and_moves_by_the_rate():
    tx = optim.stages(core=optim.sgd_core(), lr=optim.scale_by_lr(0.3), ball=optim.hyperball(optim.ndim(2)))
    path, _, _ = run(tx)
    w = PARAMS["w"].astype(np.float64)
    radius = np.linalg.norm(w)
    for grads, after in zip(GRADS, path, strict=True):
        ahead = w - 0.3 * radius * grads["w"] / np.linalg.norm(grads["w"])
        w = radius * ahead / np.linalg.norm(ahead)
        np.testing.assert_allclose(after["w"], w, rtol=1e-5, atol=1e-6)
    close([p["b"] for p in path], [p["b"] for p in run(optim.sgd(0.3))[0]])
    alone = optax.chain(optim.hyperball())
    with pytest.raises(ValueError, match="needs the parameters and a rate beside it"):
        alone.update(GRADS[0], alone.init(PARAMS), PARAMS)


def test_hyperball_of_float64_is_float64s():
    """Its radius was float32's: at a small rate that was the larger part of an update."""
    with jax.enable_x64(True):
        params = {"w": jnp.asarray(PARAMS["w"], jnp.float64)}
        tx = optim.stages(core=optim.sgd_core(), lr=optim.scale_by_lr(2.0**-20), ball=optim.hyperball(optim.ndim(2)))
        updates, _ = tx.update({"w": jnp.asarray(GRADS[0]["w"], jnp.float64)}, tx.init(params), params)
    w, g = (x["w"].astype(np.float64) for x in (PARAMS, GRADS[0]))
    ahead = w - 2.0**-20 * np.linalg.norm(w) * g / np.linalg.norm(g)
    np.testing.assert_allclose(updates["w"], np.linalg.norm(w) * ahead / np.linalg.norm(ahead) - w, atol=1e-14)


def test_stacked_layers_have_spheres_of_their_own():
    stacked = {"blocks": {"kernel": RNG.normal(size=(2, 4, 3)).astype(np.float32) * np.array([1, 5.0])[:, None, None]}}
    tx = optim.stages(core=optim.sgd_core(), lr=optim.scale_by_lr(0.3), ball=optim.hyperball(optim.role("matrix")))

    with tree.declaring(lambda: {"blocks/kernel": tree.Role("matrix", 1)}):
        params = jax.tree.map(jnp.asarray, stacked)
        updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    after = params["blocks"]["kernel"] + updates["blocks"]["kernel"]
    before = stacked["blocks"]["kernel"]
    np.testing.assert_allclose(np.linalg.norm(after, axis=(1, 2)), np.linalg.norm(before, axis=(1, 2)), rtol=1e-5)
    assert not np.allclose(after, before)


def quadratic(params, aux=None):
    return sum(jnp.sum(jnp.square(x) * (1 + jnp.arange(x.size).reshape(x.shape))) for x in jax.tree.leaves(params)) / 2


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_takes_the_gradient_at_the_worst_point_nearby(adaptive):
    tx = optim.sam(optim.sgd(0.01), 0.2, adaptive=adaptive)
    grads = jax.grad(quadratic)(jax.tree.map(jnp.asarray, PARAMS))
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, value_fn=quadratic)
    x, g = ({k: np.asarray(v, np.float64) for k, v in t.items()} for t in (PARAMS, grads))
    scale = {k: np.abs(x[k]) if adaptive else np.ones_like(x[k]) for k in x}
    norm = np.sqrt(sum(np.sum((scale[k] * g[k]) ** 2) for k in x))
    for k in x:
        there = x[k] + 0.2 * scale[k] ** 2 * g[k] / norm
        np.testing.assert_allclose(
            updates[k], -0.01 * there * (1 + np.arange(x[k].size).reshape(x[k].shape)), rtol=1e-5
        )
    with pytest.raises(ValueError, match="needs the parameters and the objective"):
        tx.update(grads, tx.init(PARAMS), PARAMS)


def test_what_they_reduce_to():
    adam = run(optim.adam(0.1))[0]
    close(
        run(optim.stages(m=optim.mars_core(optim.adam_core(), 0.0, max_norm=1e9), lr=optim.scale_by_lr(0.1)))[0], adam
    )
    close(run(optim.stages(a=optim.ademamix_core(alpha=0.0), lr=optim.scale_by_lr(0.1)))[0], adam)
    close(run(optim.lookahead(optim.adam(0.1), 3, 1.0))[0], adam)
    close(
        run(optim.sam(optim.adam(0.1), 0.0), value_fn=lambda p: sum(jnp.vdot(p[k], GRADS[0][k]) for k in p), steps=1)[
            0
        ],
        adam[:1],
    )
    monotone = run(optim.stages(a=optim.amsgrad_core(b2=0.0), lr=optim.scale_by_lr(0.1)), steps=1)[0]
    close(monotone, run(optim.adam(0.1, b2=0.0), steps=1)[0])


WRAPPERS = {
    "cautious": optim.cautious,
    "ema": optim.ema,
    "lookahead": lambda tx: optim.lookahead(tx, 2),
    "mars": lambda tx: optim.mars_core(tx, b1=0.9),
    "sam": optim.sam,
    "schedule_free": lambda tx: optim.schedule_free(tx, weight_power=0.0),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_hands_on_what_its_group_is_told(name):
    """The multipliers of decay and rate did not reach what was wrapped, silently."""
    inside = optim.stages(sgd=optim.sgd_core(), decay=optim.decay(0.5), lr=optim.scale_by_lr(1.0))
    grouped = optim.groups(
        w=optim.group(optim.path("w"), WRAPPERS[name](inside), decay=0.0), b=(optim.otherwise, WRAPPERS[name](inside))
    )
    tx, none = optim.stages(groups=grouped), jax.tree.map(np.zeros_like, PARAMS)
    extra = {"value_fn": lambda p: 0.0 * jnp.sum(p["w"])} if name == "sam" else {}
    updates, _ = tx.update(none, tx.init(PARAMS), PARAMS, **extra)
    np.testing.assert_array_equal(updates["w"], 0)
    assert name == "cautious" or np.all(updates["b"] * PARAMS["b"] < 0)  # without a gradient it moves nothing


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_keeps_the_dtypes_of_what_optax_wrote(name):
    """bfloat16 moments were float32 after the first update, so that a step compiled twice and a scan failed."""
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bfloat16), PARAMS)
    tx = WRAPPERS[name](optax.adam(1e-3))
    extra = {"value_fn": lambda p: jnp.sum(p["w"])} if name == "sam" else {}
    before = jax.eval_shape(tx.init, params)
    _, after = jax.eval_shape(lambda g, s, p: tx.update(g, s, p, **extra), PARAMS, before, params)
    assert before == after


def test_averages_inside_groups_are_each_for_their_own_leaves():
    tx = optim.groups(
        w=(optim.path("w"), optim.ema(optim.sgd(0.1), 0.5)), b=(optim.otherwise, optim.tail_average(optim.sgd(0.1), 0))
    )
    path, state, params = run(tx)
    found = optim.eval_params(state, params)
    np.testing.assert_allclose(found["b"], np.mean([p["b"] for p in path], 0), rtol=1e-5)
    weights = 0.5 ** np.arange(7, -1, -1.0)
    np.testing.assert_allclose(
        found["w"], sum(a * p["w"] for a, p in zip(weights, path, strict=True)) / weights.sum(), rtol=1e-5
    )


@pytest.mark.parametrize("make", [optim.ema, optim.lookahead, lambda tx: optim.schedule_free(optim.sgd(0.1))])
def test_an_average_of_other_parameters_is_not_evaluated(make):
    """jax told of prefixes of pytrees, or nothing where the shapes broadcast."""
    state = make(optim.sgd(0.1)).init(PARAMS)
    with pytest.raises(ValueError, match=r"optim.eval_params: .*b: float32\[.*only in the first.*Give the parameters"):
        optim.eval_params(state, {"w": PARAMS["w"]})
    with pytest.raises(ValueError, match=r"optim.eval_params: .*w: .* against float32\[1\]"):
        optim.eval_params(state, PARAMS | {"w": jnp.ones(1)})


def test_evaluation_is_at_the_average():
    x = RNG.normal(size=(64, 3)).astype(np.float32)
    source = data.Arrays(x, x.sum(1, keepdims=True))
    task = train.supervised(models.MLP((4, 1)), losses.mse)
    log = train.Log(progress=False)
    run_ = train.fit(
        task,
        optim.ema(optim.adam(0.1), 0.9),
        source,
        batch_size=16,
        steps=8,
        log=log,
        validation=source,
        validate_every=8,
    )
    average = optim.eval_params(run_.state.opt_state, run_.state.params)
    there = run_.state._replace(params=average, opt_state=())
    expected = train.evaluate(task, there, source)["loss"]
    assert run_.column("val_loss")[1][-1] == pytest.approx(expected, rel=1e-6)
    assert expected != pytest.approx(train.evaluate(task, run_.state._replace(opt_state=()), source)["loss"], rel=1e-3)
    np.testing.assert_allclose(train.predict(task, run_.state, x), train.predict(task, there, x), rtol=1e-6)
