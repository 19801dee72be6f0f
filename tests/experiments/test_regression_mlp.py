"""Friedman's function: what is made, that some of it is learned, and that fresh examples are what is scored."""

import re

import numpy as np
import pytest

from experiments import regression_mlp


def test_some_of_it_is_learned(tmp_path):
    result = regression_mlp.main(regression_mlp.Config(epochs=10, out=str(tmp_path / "run")))
    assert 0.3 < result["r2"] < 0.9
    y = regression_mlp.friedman(1000, 1).arrays["y"]
    assert result["r2"] == pytest.approx(1 - result["loss"] / np.var(y), rel=1e-4)
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(word in page for word in ("Fresh examples", "prediction", "validation"))
    card = (tmp_path / "run" / "card.md").read_text()
    assert f"| r2 | {result['r2']:#.4g} |" in card
    assert all(word in card for word in ("Arrays(1000 examples", "1,000 for validation", "| parameters | 769 |"))
    assert re.search(r"\| training \| .* of processor time \|", card)
    assert all((tmp_path / "run" / name).exists() for name in re.findall(r"\]\((.*?\.png)\)", card))
    assert re.findall(r"\((.*?\.png)\)", card) == ["card_curves.png", "card_predictions.png"]


def test_the_targets_are_scaled_and_five_inputs_idle():
    first, other = regression_mlp.friedman(4000, 0).arrays, regression_mlp.friedman(4000, 1).arrays
    assert abs(first["y"].mean()) < 0.1
    assert first["y"].std() == pytest.approx(1, abs=0.1)
    assert not np.any(first["x"] == other["x"])
    correlation = [abs(np.corrcoef(first["x"][:, i], first["y"][:, 0])[0, 1]) for i in range(10)]
    assert min(correlation[3:5]) > 0.2
    assert max(correlation[5:]) < 0.06
