"""Hooks: what they see, when they fire, what their answers do to a run, and that a resume changes none of it."""

import functools
import io
import json
import math
import os
import pathlib
import re
import signal
import struct

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import data, losses, metrics, models, train
from jaxnn.data import order
from jaxnn.train import progress
from jaxnn.train.hooks import direction

QUIET = train.Log(every=2, progress=False)
RESIDENT, STREAMING = train.Dispatch(resident=True), train.Dispatch(resident=False)
MODES = pytest.mark.parametrize("dispatch", [RESIDENT, STREAMING], ids=["resident", "streaming"])


def source(n=24, seed=0):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, 3)).astype(np.float32)
    return data.Arrays(x, (x @ draw.normal(size=(3, 1)) + 1).astype(np.float32))


def task():
    return train.supervised(models.MLP((1,)), losses.mse, {"mae": metrics.mae})


def fit(*hooks, tx=None, steps=20, **changes):
    keywords = {"batch_size": 8, "steps": steps, "log": QUIET, "hooks": hooks} | changes
    return train.fit(task(), tx or optax.sgd(0.05), source(), **keywords)


def journal(run):
    return [(e["event"], e["step"]) for e in run.folder.journal.read()]


class At(train.Hook):
    """Does `action` at the steps named, every `period` steps; remembers what it saw."""

    def __init__(self, actions=None, period=1, name="At", at_end=False):
        self.actions, self.period, self._name, self.at_end = actions or {}, period, name, at_end
        self.rows, self.acts, self.finished = [], [], 0

    @property
    def name(self):
        return self._name

    def every(self, plan):
        return self.period

    def row(self, row):
        self.rows.append((row["step"], len(self.acts)))

    def act(self, at):
        self.acts.append((at.step, at.final, [step for step, _ in self.rows if step <= at.step]))
        action = self.actions.pop(at.step, None)
        return action(at) if callable(action) else action

    def finish(self):
        self.finished += 1


# When hooks fire, and what they see


@MODES
@pytest.mark.parametrize("steps", [20, 21])
def test_a_hook_fires_once_at_each_of_its_steps_with_every_row_up_to_there(dispatch, steps):
    third, ends = At(period=3, name="third"), At(period=5, name="ends", at_end=True)
    fit(third, ends, steps=steps, dispatch=dispatch)
    multiples = list(range(3, steps + 1, 3))
    assert [step for step, *_ in third.acts] == multiples
    for step, _, rows in third.acts:
        assert rows == list(range(2, step + 1, 2))
    assert [final for step, final, _ in third.acts] == [step == steps for step in multiples]
    assert [(step, final) for step, final, _ in ends.acts] == [
        (5, False),
        (10, False),
        (15, False),
        (20, steps == 20),
    ] + ([(21, True)] if steps == 21 else [])
    assert [step for step, _ in third.rows] == list(range(2, 21, 2)) + ([21] if steps == 21 else [])
    assert third.finished == ends.finished == 1


def test_the_moment_holds_the_state_and_the_latest_values_and_can_report():
    seen = {}

    def look(at):
        seen[at.step] = (int(at.state.data_step), at.values["loss"], at.plan.steps)
        at.report({"twice": 2 * at.values["loss"], "matrix": np.ones((2, 2))})

    run = fit(At({4: look, 8: look}))
    assert seen[4][0] == 4
    assert seen[4][2] == 20
    steps, twice = run.column("twice")
    assert steps == [4, 8]
    losses_at = dict(zip(*run.column("loss")))
    assert twice == [2 * losses_at[4], 2 * losses_at[8]]
    assert [seen[4][1], seen[8][1]] == [losses_at[4], losses_at[8]]
    assert not any("matrix" in row for row in run.history)
    assert [row["step"] for row in run.history] == sorted(row["step"] for row in run.history)


def test_a_hook_that_fails_ends_the_run_with_everything_closed(tmp_path):
    hook = At({4: lambda at: 1 / 0})
    with pytest.raises(ZeroDivisionError):
        fit(hook, out=tmp_path / "r")
    assert hook.finished == 1
    with pytest.raises(
        TypeError, match=r"hook At gave 'stop'; it must be Continue, Stop, Save, Replace, Rewind or None"
    ):
        fit(At({4: lambda at: "stop"}))


# Stop and Save


