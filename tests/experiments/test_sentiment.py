"""The two experiments on text at toy size, on their embedded data."""

import dataclasses

import numpy as np
import pytest

from experiments import mlm_pretrain, sentiment
from jaxnn import parallel, train, tree

pytest.importorskip("tokenizers")


@pytest.mark.slow
def test_sentiment_runs_on_its_embedded_sentences(tmp_path, capsys):
    cfg = sentiment.Config(data=str(tmp_path), weights="nowhere", out=str(tmp_path / "run"))
    result = sentiment.main(cfg)
    assert 0 <= result["accuracy"] <= 1
    out = capsys.readouterr().out
    assert out.count("`make data` fetches") == 2
    assert "val_accuracy" in out
    report = (tmp_path / "run" / "report.html").read_text()
    assert "The surest mistakes" in report


def test_it_learns_in_batches_of_similar_length(tmp_path):
    """Short snippets are not padded to the longest; where nothing is shorter than the most, all lie on the device."""
    cfg = sentiment.Config(data=str(tmp_path), weights="none")
    setup = sentiment.build(cfg)
    needed = np.diff(setup.data.encoded.starts)
    assert needed.max() <= 16 < cfg.length
    assert set(setup.data.padded_to) == {16}
    assert setup.data.take(np.arange(2))["x"].shape == (2, 16)
    whole = sentiment.build(dataclasses.replace(cfg, length=16)).data
    assert whole.padded_to is None
    assert whole.resident() is not None


def test_texts_that_are_equal_are_on_one_side(tmp_path):
    rows = "\n".join(f"{i}\t{1 if i % 2 else -1}\ttext {i // 3}" for i in range(600)) + "\n601\t0\tneither\n"
    (tmp_path / "movieReviewSnippets_GroundTruth.txt").write_text(rows)
    learn, labels, others, truth = sentiment.split(str(tmp_path))
    assert len(learn) + len(others) == len(labels) + len(truth) == 600
    assert not set(learn) & set(others)
    assert 0.1 < len(others) / 600 < 0.3
    assert 0.4 < np.mean([*labels, *truth]) < 0.6


@pytest.mark.slow
def test_pretraining_runs_on_docstrings(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mlm_pretrain, "docstrings", lambda: DOCS)
    cfg = mlm_pretrain.Config(data=str(tmp_path), snippets=str(tmp_path), vocab=300, width=16, length=16, batch=4)
    tuning = mlm_pretrain.Tuning(seeds=2, epochs=1)
    cfg = dataclasses.replace(cfg, steps=3, tuning=tuning, out=str(tmp_path / "run"))
    result = mlm_pretrain.main(cfg)
    assert set(result) >= {"prose_loss", "snippets_loss", "pretrained", "scratch", "gain_spread"}
    # What is pretrained may be tuned again, in another way; it is the same encoder.
    again = mlm_pretrain.main(dataclasses.replace(cfg, resume=True, tuning=dataclasses.replace(tuning, labels=4)))
    assert again["prose_loss"] == result["prose_loss"]
    assert "prose_loss" in capsys.readouterr().out
    assert "[?]" in (tmp_path / "run" / "card.md").read_text()


def test_hidden_tokens_are_shown_with_what_the_model_puts_there(monkeypatch):
    monkeypatch.setattr(mlm_pretrain, "docstrings", lambda: DOCS)
    cfg = mlm_pretrain.Config(data="none", snippets="none", vocab=300, width=16, length=32, hide=0.4)
    tokens = mlm_pretrain.words(cfg)

    class Run:
        task = state = None

    def predict(task, state, source):
        """The truth at every place, twice as likely as the token after it."""
        truth = source.arrays["y"][..., None]
        ids = np.arange(tokens.vocab)
        return np.log(np.where(ids == truth, 0.6, np.where(ids == (truth + 1) % tokens.vocab, 0.3, 1e-6)))

    monkeypatch.setattr(mlm_pretrain.train, "predict", predict)
    rows = mlm_pretrain.guesses(cfg, Run())
    assert 2 <= len(rows) <= 12
    assert all(said.startswith(f"{truth} 0.67, ") and text.count("[?]") == 1 for text, truth, said in rows)
    row = np.array(tokens.encode(["what it makes of them"]).ids)
    row[[1, 3]] = tokens.mask
    assert mlm_pretrain.around(tokens, row, 3) == "... it [?] of them"


def test_the_tuned_network_begins_with_the_pretrained_encoder(monkeypatch):
    given = []

    def fit(task, tx, source, **options):
        given.append(
            (train.init_state(task, tx, source.take(np.arange(1)), strategy=ALONE).params, options["init_from"])
        )
        raise KeyboardInterrupt

    cfg = mlm_pretrain.Config(data="nowhere", snippets="nowhere", vocab=300, width=16, length=16)
    monkeypatch.setattr(mlm_pretrain, "docstrings", lambda: DOCS)
    monkeypatch.setattr(mlm_pretrain.train, "fit", fit)
    setup = mlm_pretrain.build(cfg)
    pretrained = train.init_state(setup.task, setup.tx, setup.data.take(np.arange(1), step=0), strategy=ALONE).params
    with pytest.raises(KeyboardInterrupt):
        mlm_pretrain.tuned(cfg, pretrained, seed=0)
    drawn, taken = given[0]
    assert set(drawn) - set(taken) == {"head"}
    for path, leaf in tree.leaves_by_path(taken).items():
        assert leaf is tree.leaves_by_path(pretrained)[path]
        assert leaf.shape == tree.leaves_by_path(drawn)[path].shape


ALONE = parallel.single()
DOCS = [f"Number {i} of the things that a function may be told, and what it makes of them." for i in range(200)]
