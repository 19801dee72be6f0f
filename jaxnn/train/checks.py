"""What `fit`, `evaluate` and `predict` refuse, before anything is compiled: on shapes and values, in one message
each."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import jax
import optax

from jaxnn import tree
from jaxnn.core import State, Task
from jaxnn.core.state import abstract
from jaxnn.train.hooks import Hook, Plan
from jaxnn.train.run import Checkpointing, Dispatch, Log
from jaxnn.typing import Batch, Strategy


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


def is_task(where: str, task: Any) -> None:
    if not isinstance(task, Task):
        raise TypeError(
            f"{where}: the first argument must be a Task, got {type(task).__name__}. "
            "Make one: train.supervised(module, loss=losses.mse), train.from_nnx(make, ...), train.from_functions(...)."
        )


def is_optimizer(where: str, tx: Any) -> None:
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        kind = f"{tx!r:.60}" if isinstance(tx, str | int | float) else type(tx).__name__
        made = " You passed the function that makes one; call it: optax.adam(1e-3)." if callable(tx) else ""
        raise TypeError(
            f"{where}: the optimizer must be an optax.GradientTransformation (with init and update), got {kind}.{made or ' Try optax.adam(1e-3).'}"
        )


def is_source(where: str, name: str, source: Any) -> None:
    if isinstance(source, type) or not all(hasattr(source, a) for a in ("__len__", "take", "resident")):
        kind = tree.describe(source) if hasattr(source, "shape") else type(source).__name__
        raise TypeError(f"{where}: {name} must be a data source, got {kind}. Wrap arrays: data.Arrays(x, y).")
    if len(source) == 0:
        raise ValueError(f"{where}: {name} has no examples.")


def is_strategy(where: str, strategy: Any) -> None:
    if isinstance(strategy, type) or not all(
        hasattr(strategy, a) for a in ("make_step", "compile", "put_state", "devices")
    ):
        made = (
            f" Call it: parallel.{strategy.__name__}()." if callable(strategy) and hasattr(strategy, "__name__") else ""
        )
        raise TypeError(
            f"{where}: strategy must be one of jaxnn.parallel's, got {strategy!r:.60}.{made or ' Try parallel.replicate().'}"
        )


def evaluation_arguments(where: str, task: Any, state: Any, source: Any, batch_size: Any) -> None:
    """The arguments that `evaluate` and `predict` share."""
    is_task(where, task)
    if not isinstance(state, State):
        raise TypeError(f"{where}: expected a State (run.state), got {type(state).__name__}.")
    is_source(where, "the data", source)
    whole(where, "batch_size", batch_size, 1, "Only speed and memory depend on it: try 256.")


def _reason(error: Exception) -> str:
    """The first line of an error that says something, without a stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _shapes(batch: Batch) -> str:
    return ", ".join(f"{name} {tree.describe(x)}" for name, x in batch.items() if name not in ("mask", "index"))


def _ours(error: Exception) -> bool:
    """Whether a message is already one of this library's, which say what to do."""
    head = str(error).split(":", 1)[0]
    return any(
        head.startswith(p)
        for p in (
            "losses.",
            "metrics.",
            "layers.",
            "models.",
            "Task",
            "train.",
            "rng.",
            "sharding.",
            "GPT",
            "MLP",
            "CNN",
        )
    )


def init_shapes(where: str, task: Task, batch: Batch) -> Any:
    """The shapes of a task's variables for this batch.

    Raises:
        ValueError: If the model rejects the batch.
    """
    key = jax.random.key(0, impl="threefry2x32")
    try:
        return jax.eval_shape(lambda k, b: task.init(k, b), key, abstract(batch))
    except (TypeError, ValueError, AttributeError, IndexError, AssertionError, KeyError) as error:
        if _ours(error):
            raise
        raise ValueError(
            f"{where}: the model cannot be initialised for a batch of {_shapes(batch)}: {_reason(error)}"
        ) from error
    except Exception as error:  # flax's own error classes share no base but Exception
        raise ValueError(
            f"{where}: the model cannot be initialised for a batch of {_shapes(batch)}: {_reason(error)}"
        ) from error