@MODES
def test_stop_ends_the_run_and_a_resume_goes_on_as_if_it_had_not_been(dispatch, tmp_path):
    run = fit(At({7: train.Stop("enough")}), out=tmp_path / "r", dispatch=dispatch)
    assert run.stopped == "enough"
    assert int(run.state.data_step) == 7
    assert run.history[-1]["step"] == 7
    assert run.history[-1]["partial"]
    assert journal(run) == [("start", 0), ("stop", 7), ("save", 7), ("end", 7)]
    assert "enough" in run.folder.report.read_text()
    resumed = fit(out=tmp_path / "r", resume=True, dispatch=dispatch)
    straight = fit(out=tmp_path / "s", dispatch=dispatch)
    assert resumed.stopped is None
    jax.tree.map(np.testing.assert_array_equal, resumed.state, straight.state)
    read = lambda name: (tmp_path / name / "metrics.jsonl").read_bytes()  # noqa: E731
    assert read("r") == read("s")
    assert resumed.history == straight.history


@pytest.mark.usefixtures("no_report")
def test_every_hook_that_is_due_acts_before_the_run_stops_and_those_of_its_end(tmp_path):
    first, later = At({6: train.Stop("enough")}, period=6), At({6: train.Stop("me too")}, period=3, name="later")
    end, never = At(period=4, name="end", at_end=True), At({6: train.Rewind(0)}, period=6, name="never")
    run = fit(first, later, never, end, out=tmp_path / "r", validation=source(9, 1), validate_every=4)
    assert run.stopped == "enough"
    assert int(run.state.data_step) == 6
    assert later.acts[-1] == (6, True, [2, 4, 4, 6])
    assert end.acts[-1] == (6, True, [2, 4, 4, 6, 6])
    assert run.column("val_loss")[0] == [4, 6]  # the last step is evaluated
    assert journal(run) == [("start", 0), ("stop", 6), ("stop", 6), ("save", 6), ("end", 6)]


@pytest.mark.usefixtures("no_report")
def test_save_writes_a_checkpoint_that_holds_what_later_hooks_remember(tmp_path):
    class Counter(At):
        def memory(self):
            return {"count": len(self.acts)}

    run = fit(At({6: train.Save()}, period=3), Counter(period=3, name="counter"), out=tmp_path / "r")
    assert ("save", 6) in journal(run)
    checkpoints = run.folder.checkpoints()
    from jaxnn.core.state import abstract

    restored = checkpoints.restore(abstract(run.state), 6)
    assert restored.extra["hooks"]["counter"] == {"count": 2}
    assert int(restored.state.data_step) == 6
    checkpoints.close()


# Patience


