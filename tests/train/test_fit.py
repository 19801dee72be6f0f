"""`fit` against plain loops, against itself cut in other ways, and what it compiles."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import data, losses, metrics, models, parallel, train
from jaxnn.core.step import make_value_fn
from jaxnn.data import host_batch, order
from jaxnn.train import engine
from jaxnn.train.windows import Windows
from jaxnn.typing import Mean

QUIET = train.Log(progress=False)
EACH = train.Log(every=1, progress=False, grad_norm=True)
FIFTH = train.Log(every=5, progress=False)
RESIDENT, STREAMING = train.Dispatch(resident=True), train.Dispatch(resident=False)


def arrays(n=29, width=5, seed=0):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, width)).astype(np.float32)
    return x, (x @ draw.normal(size=(width, 1)) + 0.3 * draw.normal(size=(n, 1))).astype(np.float32)


def linear():
    return train.supervised(models.MLP((1,)), losses.mse, {"mae": metrics.mae})


def same_bytes(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def plain_adam(x, y, params, *, steps, batch_size, seed, rate=0.05):
    """Losses, mean absolute errors and last parameters of linear regression under Adam, in float64 NumPy."""
    values = {k: np.asarray(v, np.float64) for k, v in params["head"].items()}
    m, v = ({k: np.zeros_like(a) for k, a in values.items()} for _ in range(2))
    rows = []
    for t, ids in enumerate(order.examples(seed, 0, steps, n=len(x), batch_size=batch_size), 1):
        ids = ids[ids >= 0]
        error = x[ids].astype(np.float64) @ values["kernel"] + values["bias"] - y[ids]
        rows.append((np.mean(error**2), np.mean(np.abs(error))))
        grads = {"kernel": 2 * x[ids].T @ error / len(ids), "bias": 2 * error.mean(0)}
        for k, g in grads.items():
            m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.999 * v[k] + 0.001 * g**2
            values[k] = values[k] - rate * (m[k] / (1 - 0.9**t)) / (np.sqrt(v[k] / (1 - 0.999**t)) + 1e-8)
    return np.array(rows), values


def test_the_public_interface_as_documented(capsys):
    x, y = arrays(64)
    task = train.supervised(models.MLP((64, 1)), loss=losses.mse, metrics={"mae": metrics.mae})
    run = train.fit(task, optax.adam(1e-3), data.Arrays(x, y), epochs=100, batch_size=32, seed=0)
    assert int(run.state.step) == int(run.state.data_step) == 200
    assert run.stopped is None
    assert run.folder is None
    assert repr(run) == "Run(200 steps, 449 parameters)"  # not the arrays
    steps, values = run.column("loss")
    assert steps[-1] == 200
    assert values[-1] < values[0] / 2
    assert run.history[-1]["epoch"] == 100.0
    with pytest.raises(KeyError, match=r"'nothing' was never reported. Reported: \['epoch', 'loss', 'mae', 'step'\]"):
        run.column("nothing")
    with pytest.raises(KeyError, match=r"'lr' was never .* jaxnn\.optim's .* optax\.inject_hyperparams\("):
        run.column("lr")
    result = train.evaluate(task, run.state, data.Arrays(x, y), batch_size=256)
    outputs = train.predict(task, run.state, x, batch_size=256)
    assert isinstance(outputs, np.ndarray)
    assert outputs.shape == (64, 1)
    assert result == pytest.approx({"loss": np.mean((outputs - y) ** 2), "mae": np.mean(np.abs(outputs - y))}, rel=1e-5)
    assert "step 200/200" in capsys.readouterr().out
    tx = optax.adam(1e-3)
    batch = {"x": x[:16], "y": y[:16]}
    for strategy in (parallel.replicate(), parallel.single()):
        state = train.init_state(task, tx, batch, seed=0, strategy=strategy)
        step = train.make_train_step(task, tx, strategy=strategy)
        state, sums = step(state, batch)
        assert int(state.step) == 1
        assert float(sums["loss"].weight) == 16


@pytest.mark.parametrize("dispatch", [RESIDENT, STREAMING], ids=["resident", "streaming"])
@pytest.mark.parametrize("batch_size", [1, 8, 29])
def test_losses_and_parameters_are_those_of_a_plain_loop(dispatch, batch_size):
    x, y = arrays()
    task, tx = linear(), optax.adam(0.05)
    begun = train.init_state(task, tx, {"x": x, "y": y}, seed=3, strategy=parallel.single())
    steps = 2 * -(-29 // batch_size)
    expected, last = plain_adam(x, y, begun.params, steps=steps, batch_size=batch_size, seed=3)
    run = train.fit(task, tx, data.Arrays(x, y), batch_size=batch_size, epochs=2, seed=3, log=EACH, dispatch=dispatch)
    assert run.column("loss")[0] == list(range(1, steps + 1))
    np.testing.assert_allclose(run.column("loss")[1], expected[:, 0], rtol=5e-4, atol=1e-6)
    np.testing.assert_allclose(run.column("mae")[1], expected[:, 1], rtol=5e-4, atol=1e-6)
    for name, value in last.items():
        np.testing.assert_allclose(run.state.params["head"][name], value, rtol=1e-4, atol=1e-5)


def test_epochs_are_passes_and_steps_are_batches():
    x, y = arrays()
    source = data.Arrays(x, y)
    by_epochs = train.fit(linear(), optax.sgd(0.1), source, batch_size=8, epochs=3, log=QUIET)
    by_steps = train.fit(linear(), optax.sgd(0.1), source, batch_size=8, steps=12, log=QUIET)
    same_bytes(by_epochs.state, by_steps.state)
    assert [row["step"] for row in by_epochs.history] == [4, 8, 12]
    assert [row["epoch"] for row in by_epochs.history] == [1.0, 2.0, 3.0]
    assert [row["step"] for row in by_steps.history] == list(range(1, 13))


def test_the_window_of_a_run_that_ends_inside_one_says_so():
    x, y = arrays()
    run = train.fit(
        linear(), optax.sgd(0.1), data.Arrays(x, y), batch_size=8, steps=10, log=train.Log(every=4, progress=False)
    )
    each = train.fit(linear(), optax.sgd(0.1), data.Arrays(x, y), batch_size=8, steps=10, log=EACH)
    assert [(row["step"], row.get("partial", False)) for row in run.history] == [(4, False), (8, False), (10, True)]
    # Batches of 8, 8, 8 and 5 examples: a window's mean is over examples, not over batches.
    weights = np.array([8, 8, 8, 5] * 3)[:10]
    means = np.array(each.column("loss")[1]) * weights
    expected = [means[a:b].sum() / weights[a:b].sum() for a, b in ((0, 4), (4, 8), (8, 10))]
    np.testing.assert_allclose(run.column("loss")[1], expected, rtol=1e-6)


def test_validation_rows_are_what_evaluate_gives():
    x, y = arrays()
    held = data.Arrays(*arrays(11, seed=1))
    seen = {}

    class Look(train.Hook):
        at_end = True

        def every(self, plan):
            return plan.validate_every

        def act(self, at):
            seen[at.step] = train.evaluate(task, at.state, held, batch_size=4)

    task = linear()
    run = train.fit(
        task,
        optax.adam(0.1),
        data.Arrays(x, y),
        batch_size=8,
        steps=10,
        validation=held,
        validate_every=4,
        log=QUIET,
        hooks=[Look()],
    )
    steps, values = run.column("val_loss")
    assert steps == [4, 8, 10] == list(seen)
    np.testing.assert_allclose(values, [seen[s]["loss"] for s in steps], rtol=1e-6)
    np.testing.assert_allclose(run.column("val_mae")[1], [seen[s]["mae"] for s in steps], rtol=1e-6)
    assert seen[10] == train.evaluate(task, run.state, held, batch_size=4)


class Recorder:
    """A source with no resident form, which remembers what was asked for."""

    def __init__(self, x, y):
        self.inner, self.asked = data.Arrays(x, y), []

    def __len__(self):
        return len(self.inner)

    def take(self, index):
        self.asked.append(np.asarray(index).copy())
        return self.inner.take(index)

    def resident(self):
        return None


def test_resident_and_streaming_runs_see_the_same_examples_and_agree():
    x, y = arrays()
    task = train.supervised(models.MLP((7, 1), dropout=0.3), losses.mse, {"mae": metrics.mae})
    source = Recorder(x, y)
    common = {"batch_size": 8, "epochs": 3, "seed": 5, "log": EACH}
    streaming = train.fit(task, optax.adam(0.01), source, **common)
    resident = train.fit(task, optax.adam(0.01), data.Arrays(x, y), dispatch=RESIDENT, **common)
    assert [row["step"] for row in resident.history] == [row["step"] for row in streaming.history]
    for name in ("loss", "mae", "grad_norm"):
        np.testing.assert_allclose(resident.column(name)[1], streaming.column(name)[1], rtol=1e-6, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), resident.state, streaming.state)
    wanted = np.maximum(order.examples(5, 0, 12, n=29, batch_size=8), 0)
    np.testing.assert_array_equal(source.asked[-12:], wanted)


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("dispatch", [RESIDENT, STREAMING], ids=["resident", "streaming"])
def test_how_a_run_is_cut_changes_no_bit(dispatch, monkeypatch, tmp_path):
    x, y = arrays()
    task = train.supervised(models.MLP((6, 1), dropout=0.2), losses.mse)
    source = data.Arrays(x, y)

    def go(**changes):
        keywords = {"batch_size": 8, "steps": 23, "seed": 1, "log": FIFTH, "dispatch": dispatch} | changes
        return train.fit(task, optax.adam(0.01), source, **keywords)

    first = go()
    monkeypatch.setattr(engine, "DISPATCH_S", 0.0)
    monkeypatch.setattr(engine, "QUEUE_S", 0.0)
    one_by_one = go()
    same_bytes(first.state, one_by_one.state)
    assert first.history == one_by_one.history
    monkeypatch.setattr(engine, "DISPATCH_S", 1e9)
    monkeypatch.setattr(engine, "QUEUE_S", 1e9)
    at_most = go(out=tmp_path / "a", save=train.Checkpointing(every=3))
    same_bytes(first.state, at_most.state)
    assert first.history == at_most.history
    validated = go(validation=source, validate_every=7)
    same_bytes(first.state, validated.state)
    assert first.history == [row for row in validated.history if "loss" in row]
    same_bytes(first.state, go(log=train.Log(every=2, progress=False)).state)


@pytest.mark.parametrize("every", [1, 3, 7, 64])
def test_windows_are_float64_sums_in_order_however_the_steps_are_grouped(every):
    draw = np.random.default_rng(every)
    count = 50
    sums = (draw.normal(size=count) * 10.0 ** draw.integers(-6, 6, count)).astype(np.float32)
    weights = draw.integers(1, 9, count).astype(np.float32)

    def finish(name, mean):
        return mean.sum / mean.weight

    expected = []
    for a in range(0, count, every):
        b = min(a + every, count)
        top = bottom = 0.0
        for s, w in zip(sums[a:b], weights[a:b]):
            top, bottom = top + float(s), bottom + float(w)
        expected.append((b, round(b / 6, 6), top / bottom))
    for seed in range(4):
        windows, rows, at = Windows(every, 6, finish), [], 0
        while at < count:
            k = min(count - at, int(np.random.default_rng((seed, at)).integers(1, 20)))
            rows += windows.add(at, {"loss": Mean(sums[at : at + k], weights[at : at + k])})
            at += k
        if windows.pending:
            rows.append(windows.flush())
        assert [(row["step"], row["epoch"], row["loss"]) for row in rows] == expected


def test_a_window_of_negative_zeros_has_one_sign_however_it_is_cut():
    values, ones = np.full(8, -0.0, np.float32), np.ones(8, np.float32)

    def cut(*stops):
        windows = Windows(2, 8, lambda name, mean: mean.sum / mean.weight)
        return [
            repr(row["loss"])
            for a, b in zip((0, *stops), (*stops, 8))
            for row in windows.add(a, {"loss": Mean(values[a:b], ones[a:b])})
        ]

    assert cut() == cut(1) == cut(1, 3, 5) == ["0.0"] * 4


def test_windows_go_on_from_their_memory():
    finish = lambda name, mean: mean.sum / mean.weight  # noqa: E731
    values = np.random.default_rng(0).normal(size=20).astype(np.float32)
    ones = np.ones(20, np.float32)
    whole = Windows(8, 10, finish).add(0, {"loss": Mean(values, ones)})
    first, second = Windows(8, 10, finish), Windows(8, 10, finish)
    assert first.add(0, {"loss": Mean(values[:5], ones[:5])}) == []
    second.recall(json.loads(json.dumps(first.memory())))
    assert second.add(5, {"loss": Mean(values[5:], ones[5:])}) == whole


def test_the_first_value_that_is_not_finite_is_the_earliest_and_does_not_depend_on_grouping():
    finish = lambda name, mean: mean.sum / mean.weight  # noqa: E731
    ones = np.ones(8, np.float32)
    loss, norm = ones.copy(), ones.copy()
    leaf = np.zeros(8, np.float32)
    loss[3], norm[5], leaf[4] = np.nan, np.inf, 2
    for split in range(1, 8):
        windows = Windows(8, 8, finish)
        for part in (slice(0, split), slice(split, 8)):
            sums = {"grad_norm": norm, "loss": loss, "nonfinite/grads/a/b": leaf}
            rows = windows.add(part.start, {name: Mean(s[part], ones[part]) for name, s in sums.items()})
        assert (rows[0]["nonfinite_step"], rows[0]["nonfinite_name"]) == (4, "loss")
        assert "nonfinite/grads/a/b" not in rows[0]


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("strategy", ["single", "replicate"])
@pytest.mark.parametrize("dispatch", [RESIDENT, STREAMING], ids=["resident", "streaming"])
def test_one_program_and_nothing_compiled_after_warm_up(dispatch, strategy, count_compiles, tmp_path):
    x, y = arrays(40)
    counts = []

    class Count(train.Hook):
        def every(self, plan):
            return 5

        def act(self, at):
            counts.append((at.step, len(seen.traces), len(seen.compiles)))

    with count_compiles() as seen:
        run = train.fit(
            linear(),
            optax.adam(0.01),
            data.Arrays(x, y),
            batch_size=16,
            steps=33,
            strategy=getattr(parallel, strategy)(),
            validation=data.Arrays(x, y),
            validate_every=5,
            hooks=[Count()],
            log=train.Log(every=3, progress=False),
            out=tmp_path / "run",
            save=train.Checkpointing(every=4),
            dispatch=dispatch,
        )
    program = "chunk" if dispatch is RESIDENT else "scalar_step"
    assert sum(program in name for name in seen.compiles) == 1
    assert [step for step, *_ in counts] == [5, 10, 15, 20, 25, 30]
    assert len({(traces, compiles) for _, traces, compiles in counts}) == 1, counts
    assert int(run.state.step) == 33


def test_weakly_typed_parameters_compile_once_too(count_compiles):
    def init(key, x):
        return {"w": jnp.full((x.shape[1], 1), 0.5), "b": jnp.asarray(0.0)}

    x, y = arrays(16)
    task = train.from_functions(init, lambda p, x: x @ p["w"] + p["b"], losses.mse)
    with count_compiles() as seen:
        train.fit(task, optax.sgd(0.1), data.Arrays(x, y), batch_size=8, steps=9, log=EACH, dispatch=RESIDENT)
    assert sum("chunk" in name for name in seen.compiles) == 1


def test_evaluate_and_predict_compile_once_a_task(count_compiles):
    x, y = arrays(20)
    task = linear()
    run = train.fit(task, optax.adam(0.01), data.Arrays(x, y), batch_size=8, steps=2, log=QUIET)
    first = (
        train.evaluate(task, run.state, data.Arrays(x, y), batch_size=8),
        train.predict(task, run.state, x, batch_size=8),
    )
    with count_compiles() as seen:
        again = (
            train.evaluate(task, run.state, data.Arrays(x, y), batch_size=8),
            train.predict(task, run.state, x, batch_size=8),
        )
    assert seen.compiles == []
    assert again[0] == first[0]
    np.testing.assert_array_equal(again[1], first[1])


def test_a_second_fit_of_the_same_shapes_compiles_no_initialiser(count_compiles):
    x, y = arrays(20)
    train.fit(linear(), optax.sgd(0.1), data.Arrays(x, y), batch_size=8, steps=2, log=QUIET)
    with count_compiles() as seen:
        train.fit(linear(), optax.sgd(0.1), data.Arrays(x, y), batch_size=8, steps=2, log=QUIET)
    assert not [name for name in seen.compiles if name in ("one", "stack")]


def explosive():
    """A product of a huge and a tiny factor: one step of gradient descent makes the tiny one large."""

    def init(key, x):
        return {"inner": {"w": jnp.ones((x.shape[1], 1)) * 1e17}, "outer": jnp.full((1,), 1e-17)}

    return train.from_functions(init, lambda p, x: (x @ p["inner"]["w"]) * p["outer"], losses.mse)


@pytest.mark.parametrize("dispatch", [RESIDENT, STREAMING], ids=["resident", "streaming"])
def test_debug_names_the_first_leaf_and_step(dispatch):
    x, y = arrays(16)
    run = train.fit(
        explosive(),
        optax.sgd(1e-3),
        data.Arrays(x, y),
        batch_size=8,
        steps=20,
        log=train.Log(every=4, progress=False),
        debug=True,
        dispatch=dispatch,
    )
    # The gradient of `outer` is about 1e17, so its first update makes the outputs of step 2 overflow when squared.
    row = next(row for row in run.history if "nonfinite_step" in row)
    assert row["nonfinite_step"] == 2
    assert row["nonfinite_name"] == "grads/inner/w"
    assert run.stopped == "grads/inner/w is not finite at step 2"
    assert run.history[-1] is row


def test_without_debug_the_loss_is_named():
    x, y = arrays(16)
    run = train.fit(
        explosive(), optax.sgd(1e-3), data.Arrays(x, y), batch_size=8, steps=20, log=train.Log(every=4, progress=False)
    )
    assert run.stopped is not None
    assert run.stopped == "loss is not finite at step 2"


@pytest.mark.parametrize("field", ["x", "y"])
def test_what_is_not_finite_in_padding_never_leaks(field):
    x, y = arrays(16)
    task, tx = linear(), optax.sgd(0.1)
    mask = (np.arange(16) < 11).astype(np.float32)
    bad = {"x": x.copy(), "y": y.copy(), "mask": mask}
    bad[field][11:] = np.nan
    clean = {"x": x[:11], "y": y[:11]}
    values = []
    for batch in (bad, clean):
        state = train.init_state(task, tx, {"x": x, "y": y}, strategy=parallel.single())
        state, sums = train.make_train_step(task, tx, strategy=parallel.single())(state, batch)
        values.append((state.params, {k: float(m.sum / m.weight) for k, m in sums.items()}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *values)


def test_a_padded_last_batch_weighs_what_it_holds():
    x, y = arrays(11)
    task = linear()
    state = train.init_state(task, optax.sgd(0.1), {"x": x, "y": y}, strategy=parallel.single())
    batch = host_batch(data.Arrays(x, y), np.array([3, 7, -1, -1]))
    sums = make_value_fn(task, train=False)(state.params, state.model_state, batch, state.key)
    assert float(sums["loss"].weight) == 2


def test_only_a_loss_that_may_weigh_nothing_pays_for_it(monkeypatch):
    """Adam's moments rest at a step without weight, also where `fit` was told so by the data or by a loss of one's own;
    where every batch has an example, the step has no select over the state."""
    from jaxnn.train import prepare

    promised = []
    make_step = prepare.make_step
    monkeypatch.setattr(
        prepare, "make_step", lambda *a, never_empty, **k: promised.append(never_empty) or make_step(*a, **k)
    )
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    task = train.supervised(models.MLP((1,)), losses.mse)
    settings = {"batch_size": 4, "steps": 2, "log": train.Log(progress=False)}
    train.fit(task, optax.adam(0.1), data.Arrays(x, x[:, :1]), **settings)
    weights = np.zeros(8, np.float32)
    run = train.fit(task, optax.adam(0.1), data.Arrays(x, x[:, :1], weights=weights), **settings)
    assert int(run.state.step) == 0
    own = dataclasses.replace(task, loss=lambda *a: task.loss(*a))
    train.fit(own, optax.adam(0.1), data.Arrays(x, x[:, :1]), **settings)
    assert promised == [True, False, False]
