"""A run's plot and what it shows of itself in a notebook."""

import re
import subprocess
import sys

import numpy as np
import optax
import pytest

from jaxnn import data, losses, metrics, models, train

X = np.linspace(-1, 1, 24, dtype=np.float32)[:, None]
SOURCE = data.Arrays(X, 2 * X)
TASK = train.supervised(models.MLP((1,)), losses.mse, {"mae": metrics.mae})
LOG = train.Log(every=2, progress=False, grad_norm=True)


def fit(**keywords):
    return train.fit(
        TASK, optax.sgd(0.1), SOURCE, batch_size=8, validation=SOURCE, **({"steps": 12, "log": LOG} | keywords)
    )


@pytest.fixture(scope="module")
def run():
    return fit()


def panels(figure):
    """Title -> line's label -> (xs, ys)."""
    return {
        axes.get_title(loc="left"): {
            line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines
        }
        for axes in figure.axes
    }


def test_plot_has_a_panel_a_value_with_training_and_validation(run):
    shown = panels(run.plot())
    assert list(shown) == ["loss", "mae", "gradient norm"]
    assert list(shown["loss"]) == ["train", "validation"]
    assert shown["loss"]["train"] == tuple(list(side) for side in run.column("loss"))
    assert shown["mae"]["validation"] == tuple(list(side) for side in run.column("val_mae"))
    steps, norms = run.column("grad_norm")
    assert shown["gradient norm"] == {"grad_norm": (steps, norms)}


def test_a_log_scale_where_positive_values_cover_more_than_a_factor_of_twenty():
    rows = [{"step": i, "epoch": 0.1, "far": 10.0**-i, "near": 2.0**-i, "learning_rate": 0.1**i} for i in range(4)]
    figure = train.Run(TASK, None, rows).plot()
    scales = {axes.get_title(loc="left"): axes.get_yscale() for axes in figure.axes}
    assert scales == {"far": "log", "near": "linear", "learning rate": "linear"}


def test_plot_of_chosen_names(run):
    assert {title: list(lines) for title, lines in panels(run.plot("loss")).items()} == {
        "loss": ["train", "validation"]
    }
    chosen = panels(run.plot(["val_mae", "loss"]))
    assert {title: list(lines) for title, lines in chosen.items()} == {
        "validation mae": ["val_mae"],
        "loss": ["train", "validation"],
    }


def test_plot_after_a_resume_begins_where_the_run_began(tmp_path):
    fit(out=tmp_path / "r", steps=6)
    resumed = fit(out=tmp_path / "r", resume=True)
    assert panels(resumed.plot())["loss"]["train"][0] == [2, 4, 6, 8, 10, 12]


def test_what_does_not_change_and_what_is_not_finite_is_shown_as_it_is():
    rows = [{"step": i, "loss": [1.0, float("nan"), 3.0][i], "constant": 5.0} for i in range(3)]
    shown = panels(train.Run(TASK, None, rows).plot())
    assert list(shown) == ["loss"]
    assert np.isnan(shown["loss"]["loss"][1][1])
    assert list(panels(train.Run(TASK, None, rows).plot("constant"))) == ["constant"]


def test_many_values_are_twelve_panels():
    rows = [{"step": i, **{f"m{j}": i * j for j in range(1, 20)}} for i in range(3)]
    assert len(train.Run(TASK, None, rows).plot().axes) == 12


def test_names_never_reported_are_refused(run):
    with pytest.raises(ValueError, match=r"Run\.plot: 'acc' was never reported\. Reported: grad_norm, loss, mae, val_"):
        run.plot(["loss", "acc"])
    with pytest.raises(ValueError, match="no values were reported yet"):
        train.Run(TASK, None, []).plot()


def test_a_notebook_is_given_the_picture_and_no_window_is_opened(run, tmp_path):
    figure = run.plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
    figure.savefig(tmp_path / "curves.png")
    code = "import sys; from jaxnn import train; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []


def test_the_runs_table_has_the_last_and_best_of_every_value():
    rows = [{"step": i, "loss": [3.0, 1.0, 2.0][i], "accuracy": [0.1, 0.5, 0.2][i], "odd": float(i)} for i in range(3)]
    run = fit()
    run.history = rows
    cells = re.findall(r"<td[^>]*>(.*?)</td>", run._repr_html_())
    table = {cells[i]: cells[i + 2 : i + 5] for i in range(0, len(cells), 5)}
    assert table == {
        "loss": ["2.000", "1.000", "1"],
        "accuracy": ["0.2000", "0.5000", "1"],
        "odd": ["2.000", "–", "–"],
    }
    assert run._repr_html_().count("<polyline") == 3
