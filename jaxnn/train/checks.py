"""What `fit`, `evaluate` and `predict` refuse of tasks, optimizers and data, before anything is compiled: on shapes
and values, in one message each."""

import functools
import re
from numbers import Integral
from typing import Any

import jax
import numpy as np
import optax

from jaxnn import lookups, tree
from jaxnn.core import State, Task
from jaxnn.core.state import abstract
from jaxnn.core.step import check_step, trace_step
from jaxnn.train import values
from jaxnn.typing import Batch, Strategy

OURS = ("data.", "losses.", "metrics.", "layers.", "models.", "rng.", "sharding.", "train", "Task", "GPT", "MLP", "CNN")


def whole(where: str, name: str, value: Any, at_least: int, hint: str) -> int:
    """`value` as an int that is at least `at_least`.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is too small.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{where}: {name} must be an integer, got {value!r} of type {type(value).__name__}. {hint}")
    if value < at_least:
        raise ValueError(f"{where}: {name} must be at least {at_least}, got {value}. {hint}")
    return int(value)


def given(value: Any) -> str:
    """What was given, in an error message."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return tree.describe(value) if hasattr(value, "shape") and hasattr(value, "dtype") else type(value).__name__


def is_task(where: str, task: Any) -> None:
    """Refuses what is no `Task`."""
    if not isinstance(task, Task):
        raise TypeError(
            f"{where}: the first argument must be a Task, got {given(task)}. "
            "Make one: train.supervised(module, loss=losses.mse), train.from_nnx(make, ...), train.from_functions(...)."
        )


def is_optimizer(where: str, tx: Any) -> None:
    """Refuses what has no `init` and `update`."""
    if isinstance(tx, type) or not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        kind = f"{tx!r:.60}" if isinstance(tx, str | int | float) else given(tx)
        advice = "You passed what makes one; call it: optax.adam(1e-3)." if callable(tx) else "Try optax.adam(1e-3)."
        raise TypeError(
            f"{where}: the optimizer must be an optax.GradientTransformation (with init and update), got {kind}. "
            f"{advice}"
        )


def is_source(where: str, name: str, source: Any) -> None:
    """Refuses what is no `Source`, and one without examples."""
    needs = ("__len__", "take", "resident")
    if isinstance(source, type) or not all(hasattr(source, a) for a in needs):
        advice = "Wrap arrays: data.Arrays(x, y)."
        if isinstance(source, type):
            advice = "You passed a class; make one of it first."
        elif not _is_data(source) and (hasattr(source, "take") or hasattr(source, "__getitem__")):
            lacks = " and ".join(a for a in needs if not hasattr(source, a))
            advice = (
                f"It lacks {lacks}. A source has __len__() -> examples, take(ids) -> a dict of arrays with an example "
                "for each id, and resident() -> None where it does not live on the device. Or wrap arrays: "
                "data.Arrays(x, y)."
            )
        raise TypeError(f"{where}: {name} must be a data source, got {given(source)}. {advice}")
    if len(source) == 0:
        raise ValueError(f"{where}: {name} has no examples. Give at least one.")


def _is_data(value: Any) -> bool:
    """Whether this is examples themselves (arrays, tuples, lists, dicts) rather than what gives them."""
    return hasattr(value, "__array__") or isinstance(value, list | tuple | dict | str)


def is_strategy(where: str, strategy: Any) -> None:
    """Refuses what is no `Strategy`."""
    methods = ("make_step", "compile", "put_state", "devices")
    if isinstance(strategy, type) or not all(hasattr(strategy, a) for a in methods):
        name = getattr(strategy, "__name__", "")
        advice = f"Call it: parallel.{name.lower()}()." if callable(strategy) and name else "Try parallel.replicate()."
        kind = name or f"{strategy!r:.60}"
        raise TypeError(f"{where}: strategy must be one of jaxnn.parallel's, got {kind}. {advice}")


def evaluation_arguments(where: str, task: Any, state: Any, source: Any, batch_size: Any, strategy: Any) -> None:
    """The arguments that `evaluate` and `predict` share."""
    is_task(where, task)
    if not isinstance(state, State):
        raise TypeError(
            f"{where}: the second argument must be a State, got {given(state)}. Give run.state, parameters and all."
        )
    is_source(where, "the data", source)
    whole(where, "batch_size", batch_size, 1, "Only speed and memory depend on it: try 256.")
    if strategy is not None:
        is_strategy(where, strategy)


