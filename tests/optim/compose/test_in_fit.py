"""What wraps an optimizer, in a run: bfloat16 parameters, eight-bit state, skipped steps logged, resumed exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import data, losses, models, optim, parallel, train

X = np.random.default_rng(0).normal(size=(128, 8)).astype(np.float32)
Y = np.tanh(X[:, :1])


def build():
    whole = optim.stages(
        clip=optim.clip_by_global_norm(1.0), adam=optim.adam_core(), lr=optim.scale_by_lr(1e-2), metrics=("lr", "norms")
    )
    return optim.skip_nonfinite(optim.stochastic_rounding(optim.with_state_dtype(whole, optim.q8)))


def half(net):
    """A task whose parameters are bfloat16."""
    task = train.supervised(net, losses.mse)

    def init(key, batch):
        params, state = task.init(key, batch)
        return jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), state

    return dataclasses.replace(task, init=init, module=None)


def fit(tx, **settings):
    settings = {"batch_size": 16, "steps": 24, "log": train.Log(progress=False, every=8)} | settings
    return train.fit(train.supervised(models.MLP((16, 1)), losses.mse), tx, data.Arrays(X, Y), **settings)


@pytest.mark.parametrize("strategy", [parallel.single, parallel.replicate])
def test_it_trains_and_its_metrics_are_logged(strategy):
    run = fit(build(), strategy=strategy(), steps=64)
    assert run.history[-1]["loss"] < 0.3 * run.history[0]["loss"]
    assert run.history[-1]["skipped"] == 0
    assert run.history[-1]["lr"] == pytest.approx(1e-2)
    assert jax.tree.leaves(optim.get(run.state.opt_state, "nu"))[0].dtype in (jnp.uint8, jnp.float32)


def test_a_run_resumes_to_the_bit(tmp_path):
    whole = fit(build(), steps=24)
    fit(build(), steps=16, out=tmp_path / "run", save=train.Checkpointing(every=8))
    resumed = fit(build(), steps=24, out=tmp_path / "run", save=train.Checkpointing(every=8), resume=True)
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(resumed.state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_bad_batch_is_skipped_and_counted():
    x = X.copy()
    x[5] = np.inf
    task = train.supervised(models.MLP((16, 1)), losses.mse)
    run = train.fit(
        task,
        build(),
        data.Arrays(x, Y, allow_nonfinite=True),
        batch_size=16,
        steps=16,
        log=train.Log(progress=False, every=8),
    )
    assert float(optim.metrics(run.state.opt_state)["skipped"]) == 2  # example 5 in each of two epochs
    assert run.history[-1]["skip"] == 1 / 8  # the share of the window
    assert all(bool(jnp.isfinite(p).all()) for p in jax.tree.leaves(run.state.params))


def test_half_precision_parameters_learn():
    """optax #1444: at a rate whose steps are below the parameters' spacing they stand still."""

    def moved(tx):
        run = train.fit(
            half(models.MLP((1,))),
            tx,
            data.Arrays(X, Y),
            batch_size=128,
            steps=100,
            log=train.Log(progress=False, every=50),
        )
        assert all(p.dtype == jnp.bfloat16 for p in jax.tree.leaves(run.state.params))
        return run.history[0]["loss"] - run.history[-1]["loss"]

    assert moved(optim.stochastic_rounding(optim.sgd(1e-3))) > 1.2 * moved(optim.sgd(1e-3))
