"""Both translators at toy size: trained, decoded, scored, drawn and reported."""

import dataclasses

import numpy as np
import pytest

from experiments import translate
from jaxnn import data, train

pytest.importorskip("sacrebleu")
TINY = translate.Config(width=16, layers=1, steps=2, batch=4, vocab=300)


@pytest.fixture
def few_numbers(monkeypatch):
    """A hundred numbers, a chapter of them held out."""
    translate.tokenizer.cache_clear()
    translate.fitting.cache_clear()
    every = data.number_verses(100)
    monkeypatch.setattr(translate, "verses", lambda folder: (every[20:], every[:20]))
    yield every
    translate.tokenizer.cache_clear()
    translate.fitting.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["transformer", "seq2seq"])
def test_two_steps_leave_a_whole_run(few_numbers, model, tmp_path, capsys):
    cfg = dataclasses.replace(TINY, model=model, out=str(tmp_path / "run"))
    result = translate.main(cfg)
    assert 0 <= result["chrf"] < 60
    assert "numbers in words" not in capsys.readouterr().err
    report = (tmp_path / "run" / "report.html").read_text()
    assert all(text in report for text in ("Attention", "Held-out pairs", "cero", "zero"))


def test_examples_are_what_the_decoder_sees_and_should_write(few_numbers):
    source = translate.source(TINY, 0)
    length = translate.sides(TINY)
    x, y, weights = (source.arrays[name] for name in ("x", "y", "weights"))
    bpe = translate.tokenizer(TINY.data, TINY.vocab)
    row = 22  # forty two
    target = y[row][weights[row] > 0]
    assert target[-1] == translate.END
    assert bpe.decode(target.tolist()).strip() == "cuarenta y dos"
    assert bpe.decode([t for t in x[row, :length].tolist() if t]).strip() == "forty two"
    assert x[row, length] == translate.START
    np.testing.assert_array_equal(x[row, length + 1 :], y[row, :-1])


def test_translations_come_back_in_the_order_of_the_texts(few_numbers, monkeypatch):
    """A model that copies its source shows which text went where."""
    monkeypatch.setattr(
        translate.models,
        "translate",
        lambda net, params, x, length, beams: np.pad(x, ((0, 0), (0, length - x.shape[1]))),
    )
    texts = [v.source for v in few_numbers[::-1]]
    assert translate.translations(TINY, {}, texts) == texts


def test_missing_data_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="make data"):
        translate.build(dataclasses.replace(TINY, data=str(tmp_path)))


@pytest.mark.slow
def test_numbers_are_learned(tmp_path):
    setup = translate.build(translate.Config())
    assert isinstance(setup, train.Setup)
    result = translate.main(translate.Config(out=str(tmp_path / "run")))
    assert result["chrf"] > 80