def _call(where: str, what: str, batch: Batch, fn: Any, *arguments: Any) -> Any:
    try:
        return jax.eval_shape(fn, *arguments)
    except Exception as error:  # whatever the model raises on these shapes; told in one line
        if _ours(error) and isinstance(error, TypeError | ValueError):
            raise
        raise ValueError(f"{where}: {what} fails on a batch of {_shapes(batch)}: {_reason(error)}") from error


def loss_shapes(where: str, task: Task, variables: Any, batch: Batch) -> None:
    """Traces the task's loss on shapes and checks what it gives.

    Raises:
        ValueError: If the loss fails on the batch, or gives something that is not a scalar.
    """
    key = jax.random.key(0, impl="threefry2x32")
    batch = abstract(batch)
    loss = _call(where, "the loss", batch, lambda v, b, k: task.loss(v[0], v[1], b, k, True), variables, batch, key)
    for name in ("total", "weight", "penalty"):
        value = getattr(loss, name, None)
        if value is None or getattr(value, "shape", ()) != ():
            raise ValueError(
                f"{where}: the task's loss gives {name} {tree.describe(value)}; it must be a scalar. Sum over the examples."
            )
    changes = list(tree.differences(variables[1], loss.model_state))
    if changes:
        raise ValueError(f"{where}: the loss changes the model state's structure: {'; '.join(changes[:4])}.")


def task_accepts(where: str, task: Task, state: State, batch: Batch) -> None:
    """Checks that a trained task can evaluate this batch; compiles nothing."""
    loss_shapes(where, task, abstract((state.params, state.model_state)), batch)


def predict_accepts(where: str, task: Task, state: State, batch: Batch) -> None:
    """Checks that a trained task can predict for this batch; compiles nothing."""
    variables = abstract((state.params, state.model_state))
    outputs = _call(where, "the model", batch, lambda v, b: task.predict(v[0], v[1], b), variables, abstract(batch))
    for path, leaf in tree.leaves_by_path(outputs).items():
        if leaf.shape[:1] != batch["mask"].shape:
            raise ValueError(
                f"{where}: output {path!r} {tree.describe(leaf)} has no leading example axis of {batch['mask'].shape[0]}. "
                "Predictions are made a batch at a time; keep the example axis first."
            )


def optimizer_accepts(where: str, tx: optax.GradientTransformation, params: Any) -> None:
    """Traces the optimizer's init and update on the parameters' shapes.

    Raises:
        ValueError: If one fails.
    """
    what = "initialised for"
    transform = optax.with_extra_args_support(tx)
    value = jax.ShapeDtypeStruct((), jax.numpy.float32)
    try:
        state = jax.eval_shape(tx.init, params)
        what = "updated with gradients of"
        jax.eval_shape(
            lambda p, s, v: transform.update(p, s, p, value=v, grad=p, value_fn=lambda _: v, aux={}),
            params,
            state,
            value,
        )
    except Exception as error:  # whatever the optimizer raises on these shapes; told in one line
        raise ValueError(f"{where}: the optimizer cannot be {what} these parameters: {_reason(error)}") from error


def duration(where: str, steps: Any, epochs: Any, epoch: int) -> int:
    """The number of data steps from `steps` or `epochs`, exactly one of which must be given."""
    if (steps is None) == (epochs is None):
        said = "neither" if steps is None else "both"
        raise ValueError(f"{where}: give steps= or epochs=, got {said}.")
    if steps is not None:
        return whole(where, "steps", steps, 1, "It counts batches.")
    return whole(where, "epochs", epochs, 1, "It counts passes over the data.") * epoch


