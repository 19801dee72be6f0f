"""The line is the one that least squares gives, and the report shows it."""

import numpy as np
import pytest

from experiments import linear_regression


def test_it_learns_the_line(tmp_path, capsys):
    cfg = linear_regression.Config(epochs=40, out=str(tmp_path / "run"))
    result = linear_regression.main(cfg)
    x, y = linear_regression.points(cfg)
    slope, intercept = np.polyfit(x[:, 0], y[:, 0], 1)
    assert result["slope"] == pytest.approx(slope, abs=0.05)
    assert result["intercept"] == pytest.approx(intercept, abs=0.05)
    assert result["loss"] == pytest.approx(np.mean((result["slope"] * x + result["intercept"] - y) ** 2), rel=1e-4)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "least squares" in page
    assert str(tmp_path / "run" / "report.html") in capsys.readouterr().out


def test_one_epoch_is_not_enough(tmp_path):
    assert linear_regression.main(linear_regression.Config(epochs=1, out=str(tmp_path / "run")))["slope"] < 1.5
