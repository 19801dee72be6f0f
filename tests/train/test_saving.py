"""The best checkpoint is the state that the best value was measured on, and a run has one writer."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import cost, data, losses, models, train
from jaxnn.core.state import abstract
from jaxnn.runs import stored

pytestmark = pytest.mark.usefixtures("no_report")
QUIET = train.Log(every=3, progress=False)
X = np.linspace(-1, 1, 36, dtype=np.float32).reshape(12, 3)
TASK = train.supervised(models.MLP((1,)), losses.mse)
TX = optax.sgd(0.05)


class Score(train.Hook):
    """Reports what a list gives, every 2 steps."""

    def __init__(self, values, period=2):
        self.values, self.period = values, period

    def every(self, plan):
        return self.period

    def act(self, at):
        at.report({"score": self.values[at.step // self.period - 1]})


def fit(out, *hooks, steps=20, **changes):
    keywords = {"batch_size": 4, "steps": steps, "log": QUIET, "hooks": hooks, "out": out} | changes
    return train.fit(keywords.pop("task", TASK), TX, data.Arrays(X, X[:, :1]), **keywords)


def metrics(out):
    return {row.step: row.metric for row in stored.listing(out / "checkpoints")}


def saving(mode="max", **options):
    return train.Checkpointing(keep=1, best="score", best_mode=mode, **options)


def test_the_best_checkpoint_is_of_the_step_of_the_best_value(tmp_path):
    values = [1, 3, 2, 5, 5, 4, 4, float("nan"), 4, 4]
    run = fit(tmp_path / "r", Score(values), save=saving(every=5))
    assert metrics(tmp_path / "r") == {8: 5.0, 20: 4.0}
    # Saved where it improved, and at multiples of 5, of which 10 and 20 were measured, too.
    assert [event["step"] for event in run.folder.journal.read("save")] == [2, 4, 5, 8, 10, 15, 20]
    with run.folder.checkpoints(keep=1, keep_best="max") as checkpoints:
        best = checkpoints.restore(abstract(run.state), 8).state
    straight = fit(None, Score(values), steps=8, save=None)
    jax.tree.map(np.testing.assert_array_equal, best, jax.device_get(straight.state))
    fit(tmp_path / "s", Score(values), save=saving("min", every=5))
    assert metrics(tmp_path / "s") == {2: 1.0, 20: 4.0}


def test_a_save_at_a_step_without_a_report_bears_no_value(tmp_path):
    fit(tmp_path / "r", Score([3, 2, 1, 1, 1], period=4), save=saving("min", every=5), steps=10)
    assert metrics(tmp_path / "r") == {8: 2.0, 10: None}


@pytest.mark.parametrize("stop", [7, 8, 11])
def test_the_best_value_is_remembered_across_a_resume(tmp_path, stop):
    values = [1, 3, 2, 5, 4, 4, 4.5, 4, 4, 4]

    class Halt(train.Hook):
        def every(self, plan):
            return stop

        def act(self, at):
            return train.Stop("enough")

    fit(tmp_path / "r", Score(values), Halt(), save=saving())
    run = fit(tmp_path / "r", Score(values), resume=True, save=train.Checkpointing(keep=1))  # best= is kept
    assert metrics(tmp_path / "r") == {8: 5.0, 20: 4.0}
    assert 14 not in [event["step"] for event in run.folder.journal.read("save")]  # 4.5 is no best
    with pytest.raises(ValueError, match=r'fit\.best: "score" -> "loss".*Resume with the old values'):
        fit(tmp_path / "r", Score(values), resume=True, save=train.Checkpointing(best="loss"))


def test_a_window_value_is_saved_at_its_windows_end(tmp_path):
    run = fit(tmp_path / "r", save=train.Checkpointing(best="loss", keep=1))
    steps, values = run.column("loss")
    at = int(np.argmin(values[:-1]))  # the last row covers a part of a window
    assert run.history[-1]["partial"]
    assert metrics(tmp_path / "r") == {steps[at]: values[at], 20: None}


def test_a_value_of_the_end_is_kept_with_its_checkpoint_and_a_longer_run_is_as_in_one_go(tmp_path):
    go = functools.partial(
        fit,
        validation=data.Arrays(X[:5], X[:5, :1]),
        validate_every=8,
        save=train.Checkpointing(best="val_loss", keep=1),
    )
    short = go(tmp_path / "r", steps=10)
    assert metrics(tmp_path / "r") == {10: short.column("val_loss")[1][-1]}
    long = go(tmp_path / "r", resume=True)
    straight = go(tmp_path / "s")
    read = lambda name: (tmp_path / name / "metrics.jsonl").read_bytes()  # noqa: E731
    assert read("r") == read("s")
    jax.tree.map(np.testing.assert_array_equal, long.state, straight.state)
    assert metrics(tmp_path / "r") == metrics(tmp_path / "s") == {20: straight.column("val_loss")[1][-1]}


def test_a_shorter_run_than_the_one_to_be_resumed_is_refused(tmp_path, count_compiles):
    fit(tmp_path / "r")
    with count_compiles() as seen:
        with pytest.raises(
            ValueError, match=r"train\.fit: .*/r is at step 20 already; steps=12 in all .*Give steps >= 20"
        ):
            fit(tmp_path / "r", steps=12, resume=True)
    assert seen.compiles == []
    assert int(fit(tmp_path / "r", resume=True).state.data_step) == 20  # and the refused one holds nothing


# One writer

SECOND = """
import sys
import numpy as np, optax
from jaxnn import data, losses, models, train
x = np.linspace(-1, 1, 36, dtype=np.float32).reshape(12, 3)
task = train.supervised(models.MLP((1,)), losses.mse)
try:
    train.fit(task, optax.sgd(0.05), data.Arrays(x, x[:, :1]), batch_size=4, steps=20, out=sys.argv[1], resume=True,
              log=train.Log(every=3, progress=False))