def reason(error: Exception) -> str:
    """An error in a line: its kind, and the first line that says something, without the address of a manual."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = re.sub(r"\s*\(?https?://\S+", "", lines[0]).rstrip(".") if lines else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _shapes(batch: Batch) -> str:
    return ", ".join(f"{name} {tree.describe(x)}" for name, x in batch.items() if name not in ("mask", "index"))


def _ours(error: Exception) -> bool:
    """Whether a message is already one of this library's, which say what to do."""
    head = str(error).split(":", 1)[0]
    return head.startswith(OURS)


def _abstract_key() -> Any:
    """The shape of a typed key; making one compiles a program."""
    return jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))


def _ids(batch: Batch) -> Batch:
    """The batch's token ids, labels and the like as they are: a model that is traced with them says of these very
    arrays what it looks them up in."""
    found = {name: x for name, x in batch.items() if isinstance(x, np.ndarray) and x.ndim <= 2 and x.dtype.kind in "iu"}
    # Put, not converted, by jax: that would compile.
    return {name: jax.device_put(x.astype(jax.dtypes.canonicalize_dtype(x.dtype))) for name, x in found.items()}


def init_shapes(where: str, task: Task, batch: Batch) -> Any:
    """The shapes of a task's variables for this batch.

    Raises:
        ValueError: If the model rejects the batch, or has no row for one of its ids.
    """
    key, ids = _abstract_key(), _ids(batch)
    try:
        with lookups.noticing(ids) as found:
            shapes = jax.eval_shape(lambda k, b: task.init(k, {**b, **ids}), key, abstract(batch))
        values.within(where, batch, found, "the first batch")
        return shapes
    except Exception as error:  # flax's own error classes share no base but Exception
        if _ours(error) and isinstance(error, TypeError | ValueError):
            raise
        raise ValueError(
            f"{where}: the model cannot be initialised for a batch of {_shapes(batch)}: {reason(error)}. "
            "Make the model and the data fit each other."
        ) from error


def call(where: str, what: str, batch: Batch, fn: Any, *arguments: Any) -> Any:
    """The shapes of `fn(*arguments)`.

    Raises:
        ValueError: If it fails on them, naming `what`.
    """
    try:
        return jax.eval_shape(fn, *arguments)
    except Exception as error:  # whatever the model raises on these shapes; told in one line
        if _ours(error) and isinstance(error, TypeError | ValueError):
            raise
        raise ValueError(
            f"{where}: {what} fails on a batch of {_shapes(batch)}: {reason(error)}. "
            "Make the model and the data fit each other."
        ) from error


def trainable(where: str, params: Any) -> None:
    """Refuses parameters that have no gradient."""
    for path, leaf in tree.leaves_by_path(params).items():
        if not jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact):
            raise ValueError(
                f"{where}: parameter {path!r} is {tree.describe(leaf)}, which has no gradient. "
                "Make it float32, or keep it out of the parameters."
            )


def _own_parameters(where: str, task: Task, state: State, batch: Batch) -> None:
    """Refuses a state whose parameters are not those that the task has on such a batch."""
    try:
        params, model_state = init_shapes(where, task, batch)
    except Exception:  # the call that failed says more
        return
    held = {"params": state.params, "model_state": state.model_state}
    changes = list(tree.differences(abstract(held), {"params": params, "model_state": model_state}))
    if changes:
        raise ValueError(
            f"{where}: the state is not that of this task on a batch of {_shapes(batch)} (state against task): "
            f"{'; '.join(changes[:4])}. Give the task that was trained, and inputs of the same shape."
        )


def loss_shapes(where: str, task: Task, variables: Any, batch: Batch) -> tuple[list[str], values.Lookups]:
    """Traces the task's loss on shapes and checks what it gives; the names of the values that it reports, and what it
    looks up of a batch.

    Raises:
        ValueError: If the loss fails on the batch, or gives something that is not a scalar.
    """
    key, ids = _abstract_key(), _ids(batch)
    batch = abstract(batch)
    with lookups.noticing(ids) as found:
        loss = call(
            where,
            "the loss",
            batch,
            lambda v, b, k: task.loss(v[0], v[1], {**b, **ids}, k, True),
            variables,
            batch,
            key,
        )
    for name in ("total", "weight", "penalty"):
        value = getattr(loss, name, None)
        if value is None or getattr(value, "shape", ()) != ():
            raise ValueError(
                f"{where}: the task's loss gives {name} {tree.describe(value)}; it must be a scalar. "
                "Sum over the examples."
            )
    changes = list(tree.differences(variables[1], loss.model_state))
    if changes:
        raise ValueError(
            f"{where}: the loss changes the model state (before against after): {'; '.join(changes[:4])}. "
            "Keep its structure, shapes and dtypes."
        )
    return ["loss", *loss.sums], found


