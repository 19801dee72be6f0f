"""A run's state in another program: to predict, to evaluate, to go on by hand."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxnn import parallel, rng
from jaxnn.core import State, Task, init_state
from jaxnn.core.init import init_variables
from jaxnn.core.state import complete
from jaxnn.runs import RunFolder
from jaxnn.train import beginning, checks
from jaxnn.typing import Batch, Source, Strategy


def load_state(
    path: str | os.PathLike[str],
    task: Task,
    tx: optax.GradientTransformation,
    examples: Source | Batch,
    *,
    step: int | None = None,
    strategy: Strategy | None = None,
    init_from: Any = None,
) -> State:
    """The state that a run saved: its newest good checkpoint, every array verified.

    A checkpoint holds arrays, no code, so the model and the optimizer are made again as the run made them; what does
    not fit is refused leaf by leaf. Nothing is trained, and the training data is not needed.

    Args:
        path: The run's folder.
        task: What was learned.
        tx: The run's optimizer; its rate does not matter.
        examples: A source of at least one example, or a batch: its shapes and dtypes tell what the model is given. No
            "y" is needed.
        step: The data step of the checkpoint; by default the newest good one.
        strategy: Where the state is to live; by default on the first device.
        init_from: What the run began with, as `fit` was given it; needed for parameters that checkpoints leave out.

    Raises:
        TypeError: If the task or the optimizer is none.
        ValueError: If there is no run, the checkpoint holds the state of another model or optimizer, or `init_from` is
            not what the run began with.
        FileNotFoundError: If the run has no such checkpoint, or none.
        RuntimeError: If all of them are damaged.
    """
    where = "train.load_state"
    checks.is_task(where, task)
    checks.is_optimizer(where, tx)
    if not isinstance(examples, Mapping):
        checks.is_source(where, "the examples", examples)
    if not (Path(path) / "config.json").is_file():
        raise ValueError(f"{where}: there is no run in {str(path)!r}: it holds no config.json. Give a run's folder.")
    batch = examples if isinstance(examples, Mapping) else examples.take(np.arange(1))
    alone = parallel.single()
    like = jax.eval_shape(lambda: init_state(task, tx, batch, strategy=alone))
    folder = RunFolder.open(path)
    with folder.checkpoints() as checkpoints:
        restored = checkpoints.restore(beginning.without_frozen(like, task.frozen), step)
    state = State(*restored.state)
    if task.frozen is not None:
        recorded = folder.config.get("fit", {})
        params, _ = init_variables(task, rng.seed_key(recorded.get("seed", 0)), complete(batch))
        begun = None
        if init_from is not None:
            own = params.keys() if isinstance(params, Mapping) else ()
            given = beginning.given(where, init_from, own).params
            beginning.check_given(where, params, given)
            params, begun = beginning.begun_from(params, given), beginning.fingerprint(given, task.frozen)
        if begun != recorded.get("init_from"):
            what = "None" if begun is None else "another"
            raise ValueError(
                f"{where}: init_from: {str(path)!r} keeps adapters alone, and what they belong to is not what it began "
                f"with: it is {what}. Tried: parameters of checksum {recorded.get('init_from')}. Give what `fit` was "
                "given."
            )
        state = beginning.with_frozen(state, task.frozen, params)
    return (alone if strategy is None else strategy).put_state(state)