except ValueError as error:
    print(error)
"""


def test_two_processes_cannot_go_on_with_one_run(tmp_path):
    said = []

    class During(train.Hook):
        def every(self, plan):
            return 7

        def act(self, at):
            environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).resolve().parents[2])}
            command = [sys.executable, "-c", SECOND, str(tmp_path / "r")]
            said.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
            if at.step == 14:
                raise MemoryError

    with pytest.raises(MemoryError):
        fit(tmp_path / "r", During(), save=train.Checkpointing(every=5))
    assert len(said) == 2
    for text in said:
        assert f"process {os.getpid()} is writing the run in {tmp_path / 'r'}" in text
    assert int(fit(tmp_path / "r", resume=True).state.data_step) == 20  # a run that failed holds nothing


# What is reported beside the run does not stop it


def test_a_step_made_of_keys_and_constants_trains_and_is_counted(tmp_path):
    def noisy(params, x):
        return x @ params["w"] + jax.random.gamma(jax.random.key(0), 2.0, (x.shape[0], 1))

    task = train.from_functions(lambda key, x: {"w": jnp.zeros((3, 1))}, noisy, losses.mse)
    fit(tmp_path / "r", task=task)
    rows = [json.loads(line) for line in (tmp_path / "r/timing.jsonl").read_text().splitlines()]
    assert rows
    assert all(row["flops_per_s"] > 0 for row in rows)


def test_a_step_that_cannot_be_counted_trains_and_says_so_once(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise NotImplementedError("no rule for the primitive of tomorrow.\nA long story.")

    monkeypatch.setattr(cost, "of", fail)
    run = fit(tmp_path / "r", log=train.Log(every=3))
    why = "NotImplementedError: no rule for the primitive of tomorrow"
    assert [event["reason"] for event in run.folder.journal.read("uncounted")] == [why]
    assert capsys.readouterr().out.count(why) == 1
    rows = [json.loads(line) for line in (tmp_path / "r/timing.jsonl").read_text().splitlines()]
    assert rows
    assert all("flops_per_s" not in row and row["steps_per_s"] > 0 for row in rows)