class Values(train.Hook):
    """Reports a value that a list gives."""

    def __init__(self, values, period=2):
        self.values, self.period = values, period

    def every(self, plan):
        return self.period

    def act(self, at):
        at.report({"score": self.values[at.step // self.period - 1]})


def test_early_stopping_counts_looks_without_improvement():
    values = [5, 4, 4.05, 3.95, 3.9, 3, 3, 3, 3, 3]
    run = fit(Values(values), train.EarlyStopping("score", patience=3, min_delta=0.2, mode="min"))
    # 4 is best at look 2; 4.05, 3.95 and 3.9 are no improvement by 0.2.
    assert run.stopped == "score has not improved on 4 for 3 looks"
    assert int(run.state.data_step) == 10
    run = fit(Values(values), train.EarlyStopping("score", patience=3, mode="min"))
    assert int(run.state.data_step) == 18
    assert fit(Values(values), train.EarlyStopping("score", patience=5, mode="min")).stopped is None


def test_a_hook_that_serves_a_second_run_begins_anew(tmp_path):
    stopping = train.EarlyStopping("score", patience=3, mode="min")
    plateau = train.ReduceOnPlateau("score", patience=3, mode="min")
    for _ in range(2):
        tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.05)
        assert fit(Values([5, 4, 3, 3, 3, 2, 2, 2, 1, 1]), stopping, plateau, tx=tx).stopped is None


def test_a_larger_accuracy_is_better():
    class Accuracy(Values):
        def act(self, at):
            at.report({"top_5": self.values[at.step // self.period - 1]})

    rising = [0.1 * i for i in range(10)]
    assert fit(Accuracy(rising), train.EarlyStopping("top_5", patience=1)).stopped is None
    assert int(fit(Accuracy(rising[::-1]), train.EarlyStopping("top_5", patience=1)).state.data_step) == 4


@pytest.mark.parametrize("name", ["val_precision", "recall", "r2", "iou", "topic_loss", "laccuracy", "top_k"])
def test_a_name_that_says_nothing_about_its_direction_needs_a_mode(name, count_compiles):
    class Reports(Values):
        def act(self, at):
            at.report({name: self.values[at.step // self.period - 1]})

    rising = [0.1 * i for i in range(10)]
    with count_compiles() as seen:
        said = rf"train\.EarlyStopping: '{name}' does not say whether .* Write mode=\"min\" or mode=\"max\"\."
        with pytest.raises(ValueError, match=said):
            fit(Reports(rising), train.EarlyStopping(name), validation=source(5, 1))
        said = rf"train\.fit: '{name}' does not say whether .* Write best_mode=\"min\" or best_mode=\"max\"\."
        with pytest.raises(ValueError, match=said):
            fit(Reports(rising), save=train.Checkpointing(best=name), out="not-made")
    assert seen.compiles == []
    options = {"validation": source(5, 1), "validate_every": 2}
    assert fit(Reports(rising), train.EarlyStopping(name, patience=1, mode="max"), **options).stopped is None
    assert fit(Reports(rising), train.EarlyStopping(name, patience=1, mode="min"), **options).stopped is not None


@pytest.mark.parametrize("prefix", ["", "val_"])
def test_the_directions_of_our_own_names(prefix):
    smaller = "loss mse mae huber cross_entropy binary_cross_entropy perplexity bits_per_byte"
    assert {direction("here", prefix + name, None) for name in smaller.split()} == {"min"}
    assert {direction("here", prefix + name, None) for name in ("accuracy", "binary_accuracy", "top_5")} == {"max"}
    assert direction("here", prefix + "loss", "max") == "max"


def test_a_value_that_began_as_nan_can_still_improve():
    values = [math.nan, 5.0, 4.0, math.nan, 3.0, 2.0, 1.0, 0.9, 0.8, 0.7]
    assert fit(Values(values), train.EarlyStopping("score", patience=2, mode="min")).stopped is None
    run = fit(Values([3.0] + [math.nan] * 9), train.EarlyStopping("score", patience=2, mode="min"))
    assert int(run.state.data_step) == 6


def test_early_stopping_watches_validation():
    class Rising(train.Hook):
        def every(self, plan):
            return 1

        def act(self, at):
            return train.Replace(lambda s: s._replace(params=jax.tree.map(lambda p: p + 1, s.params)), "worse")

    run = fit(Rising(), train.EarlyStopping(patience=2), tx=optax.sgd(0.0), validation=source(9, 1), validate_every=4)
    assert run.column("val_loss")[0] == [4, 8, 12]
    assert run.stopped is not None
    assert run.stopped.startswith("val_loss has not improved on ")


@pytest.mark.usefixtures("no_report")
@MODES
def test_reduce_on_plateau_changes_the_rate_and_compiles_nothing(dispatch, count_compiles, tmp_path):
    counts = []
    tx = optax.inject_hyperparams(optax.adam)(learning_rate=0.01)
    reduce = train.ReduceOnPlateau("score", factor=0.1, patience=2, minimum=2e-4, mode="min")
    count = At({s: lambda at: counts.append(len(seen.compiles)) for s in range(1, 21)})
    with count_compiles() as seen:
        run = fit(Values([1.0] * 10), reduce, count, tx=tx, out=tmp_path / "r", dispatch=dispatch)
    steps, rates = run.column("learning_rate")
    # Looks at 2, 4, ...: the best is that at 2; patience of 2 runs out at 6, 10, 14 and 18.
    assert steps == list(range(2, 21, 2))
    expected = [0.01] * 3 + [0.001] * 2 + [2e-4] * 5
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert counts[7] == counts[-1], "a replaced state made the step compile again"
    events = run.folder.journal.read("replace")
    assert [e["step"] for e in events] == [6, 10, 14, 18]
    assert events[0]["why"] == "learning_rate 0.01 x 0.1: score has not improved on 1 for 2 looks".replace(
        " for 2 looks", ""
    )


@pytest.mark.usefixtures("no_report")
@MODES
def test_what_hooks_remember_survives_a_resume(dispatch, tmp_path):
    """A run stopped anywhere and resumed reduces the rate at the same steps as one that was not."""
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.01)
    values = [3, 2, 2, 2, 2, 1, 1, 1, 1, 1]

    def go(out, *hooks, **changes):
        reduce = train.ReduceOnPlateau("score", patience=3, mode="min")
        return fit(Values(values), reduce, *hooks, tx=tx, out=out, dispatch=dispatch, **changes)

    whole = go(tmp_path / "whole")
    for at in (5, 10):
        out = tmp_path / str(at)
        go(out, At({at: train.Stop("for now")}))
        resumed = go(out, At(), resume=True)
        assert (out / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes(), at
        jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)


# Replace


def test_replace_takes_plain_scalars_of_the_right_kind_and_compiles_nothing(count_compiles):
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.01)
    counts = []

    def cooler(state):
        hyper = dict(state.opt_state.hyperparams, learning_rate=jnp.asarray(0.5))  # weakly typed
        return state._replace(opt_state=state.opt_state._replace(hyperparams=hyper))

    def count(at):
        counts.append(len(seen.compiles))

    with count_compiles() as seen:
        run = fit(At({4: train.Replace(cooler, "cooler"), 5: count, 20: count}), tx=tx)
    np.testing.assert_allclose(run.column("learning_rate")[1], [0.01, 0.01] + [0.5] * 8, rtol=1e-6)
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s._replace(params=jax.tree.map(lambda p: p[:1], s.params)),
            r"params/head/kernel: float32\[3, 1\] against float32\[1, 1\]",
        ),
        (lambda s: s._replace(params={}), r"params/head/bias: float32\[1\] is only in the first"),
        (lambda s: s._replace(step=0), r"step: int32\[\] against int 0"),
        (
            lambda s: s._replace(params=jax.tree.map(lambda p: p.astype(jnp.bfloat16), s.params)),
            r"against bfloat16\[1\]",
        ),
        (lambda s: s.params, "is only in the first"),
    ],
)
def test_replace_refuses_another_kind_of_state(change, message):
    with pytest.raises(
        ValueError, match=r"train\.fit: hook At replaced the state by another kind of state .*" + message
    ):
        fit(At({4: train.Replace(change, "broken")}))


# Non-finite values


def bad_source(bad=9, n=24):
    """Example `bad` has an infinite target."""
    inner = source(n)
    y = inner.arrays["y"].copy()
    y[bad] = np.inf
    return data.Arrays(inner.arrays["x"], y, allow_nonfinite=True)


def step_of(example, n=24, batch_size=8, seed=0, epoch=0):
    rows = order.examples(seed, epoch * 3, 3, n=n, batch_size=batch_size)
    return epoch * 3 + int(np.argwhere((rows == example).any(1))[0, 0])


@pytest.mark.usefixtures("no_report")
@MODES
def test_stop_on_non_finite_names_step_and_value(dispatch, tmp_path):
    bad = step_of(9)
    log = train.Log(every=4, progress=False)
    run = train.fit(
        task(), optax.sgd(0.1), bad_source(), batch_size=8, steps=12, log=log, dispatch=dispatch, out=tmp_path / "r"
    )
    assert run.stopped == f"loss is not finite at step {bad + 1}"
    # The device may have been ahead of the row that told; what it did there is in no file.
    assert [row["step"] for row in run.history] == [row["step"] for row in run.folder.metrics.read()] == [4]
    assert run.history[0]["nonfinite_step"] == bad + 1
    assert run.history[0]["nonfinite_name"] == "loss"
    checkpoints = run.folder.checkpoints()
    assert checkpoints.latest() is not None
    assert checkpoints.good_steps() == []
    checkpoints.close()
    assert [e["reason"] for e in run.folder.journal.read("stop")] == [run.stopped]


def test_a_non_finite_value_in_the_unfinished_last_window_is_told_too():
    run = train.fit(task(), optax.sgd(0.1), bad_source(), batch_size=8, steps=3, log=train.Log(every=8, progress=False))
    assert run.stopped == f"loss is not finite at step {step_of(9) + 1}"


# Rewind


class GoBack(At):
    """On the first row that is not finite, back to before it, leaving its step out."""

    def act(self, at):
        self.acts.append(at.step)
        if "nonfinite_step" in at.values:
            bad = at.values["nonfinite_step"] - 1
            return train.Rewind(bad, (bad, bad + 1))
        return None


class Asked:
    """Remembers the examples of each batch; streams."""

    def __init__(self, inner):
        self.inner, self.asked = inner, []

    def __len__(self):
        return len(self.inner)

    def take(self, index):
        self.asked.append(tuple(index))
        return self.inner.take(index)

    def resident(self):
        return None


@pytest.mark.usefixtures("no_report")
@MODES
def test_rewind_goes_back_and_leaves_out_the_steps_that_it_names(dispatch, tmp_path):
    """Equal to a plain loop over the other steps, and the files tell the same story."""
    steps, log = 3, train.Log(every=1, progress=False)
    bad = step_of(9)
    keywords = {"batch_size": 8, "log": log, "steps": steps, "save": train.Checkpointing(every=1), "dispatch": dispatch}
    hook = GoBack()
    run = train.fit(
        task(),
        optax.sgd(0.1),
        bad_source(),
        out=tmp_path / "r",
        hooks=[hook],
        validation=source(7, 2),
        validate_every=1,
        **keywords,
    )
    assert run.stopped is None
    assert int(run.state.data_step) == 3
    assert int(run.state.step) == 2
    assert [e for e in journal(run) if e[0] in ("rewind", "skip")] == [("rewind", bad), ("skip", bad)]
    (rewind,) = run.folder.journal.read("rewind")
    assert (rewind["came_from"], rewind["to"], rewind["skip"]) == (bad + 1, bad, [bad, bad + 1])
    trained = [row["step"] for row in run.history if "loss" in row]
    assert trained == [s for s in (1, 2, 3) if s != bad + 1]
    assert run.folder.metrics.read() == run.history
    assert not any("nonfinite_step" in row for row in run.history)
    assert run.column("val_loss")[0][-1] == 3
    assert all(row["steps_per_s"] > 0 for row in run.folder.timing.read())

    state = train.init_state(task(), optax.sgd(0.1), source().take(np.arange(8)), strategy=run_strategy())
    step = train.make_train_step(task(), optax.sgd(0.1), strategy=run_strategy())
    for ids in order.examples(0, 0, 3, n=24, batch_size=8):
        if 9 not in ids:
            state, _ = step(state, bad_source().take(ids))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), run.state.params, state.params)


def run_strategy():
    from jaxnn import parallel

    return parallel.single()


@pytest.mark.usefixtures("no_report")
def test_skipped_steps_are_not_seen_and_validation_comes_again(tmp_path):
    inner = Asked(source())
    hook = At({10: train.Rewind(5, (7, 13))}, period=10)
    run = train.fit(
        task(),
        optax.sgd(0.05),
        inner,
        batch_size=8,
        steps=20,
        log=QUIET,
        out=tmp_path / "r",
        save=train.Checkpointing(every=5, keep=9),
        hooks=[hook],
        validation=source(7, 2),
        validate_every=2,
    )
    assert hook.acts[-1][0] == 20
    assert run.column("val_loss")[0] == [2, 4, 6, 14, 16, 18, 20]
    assert int(run.state.data_step) == 20
    assert int(run.state.step) == 14
    rows = order.examples(0, 0, 20, n=24, batch_size=8)
    assert inner.asked[-7:] == [tuple(ids) for ids in rows[13:]]
    # The window from 6 to 14 holds the steps 7 and 14 alone: both are in the row of step 14.
    assert [row["step"] for row in run.history if "loss" in row] == [2, 4, 6, 14, 16, 18, 20]
    straight = train.fit(task(), optax.sgd(0.05), source(), batch_size=8, steps=6, log=QUIET)
    assert [row for row in run.history if "loss" in row][:3] == straight.history


@pytest.mark.usefixtures("no_report")
def test_a_run_that_ends_among_skipped_steps_leaves_out_the_rest_when_resumed(tmp_path):
    save = train.Checkpointing(every=5, keep=9)

    def go(steps, **changes):
        inner = Asked(source())
        run = train.fit(
            task(),
            optax.sgd(0.05),
            inner,
            batch_size=8,
            steps=steps,
            log=QUIET,
            out=tmp_path / "r",
            save=save,
            **changes,
        )
        return run, inner.asked

    run, _ = go(12, hooks=[At({10: train.Rewind(5, (8, 15))}, period=10)])
    assert run.stopped is None
    assert int(run.state.data_step) == 12
    assert int(run.state.step) == 8
    run, asked = go(18, hooks=[At(period=10)], resume=True)
    assert int(run.state.data_step) == 18
    assert int(run.state.step) == 11
    rows = order.examples(0, 0, 20, n=24, batch_size=8)
    assert asked[-3:] == [tuple(ids) for ids in rows[15:18]]


@pytest.mark.usefixtures("no_report")
def test_a_rewind_at_the_end_of_the_run_is_gone_along_with(tmp_path):
    hook = At({21: train.Rewind(10)}, period=10, at_end=True)
    run = fit(hook, steps=21, out=tmp_path / "r", save=train.Checkpointing(every=10))
    straight = fit(steps=21)
    assert [step for step, *_ in hook.acts] == [10, 20, 21, 20, 21]
    jax.tree.map(np.testing.assert_array_equal, run.state, straight.state)
    assert run.history == straight.history
    assert journal(run)[-1] == ("end", 21)


def test_rewind_needs_a_folder_and_a_good_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"hook At asked for a rewind, but nothing is saved\. Pass out= to fit\."):
        fit(At({4: train.Rewind(2)}))
    with pytest.raises(ValueError, match=r"hook At asked for a rewind to step 2; no good checkpoint is that old\."):
        fit(At({4: train.Rewind(2)}), out=tmp_path / "r")