def batch_size(where: str, value: Any, n: int, strategy: Strategy) -> int:
    """A global batch size that the data has and the devices divide."""
    size = whole(where, "batch_size", value, 1, "It counts the examples of a step, over all devices.")
    if size > n:
        raise ValueError(
            f"{where}: batch_size {size} is larger than the data ({n} examples). Use at most {n} (full batch)."
        )
    devices = len(strategy.devices)
    if size % devices:
        near = max(devices, round(size / devices) * devices)
        raise ValueError(
            f"{where}: a global batch of {size} examples does not divide over {devices} devices. Use a multiple of {devices}: {near}, say."
        )
    return size


def same_fields(where: str, train_batch: Batch, validation_batch: Batch) -> None:
    """Refuses validation data whose arrays do not look like the training data's."""
    for name, x in train_batch.items():
        if name in ("mask", "index"):
            continue
        y = validation_batch.get(name)
        if y is None or x.shape[1:] != y.shape[1:] or x.dtype != y.dtype:
            other = "absent" if y is None else f"{y.dtype}{list(y.shape[1:])}"
            raise ValueError(
                f"{where}: array {name!r} of the validation data is {other} an example, in the training data {x.dtype}{list(x.shape[1:])}."
            )


def settings(
    where: str, log: Any, save: Any, dispatch: Any, hooks: Any, out: Any, resume: Any, validate_every: Any
) -> None:
    """The settings that have a type and a range."""
    for name, value, kind in (("log", log, Log), ("save", save, Checkpointing), ("dispatch", dispatch, Dispatch)):
        if not isinstance(value, kind):
            raise TypeError(f"{where}: {name} must be a train.{kind.__name__}, got {value!r:.60}.")
    for name, value in (
        ("log.every", log.every),
        ("save.every", save.every),
        ("save.keep", save.keep),
        ("dispatch.most", dispatch.most),
        ("validate_every", validate_every),
    ):
        if value is not None:
            whole(where, name, value, 1, "It counts steps (or checkpoints).")
    if save.minutes is not None and save.minutes <= 0:
        raise ValueError(f"{where}: save.minutes must be positive, got {save.minutes}. None saves by steps only.")
    for hook in hooks:
        if not isinstance(hook, Hook):
            made = " Call it: it is a class." if isinstance(hook, type) else " Subclass train.Hook."
            raise TypeError(f"{where}: hooks must be train.Hook objects, got {hook!r:.60}.{made}")
    if resume and out is None:
        raise ValueError(f"{where}: resume=True needs out=, the folder of the run to go on with.")
    if log.tensorboard and out is None:
        raise ValueError(f"{where}: log.tensorboard writes into the run's folder. Pass out=.")


def hooks_accept(where: str, hooks: Sequence[Hook], plan: Plan, state: State, names: Sequence[str]) -> None:
    """Refuses hooks that cannot work in this run: two of one name, a period that is none, settings that do not fit.

    Args:
        where: The function that was called.
        hooks: All hooks, built-in ones too.
        plan: What the run is going to do.
        state: Shapes and dtypes of its state.
        names: What is going to be reported, but by hooks.
    """
    called = [hook.name for hook in hooks]
    twice = sorted({name for name in called if called.count(name) > 1})
    if twice:
        raise ValueError(
            f"{where}: several hooks are called {twice}: their memories would overwrite each other in checkpoints. "
            "Give each its own name."
        )
    for hook in hooks:
        hook.start(plan, state)
        period = hook.every(plan)
        if period is not None:
            whole(where, f"hook {hook.name}: every(plan)", period, 1, "It counts data steps; None for never.")
    known = all(type(hook).__module__.startswith("jaxnn.") for hook in hooks)  # others may report names of their own
    for hook in hooks:
        monitor = getattr(hook, "monitor", None)
        if known and monitor is not None and monitor not in names:
            raise ValueError(
                f"{where}: hook {hook.name} monitors {monitor!r}, which nothing reports. Reported: {sorted(names)}."
            )
