"""Optimizers in a run: their metrics are logged, hooks change them, declared roles reach their groups."""

import jax
import numpy as np
import optax
import pytest

from jaxnn import data, losses, models, optim, parallel, train, tree
from jaxnn.train import setting_checks

X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)
QUIET = train.Log(progress=False, every=4)


def task():
    return train.supervised(models.MLP((8, 1)), losses.mse)


def fit(tx, **settings):
    settings = {"batch_size": 16, "steps": 12, "log": QUIET} | settings
    return train.fit(task(), tx, data.Arrays(X, Y), **settings)


def chain(lr):
    return optim.stages(
        clip=optim.clip_by_global_norm(0.1),
        groups=optim.groups(lion=(optim.role("matrix"), optim.lion_core()), adam=(optim.otherwise, optim.adam_core())),
        lr=optim.scale_by_lr(lr),
        metrics=("lr", "norms", "clip"),
    )


@pytest.mark.parametrize("strategy", [parallel.single, parallel.replicate, parallel.pmap])
def test_fit_logs_what_was_chosen(strategy):
    """optax #206, #326: it must be computed again outside."""
    run = fit(chain(1e-2), strategy=strategy())
    row = run.history[0]
    assert row["lr"] == pytest.approx(1e-2)
    assert row["clip"] == 1.0
    assert row["norm/grad"] > 0.1
    assert row["norm/ratio"] == pytest.approx(row["norm/update"] / row["norm/param"], rel=0.2)


class Halve(train.Hook):
    def every(self, plan):
        return 4

    def act(self, at):
        lr = float(jax.device_get(optim.hyper(at.state.opt_state)["lr"])) / 2
        return train.Replace(
            lambda s: s._replace(opt_state=optim.set_hyper(s.opt_state, lr=lr)), f"the rate is now {lr:g}"
        )


def test_a_hook_sets_a_hyperparameter():
    """optax #206, #412: neither seen nor changed in a run."""
    run = fit(optim.adam(0.04), hooks=[Halve()])
    assert run.column("lr")[1] == pytest.approx([0.04, 0.02, 0.01])


def test_plateaus_reduce_the_rate_also_of_a_schedule():
    hook = train.ReduceOnPlateau("loss", patience=1, min_delta=1e9, factor=0.1)
    run = fit(optim.adam(optax.constant_schedule(0.01)), hooks=[hook], steps=20)
    assert min(run.column("lr")[1]) == pytest.approx(1e-6, rel=1e-3) or len(set(run.column("lr")[1])) > 2


def test_roles_that_modules_declare_reach_the_groups():
    """A scan over layers stacks vectors into matrices; only the module knows."""
    batch = {"x": np.zeros((2, 8), np.int32), "y": np.zeros((2, 8), np.int32)}
    for scan in (False, True):
        net = models.GPT(models.GPTConfig(vocab=16, length=8, width=8, layers=2, heads=2, scan=scan))
        state = train.init_state(
            train.supervised(net, losses.cross_entropy), chain(1e-3), batch, strategy=parallel.single()
        )
        matrices = tree.leaves_by_path(optim.get(state.opt_state, "lion.mu"))
        vectors = tree.leaves_by_path(optim.get(state.opt_state, "adam.mu"))
        assert {path.rsplit("/", 1)[-1] for path in matrices} == {"kernel"}
        assert any(x.ndim == 2 for path, x in vectors.items() if path.startswith("blocks/")) == scan


def test_a_schedule_that_ends_before_the_run_is_refused():
    with pytest.raises(ValueError, match=r"the schedule of 'lr.lr' ends at step 10, the run has 12 steps"):
        fit(optim.adam(optim.linear(1e-2, 0.0, steps=10)))


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (lambda: optim.adam(lambda s: 1e-3 - s * 2e-4), r"the schedule of 'lr.lr' is -0.0002 at step 6.*number >= 0"),
        (lambda: optim.sgd(optax.linear_schedule(1e-3, -1e-3, 10)), r"the schedule of 'lr.lr' is -.* at step 6"),
        (
            lambda: optim.adam(1e-3, b2=optax.linear_schedule(0.9, 1.0, 10)),
            r"the schedule of 'adam.b2' is 1 at step 10 .* in \[0, 1\)",
        ),
        (lambda: optim.ema(optim.adam(optax.linear_schedule(1e-3, -1e-3, 10))), r"the schedule of 'inner.lr.lr' is -"),
    ],
    ids=["lambda", "optax", "b2", "wrapped"],
)
def test_a_schedule_that_leaves_its_domain_in_the_run_is_refused(tx, message):
    """optax: a rate that turns negative climbs, without a word."""
    with pytest.raises(ValueError, match=rf"train.fit: {message}"):
        fit(tx(), steps=13)


def test_a_schedule_that_ends_at_nothing_but_rounding_is_accepted():
    for schedule in (lambda s: 1e-3 * (1 - s / 12.0) - 1e-11, optax.cosine_decay_schedule(1e-3, 12)):
        setting_checks.schedules_make_sense("here", optim.sgd(schedule), 13)
