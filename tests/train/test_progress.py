"""Progress in a notebook: one line that is rewritten in place, and texts of their own above it."""

import importlib
import importlib.util
import sys
import types

import numpy as np
import optax
import pytest
import rich.console

from jaxnn import data, losses, models, train
from jaxnn.train import progress

X = np.linspace(-1, 1, 24, dtype=np.float32)[:, None]


class Handle:
    def __init__(self, cell, content):
        self.cell, self.place = cell, len(cell)
        cell.append([content["text/plain"]])

    def update(self, content, raw):
        assert raw
        self.cell[self.place].append(content["text/plain"])


@pytest.fixture
def cell(monkeypatch):
    """What a notebook's cell was given: a list a display, of what it showed one after the other."""
    shown = []

    def display(content, raw, display_id):
        assert raw
        assert display_id
        return Handle(shown, content)

    module = types.ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    return shown


class Say(train.Hook):
    def every(self, plan):
        return 6

    def act(self, at):
        at.show(f"at {at.step}")


def test_one_line_in_a_cell_that_is_rewritten(cell, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LIVE_S", 0.0)
    train.fit(
        train.supervised(models.MLP((1,)), losses.mse),
        optax.sgd(0.1),
        data.Arrays(X, X),
        batch_size=8,
        steps=12,
        hooks=[Say()],
        log=train.Log(every=4),
    )
    (line,) = cell
    assert line[0] == "12 steps | compiling"
    assert line[1].startswith("step 1/12 | loss ")
    assert [text.split(" | ")[0] for text in line[2:]] == ["step 4/12", "step 8/12", "step 12/12"]
    assert "examples/s" in line[-1]
    assert capsys.readouterr().out.splitlines() == ["at 6", "at 12"]


def test_the_bar_fills_with_the_steps_and_values_stand_apart():
    page = progress.bar_html("step 4/12 | loss 0.5  val_loss <b> | left 3s", 4 / 12)
    assert "width:33.3%" in page
    for part in ("step 4/12", "loss 0.5", "val_loss &lt;b&gt;", "left 3s"):
        assert f"<span>{part}</span>" in page
    assert "width:100.0%" in progress.bar_html("x", 1.5)
    assert "width:0.0%" in progress.bar_html("x", -1.0)


@pytest.mark.skipif(importlib.util.find_spec("ipykernel") is None, reason="needs a notebook's kernel")
def test_in_a_real_kernel_a_fit_leaves_one_display_and_a_run(tmp_path):
    nbclient, nbformat = importlib.import_module("nbclient"), importlib.import_module("nbformat")
    code = """
import numpy as np, optax
from jaxnn import data, losses, models, train
x = np.linspace(-1, 1, 24, dtype=np.float32)[:, None]
task = train.supervised(models.MLP((1,)), losses.mse)
run = train.fit(task, optax.sgd(0.1), data.Arrays(x, x), batch_size=8, steps=12, log=train.Log(every=1))
run
"""
    cells = [nbformat.v4.new_code_cell(c) for c in (code, "run.plot()")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=120).execute()
    display, value = notebook.cells[0].outputs
    assert display.data["text/plain"].startswith("step 12/12 | loss ")
    assert "width:100.0%" in display.data["text/html"]
    assert value.data["text/plain"].startswith("Run(12 steps")
    assert "<svg" in value.data["text/html"]
    (picture,) = notebook.cells[1].outputs
    assert picture.data["image/png"]