def traced_step(where: str, step: Any, state: State, batch: Batch, strategy: Strategy) -> tuple[Any, Any]:
    """Traces the whole step on shapes; the trace, and the shapes of the sums that it reports.

    Raises:
        TypeError: If the step changes the state's shapes or dtypes.
        ValueError: If it cannot be traced.
    """
    try:
        traced = trace_step(step, state, batch, strategy)
        return traced, check_step(traced, state)
    except Exception as error:  # whatever model, loss or optimizer raise; told in one line
        if _ours(error) and isinstance(error, TypeError | ValueError):
            raise
        raise ValueError(f"{where}: the train step fails on a batch of {_shapes(batch)}: {reason(error)}.") from error


def task_accepts(where: str, task: Task, state: State, batch: Batch) -> values.Lookups:
    """Checks that a trained task can evaluate batches of these shapes; compiles nothing. Gives what it looks up."""
    try:
        return loss_shapes(where, task, abstract((state.params, state.model_state)), batch)[1]
    except Exception:
        _own_parameters(where, task, state, batch)
        raise


def predict_accepts(where: str, task: Task, state: State, batch: Batch) -> values.Lookups:
    """Checks that a trained task can predict for batches of these shapes; compiles nothing. Gives what it looks up."""
    variables, ids = abstract((state.params, state.model_state)), _ids(batch)
    predict = lambda v, b: task.predict(v[0], v[1], {**b, **ids})  # noqa: E731
    try:
        with lookups.noticing(ids) as found:
            outputs = call(where, "the model", batch, predict, variables, abstract(batch))
    except Exception:
        _own_parameters(where, task, state, batch)
        raise
    for path, leaf in tree.leaves_by_path(outputs).items():
        if leaf.shape[:1] != batch["mask"].shape:
            raise ValueError(
                f"{where}: output {path!r} {tree.describe(leaf)} has no leading axis of the {batch['mask'].shape[0]} "
                "examples of a batch. Predictions are made a batch at a time; keep the example axis first."
            )
    return found


def joinable(where: str, parts: list[Any]) -> None:
    """Refuses outputs of batches that differ in more than the number of examples."""
    first = tree.leaves_by_path(parts[0])
    for other in parts[1:]:
        for path, leaf in tree.leaves_by_path(other).items():
            if leaf.shape[1:] != first[path].shape[1:]:
                raise ValueError(
                    f"{where}: output {path!r} of an example is {list(first[path].shape[1:])} in one batch and "
                    f"{list(leaf.shape[1:])} in another: the batches differ in length. Tried: joining them. Give the "
                    "data without buckets."
                )


def optimizer_accepts(where: str, tx: optax.GradientTransformation, params: Any) -> None:
    """Traces the optimizer's init and update on the parameters' shapes.

    Raises:
        ValueError: If one fails.
    """
    what = "initialised for"
    transform = optax.with_extra_args_support(tx)
    dtypes = [x.dtype for x in jax.tree.leaves(params) if jax.numpy.issubdtype(x.dtype, jax.numpy.floating)]
    value = jax.ShapeDtypeStruct((), functools.reduce(np.promote_types, dtypes, np.dtype(np.float32)))
    try:
        state = jax.eval_shape(tx.init, params)
        what = "updated with gradients of"
        jax.eval_shape(
            lambda p, s, v: transform.update(p, s, p, value=v, grad=p, value_fn=lambda _, aux=None: v, aux={}),
            params,
            state,
            value,
        )
    except Exception as error:  # whatever the optimizer raises on these shapes; told in one line
        raise ValueError(f"{where}: the optimizer cannot be {what} these parameters: {reason(error)}.") from error


def same_fields(where: str, train_batch: Batch, validation_batch: Batch, alike: bool) -> None:
    """Refuses validation data whose arrays do not look like the training data's; `alike` says whether the batches of
    each have one length."""
    for name, x in train_batch.items():
        if name in ("mask", "index"):
            continue
        y = validation_batch.get(name)
        rest = 1 if alike else 2
        if y is None or x.ndim != y.ndim or x.shape[rest:] != y.shape[rest:] or x.dtype != y.dtype:
            other = "absent" if y is None else f"{y.dtype}{list(y.shape[1:])} an example"
            raise ValueError(
                f"{where}: array {name!r} of the validation data is {other}, of the training data "
                f"{x.dtype}{list(x.shape[1:])}. Give both the same names, shapes and dtypes."
            )
