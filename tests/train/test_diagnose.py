"""Each verdict: a run that has the trouble, and a healthy run that has none. Runs are made once and shared."""

import functools
import re
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import bench, data, losses, metrics, models, optim, train
from jaxnn.bench.probes import Peak
from jaxnn.bench.statistics import Interval
from jaxnn.train.diagnosis import curves, quality, speed
from jaxnn.train.diagnosis.probe import Probe

QUIET = train.Log(progress=False)
SPEED = {"waiting for data", "dispatch-bound", "recompiling", "memory-bound"}


@functools.cache
def friedman(count, seed):
    """Friedman's function of ten inputs; targets of mean 0 and variance 1."""
    draw = np.random.default_rng(seed)
    x = draw.uniform(size=(count, 10))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y = (y + draw.normal(size=count) - 14.4) / 5
    return x.astype(np.float32), y[:, None].astype(np.float32)


X, Y = friedman(1000, 0)
HELD = data.Arrays(*friedman(500, 1))


def mlp(features=(64, 1), **settings):
    return train.supervised(models.MLP(features, **settings), losses.mse)


def fit(task=None, tx=None, *, x=X, y=Y, epochs=15, validation=HELD, log=QUIET, **settings):
    source = data.Arrays(x, y)
    return train.fit(
        task or mlp(),
        tx or optax.adam(1e-3),
        source,
        batch_size=32,
        epochs=epochs,
        validation=validation,
        log=log,
        **settings,
    )


def line():
    """The article's y = 2x + 1."""
    draw = np.random.default_rng(0)
    x = draw.uniform(-1, 1, (100, 1))
    y = 2 * x + 1 + 0.1 * draw.normal(size=x.shape)
    source = data.Arrays(x.astype(np.float32), y.astype(np.float32))
    return train.fit(mlp((1,)), optax.sgd(0.01), source, batch_size=1, epochs=60, log=QUIET)


