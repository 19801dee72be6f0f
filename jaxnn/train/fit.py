"""`fit`: a task, an optimizer and data, in; a run, out. What it does is checked before anything is compiled."""

import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from jaxnn import bench, cost, parallel
from jaxnn.core import State, Task, init_state
from jaxnn.core.state import abstract
from jaxnn.core.step import dispatch_steps, make_step
from jaxnn.data import host_batch, order
from jaxnn.runs import RunFolder, write_summary
from jaxnn.train import checks, engine
from jaxnn.train.evaluation import evaluate
from jaxnn.train.hooks import Evaluate, Hook, Plan, StopOnNonFinite
from jaxnn.train.profile import Profile
from jaxnn.train.progress import Progress
from jaxnn.train.run import Checkpointing, Dispatch, Interrupted, Log, Run
from jaxnn.train.session import Session
from jaxnn.train.signals import Signals
from jaxnn.train.windows import LEAVES
from jaxnn.typing import Source, Strategy

FREE = (
    "fit.steps",
    "fit.epochs",
    "fit.strategy",
    "fit.devices",
    "config.out",
    "config.resume",
    "config.strategy",
    "config.devices",
    "config.tensorboard",
    "config.profile",
)


def fit(
    task: Task,
    tx: optax.GradientTransformation,
    source: Source,
    *,
    batch_size: int,
    steps: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    strategy: Strategy | None = None,
    validation: Source | None = None,
    validate_every: int | None = None,
    hooks: Sequence[Hook] = (),
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    log: Log | None = None,
    save: Checkpointing | None = None,
    dispatch: Dispatch | None = None,
    debug: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Run:
    """Trains, and gives the run back.

    A run is a function of (code, data, seed): the examples of each step are arithmetic, random layers draw by example
    and step, and how steps are cut into dispatches changes nothing. With `out`, a killed run resumes to the byte.

    Args:
        task: What is learned.
        tx: An optax gradient transformation.
        source: Training data; each epoch is a new permutation, its last batch padded and masked.
        batch_size: Global examples a step, over all devices.
        steps: How many batches; or give `epochs`.
        epochs: How many passes over the data.
        seed: The only source of randomness.
        strategy: How the step is spread over devices; by default one device.
        validation: Held-out data; its values are reported as "val_...".
        validate_every: Data steps between validations; by default an epoch, or a tenth of `steps`.
        hooks: What else happens; see `train.Hook`.
        out: The run's folder: metrics, journal, checkpoints, report.
        resume: Go on with the run in `out` from its newest good checkpoint, or from the start where it was killed
            before it had written one.
        log: What is reported and shown.
        save: When checkpoints are written (with `out`).
        dispatch: How steps reach the device.
        debug: Report the first parameter or gradient leaf that is not finite, by path.
        config: The experiment's config as JSON, recorded; a resume with another one is refused.

    Returns:
        The run: its last state, its history, and why it stopped early if it did.

    Raises:
        TypeError: If something is not what it should be: task, optimizer, data, strategy, a number.
        ValueError: If shapes do not fit, sizes make no sense, or the run folder is not usable.
        Interrupted: After Ctrl-C or SIGTERM, once the run is saved; holds the run.
    """
    where = "train.fit"
    log = Log() if log is None else log
    saves, save = save is not None, Checkpointing() if save is None else save
    dispatch = Dispatch() if dispatch is None else dispatch
    checks.is_task(where, task)
    checks.is_optimizer(where, tx)
    checks.is_source(where, "the data", source)
    strategy = strategy if strategy is not None else parallel.single()
    checks.is_strategy(where, strategy)
    n = len(source)
    size = checks.batch_size(where, batch_size, n, strategy)
    epoch = order.steps_per_epoch(n, size)
    total = checks.duration(where, steps, epochs, epoch)
    checks.is_seed(where, seed)
    checks.settings(where, log, save, dispatch, hooks, out, resume, validation is not None, validate_every)
    checks.profile(where, log.profile, total)
    if saves and out is None:
        raise ValueError(f"{where}: save= has nowhere to write. Pass out=, the run's folder.")
    ids = engine.order_ids(seed, n, size)
    batch = host_batch(source, ids(0, 1)[0])
    variables = checks.init_shapes(where, task, batch)
    checks.trainable(where, variables[0])
    reported = checks.loss_shapes(where, task, variables, batch)
    checks.optimizer_accepts(where, tx, variables[0])
    if validation is not None:
        checks.is_source(where, "validation", validation)
        checks.same_fields(where, batch, host_batch(validation, np.zeros(1, np.int64)))

    recorded: dict[str, Any] = {}
    folder = None
    if out is not None and resume:
        folder = RunFolder.open(out)
        recorded = folder.config.get("fit", {})
    plan = Plan(
        steps=total,
        epoch=epoch,
        log_every=log.every
        or recorded.get("log_every")
        or (min(epoch, 100) if epochs else max(1, min(50, total // 50))),
        validate_every=None
        if validation is None
        else validate_every or recorded.get("validate_every") or (epoch if epochs else max(1, total // 10)),
        batch_size=size,
    )
    resident = None
    if dispatch.resident is not False and not getattr(source, "takes_step", False) and recorded.get("resident", True):
        resident = source.resident() if dispatch.resident else engine.resident_data(source, strategy.devices)
        if resident is None and (dispatch.resident or recorded.get("resident")):
            raise ValueError(
                f"{where}: {type(source).__name__} has no form that lives on the device. "
                "Leave Dispatch(resident=...) out."
            )

    step = engine.scalars(make_step(task, tx, strategy, grad_norm=log.grad_norm, debug=debug))
    shapes = _state_shapes(task, tx, variables)
    traced, sums = checks.traced_step(where, step, shapes, batch, strategy)
    k_max = (dispatch.most or recorded.get("k_max") or dispatch_steps(size, sums)) if resident is not None else 1
    facts = {
        "steps": steps,
        "epochs": epochs,
        "batch_size": size,
        "examples": n,
        "seed": int(seed),
        "strategy": type(strategy).__name__.lower(),
        "devices": len(strategy.devices),
        "log_every": plan.log_every,
        "validate_every": plan.validate_every,
        "resident": resident is not None,
        "k_max": k_max,
        "debug": debug,
    }
    every_hook: list[Hook] = []
    if validation is not None:
        held_out = validation
        every_hook.append(Evaluate(lambda state: evaluate(task, state, held_out, batch_size=size, strategy=strategy)))
    every_hook += [*hooks, StopOnNonFinite()]
    names = [name for name in sums if not name.startswith(LEAVES)]
    names += [f"val_{name}" for name in reported] if validation is not None else []
    checks.hooks_accept(where, every_hook, plan, shapes, names, save.best)
    full = {"fit": facts, "config": dict(config or {})}
    changed: list[str] = []
    if folder is not None:
        changed = folder.check_config(full, FREE)
    elif out is not None:
        folder = RunFolder.create(out, full)

    progress = Progress() if log.progress else None
    flops = cost.of(traced, compile=False).flops
    session = Session(plan, strategy, task.finish, every_hook, folder, save, progress, log.tensorboard, shapes, flops)
    stopped: str | None = None
    try:
        if resume and not session.begins_again():
            state, at = session.restore(None, hooks=True)
        else:
            state, at = init_state(task, tx, batch, seed=seed, strategy=strategy), 0
        if resident is not None:
            session.engine = engine.ResidentEngine(
                step, sums, resident, state, at, ids, k_max, strategy, session.deliver, debug
            )
        else:
            session.engine = engine.StreamingEngine(
                step, source, state, at, total, ids, strategy, session.deliver, debug
            )
        del state  # the engine's step donates it
        if folder is not None and resume:
            folder.update_config(full)
            session.journal("resume", changed=changed)
        else:
            session.journal("start")
        if log.profile is not None and folder is not None:
            session.profile = Profile(log.profile, folder.path / "profile", session.engine.program)
        if progress is not None:
            progress.begin(plan, at)
        with Signals() as signals:
            while True:
                stopped = session.run(signals)
                if signals.received is not None:
                    break
                stopped = session.end(stopped)
                if stopped is not None or session.engine.data_step >= total:
                    break
    finally:
        session.close()
    run = Run(task, session.engine.state, session.history, stopped, folder)
    if folder is not None:
        if log.peaks and signals.received is None:
            measured = bench.peaks(seconds=1.0)
            values = {peak.name: peak.value for peak in measured.by_name.values()}
            folder.journal.append("peaks", session.engine.data_step, device=measured.device, **values)
        write_summary(folder, run.state.params)
    if signals.received is not None:
        at = session.engine.data_step
        how = (
            f" Saved at step {at} in {folder.path}; go on with resume=True (--resume)."
            if folder
            else " Nothing is saved: no out= was given."
        )
        by = signal.Signals(signals.received).name
        raise Interrupted(f"train.fit: interrupted by {by} at step {at} of {total}.{how}", run, signals.received)
    return run


def _state_shapes(task: Task, tx: optax.GradientTransformation, variables: Any) -> State:
    """The shapes of a run's state, without computing it."""
    params, model_state = variables
    scalar = jax.ShapeDtypeStruct((), np.int32)
    opt_state = jax.eval_shape(tx.init, params)
    return State(scalar, scalar, params, model_state, abstract(opt_state), jax.ShapeDtypeStruct((2,), np.uint32))