# What is shown and written


def records(path):
    """The payloads of a TFRecord file."""
    raw = path.read_bytes()
    while raw:
        (length,) = struct.unpack("<Q", raw[:8])
        yield raw[12 : 12 + length]
        raw = raw[16 + length :]


@pytest.mark.usefixtures("no_report")
def test_tensorboard_files_hold_the_rows(tmp_path):
    from tensorboardX.proto import event_pb2

    run = fit(
        out=tmp_path / "r",
        log=train.Log(every=5, progress=False, grad_norm=True, tensorboard=True),
        validation=source(5, 3),
        validate_every=10,
    )
    found = {}
    for file in (tmp_path / "r" / "tensorboard").iterdir():
        for record in records(file):
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    for name in ("loss", "mae", "grad_norm", "val_loss", "val_mae"):
        steps, values = run.column(name)
        assert [step for step, _ in found[name]] == steps
        np.testing.assert_allclose([value for _, value in found[name]], values, rtol=1e-6)


def test_plain_lines_where_there_is_no_terminal(capsys):
    fit(log=train.Log(every=4), validation=source(5, 3), validate_every=10, hooks=[At({6: train.Stop("seen enough")})])
    out = capsys.readouterr().out
    assert "At: stopping at step 6: seen enough" in out
    assert "\x1b" not in out
    fit(log=train.Log(every=4), validation=source(5, 3), validate_every=10)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"step 1/20 \| loss \S+ .*mae \S+.*", lines[0])
    for step, line, left in ((10, lines[-2], r" \| left \S+"), (20, lines[-1], "")):
        values = r"loss \S+  val_loss \S+  mae \S+  val_mae \S+"
        assert re.fullmatch(rf"step {step}/20 \| {values} \| [\d,]+ examples/s \| waiting 0%{left}", line)
    for line in lines:
        assert len(line) < 200