def images():
    """Four classes of small images by where a bar lies."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, 4, 320).astype(np.int32)
    x = 0.3 * draw.normal(size=(320, 14, 14, 1)).astype(np.float32)
    for i, at in enumerate(y):
        x[i, 2 + 3 * at : 5 + 3 * at, 3:10] += 1
    task = train.supervised(models.CNN((4, 8), (16,), 4), losses.cross_entropy, {"accuracy": metrics.accuracy})
    held = data.Arrays(x[256:], y[256:])
    return train.fit(
        task, optax.adam(3e-3), data.Arrays(x[:256], y[:256]), batch_size=32, epochs=8, validation=held, log=QUIET
    )


def nnx_run():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(10, 32, rngs=rngs), nnx.Linear(32, 1, rngs=rngs)

        def __call__(self, x):
            return self.b(nnx.relu(self.a(x)))

    return fit(train.from_nnx(lambda rngs: Net(rngs), losses.mse))


def bare():
    def init(key, x):
        one, two = jax.random.split(key)
        return {"in": 0.3 * jax.random.normal(one, (10, 32)), "out": 0.1 * jax.random.normal(two, (32, 1))}

    return fit(train.from_functions(init, lambda p, x: jax.nn.relu(x @ p["in"]) @ p["out"], losses.mse))


HEALTHY = {
    "regression_mlp": lambda: fit(epochs=40),
    "linear_regression": line,
    "cnn": images,
    "nnx": nnx_run,
    "functions": bare,
    # Its first and last updates are nearly 0: what is measured there says nothing of the rate.
    "warm up and cosine": lambda: fit(tx=optax.adam(optax.warmup_cosine_decay_schedule(0, 3e-3, 50, 480))),
}
MIXED = np.random.default_rng(3).permutation(1000)
SICK = {
    "rate too high": lambda: fit(tx=optax.sgd(2.0)),
    "rate too high, stuck": lambda: fit(tx=optax.adam(1.0)),
    "rate too low": lambda: fit(tx=optax.sgd(1e-6)),
    "underfitting": lambda: fit(mlp((1,)), optax.adam(1e-2), epochs=80),
    "overfitting": lambda: fit(mlp((256, 256, 1)), optax.adam(3e-3), x=X[:40], y=Y[MIXED][:40], epochs=80),
    "overfitting, apart": lambda: fit(mlp((256, 1)), optax.adam(3e-3), x=X[:32], y=Y[:32], epochs=400),
    "dead units": lambda: fit(mlp(activation=lambda a: nn.relu(a - 30))),
    "identical units": lambda: fit(mlp((32, 32, 1), kernel_init=nn.initializers.constant(0.05))),
    "identical units, all 0": lambda: fit(mlp((32, 32, 1), kernel_init=nn.initializers.zeros)),
    "exploding gradients": lambda: fit(mlp((64, 64, 64, 1), kernel_init=nn.initializers.normal(3.0)), optax.sgd(1e-3)),
    "vanishing gradients": lambda: fit(mlp((16,) * 8 + (1,), activation=nn.sigmoid), optax.sgd(1e-2)),
    "input scale": lambda: fit(x=1000 * X + 5000, validation=None),
    "label scale": lambda: fit(y=3000 * Y + 10000, validation=None),
    "unrelated labels": lambda: fit(mlp((2, 1)), optax.adam(1e-2), y=Y[MIXED], epochs=40, validation=None),
}
made = functools.cache(lambda name: {**HEALTHY, **SICK}[name]())
found = functools.cache(lambda name: train.diagnose(made(name)))


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_has_no_verdict(name):
    diagnosis = found(name)
    assert not set(diagnosis.names) - SPEED, str(diagnosis)
    assert "could not be measured" not in str(diagnosis)


def test_a_healthy_run_is_not_slow():
    diagnosis = found("regression_mlp")
    assert not diagnosis
    assert len(diagnosis) == 0
    assert diagnosis.names == ()
    assert "no trouble found" in str(diagnosis)


@pytest.mark.parametrize("name", SICK)
def test_each_trouble_is_named_with_evidence(name):
    diagnosis = found(name)
    verdict = diagnosis[name.partition(",")[0]]
    assert verdict.question == "it does badly"
    assert re.search(r"\d", verdict.evidence)
    assert verdict.suggestion[-1] in ".?"
    assert diagnosis
    assert "could not be measured" not in str(diagnosis)


def test_the_cause_is_named_before_its_effects_and_not_what_follows_from_it():
    assert found("rate too high, stuck").names == ("rate too high", "dead units")
    for name in ("dead units", "input scale", "vanishing gradients", "rate too low", "identical units"):
        assert found(name).names == (name,), str(found(name))


def test_figures_are_those_of_the_run():
    low = found("rate too low")["rate too low"]
    last = made("rate too low").column("loss")[1][-12:]
    assert f"to {np.mean(last[-3:]):.4g}"[:7] in low.evidence
    assert "1000 times the rate" in low.suggestion
    assert "64 of 64 units of hidden_0/kernel" in found("dead units")["dead units"].evidence
    assert "5.5e+03" in found("input scale")["input scale"].evidence
    assert "y = (y - " in found("label scale")["label scale"].suggestion
    wanted = re.search(r"- ([\d.e+]+)\) / ([\d.e+]+)", found("label scale")["label scale"].suggestion)
    (3000 * Y + 10000).mean(), (3000 * Y).std()
    np.testing.assert_allclose(
        [float(wanted[1]), float(wanted[2])], [(3000 * Y + 10000).mean(), (3000 * Y).std()], 0.02
    )


# ---- it is slow


class Source:
    """A source that does not live on the device: `width` of the inputs by a batch's ids, `sleep` seconds a batch."""

    def __init__(self, width=lambda index: 10, sleep=0.0):
        self.width, self.sleep = width, sleep

    def __len__(self):
        return len(X)

    def take(self, index):
        time.sleep(self.sleep)
        return {"x": np.repeat(X[index][:, :1], self.width(index), 1), "y": Y[index]}

    def resident(self):
        return None


