"""What states and tasks say of themselves: shapes by path, totals, and no array read but the two counters."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn, nnx

from jaxnn import core, losses, metrics, models, parallel
from jaxnn.core import display

TASK = core.supervised(models.MLP((3, 1), dropout=0.5), loss=losses.mse, metrics={"mae": metrics.mae})
BATCH = {"x": np.ones((4, 2), np.float32), "y": np.ones((4, 1), np.float32)}


def state(task=TASK):
    return core.init_state(task, optax.adam(1e-3), BATCH, strategy=parallel.single())


def test_a_state_lists_its_leaves_by_path_with_totals():
    text = repr(state())
    assert text.splitlines()[0] == "State at step 0: 44 elements in 16 leaves, 176 B"
    assert re.search(r"^  params: 13 elements in 4 leaves, 52 B$", text, re.M)
    assert re.search(r"^    hidden_0/kernel +float32\[2, 3\] +24 B$", text, re.M)
    assert re.search(r"^    0/mu/head/bias +float32\[1\] +4 B$", text, re.M)
    assert "model_state" not in text  # it is empty


def test_a_state_of_many_leaves_is_cut_in_a_terminal_and_whole_in_a_notebook():
    many = state()._replace(params={f"w{i:03d}": np.zeros((), np.float32) for i in range(100)})
    assert "... and 76 more; tree.leaves_by_path(state.params) has all" in repr(many)
    assert len(repr(many).splitlines()) < 45
    assert "params/w099" in many._repr_html_()


def test_applied_updates_and_consumed_batches_are_told_apart():
    assert repr(state()._replace(step=np.int32(3), data_step=np.int32(5))).startswith("State at step 3, data step 5: ")


def test_big_arrays_are_not_read():
    class Unreadable:
        shape, dtype, size = (1000, 1000), np.dtype(np.float32), 1_000_000

        def __array__(self, *_, **__):
            raise AssertionError("a parameter was read")

    shown = state()._replace(params={"w": Unreadable()})
    assert re.search(r"w +float32\[1000, 1000\] +4 MB", repr(shown))
    assert "4,000,000" in shown._repr_html_()


def test_shapes_tracers_typed_keys_and_donated_arrays_are_shown():
    abstract = jax.eval_shape(lambda s: s, state())
    assert repr(abstract).startswith("State: 44 elements")
    seen = []
    jax.jit(lambda s: seen.append(repr(s)))(state())
    assert seen[0].startswith("State: 44 elements")
    assert "hidden_0/kernel" in seen[0]
    given = state()
    leaf = jnp.ones(3)
    leaf.delete()
    donated = given._replace(params={"w": leaf, "k": jax.random.key(0)}, step=leaf)
    assert "float32[3], donated" in repr(donated)
    assert "some donated to a step" in repr(donated)
    assert donated._repr_html_()


def test_a_task_says_what_it_was_made_from():
    assert repr(TASK) == "Task(model=MLP(features=(3, 1), dropout=0.5), inputs=x, loss=mse, metrics=mae, targets=y)"

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(2, 1, rngs=rngs)

        def __call__(self, x):
            return self.dense(x)

    assert repr(core.from_nnx(lambda rngs: Net(rngs), losses.mse)).startswith(
        "Task(model=Net (NNX), inputs=x, loss=mse"
    )

    def init(key, x):
        return {"w": jnp.zeros((x.shape[1], 1))}

    def apply(params, x, power=1):
        return (x @ params["w"]) ** power

    def lasso(params):
        return jnp.abs(params["w"]).sum()

    bare = core.from_functions(init, functools.partial(apply, power=1), losses.mse, penalty=lasso)
    assert repr(bare) == "Task(init=init, apply=apply, inputs=x, loss=mse, penalty=lasso, targets=y)"
    by_hand = core.Task(TASK.init, TASK.loss, TASK.predict)
    assert repr(by_hand) == "Task(init=init, loss=task_loss, predict=predict)"


def test_what_a_task_holds_is_escaped():
    class Odd(nn.Module):
        note: str = ""

        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(x)

    page = core.supervised(Odd(note="<script>"), loss=losses.mse)._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_an_array_as_a_modules_setting_does_not_break_its_name():
    class Table(nn.Module):
        values: np.ndarray
        scale: np.ndarray = None

        def __call__(self, x):
            return x

    text = display.module_text(Table(np.arange(1000), np.ones(2)))
    assert text.startswith("Table(values=array(")
    assert len(text) < 500


@pytest.mark.parametrize(("nbytes", "text"), [(0, "0 B"), (999, "999 B"), (1_234_567, "1.23 MB"), (5e15, "5e+03 TB")])
def test_sizes(nbytes, text):
    assert display.size(nbytes) == text
