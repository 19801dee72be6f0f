"""Wide inputs: a few steps, predictions that are probabilities, classes that can be told apart."""

import numpy as np

from experiments import wide_mlp


def test_a_few_steps(tmp_path, capsys):
    result = wide_mlp.main(wide_mlp.Config(epochs=2, out=str(tmp_path / "run")))
    assert 0.2 < result["accuracy"] < 0.9
    lines = capsys.readouterr().out.split("ten classes:\n")[1].replace("[", " ").replace("]", " ").splitlines()[:5]
    chances = np.array([line.split() for line in lines], float)
    assert chances.shape == (5, 10)
    np.testing.assert_allclose(chances.sum(-1), 1, atol=0.006)
    assert "fresh" in (tmp_path / "run" / "report.html").read_text()


def test_the_centres_belong_to_the_seed_and_the_parts_differ():
    train, fresh, other = (wide_mlp.clouds(500, *part).arrays for part in ((0, 0), (0, 1), (1, 0)))
    assert train["y"].sum(-1).tolist() == [1] * 500
    means = np.stack([train["x"][train["y"][:, c] == 1].mean(0) for c in range(10)])
    given = [
        (((part["x"][:, None] - means) ** 2).sum(-1).argmin(-1) == part["y"].argmax(-1)).mean()
        for part in (fresh, other)
    ]
    assert given[0] > 0.5
    assert given[1] < 0.3
