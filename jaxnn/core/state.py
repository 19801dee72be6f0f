"""The one pytree that a run carries, and how it begins."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxnn import optim, rng, tree
from jaxnn.core import display, host
from jaxnn.core.init import init_variables, roles, strong
from jaxnn.core.task import Task
from jaxnn.typing import Array, Batch, ModelState, Params, PyTree, Strategy


class State(NamedTuple):
    """Everything that a training run carries from step to step; arrays only.

    Attributes:
        step: int32 scalar, applied updates.
        data_step: int32 scalar, consumed batches; larger than `step` where a batch of weight 0 changed nothing.
        params: The task's parameters.
        model_state: The task's other variables (BatchNorm's statistics), or {}.
        opt_state: What the optimizer remembers.
        key: uint32[2], the seed's raw key data; constant.
    """

    step: Any
    data_step: Any
    params: Params
    model_state: ModelState
    opt_state: PyTree
    key: Any

    def __repr__(self) -> str:
        return display.state_text(self)

    def _repr_html_(self) -> str:
        return display.state_html(self)


def complete(batch: Batch) -> dict[str, Any]:
    """The batch with its reserved keys: `mask` [B] of ones and `index` [B] of row numbers where they are missing.

    Raises:
        ValueError: If the batch is empty or its arrays disagree on the number of examples.
    """
    batch = dict(batch)
    shapes = {name: np.shape(value) for name, value in batch.items()}
    counts = {shape[0] if shape else -1 for shape in shapes.values()}
    if len(counts) != 1 or -1 in counts:
        raise ValueError(
            f"batch: every array needs the same leading example axis; got shapes {shapes or 'of no arrays'}."
        )
    count = counts.pop()
    if "mask" not in batch:
        batch["mask"] = np.ones(count, np.float32)
    if "index" not in batch:
        batch["index"] = np.arange(count, dtype=np.int32)
    return batch


def abstract(value: PyTree) -> PyTree:
    """Shapes and dtypes of the leaves."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(x.dtype)), value)


def init_state(
    task: Task,
    tx: optax.GradientTransformation,
    batch: Batch,
    *,
    seed: int = 0,
    strategy: Strategy,
    given: Callable[[Params, ModelState], tuple[Params, ModelState]] | None = None,
) -> State:
    """The first state of a run, placed as the strategy wants it. The same values under every strategy.

    Args:
        task: What is learned.
        tx: An optax gradient transformation.
        batch: An example batch (its shapes and dtypes matter, its values only to data-dependent initialisers).
        seed: From 0 to 2**32 - 1; the run's only source of randomness.
        strategy: Where the state lives.
        given: Takes the first parameters and model state and gives those to begin with.

    Raises:
        TypeError: If the seed is no integer.
        ValueError: If the seed is out of range, or the model rejects the batch's shapes.
    """
    batch = complete(batch)
    key = rng.seed_key(seed)
    params, model_state = init_variables(task, key, batch)
    if given is not None:
        params, model_state = given(params, model_state)
    with tree.declaring(lambda: roles(task, batch)):
        opt_state = _optimizer_state(tx, params)
        zero = np.zeros((), np.int32)
        return strategy.put_state(State(zero, zero, params, model_state, opt_state, key))


def _optimizer_state(tx: optax.GradientTransformation, params: PyTree) -> PyTree:
    """The optimizer's first state: zeros and copies, mostly, which need no compiler."""

    def init(params: PyTree) -> PyTree:
        return strong(tx.init(params))

    leaves = jax.tree.leaves(params)
    if all(isinstance(leaf, np.ndarray) for leaf in leaves):
        try:
            jaxpr, shapes = jax.make_jaxpr(init, return_shape=True)(params)
            return jax.tree.unflatten(jax.tree.structure(shapes), host.evaluate(jaxpr, *leaves))
        except host.Unknown:
            pass
    return jax.jit(init)(params)


def check_same(before: PyTree, after: PyTree, where: str) -> None:
    """Refuses a step that changes the state's structure, shapes or dtypes: it would compile again at every call.

    Raises:
        TypeError: Naming the leaves that change.
    """
    changes = list(tree.differences(before, after))
    if changes:
        shown = "; ".join(changes[:4]) + (f"; and {len(changes) - 4} more" if len(changes) > 4 else "")
        raise TypeError(
            f"{where}: the step changes the state (before against after): {shown}. "
            "State must keep its shapes and dtypes: "
            "give the optimizer a state dtype (mu_dtype=...), or keep parameters in float32."
        )


def reported(opt_state: PyTree) -> dict[str, Array]:
    """What an optimizer reports of a step: the metrics chosen in `optim.stages`, the scalar hyperparameters that
    `optax.inject_hyperparams` keeps.

    A name that occurs in several places is prefixed with its path.
    """
    found: dict[str, list[tuple[str, Array]]] = {}
    for path, leaf in tree.leaves_by_path(opt_state).items():
        head, _, name = path.rpartition("/")
        if head.endswith("hyperparams") and np.ndim(leaf) == 0:
            found.setdefault(name, []).append((path, leaf))
    single = {name: hits[0][1] for name, hits in found.items() if len(hits) == 1}
    many = {path: leaf for hits in found.values() if len(hits) > 1 for path, leaf in hits}
    return single | many | optim.metrics(opt_state)
