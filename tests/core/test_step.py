"""The exact step: gradients of the objective as NumPy computes them, one compilation, and chunks that cannot be told
from single steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import core, data, losses, models, parallel, tree
from jaxnn.core.state import complete
from jaxnn.core.step import MAX_IDS, MAX_STEPS, check_step, dispatch_steps, make_chunk, make_step, take_rows, trace_step
from jaxnn.typing import Mean

STRATEGIES = {"single": parallel.single, "replicate": parallel.replicate, "pmap": parallel.pmap}
DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(16, 5)).astype(np.float32)
Y = DRAW.normal(size=(16, 2)).astype(np.float32)
MASK = np.ones(16, np.float32)
MASK[[0, 1, 5, 11, 12, 13, 14, 15]] = 0  # the first and the last two of 8 shards are empty
TOKEN_WEIGHTS = DRAW.uniform(0, 3, (16, 2)).astype(np.float32)


def linear(penalty=None, metrics=None):
    """A linear model with one squared error a value, so that weights [B, 2] are token weights."""
    squared = lambda outputs, y: jnp.square(outputs - y)  # noqa: E731
    init = lambda key, x: {"w": jax.random.normal(key, (5, 2)), "b": jnp.zeros(2)}  # noqa: E731
    return core.from_functions(init, lambda p, x: x @ p["w"] + p["b"], squared, metrics, penalty=penalty)


def bytes_of(tree_):
    return {path: np.asarray(leaf).tobytes() for path, leaf in tree.leaves_by_path(jax.device_get(tree_)).items()}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_gradient_is_that_of_the_objective(name):
    """sum(weight * squared error) / sum(weight) + 0.1 sum(w^2), in float64 NumPy."""
    strategy = STRATEGIES[name]()
    task = linear(penalty=lambda p: 0.1 * jnp.sum(jnp.square(p["w"])))
    batch = {"x": X, "y": Y, "mask": MASK, "weights": TOKEN_WEIGHTS}
    state = core.init_state(task, optax.sgd(1.0), batch, strategy=strategy)
    w = np.asarray(state.params["w"], np.float64)
    new, sums = core.make_train_step(task, optax.sgd(1.0), strategy=strategy, grad_norm=True)(state, batch)
    weights = (TOKEN_WEIGHTS * MASK[:, None]).astype(np.float64)
    error = X.astype(np.float64) @ w - Y
    objective = np.sum(weights * error**2) / weights.sum() + 0.1 * np.sum(w**2)
    grad_w = 2 * X.T.astype(np.float64) @ (weights * error) / weights.sum() + 0.2 * w
    grad_b = 2 * np.sum(weights * error, 0) / weights.sum()
    np.testing.assert_allclose(w - np.asarray(new.params["w"], np.float64), grad_w, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(new.params["b"], -grad_b, rtol=2e-5, atol=1e-6)
    loss = jax.device_get(sums["loss"])
    np.testing.assert_allclose(loss.sum / loss.weight, objective, rtol=1e-5)
    np.testing.assert_allclose(loss.weight, weights.sum(), rtol=1e-6)
    norm = np.sqrt(np.sum(grad_w**2) + np.sum(grad_b**2))
    np.testing.assert_allclose(sums["grad_norm"].sum / sums["grad_norm"].weight, norm, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_complex_parameter_is_given_the_gradient_that_descends(accumulate):
    """Of f = mean |x w - y|^2, df/du + i df/dv for w = u + i v: the conjugate of what `jax.grad` gives."""
    init = lambda key, x: {"w": jnp.full((5, 2), 0.5 - 0.25j, jnp.complex64)}  # noqa: E731
    squared = lambda outputs, y: jnp.square(jnp.abs(outputs - y))  # noqa: E731
    task = core.from_functions(init, lambda p, x: x @ p["w"], squared)
    batch = {"x": X, "y": Y}
    state = core.init_state(task, optax.sgd(1.0), batch, strategy=parallel.single())
    w = np.asarray(state.params["w"], np.complex128)
    step = core.make_train_step(task, optax.sgd(1.0), strategy=parallel.single(), step=core.Step(accumulate=accumulate))
    new, _ = step(state, batch)
    expected = 2 * X.T.astype(np.float64) @ (X.astype(np.float64) @ w - Y) / Y.size
    np.testing.assert_allclose(w - np.asarray(new.params["w"]), expected, rtol=1e-4, atol=1e-6)


def test_a_models_gradient_is_that_of_the_closed_form():
    module = models.MLP((8, 2))
    task = core.supervised(module, losses.cross_entropy, penalty=optax.tree.norm)
    y = DRAW.integers(0, 2, 16).astype(np.int32)
    batch = {"x": X, "y": y, "mask": MASK}
    state = core.init_state(task, optax.sgd(1.0), batch, strategy=parallel.single())
    params = jax.tree.map(np.array, state.params)

    def objective(p):
        logits = module.apply({"params": p}, X[MASK > 0])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y[MASK > 0])) + optax.tree.norm(p)

    expected = jax.jit(jax.grad(objective))(params)
    new, _ = core.make_train_step(task, optax.sgd(1.0), strategy=parallel.single())(state, batch)
    moved = jax.tree.map(lambda a, b: a - b, params, new.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moved, expected)


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_empty_batch_changes_the_data_step_alone(name):
    strategy = STRATEGIES[name]()
    task = core.supervised(models.CNN((2,), (), 2, batch_norm=True), losses.cross_entropy, penalty=optax.tree.norm)
    tx = optax.chain(optax.ema(0.9), optax.adamw(0.1))  # both would move on a gradient of zero
    batch = {"x": DRAW.normal(size=(16, 4, 4, 1)).astype(np.float32), "y": np.zeros(16, np.int32)}
    step = core.make_train_step(task, tx, strategy=strategy)
    state, _ = step(core.init_state(task, tx, batch, strategy=strategy), batch)
    before = bytes_of(state)
    state, sums = step(state, batch | {"mask": np.zeros(16, np.float32)})
    changed = {path for path, value in bytes_of(state).items() if value != before[path]}
    assert changed == {"data_step"}
    assert (int(state.step), int(state.data_step)) == (1, 2)
    assert float(sums["loss"].weight) == 0
    state, _ = step(state, batch)
    assert len({path for path, value in bytes_of(state).items() if value != before[path]}) > 5


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_step_is_compiled_once(name, count_compiles):
    strategy = STRATEGIES[name]()
    task, batch = linear(), {"x": X, "y": Y}
    weak = optax.GradientTransformation(
        lambda params: {"seen": 0.0, "scale": jnp.asarray(1.0)},  # weakly typed, and changed by weak arithmetic
        lambda u, s, p=None: (u, {"seen": s["seen"] * 0.5 + 1.0, "scale": jnp.asarray(1.0)}),
    )
    tx = optax.chain(weak, optax.inject_hyperparams(optax.adam)(learning_rate=lambda n: 0.1 / (1 + n)))
    state = core.init_state(task, tx, batch, strategy=strategy)
    step = core.make_train_step(task, tx, strategy=strategy)
    with count_compiles() as warm_up:
        state, _ = step(state, batch)
    with count_compiles() as after:
        for mask in (MASK, np.zeros(16, np.float32), MASK):
            state, sums = step(state, batch | {"mask": mask})
    assert len(warm_up.compiles) == 1
    assert after.compiles == after.traces == []
    rate = jax.device_get(sums["learning_rate"])
    np.testing.assert_allclose(rate.sum / rate.weight, 0.1 / 3, rtol=1e-6)  # the empty batch did not count


def test_a_step_that_changes_dtypes_is_refused_before_compiling(count_compiles):
    widen = optax.GradientTransformation(
        lambda params: {"mu": jnp.zeros(3, jnp.bfloat16)}, lambda u, s, p=None: (u, {"mu": s["mu"] + jnp.ones(3)})
    )
    task, batch = linear(), {"x": X, "y": Y}
    state = core.init_state(task, widen, batch, strategy=parallel.single())
    step = core.make_train_step(task, widen, strategy=parallel.single())
    with count_compiles() as seen:
        with pytest.raises(TypeError, match=r"opt_state/mu: bfloat16\[3\] against float32\[3\].*mu_dtype"):
            step(state, batch)
    assert seen.compiles == []


def test_a_batch_that_does_not_divide_is_refused():
    strategy = parallel.replicate(3)
    state = core.init_state(linear(), optax.sgd(0.1), {"x": X, "y": Y}, strategy=strategy)
    step = core.make_train_step(linear(), optax.sgd(0.1), strategy=strategy)
    with pytest.raises(ValueError, match=r"global batch of 16 examples does not divide over 3 devices.*: 15, say"):
        step(state, {"x": X, "y": Y})
    state, _ = step(state, {"x": X[:15], "y": Y[:15]})
    with pytest.raises(
        ValueError,
        match=r"train\.make_train_step: a global batch of 4 examples does not divide over 3 devices.*: 3, say",
    ):
        step(state, {"x": X[:4], "y": Y[:4]})  # a later one, too: an epoch's last batch is often another


def test_low_precision_parameters_stay_so_under_strict_promotion():
    init = lambda key, x: jnp.ones((5, 2), jnp.bfloat16)  # noqa: E731
    apply = lambda w, x: (x.astype(jnp.bfloat16) @ w).astype(jnp.float32)  # noqa: E731
    task = core.from_functions(init, apply, losses.mse)
    with jax.numpy_dtype_promotion("strict"):
        state = core.init_state(task, optax.sgd(0.1), {"x": X, "y": Y}, strategy=parallel.single())
        state, _ = core.make_train_step(task, optax.sgd(0.1), strategy=parallel.single())(state, {"x": X, "y": Y})
    assert state.params.dtype == jnp.bfloat16
    assert np.any(np.asarray(state.params, np.float32) != 1)


def test_debug_counts_what_is_not_finite_by_leaf():
    init = lambda key, x: {"a": jnp.array([1.0, 0.0]), "b": jnp.ones(2)}  # noqa: E731
    apply = lambda p, x: x[:, :2] * jnp.sqrt(p["a"]) + p["b"]  # noqa: E731  # whose gradient at 0 is infinite
    task, batch = core.from_functions(init, apply, losses.mse), {"x": X, "y": Y}
    state = core.init_state(task, optax.sgd(0.1), batch, strategy=parallel.single())
    _, sums = core.make_train_step(task, optax.sgd(0.1), strategy=parallel.single(), debug=True)(state, batch)
    found = {name: float(mean.sum) for name, mean in sums.items() if name.startswith("nonfinite/")}
    counts = {name.removeprefix("nonfinite/"): count for name, count in found.items()}
    assert counts == {"params/a": 0, "params/b": 0, "grads/a": 1, "grads/b": 0}


LINE_SEARCHES = {
    "lbfgs": lambda: optax.lbfgs(memory_size=4),
    "backtracking": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)),
}


@pytest.mark.parametrize("search", LINE_SEARCHES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_line_searches_converge(name, search):
    """Least squares with ragged masks, of condition 100: plain SGD at a rate of 1 diverges, the searches do not."""
    strategy, tx = STRATEGIES[name](), LINE_SEARCHES[search]()
    task = linear()
    x = X * np.array([3, 1, 1, 1, 0.3], np.float32)
    batch = {"x": x, "y": Y, "mask": MASK}
    state = core.init_state(task, tx, batch, strategy=strategy)
    step = core.make_train_step(task, tx, strategy=strategy)
    objective = []
    for _ in range(60):  # the path from 10 on depends on the last digit
        state, sums = step(state, batch)
        objective.append(float(sums["loss"].sum / sums["loss"].weight))
    design = np.concatenate([x, np.ones((16, 1))], 1)[MASK > 0].astype(np.float64)
    solution, *_ = np.linalg.lstsq(design, Y[MASK > 0], rcond=None)
    best = np.mean((design @ solution - Y[MASK > 0]) ** 2)
    assert all(b <= a + 1e-6 for a, b in itertools.pairwise(objective))
    if search == "lbfgs":
        np.testing.assert_allclose(objective[-1], best, atol=1e-5)
    assert objective[-1] - best < 0.1 * (objective[0] - best)


# ---- chunks


def test_dispatch_steps_fits_its_buffers():
    sums = {"loss": Mean(jax.ShapeDtypeStruct((), np.float32), jax.ShapeDtypeStruct((), np.float32))}
    assert dispatch_steps(1, sums) == MAX_STEPS
    for batch_size in (1, 17, 32, 1000, MAX_IDS, 10 * MAX_IDS):
        k = dispatch_steps(batch_size, sums)
        assert k & (k - 1) == 0
        assert k == 1 or k * batch_size <= MAX_IDS
    assert dispatch_steps(32, sums) == 2048
    assert dispatch_steps(10 * MAX_IDS, sums) == 1
    large = {"confusion": Mean(jax.ShapeDtypeStruct((1024, 1024), np.float32), jax.ShapeDtypeStruct((), np.float32))}
    assert dispatch_steps(1, large) == 2  # 4 MiB a step, 16 MiB in all


def test_rows_become_a_batch_with_mask_and_index():
    resident = data.Arrays(X, Y).resident()
    batch = take_rows(resident, resident.arrays, jnp.array([3, -1, 0], jnp.int32))
    np.testing.assert_array_equal(batch["mask"], [1, 0, 1])
    np.testing.assert_array_equal(batch["index"], [3, 0, 0])
    np.testing.assert_array_equal(batch["x"], X[[3, 0, 0]])


@pytest.mark.parametrize("name", STRATEGIES)
def test_chunking_never_changes_a_bit(name, count_compiles):
    strategy = STRATEGIES[name]()
    task = core.supervised(models.MLP((8, 2), dropout=0.3), losses.mse, {"mae": losses.mae})
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01))
    source, k_max = data.Arrays(X, Y), 12
    step = make_step(task, tx, strategy)
    batch = complete(source.take(np.arange(8)))
    first = core.init_state(task, tx, batch, strategy=strategy)
    sums = check_step(trace_step(step, first, batch, strategy), first)
    resident = source.resident()
    chunk, arrays = strategy.compile(make_chunk(step, resident, sums, k_max)), strategy.put_shared(resident.arrays)
    ids = np.random.default_rng(1).integers(0, 16, (24, 8)).astype(np.int32)
    ids[::5, 5:] = -1

    def run(k):
        state, reports, at = strategy.put_state(first), [], 0
        while at < len(ids):
            count = min(k, len(ids) - at)
            rows = np.full((k_max, 8), -1, np.int32)
            rows[:count] = ids[at : at + count]
            state, report = chunk(state, arrays, strategy.put_rows(rows), np.int32(count))
            report = jax.device_get(report)
            assert all(not np.any(leaf[count:]) for leaf in jax.tree.leaves(report))
            reports.append(jax.tree.map(lambda x, count=count: x[:count], report))
            at += count
        return bytes_of(state), jax.tree.map(lambda *xs: np.concatenate(xs).tobytes(), *reports)

    with count_compiles() as compiled:
        whole = run(12)
    assert len(compiled.compiles) == 1
    with count_compiles() as again:
        assert run(1) == whole
        assert run(5) == whole
    assert again.compiles == []
    assert whole[0]["data_step"] == np.int32(24).tobytes()
    # And the same as single steps, to rounding: that is another program.
    state = strategy.put_state(first)
    train_step = core.make_train_step(task, tx, strategy=strategy)
    for row in ids:
        mask, index = (row >= 0).astype(np.float32), np.maximum(row, 0)
        state, _ = train_step(state, source.take(index) | {"mask": mask, "index": index})
    for path, leaf in tree.leaves_by_path(jax.device_get(state.params)).items():
        other = np.frombuffer(whole[0][f"params/{path}"], np.float32).reshape(leaf.shape)
        np.testing.assert_allclose(leaf, other, atol=2e-5)
