"""What a person is told of a run that goes on: from where, and which hyperparameters are the checkpoint's.

A hyperparameter that an optimizer keeps in its state is restored with it, so that another number in the program changes
nothing: without a word, a rate that was lowered between two starts would seem to be in effect.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn import optim, tree
from jaxnn.core import Task, roles
from jaxnn.typing import Batch, PyTree


def began(step: int, steps: int, folder: Path) -> str:
    """A line that says from where a resumed run of `steps` goes on; from step 0, that nothing had been saved."""
    if step == 0:
        return f"No checkpoint had been written in {folder}: the run begins again."
    if step >= steps:
        return f"The run in {folder} is finished: {step:,} steps."
    return f"Going on with {folder} after step {step:,}."


def kept(
    task: Task, tx: optax.GradientTransformation, batch: Batch, stored: Mapping[str, Any], like: PyTree
) -> str | None:
    """A line that names constants of the optimizer which differ from what the checkpoint holds; None for none.

    Args:
        task: What is learned; its parameters' roles are declared to the optimizer.
        tx: The optimizer as the program makes it now.
        batch: An example batch.
        stored: `optim.constants` of the optimizer's state that was restored.
        like: Shapes and dtypes of the parameters. Their values are not needed: the compiler leaves out all of the first
            state but its hyperparameters.
    """
    if not stored:
        return None

    def first() -> Mapping[str, Any]:
        return optim.constants(tx.init(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)))

    with tree.declaring(lambda: roles(task, batch)):
        given = jax.device_get(jax.jit(first)())
    other = [
        f"{name} {float(value):.4g} (the program says {float(given[name]):.4g})"
        for name, value in sorted(stored.items())
        if name in given and np.ndim(value) == 0 and value != given[name]
    ]
    if not other:
        return None
    return (
        f"The optimizer goes on with what its checkpoint holds: {', '.join(other)}. A hook changed it, or the program "
        "was edited; to change it here, use a hook that returns train.Replace with optim.set_hyper."
    )