def test_a_log_has_a_line_of_each_kind_every_ten_seconds_and_the_newest_values_last(capsys, monkeypatch):
    clock = [1.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    shown = progress.Progress()
    shown.begin(train.Plan(steps=100, epoch=10, log_every=1, validate_every=1, batch_size=4))
    for step in range(1, 101):  # a second a step, a row and a validation at each
        clock[0] += 1.0
        shown.row({"step": step, "loss": float(step)})
        shown.row({"step": step, "val_loss": step + 0.5})
    shown.finish()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21  # 10 of each kind, and the last
    assert lines[:2] == ["step 1/100 | loss 1 | left ?", "step 1/100 | loss 1  val_loss 1.5 | left ?"]
    assert lines[2] == "step 11/100 | loss 11  val_loss 10.5 | left ?"
    assert lines[-1] == "step 100/100 | loss 100  val_loss 100.5"
    shown.finish()
    assert capsys.readouterr().out == ""  # nothing is told twice


def test_a_live_line_on_a_terminal(monkeypatch):
    import rich.console

    screen = io.StringIO()
    fake = functools.partial(rich.console.Console, force_terminal=True, file=screen, width=110, color_system=None)
    monkeypatch.setattr(rich.console, "Console", fake)
    fit(At({6: lambda at: at.show("hello [b]there[/b]")}), log=train.Log(every=4))
    shown = screen.getvalue()
    assert "step 20/20" in shown
    assert "examples/s" in shown
    assert "hello [b]there[/b]" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is hidden, and shown again


def test_no_progress_prints_nothing(capsys):
    fit()
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_rows_are_on_the_disk_before_the_checkpoint_that_counts_them(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    run = fit(out=tmp_path / "r")
    metrics, seals = str(run.folder.metrics.path), [path for path in synced if "/checkpoints/" in path]
    assert seals
    assert metrics in synced[: synced.index(seals[0])]
    run.folder.metrics.path.unlink()
    run.folder.metrics.sync()  # there may be no row yet


# Ctrl-C


@MODES
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_says_how_to_go_on(dispatch, number, tmp_path):
    before = signal.getsignal(number)
    with pytest.raises(train.Interrupted) as caught:
        fit(At({7: lambda at: signal.raise_signal(number)}), out=tmp_path / "r", dispatch=dispatch)
    name = signal.Signals(number).name
    message = str(caught.value)
    assert message == (
        f"train.fit: interrupted by {name} at step 7 of 20. Saved at step 7 in {tmp_path / 'r'}; "
        "go on with resume=True (--resume)."
    )
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.signal == number
    run = caught.value.run
    assert int(run.state.data_step) == 7
    assert [row["step"] for row in run.history] == [2, 4, 6]
    assert signal.getsignal(number) is before
    assert journal(run) == [("start", 0), ("interrupted", 7), ("save", 7)]
    assert "interrupted" in run.folder.report.read_text()
    resumed = fit(At(), out=tmp_path / "r", resume=True, dispatch=dispatch)
    straight = fit(out=tmp_path / "s", dispatch=dispatch)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, straight.state)
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == (tmp_path / "s" / "metrics.jsonl").read_bytes()


@MODES
def test_an_interrupt_without_a_folder_keeps_the_run_in_hand(dispatch):
    with pytest.raises(
        train.Interrupted, match=r"interrupted by SIGINT at step 7 of 20\. Nothing is saved: no out= was given\."
    ) as caught:
        fit(At({7: lambda at: signal.raise_signal(signal.SIGINT)}), dispatch=dispatch)
    assert [row["step"] for row in caught.value.run.history] == [2, 4, 6]
    assert math.isfinite(float(jax.tree.leaves(caught.value.run.state.params)[0].sum()))


def test_an_interrupt_during_the_last_hooks_is_not_lost(tmp_path):
    with pytest.raises(train.Interrupted, match=r"interrupted by SIGINT at step 21 of 21"):
        fit(
            At({21: lambda at: signal.raise_signal(signal.SIGINT)}, period=10, at_end=True),
            steps=21,
            out=tmp_path / "r",
        )
    assert json.loads(pathlib.Path(tmp_path / "r" / "journal.jsonl").read_text().splitlines()[-1])["event"] == "end"


def test_a_second_interrupt_does_not_wait():
    def twice(at):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(At({7: twice}))
    assert not isinstance(caught.value, train.Interrupted)
    assert signal.getsignal(signal.SIGINT) is before


class Killed(train.Hook):
    """Ends the process's run as a kill does: no checkpoint, no last row."""

    def every(self, plan):
        return 7

    def act(self, at):
        raise MemoryError


@MODES
def test_a_run_killed_before_its_first_checkpoint_begins_again_when_resumed(dispatch, tmp_path):
    with pytest.raises(MemoryError):
        fit(Killed(), out=tmp_path / "r", dispatch=dispatch)
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes()  # rows 2, 4 and 6
    resumed = fit(out=tmp_path / "r", resume=True, dispatch=dispatch)
    straight = fit(out=tmp_path / "s", dispatch=dispatch)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, straight.state)
    assert [row["step"] for row in resumed.history] == [row["step"] for row in straight.history]
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == (tmp_path / "s" / "metrics.jsonl").read_bytes()
    assert journal(resumed)[:2] == [("start", 0), ("resume", 0)]


def test_a_run_whose_checkpoints_were_all_damaged_does_not_begin_again(tmp_path):
    fit(out=tmp_path / "r")
    folder = tmp_path / "r" / "checkpoints"
    [checkpoint] = folder.iterdir()
    checkpoint.rename(folder / "damaged-00000020-1")
    said = r"train\.fit: .*/r cannot go on: .* holds no checkpoint\. Set aside as damaged earlier: \['damaged-0"
    with pytest.raises(ValueError, match=said):
        fit(out=tmp_path / "r", resume=True)
