"""The benchmark of `fit`'s overhead: both sides run one program, and a figure is set against its must and its goal."""

import re
from typing import ClassVar

import numpy as np
import optax
import pytest

from benchmarks import overhead
from jaxnn import data, losses, models, parallel, train

X = np.linspace(-1, 1, 16 * 3, dtype=np.float32).reshape(16, 3)
SOURCE = data.Arrays(X, X[:, :1].copy())
TASK, TX = train.supervised(models.MLP((4, 1)), losses.mse), optax.sgd(1e-3)


class Keep(parallel.Single):
    """Keeps the optimized HLO of what it compiles."""

    texts: ClassVar[list[str]] = []

    def compile(self, chunk):
        program = super().compile(chunk)

        def run(*arguments):
            if not self.texts:
                self.texts.append(program.lower(*arguments).compile().as_text())
            return program(*arguments)

        return run


def fitted(grad_norm=False):
    """What `fit` runs with one step a dispatch, in optimized HLO."""
    Keep.texts.clear()
    train.fit(
        TASK,
        TX,
        SOURCE,
        batch_size=4,
        steps=2,
        strategy=Keep(parallel.single().device),
        log=train.Log(every=2, progress=False, grad_norm=grad_norm),
        dispatch=train.Dispatch(most=1),
    )
    return Keep.texts[0]


def by_hand():
    chunk, state, arrays = overhead.program(TASK, TX, SOURCE, 4)
    rows = np.zeros((1, 4), np.int32)
    return chunk.lower(state, arrays, rows, np.int32(1)).compile().as_text()


def bare(text):
    """HLO without what says where it was written."""
    program = text[re.search(r"^%", text, re.MULTILINE).start() :]  # the first lines are a table of files and frames
    return re.sub(r", metadata=\{[^}]*\}", "", program)


def test_the_loop_and_fit_run_the_same_program():
    assert "dot" in bare(fitted())
    assert bare(by_hand()) == bare(fitted())
    assert bare(by_hand()) != bare(fitted(grad_norm=True))  # what would make the comparison an unfair one is seen


@pytest.mark.parametrize(
    ("extra", "base", "said"),
    [
        (9.0, 100.0, "goal met (must 20 us, goal 10)"),
        (15.0, 100.0, "must met, goal missed (must 20 us, goal 10)"),
        (21.0, 100.0, "MUST MISSED (must 20 us, goal 10)"),
        (40.0, 5000.0, "goal met (must 3 %, goal 1)"),
        (100.0, 5000.0, "must met, goal missed (must 3 %, goal 1)"),
        (200.0, 5000.0, "MUST MISSED (must 3 %, goal 1)"),
    ],
)
def test_a_figure_stands_beside_its_must_and_its_goal(extra, base, said):
    assert overhead.verdict(extra, base) == said


def test_the_hand_written_loop_trains():
    run = overhead.loop(TASK, TX, SOURCE, 4, 3)
    assert run() > 0
