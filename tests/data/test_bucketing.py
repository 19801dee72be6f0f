"""Batches of similar length: which examples meet is arithmetic, and what they give is what they give uncut."""

import dataclasses
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import data, losses, models, parallel, train
from jaxnn.data import bucketing, order
from jaxnn.models.layers import Dense, Embed
from jaxnn.train.diagnosis import speed

N, T, B = 43, 12, 8
LENGTHS = np.random.default_rng(0).integers(1, T + 1, N)
QUIET = train.Log(every=1, progress=False)


def padded() -> data.Arrays:
    """Tokens 1 to 9, padded by 0; each one's target is another token, and padding weighs nothing."""
    x = np.random.default_rng(1).integers(1, 10, (N, T)).astype(np.int32)
    inside = np.arange(T) < LENGTHS[:, None]
    return data.Arrays(np.where(inside, x, 0), np.where(inside, 10 - x, 0), weights=inside.astype(np.float32))


def bucketed(source=None, buckets=(4, 8)) -> bucketing.Bucketed:
    return data.bucketed(padded() if source is None else source, LENGTHS, buckets, arrays=("x", "y", "weights"))


class Uncut(bucketing.Bucketed):
    """The same examples in the same order, at full length."""

    def take(self, index, step=0, length=None):
        return self.source.take(index)


class Tagger(nn.Module):
    """What a token is, from itself and the mean of the others: padding takes no part in it."""

    @nn.compact
    def __call__(self, x):
        y, real = Embed(10, 8)(x), (x != 0)[..., None].astype(jnp.float32)
        mean = jnp.sum(y * real, axis=1, keepdims=True) / jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
        return Dense(10)(y + mean)


TASK = train.supervised(Tagger(), losses.cross_entropy)


@pytest.mark.parametrize(("batch_size", "shuffle"), [(1, True), (8, True), (8, False), (50, True)])
def test_each_example_once_an_epoch_and_alike_lengths_together(batch_size, shuffle):
    source = bucketed()
    ids = data.epoch_order(source, 5, batch_size, shuffle)
    steps = order.steps_per_epoch(N, batch_size)
    epochs = [ids(e * steps, steps) for e in range(3)]
    for rows in epochs:
        assert sorted(rows[rows >= 0].tolist()) == list(range(N))
        assert (rows < 0).any(axis=1).sum() <= 1  # as without buckets, one ragged batch at most
        real = [source.padded_to[row[row >= 0]] for row in rows]
        # Of each length but the last, those that fill no batch are in longer ones.
        assert sum((lengths < lengths.max()).sum() for lengths in real) <= 2 * (batch_size - 1)
        assert {bucketing.batch_length(source, row) for row in rows} <= {4, 8, 12}
    assert (epochs[0] == epochs[1]).all() == (not shuffle)
    if not shuffle:
        lengths = [bucketing.batch_length(source, row) for row in epochs[0]]
        assert lengths == sorted(lengths)
    else:
        assert (data.epoch_order(source, 6, batch_size)(0, steps) != epochs[0]).any()
    # Any steps can be asked for, across epochs, one by one.
    whole = np.concatenate(epochs)
    np.testing.assert_array_equal(np.concatenate([ids(i, 1) for i in range(3 * steps)]), whole)
    np.testing.assert_array_equal(ids(steps - 1, steps + 1), whole[steps - 1 : 2 * steps])
    assert ids(3, 0).shape == (0, batch_size)


def test_who_is_left_of_a_length_differs_from_epoch_to_epoch():
    source = bucketed(buckets=(6,))
    short = np.flatnonzero(source.padded_to == 6)
    assert len(short) % B
    ids, steps = data.epoch_order(source, 0, B), order.steps_per_epoch(N, B)
    left = []
    for epoch in range(4):
        rows = [row for row in ids(epoch * steps, steps) if bucketing.batch_length(source, row) == T]
        left.append(tuple(sorted(i for row in rows for i in row if i in short)))
    assert {len(some) for some in left} == {len(short) % B}
    assert len(set(left)) > 1


def test_a_batch_is_cut_to_what_its_longest_example_needs_whoever_reads_it():
    source = bucketed()
    short, long = np.argsort(LENGTHS)[:4], np.argsort(LENGTHS)[-2:]
    assert source.take(short)["x"].shape == (4, 4)
    ids = np.array([*short, *long, -1, -1])
    whole = data.host_batch(source, ids)
    assert whole["y"].shape == whole["weights"].shape == (8, T)
    parts = [data.host_batch(source, ids, part=(i, 4)) for i in range(4)]  # the first two hold short examples only
    for name, x in whole.items():
        np.testing.assert_array_equal(x, np.concatenate([part[name] for part in parts]))
    cut = data.host_batch(source, np.array([*short, -1]))
    assert cut["x"].shape == (5, 4)
    np.testing.assert_array_equal(cut["x"][:4], padded().take(short)["x"][:, :4])
    assert source.resident() is None
    doubled = data.mapped(source, lambda batch: {**batch, "x": 2 * batch["x"]})
    np.testing.assert_array_equal(doubled.padded_to, source.padded_to)
    np.testing.assert_array_equal(data.host_batch(doubled, ids, part=(0, 4))["x"], 2 * parts[0]["x"])