def mean_task():
    """Takes inputs of any width."""

    def init(key, x):
        return jnp.zeros(2)

    return train.from_functions(init, lambda p, x: p[0] * jnp.mean(x, 1, keepdims=True) + p[1], losses.mse)


def stream(source, steps=60, **settings):
    return train.fit(mean_task(), optax.sgd(0.01), source, batch_size=8, steps=steps, log=QUIET, **settings)


def speed_of(run, **settings):
    return set(train.diagnose(run, **settings).names) & SPEED


@pytest.fixture(scope="module")
def waiting(tmp_path_factory):
    return stream(Source(sleep=0.01), out=tmp_path_factory.mktemp("runs") / "waiting")


def test_waiting_for_data(waiting):
    verdict = train.diagnose(waiting)["waiting for data"]
    assert verdict.severity == "severe"
    assert "a step without it" in verdict.evidence
    assert "waiting for data" not in train.diagnose(stream(Source())).names


def test_a_folder_tells_what_its_files_tell(waiting):
    for given in (waiting.folder, waiting.folder.path, str(waiting.folder.path)):
        diagnosis = train.diagnose(given)
        assert diagnosis.names == ("waiting for data",)
        assert any("a folder has no task" in text for text in diagnosis.unknown)


def test_recompiling_names_the_shapes():
    run = stream(Source(width=lambda index: 4 + int(index.sum()) % 7), steps=30)
    verdict = train.diagnose(run)["recompiling"]
    assert len(run.conditions.traced) > 3
    assert run.conditions.traced[0] in verdict.evidence


class Compiles(train.Hook):
    """Jits a new function each time."""

    def __init__(self, anew):
        self.anew, self.kept = anew, jax.jit(lambda x: x + 1)

    def every(self, plan):
        return 10

    def act(self, at):
        (jax.jit(lambda x: x + 1) if self.anew else self.kept)(np.float32(at.step))


@pytest.mark.parametrize("anew", [True, False])
def test_recompiling_in_a_hook(anew):
    run = stream(data.Arrays(X, Y), steps=120, hooks=[Compiles(anew)])
    assert ("recompiling" in train.diagnose(run).names) is anew


def test_dispatch_bound():
    steps = 3000
    one = stream(data.Arrays(X, Y), steps, dispatch=train.Dispatch(most=1))
    assert one.conditions.dispatches == one.conditions.steps == steps
    verdict = train.diagnose(one)["dispatch-bound"]
    assert "Dispatch(most=1)" in verdict.suggestion
    streamed = stream(data.Arrays(X, Y), steps, dispatch=train.Dispatch(resident=False))
    assert speed_of(streamed) <= {"dispatch-bound", "waiting for data"}
    assert speed_of(streamed)
    many = stream(data.Arrays(X, Y), steps)
    assert many.conditions.dispatches < 100
    assert not speed_of(many)


def machine(copy, product):
    """A machine of these bytes and FLOPs a second."""
    values = {"copy": copy, "product float32": product}
    return bench.Peaks("a machine", {n: Peak(n, v, Interval(v, v), "") for n, v in values.items()})


@pytest.mark.slow
def test_memory_bound_is_by_what_the_machine_can_do():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(32, 3000)).astype(np.float32)
    source = data.Arrays(x, x[:, :1])
    run = train.fit(mlp((3000, 1)), optax.adam(1e-4), source, batch_size=1, steps=40, log=QUIET)
    assert speed_of(run, peaks=machine(1e6, 1e15)) == {"memory-bound"}
    probe = Probe(run, source)

    def of(peaks):
        return speed.verdicts(run.timing, run.conditions, probe, peaks, [], [])

    assert not of(machine(1e15, 1e15))
    assert not of(machine(1e6, 1e3))  # compute bound before that
    assert "memory-bound" not in found("regression_mlp").names


# ---- the parts


