"""`fit` with a step's settings: what is skipped and told, what validation is computed in, what a resume may change."""

import jax
import numpy as np
import optax
import pytest

from jaxnn import data, losses, models, optim, parallel, train, tree
from jaxnn.core.step import make_value_fn
from jaxnn.data import host_batch, order

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(64, 4)).astype(np.float32)
Y = np.sin(X[:, :1])
TASK = train.supervised(models.MLP((8, 1)), losses.mse)


def fit(x=X, tx=None, steps=16, resume=False, out=None, every=1, task=TASK, **given):
    return train.fit(
        task,
        tx or optim.adam(1e-2),
        data.Arrays(x, Y, allow_nonfinite=True),
        batch_size=8,
        steps=steps,
        seed=3,
        log=train.Log(every=every, progress=False, grad_norm=True),
        out=out,
        resume=resume,
        **given,
    )


def poisoned():
    """Data whose one bad example is in the batch of this data step (the first epoch has 8)."""
    ids = order.examples(3, 0, 8, n=64, batch_size=8)
    x = X.copy()
    x[ids[5, 2]] = np.inf
    return x, 5


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_a_bad_batch_ends_the_run_by_default_and_is_left_out_if_asked():
    x, bad = poisoned()
    stopped = fit(x, steps=8)
    assert f"not finite at step {bad + 1}" in stopped.stopped
    run = fit(x, steps=8, step=train.Step(nonfinite="skip"))
    assert run.stopped is None
    assert [row["skipped_steps"] for row in run.history] == [float(step == bad) for step in range(8)]
    assert np.isnan(run.history[bad]["loss"])
    assert all(np.isfinite(row["loss"]) for i, row in enumerate(run.history) if i != bad)
    assert (int(run.state.step), int(run.state.data_step)) == (7, 8)
    # A row of several steps: their mean without the one that was left out.
    coarse = fit(x, steps=8, every=4, step=train.Step(nonfinite="skip"))
    assert [row["skipped_steps"] for row in coarse.history] == [0, 1]
    rest = [row["loss"] for row in run.history[4:] if np.isfinite(row["loss"])]
    assert coarse.history[1]["loss"] == pytest.approx(np.mean(rest), rel=1e-5)
    same(run.state.params, coarse.state.params)
    # Streamed, a step a dispatch: the same bytes.
    streamed = fit(x, steps=8, step=train.Step(nonfinite="skip"), dispatch=train.Dispatch(resident=False))
    assert [row["skipped_steps"] for row in streamed.history] == [row["skipped_steps"] for row in run.history]


class GoBack(train.Hook):
    """Rewinds once, leaving out the bad data step."""

    def __init__(self, bad):
        self.bad, self.done = bad, False

    def every(self, plan):
        return 1

    def act(self, at):
        if at.step == self.bad + 1 and not self.done:
            self.done = True
            return train.Rewind(self.bad, (self.bad, self.bad + 1))
        return None


@pytest.mark.slow
def test_a_skipped_step_is_a_data_step_left_out_by_a_rewind(tmp_path):
    """The finite batch is left out by hand in one run; in the other it is poisoned, and left out by itself."""
    x, bad = poisoned()
    skip, save = train.Step(nonfinite="skip"), train.Checkpointing(every=1, minutes=None, keep=9)
    by_hand = fit(X, steps=8, step=skip, out=tmp_path / "run", save=save, hooks=[GoBack(bad)])
    by_itself = fit(x, steps=8, step=skip)
    same(by_hand.state, by_itself.state)


@pytest.mark.slow
def test_what_a_resume_may_change(tmp_path):
    given = {"step": train.Step(accumulate=2), "save": train.Checkpointing(every=2, minutes=None)}
    fit(steps=4, out=tmp_path / "run", **given)
    for other in (train.Step(), train.Step(accumulate=4), train.Step(accumulate=2, precision="bfloat16")):
        with pytest.raises(ValueError, match=r"another config: fit\.(accumulate: 2 -> |precision: absent -> )"):
            fit(steps=6, out=tmp_path / "run", resume=True, step=other)
    run = fit(steps=6, out=tmp_path / "run", resume=True, step=train.Step(accumulate=2, nonfinite="skip"))
    assert int(run.state.step) == 6
    assert run.folder.config["fit"]["nonfinite"] == "skip"
    whole = fit(steps=6, step=train.Step(accumulate=2, nonfinite="skip"))
    assert tree.leaves_by_path(run.state.params).keys() == tree.leaves_by_path(whole.state.params).keys()


@pytest.mark.slow
def test_averages_and_a_loss_scale_are_saved_and_validated_on(tmp_path):
    settings = train.Step(accumulate=2, precision="float16")
    tx = settings.optimizer(optim.ema(optim.adam(1e-2), 0.9))
    held = data.Arrays(X[:16], Y[:16])
    given = {"tx": tx, "step": settings, "validation": held, "validate_every": 4}
    whole = fit(steps=8, **given)
    parts = {"out": tmp_path / "run", "save": train.Checkpointing(every=4, minutes=None)}
    fit(steps=4, **given, **parts)
    resumed = fit(steps=8, resume=True, **given, **parts)
    same(whole.state, resumed.state)
    narrow = train.in_precision(TASK, "float16")
    batch = host_batch(held, np.arange(16))
    average = optim.eval_params(whole.state.opt_state, whole.state.params)
    sums = make_value_fn(narrow, train=False)(average, {}, batch, None)
    last = [row["val_loss"] for row in whole.history if "val_loss" in row][-1]
    assert last == pytest.approx(float(sums["loss"].sum / sums["loss"].weight), rel=1e-6)
    assert train.evaluate(whole.task, whole.state, held)["loss"] == pytest.approx(last, rel=1e-6)
    assert train.evaluate(TASK, whole.state, held)["loss"] != pytest.approx(last, rel=1e-5)  # in float32


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"step": 16}, TypeError, r"train\.fit: step must be a train\.Step, got 16.*steps=$|number of steps is steps="),
        ({"step": train.Step(accumulate=3)}, ValueError, r"train\.fit: accumulate=3 .* do not divide 8 examples"),
        ({"step": train.Step(precision="float16")}, ValueError, r"has 0.*tx = step\.optimizer\(tx\)"),
        ({"step": train.Step(nonfinite="skip"), "debug": True}, ValueError, r"debug=True looks for.*'skip' leaves"),
        ({"step": train.Step(remat="block")}, ValueError, r"remat='block' is for repeated layers"),
    ],
)
def test_what_is_refused_before_anything_is_compiled(given, error, match, count_compiles):
    with count_compiles() as seen, pytest.raises(error, match=match):
        fit(**given)
    assert seen.compiles == []


def test_micro_batches_over_devices_are_those_of_a_devices_part(devices8):
    with pytest.raises(ValueError, match=r"accumulate=2 .* do not divide 1 examples a device \(8 over 8\)"):
        fit(strategy=parallel.replicate(8), step=train.Step(accumulate=2))
    one = fit(tx=optax.sgd(0.1), steps=6)
    two = fit(tx=optax.sgd(0.1), steps=6, strategy=parallel.replicate(4), step=train.Step(accumulate=2))
    for a, b in zip(jax.tree.leaves(one.state.params), jax.tree.leaves(two.state.params)):
        np.testing.assert_allclose(a, b, atol=1e-6)
