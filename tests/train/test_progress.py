"""Progress in a notebook: one line that is rewritten in place, and texts of their own above it."""

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
    assert line[0].startswith("step 1/12 | loss ")
    assert [text.split(" | ")[0] for text in line[1:]] == ["step 4/12", "step 8/12", "step 12/12"]
    assert "examples/s" in line[-1]
    assert capsys.readouterr().out.splitlines() == ["at 6", "at 12"]