def test_training_is_that_on_the_same_examples_uncut():
    def run(source, **changes):
        options = {"batch_size": B, "epochs": 2, "log": QUIET} | changes
        return train.fit(TASK, optax.sgd(0.5), source, **options)

    cut = run(bucketed(), validation=bucketed(), debug=True)  # fails if it is traced more often than there are lengths
    uncut = run(Uncut(padded(), LENGTHS, (4, 8), ("x", "y", "weights")), validation=padded())
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(cut.column(name)[1], uncut.column(name)[1], rtol=2e-6)
    for x, y in zip(jax.tree.leaves(cut.state.params), jax.tree.leaves(uncut.state.params)):
        np.testing.assert_allclose(x, y, atol=1e-6)
    traced = cut.conditions.traced
    assert len(traced) == 3  # a program a length
    assert all(any(f"x int32[{B}, {n}]" in text for text in traced) for n in (4, 8, 12))
    for times, found in ((5, []), (6, ["recompiling"])):  # that many are no fault
        conditions = dataclasses.replace(cut.conditions, traced=tuple(map(str, range(times))))
        assert [v.name for v in speed.verdicts([], conditions, None, None, [], [])] == found


@pytest.mark.slow
def test_two_devices_train_alike():
    options = {"batch_size": B, "epochs": 2, "log": QUIET}
    one = train.fit(TASK, optax.sgd(0.5), bucketed(), **options)
    two = train.fit(TASK, optax.sgd(0.5), bucketed(), strategy=parallel.replicate(jax.devices()[:2]), **options)
    np.testing.assert_allclose(two.column("loss")[1], one.column("loss")[1], rtol=2e-6)


def test_it_goes_on_to_the_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["jaxnn.train.fit"], "write_summary", lambda *_, **__: None)

    def run(name, steps, source=None, **more):
        source = bucketed(buckets=(6,)) if source is None else source
        folder = {"out": tmp_path / name, "save": train.Checkpointing(every=100, minutes=None)}
        return train.fit(TASK, optax.adam(0.1), source, batch_size=B, steps=steps, log=QUIET, **folder, **more)

    whole = run("whole", 9)
    run("cut", 4)
    again = run("cut", 9, resume=True)
    files = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
    for x, y in zip(jax.tree.leaves(whole.state.params), jax.tree.leaves(again.state.params)):
        np.testing.assert_array_equal(x, y)
    with pytest.raises(ValueError, match=r'fit\.lengths: "\d+ to 6, \d+ to 12" -> "\d+ to 5, \d+ to 12"'):
        run("cut", 12, bucketed(buckets=(5,)), resume=True)


def test_predictions_come_in_the_order_of_the_source():
    mean = train.from_functions(lambda key, x: {}, lambda p, x: jnp.sum(x, axis=1), losses.mse)
    source = bucketed()
    state = train.init_state(mean, optax.sgd(0.1), data.host_batch(source, np.arange(2)), strategy=parallel.single())
    np.testing.assert_array_equal(train.predict(mean, state, source, batch_size=B), padded().arrays["x"].sum(1))
    state = train.init_state(TASK, optax.sgd(0.1), data.host_batch(source, np.arange(2)), strategy=parallel.single())
    with pytest.raises(ValueError, match=r"train\.predict: output '\.' of an example is \[4, 10\] .* and \[8, 10\]"):
        train.predict(TASK, state, source, batch_size=B)


def test_what_is_too_long_is_refused_before_a_step_although_the_first_batches_are_short(count_compiles):
    config = models.GPTConfig(vocab=10, length=8, layers=1, heads=1, width=4, positions="learned")
    task = train.supervised(models.GPT(config), losses.cross_entropy)
    jax.clear_caches()
    with count_compiles() as seen, pytest.raises(ValueError, match="12 tokens for 8 learned positions"):
        train.fit(task, optax.sgd(0.1), bucketed(), batch_size=B, steps=2, log=QUIET)
    assert seen.compiles == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LENGTHS[:5], (4,)), r"lengths int64\[5\] for 43 examples"),
        ((LENGTHS.astype(float), (4,)), r"lengths float64\[43\]"),
        ((LENGTHS, (12,)), r"bucket 12 for examples of 12 places. Tried: buckets in \[1, 12\)"),
        ((LENGTHS + 1, (4,)), r"example \d+ has length 13. Tried: up to 12"),
        ((LENGTHS, (4,), ("x", "z")), r"array 'z' is absent; there are \['weights', 'x', 'y'\]"),
    ],
)
def test_bad_input(arguments, message):
    lengths, buckets, *arrays = arguments
    with pytest.raises(ValueError, match=rf"data\.bucketed: {message}"):
        data.bucketed(padded(), lengths, buckets, arrays=arrays[0] if arrays else ("x",))
    with pytest.raises(ValueError, match=r"array 'y' is int64\[1\]|array 'y' is int32\[1\]"):
        data.bucketed(data.Arrays(np.zeros((2, 3)), np.zeros(2, int)), [1, 2], (1,), arrays=("x", "y"))