def test_what_is_not_finite_without_the_rates_fault():
    x = X.copy()
    x[500, 3] = np.nan
    source = data.Arrays(x, Y, allow_nonfinite=True)
    run = train.fit(mlp(), optax.sgd(1e-3), source, batch_size=32, epochs=2, log=QUIET)
    names = train.diagnose(run, data.Arrays(X, Y)).names
    assert "not finite" in names
    assert "rate too high" not in names


def test_it_reads_in_a_terminal_and_in_a_notebook():
    diagnosis = found("dead units")
    text = str(diagnosis)
    assert repr(diagnosis) == text
    assert max(map(len, text.splitlines())) <= 120
    assert "it is slow: nothing found" in text or "it is slow:\n" in text
    assert "hidden_0/kernel" in diagnosis._repr_html_()
    assert "<table" in diagnosis._repr_html_()
    with pytest.raises(KeyError, match=r"no verdict 'overfitting'\. Found: dead units"):
        diagnosis["overfitting"]


def test_what_it_refuses():
    with pytest.raises(TypeError, match=r"train\.diagnose: the first argument must be a run or its folder, got int"):
        train.diagnose(3)
    with pytest.raises(TypeError, match=r"train\.diagnose: the data must be a data source"):
        train.diagnose(made("regression_mlp"), X)
    with pytest.raises(ValueError, match="folder"):
        train.diagnose("nowhere/at/all")
    one = fit(tx=optim.adam(1e-3), population=optim.grid(lr=[1e-3, 1e-2]), epochs=1, validation=None)
    with pytest.raises(ValueError, match=r"population of 2\. Diagnose one: run\.member\(0\)"):
        train.diagnose(one)
    assert train.diagnose(one.member(0)).unknown


def test_curves_fall_lie_flat_or_cannot_be_told():
    def of(values):
        return curves.curve([{"step": i, "loss": float(v)} for i, v in enumerate(values)], "loss")

    draw, t = np.random.default_rng(0), np.arange(100)
    assert of(t[:7]) is None
    straight = of(100.0 - 0.5 * t)
    assert straight.falling
    assert not straight.flat
    assert abs(straight.late_share - 0.5) < 0.1
    learned = of(np.exp(-t / 10) + 1)
    assert learned.flat
    assert not learned.falling
    assert learned.late_share < 0.05
    noisy = of(1 + draw.normal(size=100))
    assert not noisy.falling
    assert not noisy.flat
    assert of(np.r_[t[::-1], np.nan]).values.shape == (100,)


def test_a_single_low_value_is_no_best():
    assert curves.rises_again(np.array([3, 2, 1, 1.5, 2, 2.5]), 0.2)[0] in (2, 3)
    assert curves.rises_again(np.array([3, 0.5, 2, 1.9, 1.8, 1.7]), 0.2) is None
    assert curves.rises_again(np.array([3, 2, 1, 1.01, 1.02, 1.01]), 0.2) is None


def test_explained_of_numbers_and_of_classes():
    y = np.random.default_rng(0).normal(size=(50, 2))
    assert quality.explained(y, y) == 1
    assert abs(quality.explained(np.broadcast_to(y.mean(0), y.shape), y)) < 1e-12
    task = train.supervised(models.MLP((3,)), losses.cross_entropy)
    labels, logits = np.array([0, 1, 2, 1]), np.zeros((4, 3))
    targets = quality.targets_of(task, {"y": labels}, logits)
    np.testing.assert_allclose(targets.predicted(logits), 1 / 3)
    assert quality.explained(targets.predicted(100 * np.eye(3)[labels]), targets.values) > 0.999
    assert quality.targets_of(train.supervised(models.MLP((3,)), lambda o, t: o[:, 0]), {"y": labels}, logits) is None


def test_the_reference_learns_what_there_is_and_nothing_else():
    assert quality.reference(X, Y) > 0.8
    assert quality.reference(X, Y[MIXED]) < 0.1
    assert quality.reference(X[:20], Y[:20]) is None
