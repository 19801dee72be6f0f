"""Precisions: which products a step computes in which dtype, what stays float32, and how far the numbers are off."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import core, losses, models, optim, parallel, tree
from jaxnn.core.state import complete
from jaxnn.core.step import make_step

DRAW = np.random.default_rng(0)
MODELS = {
    "mlp": (models.MLP((16, 2), dropout=0.1), losses.mse),
    "cnn": (models.CNN((4,), (8,), 3, batch_norm=True), losses.cross_entropy),
    "gpt": (models.GPT(models.GPTConfig(vocab=16, length=8, layers=1, heads=2, width=16)), losses.cross_entropy),
}
TOKENS = DRAW.integers(0, 16, (8, 9)).astype(np.int32)
BATCHES = {
    "mlp": {"x": DRAW.normal(size=(8, 6)).astype(np.float32), "y": DRAW.normal(size=(8, 2)).astype(np.float32)},
    "cnn": {"x": DRAW.normal(size=(8, 6, 6, 1)).astype(np.float32), "y": DRAW.integers(0, 3, 8)},
    "gpt": {"x": TOKENS[:, :-1], "y": TOKENS[:, 1:]},
}
NARROW = {"bfloat16": "bfloat16", "float16": "float16", "matmul_bf16": "bfloat16"}


@functools.cache
def task_of(name):
    module, loss = MODELS[name]
    return core.supervised(module, loss, penalty=lambda p: 1e-3 * optax.tree.norm(p, squared=True))


def setup(name, precision, **given):
    settings = core.Step(precision=precision, **given)
    tx = settings.optimizer(optim.adamw(1e-2))
    batch = BATCHES[name]
    state = core.init_state(task_of(name), tx, batch, seed=1, strategy=parallel.single())
    return settings, tx, state, batch


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def step_jaxpr(name, precision, **given):
    settings, tx, state, batch = setup(name, precision, **given)
    step = make_step(task_of(name), tx, parallel.single(), settings)
    return jax.make_jaxpr(step)(state, complete(batch))


@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize("name", MODELS)
def test_products_have_narrow_operands_forward_and_backward(name, precision):
    found = [
        tuple(str(var.aval.dtype) for var in eqn.invars[:2])
        for eqn in equations(step_jaxpr(name, precision).jaxpr)
        if eqn.primitive.name in ("dot_general", "conv_general_dilated") and eqn.invars[0].aval.ndim > 1  # no norms
    ]
    assert len(found) >= 4
    assert set(found) == {(NARROW[precision],) * 2}
    wide = [
        tuple(str(var.aval.dtype) for var in eqn.invars[:2])
        for eqn in equations(step_jaxpr(name, "float32").jaxpr)
        if eqn.primitive.name == "dot_general"
    ]
    assert set(wide) == {("float32", "float32")}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param("gpt", "bfloat16", marks=pytest.mark.slow),
        pytest.param("cnn", "float16", marks=pytest.mark.slow),
        ("mlp", "bfloat16"),
        ("mlp", "matmul_bf16"),
    ],
)
def test_a_few_steps_are_near_those_in_float32_and_keep_a_float32_state(name, precision, count_compiles):
    """Compiled once, and near: a relative error of a few roundings (2^-8 for bfloat16, 2^-11 for float16)."""
    both = {}
    for kind in ("float32", precision):
        settings, tx, state, batch = setup(name, kind)
        step = core.make_train_step(task_of(name), tx, strategy=parallel.single(), step=settings)
        kept = jax.tree.map(lambda x: (x.shape, x.dtype), state)
        values = []
        with count_compiles() as seen:
            for _ in range(6):
                state, sums = step(state, batch)
                values.append(float(sums["loss"].sum / sums["loss"].weight))
        assert len(seen.compiles) - len([n for n in seen.compiles if "div" in n]) <= 2, seen.compiles
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == kept
        floats = [x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert set(floats) == {jnp.dtype("float32")}
        assert sums["loss"].sum.dtype == jnp.float32
        both[kind] = values
    error = np.abs(np.subtract(both[precision], both["float32"]))
    assert 0 < error.max() < 0.03
    assert both[precision][-1] < both[precision][0]


def test_the_penalty_is_computed_in_float32():
    """2^-8 would be lost of a bfloat16 sum; the objective of a model without inputs is the penalty alone."""
    task = core.supervised(models.MLP((2,)), lambda out, y: 0 * out, penalty=lambda p: p["head"]["kernel"].sum() * 1e-3)
    narrow = core.in_precision(task, "bfloat16")
    batch = complete(BATCHES["mlp"])
    params, _ = task.init(jax.random.key(0), batch)
    args = (params, {}, batch, jax.random.key(1), True)
    assert float(task.loss(*args).penalty) == float(narrow.loss(*args).penalty)


def test_a_task_by_hand_is_given_everything_narrow_and_gives_float32():
    seen = {}

    def loss(params, model_state, batch, key, train):
        seen.update(params=params.dtype, x=batch["x"].dtype, mask=batch["mask"].dtype)
        total = jnp.sum(jnp.square(batch["x"] @ params - batch["y"]) * batch["mask"][:, None].astype(params.dtype))
        return core.task.Loss(total, jnp.sum(batch["mask"]), 0.0, {"n": model_state["n"] + 1}, {})

    task = core.Task(lambda key, batch: (jnp.ones((6, 2)), {"n": jnp.zeros(())}), loss, lambda p, s, b: b["x"] @ p)
    narrow = core.in_precision(task, "bfloat16")
    batch = complete(BATCHES["mlp"])
    found = jax.eval_shape(lambda b: narrow.loss(*task.init(None, b), b, jax.random.key(0), True), batch)
    assert seen == {"params": jnp.bfloat16, "x": jnp.bfloat16, "mask": jnp.float32}
    assert found.total.dtype == found.model_state["n"].dtype == jnp.float32
    assert core.in_precision(task, "float32") is task
    assert core.in_precision(narrow, "bfloat16") is narrow is core.in_precision(task, "bfloat16")


# ---- float16 and its scale


def scaled(tx, **given):
    settings = core.Step(precision="float16", **given)
    task = core.from_functions(
        lambda key, x: {"w": jnp.full((4, 1), 0.5)}, lambda p, x: x @ p["w"], lambda out, y: jnp.square(out - y)
    )
    batch = {"x": np.full((4, 4), 0.25, np.float32), "y": np.ones((4, 1), np.float32)}
    state = core.init_state(task, tx, batch, strategy=parallel.single())
    return core.make_train_step(task, tx, strategy=parallel.single(), step=settings), state, batch


def test_an_overflow_halves_the_scale_and_changes_nothing_else():
    tx = optim.loss_scale(optim.adam(0.1), 2.0**24, period=2)
    step, state, batch = scaled(tx)
    before = np.asarray(state.params["w"]).tobytes()
    skipped, scales = [], []
    for _ in range(14):
        state, sums = step(state, batch)
        skipped.append(float(sums["skipped_steps"].sum))
        scales.append(float(optim.get(state.opt_state, "scale")))
        if sum(skipped) == len(skipped):
            assert np.asarray(state.params["w"]).tobytes() == before
            assert int(state.step) == 0
    first = skipped.index(0.0)
    assert first >= 1
    assert scales[: first + 1] == [2.0 ** (23 - i) for i in range(first)] + [2.0 ** (24 - first)]
    assert scales[first + 1] == 2 * scales[first]  # two good steps later it grows
    assert int(state.step) == 14 - sum(skipped)
    assert np.asarray(state.params["w"]).tobytes() != before
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state.params))


def test_the_scale_does_not_show_in_gradients_that_do_not_overflow():
    """SGD is not blind to scale, as Adam is: one step is w - lr gradient, whatever the scale."""
    moved = []
    for scale in (1.0, 2.0**10):
        step, state, batch = scaled(optim.loss_scale(optim.sgd(1.0), scale))
        before = np.asarray(state.params["w"])
        state, _ = step(state, batch)
        moved.append(before - np.asarray(state.params["w"]))
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-6)
    np.testing.assert_allclose(moved[0], np.full((4, 1), 2 * (0.5 - 1) * 0.25), rtol=1e-3)


def test_a_bad_batch_under_skip_leaves_the_scale_alone():
    step, state, batch = scaled(optim.loss_scale(optim.adam(0.1), 8.0), nonfinite="skip")
    state, _ = step(state, batch)
    held = {path: np.asarray(x).tobytes() for path, x in tree.leaves_by_path(state).items()}
    state, sums = step(state, batch | {"x": np.full((4, 4), np.inf, np.float32)})
    now = {path: np.asarray(x).tobytes() for path, x in tree.leaves_by_path(state).items()}
    assert {path for path in now if now[path] != held[path]} == {"data_step"}
    assert float(sums["skipped_steps"].sum) == 1


# ---- what is refused


@pytest.mark.parametrize(
    ("settings", "tx", "match"),
    [
        (core.Step(precision="float16"), optim.adam(0.1), r"float16.*times a scale.*has 0.*tx = step\.optimizer\(tx\)"),
        (core.Step(), optim.loss_scale(optim.adam(0.1)), r"divides gradients by a loss scale.*precision='float16'"),
    ],
)
def test_a_scale_on_one_side_only_is_refused(settings, tx, match):
    state = core.init_state(task_of("mlp"), tx, BATCHES["mlp"], strategy=parallel.single())
    step = core.make_train_step(task_of("mlp"), tx, strategy=parallel.single(), step=settings)
    with pytest.raises(ValueError, match=match):
        step(state, BATCHES["mlp"])


def test_narrow_products_of_a_model_without_ours_are_refused():
    task = core.from_functions(lambda key, x: jnp.ones((6, 2)), lambda w, x: x @ w, losses.mse)
    step = core.make_train_step(
        task, optim.adam(0.1), strategy=parallel.single(), step=core.Step(precision="matmul_bf16")
    )
    state = core.init_state(task, optim.adam(0.1), BATCHES["mlp"], strategy=parallel.single())
    with pytest.raises(ValueError, match=r"computes none by jaxnn\.models.*precision='bfloat16'"):
        step(state, BATCHES["mlp"])
    with pytest.raises(ValueError, match=r"precision='float8' is unknown.*matmul_bf16"):
        core.Step(precision="float8")
    with pytest.raises(ValueError, match=r"compute='int8' is no precision"):
        core.Precision(compute="int8")
