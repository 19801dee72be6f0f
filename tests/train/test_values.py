"""Numbers that a model has no row or class for are refused with their place, wherever in the data they are."""

import flax.linen as nn
import numpy as np
import optax
import pytest

from jaxnn import data, losses, models, optim, parallel, train
from jaxnn.train import values

N, T, B, VOCAB, CLASSES = 24, 5, 4, 9, 3
QUIET = train.Log(progress=False)
BERT = models.BERT(
    models.BERTConfig(vocab=VOCAB, layers=1, heads=1, width=4, length=T, head="classify", classes=CLASSES)
)
GPT = models.GPT(models.GPTConfig(vocab=VOCAB, layers=1, heads=1, width=4, length=T))


def examples(**bad):
    """Tokens and classes in range, but for `bad`: name -> (place, number)."""
    draw = np.random.default_rng(0)
    arrays = {"x": draw.integers(1, VOCAB, (N, T)).astype(np.int32), "y": draw.integers(0, CLASSES, N).astype(np.int32)}
    for name, (place, number) in bad.items():
        arrays[name][place] = number
    return arrays


def fit(source, module=BERT, **changes):
    task = train.supervised(module, losses.cross_entropy)
    return train.fit(task, optax.sgd(0.1), source, **({"batch_size": B, "epochs": 1, "log": QUIET} | changes))


STREAMED = train.Dispatch(resident=False)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"x": ((17, 2), 99)}, r"'x' int32\[{rows}, 5\] of {at} has 99 in example 17, place 2. Tried: layers.Embed: "
         r"tokens in \[0, 9\)\. Encode them by the tokenizer"),
        pytest.param({"x": ((17, 4), -1)}, r"'x' int32\[{rows}, 5\] of {at} has -1 in example 17, place 4",
                     marks=pytest.mark.slow),
        ({"y": ((17,), 3)}, r"'y' int32\[{rows}\] of {at} has 3 in example 17. Tried: losses.cross_entropy: classes in "
         r"\[0, 3\)\. Give the model an output for each class"),
    ],
    ids=["token", "negative", "class"],
)  # fmt: skip
def test_a_number_that_comes_late_is_refused_with_its_place(bad, message, count_compiles):
    order = data.epoch_order(data.Arrays(examples()), 0, B)
    step = next(i for i in range(N // B) if 17 in order(i, 1))
    assert step > 0  # or it would be in the batch that is looked at before all else
    source = data.Arrays(examples(**bad))
    with (
        count_compiles() as seen,
        pytest.raises(ValueError, match=message.format(rows=N, at="examples 0 to 23")) as all_,
    ):
        fit(source)
    assert seen.compiles == []
    assert str(all_.value).startswith("train.fit: ")
    with pytest.raises(ValueError, match=message.format(rows=B, at=f"data step {step}")):
        fit(source, dispatch=STREAMED)
    task = train.supervised(BERT, losses.cross_entropy)
    state = train.init_state(task, optax.sgd(0.1), data.host_batch(source, np.arange(2)), strategy=parallel.single())
    with pytest.raises(ValueError, match=message.format(rows=B, at="batch 4")) as one:
        train.evaluate(task, state, source, batch_size=B)
    assert str(one.value).startswith("train.evaluate: ")
    if "x" in bad:
        with pytest.raises(ValueError, match=r"train\.predict: 'x' .* of batch 4 has"):
            train.predict(task, state, source, batch_size=B)


def tokens(**bad):
    """A language model's examples: the next token is the target."""
    arrays = examples()
    arrays["y"] = np.roll(arrays["x"], -1, axis=1)
    for name, (place, number) in bad.items():
        arrays[name][place] = number
    return arrays


def test_targets_that_weigh_nothing_may_be_anything():
    arrays = tokens(y=((17, 3), -100))
    weights = np.ones((N, T), np.float32)
    weights[17, 3] = 0
    for dispatch in (None, STREAMED):
        run = fit(data.Arrays(arrays, weights=weights), GPT, dispatch=dispatch)
        assert np.isfinite(run.history[-1]["loss"])
    weights[17, 3], weights[17, 2] = 1, 0
    with pytest.raises(ValueError, match=r"'y' .* has -100 in example 17, place 3"):
        fit(data.Arrays(arrays, weights=weights), GPT)


def test_packed_rows_sides_and_types():
    documents = [np.arange(1, 8)] * 10
    assert fit(data.Packed(documents, length=T), GPT, steps=1, epochs=None).stopped is None
    documents[6] = np.array([1, 2, 9])
    for dispatch in (None, STREAMED):
        with pytest.raises(ValueError, match=r"train\.fit: '[xy]' int32\[\d+, 5\] of .* has 9 in example"):
            fit(data.Packed(documents, length=T), GPT, dispatch=dispatch, epochs=2)
    config = models.TransformerConfig(vocab=VOCAB, width=4, heads=1, hidden=4, layers=1)
    arrays = tokens(x=((17, 4), 9))  # of the target's side
    arrays["y"] = arrays["y"][:, 3:]
    with pytest.raises(ValueError, match=r"'x' .* has 9 in example 17, place 4. Tried: layers.Embed"):
        fit(data.Arrays(arrays), models.SideBySide(models.Transformer(config), 3))
    types = np.zeros((N, T), np.int32)
    types[17, 0] = 2
    with pytest.raises(
        ValueError, match=r"'types' .* has 2 in example 17, place 0. Tried: models.BERT: types in \[0, 2"
    ):
        fit(data.Arrays(examples(), types=types))


def test_bytes_are_not_read_for_a_vocabulary_of_all(monkeypatch):
    """A check of data whose dtype cannot be out of range costs nothing, nor does one of a stream of bytes."""
    monkeypatch.setattr(values, "within", lambda *_: pytest.fail("the examples were looked at"))
    source = data.Arrays(np.zeros((N, T), np.uint8))
    lookups = {"x": values.Lookup(256, "tokens", "")}
    values.resident_within("here", source, source.resident(), lookups)
    stream = data.TextFiles([__file__], length=8, cache=None)
    values.resident_within("here", stream, stream.resident(), {"x": values.Lookup(256, "tokens", "")})
    with pytest.raises(pytest.fail.Exception):
        values.resident_within("here", stream, stream.resident(), {"x": values.Lookup(97, "tokens", "")})


class Votes(nn.Module):
    """Each token votes for a class."""

    @nn.compact
    def __call__(self, x, train=False):
        return models.layers.Embed(VOCAB, CLASSES)(x).sum(axis=1)


def test_a_population_s_validation_data_is_looked_at_too():
    with pytest.raises(ValueError, match=r"train\.fit: 'x' .* of validation batch 4 has 99 in example 17, place 2"):
        train.fit(
            train.supervised(Votes(), losses.cross_entropy),
            optim.sgd(0.1),
            data.Arrays(examples()),
            batch_size=B,
            steps=1,
            population=optim.members(lr=[0.1, 0.2]),
            validation=data.Arrays(examples(x=((17, 2), 99))),
            log=QUIET,
        )
