"""The perceptron on digits: a few steps, and the three ways to fail."""

import numpy as np
import pytest

from experiments import mnist_mlp
from jaxnn import data


def few(count):
    """Some real digits of every class."""
    return lambda source: tuple(
        data.Arrays(data.digits(part).take(np.linspace(0, n - 1, count).astype(int)))
        for part, n in (("train", 4000), ("test", 1000))
    )


def test_a_few_steps(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(mnist_mlp, "images", few(200))
    result = mnist_mlp.main(mnist_mlp.Config(epochs=20, batch=20, out=str(tmp_path / "run")))
    assert 0.3 < result["accuracy"] < 0.9
    assert set(result) == {"loss", "accuracy"}
    assert "200 held-out images" in (tmp_path / "run" / "report.html").read_text()
    assert "true  [0 4 9]" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "verdict"), [("bad_init", "identical units"), ("bad_rate", "rate too high"), ("too_small", "")]
)
def test_what_is_wrong_is_told(monkeypatch, tmp_path, capsys, case, verdict):
    monkeypatch.setattr(mnist_mlp, "images", few(200))
    result = mnist_mlp.main(mnist_mlp.Config(case=case, epochs=20, batch=20, out=str(tmp_path / "run")))
    assert not result["accuracy"] > 0.3
    assert np.isnan(result["loss"]) or result["loss"] > 1.5
    told = capsys.readouterr().out
    assert "Diagnosis of a run" in told
    assert verdict in told
