"""The clock between rows, by a clock that the test sets."""

import json

import jax
import numpy as np
import optax
import pytest

from jaxnn import data, losses, models, parallel, train
from jaxnn.train import engine, speed
from jaxnn.typing import Mean

PLAN = train.Plan(steps=100, epoch=10, log_every=10, validate_every=None, batch_size=4)
LOSS = Mean(np.ones(10), np.full(10, 4.0))


@pytest.fixture
def clock(monkeypatch):
    """`clock.append(seconds)` lets so much time pass."""
    passed = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: sum(passed))
    return passed


@pytest.fixture
def watch(clock):
    made = speed.Speed(PLAN, 7.0)
    yield made
    made.close()


def test_rates_are_of_training_and_shares_of_the_whole(clock, watch):
    clock.append(2.0)
    with watch.aside():
        clock.append(3.0)
    with watch.aside(saving=True):
        clock.append(5.0)
    row = watch.row(10, 0.5, LOSS)
    assert (row["steps_per_s"], row["examples_per_s"], row["flops_per_s"]) == (5.0, 20.0, 35.0)
    assert (row["wait_share"], row["save_share"]) == (0.25, 0.5)
    assert row["left_s"] == 90.0
    clock.append(1.0)
    assert watch.row(20, 0.5, LOSS)["wait_share"] == 0.0


def test_a_save_inside_a_hook_is_set_aside_once(clock, watch):
    clock.append(2.0)
    with watch.aside():
        clock.append(1.0)
        with watch.aside(saving=True):
            clock.append(5.0)
    row = watch.row(10, 0.0, LOSS)
    assert row["steps_per_s"] == 5.0
    assert row["save_share"] == 0.625


def test_a_restart_inside_a_hook_forgets_what_was_before(clock, watch):
    clock.append(2.0)
    with watch.aside():
        clock.append(4.0)
        watch.restart(0, 1.5)
        clock.append(1.0)
    clock.append(2.0)
    row = watch.row(10, 2.0, LOSS)
    assert row["steps_per_s"] == 5.0
    assert row["wait_share"] == 0.25


def test_the_first_compilation_is_in_no_rate(clock, tmp_path, no_report):
    class Slow(parallel.Single):
        """Takes 100 seconds to compile."""

        def compile(self, chunk):
            program, first = super().compile(chunk), [100.0]

            def run(*arguments):
                clock.append(first.pop() if first else 0.0)
                clock.append(1.0)
                return program(*arguments)

            return run

    x = np.ones((8, 3), np.float32)
    train.fit(
        train.supervised(models.MLP((1,)), losses.mse),
        optax.sgd(0.1),
        data.Arrays(x, x[:, :1]),
        batch_size=4,
        steps=30,
        strategy=Slow(parallel.single().device),
        log=train.Log(every=10, progress=False),
        out=tmp_path / "r",
    )
    lines = [json.loads(line) for line in (tmp_path / "r" / "timing.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines][-1] == 30
    assert min(line["steps_per_s"] for line in lines) >= 0.5


@pytest.fixture
def device(clock, monkeypatch):
    """A strategy whose device takes 10 ms a step by that clock; `most` steps were outstanding at once."""
    sent, fetch = [], jax.device_get

    class Device(parallel.Single):
        most = 0

        def compile(self, chunk):
            program = super().compile(chunk)

            def run(state, arrays, rows, k):
                sent.append(int(k))
                Device.most = max(Device.most, sum(sent))
                return program(state, arrays, rows, k)

            return run

    def device_get(tree):
        for _ in tree if isinstance(tree, list) else ():
            clock.append(0.01 * sent.pop(0))
        return fetch(tree)

    monkeypatch.setattr(jax, "device_get", device_get)
    return Device(parallel.single().device)


X = np.ones((8, 3), np.float32)


def fit(strategy, **changes):
    task = train.supervised(models.MLP((1,)), losses.mse)
    return train.fit(task, optax.sgd(0.1), data.Arrays(X, X[:, :1]), batch_size=4, strategy=strategy, **changes)


class Cut(train.Hook):
    def every(self, plan):
        return 60

    def act(self, at):
        pass


def test_no_rate_is_of_steps_that_were_fetched_a_moment_after_others(device, tmp_path, no_report):
    """What is fetched together is one row of timing: a clock in between would find steps that took no time."""
    fit(device, steps=300, hooks=[Cut()], log=train.Log(every=5, progress=False), out=tmp_path / "r")
    lines = [json.loads(line) for line in (tmp_path / "r" / "timing.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 300
    rates = [line["steps_per_s"] for line in lines[1:]]  # the first begins after the step that waited for the compiler
    np.testing.assert_allclose(rates, 100.0, rtol=1e-6)


def test_no_more_is_queued_than_a_quarter_of_a_second_and_a_dispatch(device):
    """Or Ctrl-C would wait for it: the queue is sized by the dispatches to come, not by the short ones before them."""
    fit(device, steps=400, log=train.Log(every=100, progress=False))
    assert 25 < device.most <= (engine.DISPATCH_S + engine.QUEUE_S) / 0.01 + 1
