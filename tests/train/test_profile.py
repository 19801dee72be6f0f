"""A span of steps traced in the middle of a run: the table names what the model computes, and the run is unchanged."""

import json

import numpy as np
import optax
import pytest

from jaxnn import data, losses, models, train

X = np.linspace(-1, 1, 64 * 8, dtype=np.float32).reshape(64, 8)
Y = X.sum(1, keepdims=True)


def fit(tmp_path, name, resident, **log):
    return train.fit(
        train.supervised(models.MLP((32, 1)), losses.mse),
        optax.adam(1e-2),
        data.Arrays(X, Y),
        batch_size=16,
        steps=12,
        out=tmp_path / name,
        log=train.Log(every=5, progress=False, **log),
        dispatch=train.Dispatch(resident=resident),
    )


@pytest.mark.parametrize("resident", [True, False])
def test_the_trace_is_a_table_of_operations_with_their_layers(tmp_path, resident, no_report):
    run = fit(tmp_path, "traced", resident, profile=(3, 6))
    plain = fit(tmp_path, "plain", resident)
    assert (tmp_path / "traced/metrics.jsonl").read_bytes() == (tmp_path / "plain/metrics.jsonl").read_bytes()
    assert run.history == plain.history
    (event,) = run.folder.journal.read("profile")
    assert event["step"] == 6
    table = (tmp_path / "traced/profile/operations.txt").read_text()
    assert event["table"] == table.rstrip("\n")
    assert "MLP/hidden_0" in table
    shares = [float(line.split("%")[0]) for line in table.splitlines()[1:]]
    assert shares == sorted(shares, reverse=True)
    assert 50 < sum(shares) <= 100.5


def test_a_run_that_stops_inside_the_span_closes_the_trace(tmp_path, no_report):
    class Halt(train.Hook):
        def every(self, plan):
            return 4

        def act(self, at):
            return train.Stop("enough")

    train.fit(
        train.supervised(models.MLP((1,)), losses.mse),
        optax.sgd(1e-2),
        data.Arrays(X, Y),
        batch_size=16,
        steps=12,
        out=tmp_path / "run",
        hooks=[Halt()],
        log=train.Log(every=5, progress=False, profile=(2, 9)),
    )
    assert (tmp_path / "run/profile/operations.txt").exists()


@pytest.mark.parametrize("span", [(3, 3), (5, 2), (0, 13), (-1, 4), (3,)])
def test_a_span_that_the_run_does_not_have_is_refused(tmp_path, span):
    with pytest.raises(ValueError, match=r"train\.fit: log\.profile is .* in a run of 12 steps\. Give \(start, stop\)"):
        fit(tmp_path, "never", True, profile=span)
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
def test_timing_rows_count_flops_and_compilations_and_peaks_are_journalled(tmp_path, no_report):
    run = fit(tmp_path, "timed", True, peaks=True)
    rows = [json.loads(line) for line in (tmp_path / "timed/timing.jsonl").read_text().splitlines()]
    # Two dense layers of 8x32 and 32x1 on 16 examples: forward, and both gradients but the first layer's input.
    products = 2 * 16 * (8 * 32 * 2 + 32 * 1 * 3)
    for row in rows:
        assert products < row["flops_per_s"] / row["steps_per_s"] < 1.5 * products  # and Adam's elementwise work
    assert sum(row["compilations"] for row in rows) >= 1
    (event,) = run.folder.journal.read("peaks")
    assert event["product float32"] > 1e9
