"""The two experiments on text at toy size, on their embedded data."""

import dataclasses

import numpy as np
import pytest

from experiments import mlm_pretrain, sentiment

pytest.importorskip("tokenizers")


@pytest.mark.slow
def test_sentiment_runs_on_its_embedded_sentences(tmp_path, capsys):
    cfg = sentiment.Config(data=str(tmp_path), weights="nowhere", batch=4, out=str(tmp_path / "run"))
    result = sentiment.main(cfg)
    assert 0 <= result["accuracy"] <= 1
    out = capsys.readouterr().out
    assert out.count("`make data` fetches") == 2
    assert "held-out accuracy" in out
    report = (tmp_path / "run" / "report.html").read_text()
    assert "The surest mistakes" in report


def test_texts_that_are_equal_are_on_one_side(tmp_path):
    rows = "\n".join(f"{i}\t{1 if i % 2 else -1}\ttext {i // 3}" for i in range(600)) + "\n601\t0\tneither\n"
    (tmp_path / "movieReviewSnippets_GroundTruth.txt").write_text(rows)
    learn, labels, others, truth = sentiment.split(str(tmp_path))
    assert len(learn) + len(others) == len(labels) + len(truth) == 600
    assert not set(learn) & set(others)
    assert 0.1 < len(others) / 600 < 0.3
    assert 0.4 < np.mean([*labels, *truth]) < 0.6


@pytest.mark.slow
def test_pretraining_runs_on_docstrings(tmp_path, monkeypatch):
    monkeypatch.setattr(mlm_pretrain, "docstrings", lambda: DOCS)
    cfg = mlm_pretrain.Config(data=str(tmp_path), snippets=str(tmp_path), vocab=300, width=16, length=16, batch=4)
    result = mlm_pretrain.main(dataclasses.replace(cfg, steps=3, epochs=1, out=str(tmp_path / "run")))
    assert set(result) >= {"hidden_token_loss", "pretrained_accuracy", "scratch_accuracy"}


DOCS = [f"Number {i} of the things that a function may be told, and what it makes of them." for i in range(200)]
