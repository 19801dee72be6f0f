"""From the arguments of `fit` to everything that a run needs before its state exists; refuses, and compiles nothing."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from jaxnn import cost, optim, parallel, rng, tree
from jaxnn.core import State, Step, Task, init_state, roles
from jaxnn.core.precision import in_precision
from jaxnn.core.state import abstract
from jaxnn.core.step import dispatch_steps, make_step
from jaxnn.data import host_batch, order
from jaxnn.data.bucketing import batch_lengths, counted
from jaxnn.runs import RunFolder
from jaxnn.train import beginning, checks, engine, folders, population as populations, setting_checks, together, values
from jaxnn.train.evaluation import evaluate
from jaxnn.train.hooks import Evaluate, Hook, Plan, StopOnNonFinite, direction
from jaxnn.train.run import Checkpointing, Conditions, Dispatch, Log
from jaxnn.train.windows import LEAVES, Windows
from jaxnn.typing import Batch, Resident, Source, Strategy

WHERE = "train.fit"
FREE = (
    "fit.steps",
    "fit.epochs",
    "fit.strategy",
    "fit.devices",
    "fit.remat",
    "fit.nonfinite",
    "config.out",
    "config.resume",
    "config.strategy",
    "config.devices",
    "config.remat",
    "config.nonfinite",
    "config.profile",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A run that can begin.

    Attributes:
        task: What is learned.
        tx: The optimizer.
        source: Training data.
        seed: The source of randomness.
        strategy: How the step is spread over devices.
        plan: What is going to be done.
        log: What is reported and shown.
        save: When checkpoints are written.
        hooks: All of them, in the order in which they act.
        folder: The run's folder, held against other writers until `folder.release()`; None for none.
        config: What the folder records.
        changed: What a resumed run changes of it.
        batch: An example batch.
        ids: The order of examples, `(data_step, count) -> [count, B]`.
        settings: Of the step.
        step: The traceable step.
        shapes: Shapes and dtypes of the state.
        sums: Shapes and dtypes of what the step reports.
        lookups: What the model looks up of a batch.
        resident: The data in the form that lives on the device, or None where it is streamed.
        k_max: Steps a dispatch at most.
        debug: Whether to look for what is not finite.
        population: What its members differ in, or None.
        flops: Floating-point operations of a step; NaN where they could not be counted.
        uncounted: Why they could not be; None where they were.
        resume: Whether it goes on with the run in the folder.
        given: From the parameters and model state drawn to those that the run begins with; None for the same.
        told: What the journal says of its beginning.
    """

    task: Task
    tx: optax.GradientTransformation
    source: Source
    seed: int
    strategy: Strategy
    plan: Plan
    log: Log
    save: Checkpointing
    hooks: list[Hook]
    folder: RunFolder | None
    config: dict[str, Any]
    changed: list[str]
    batch: Batch
    ids: Callable[[int, int], np.ndarray]
    settings: Step
    step: Callable[..., Any]
    shapes: State
    sums: Any
    lookups: values.Lookups
    resident: Resident | None
    k_max: int
    debug: bool
    population: optim.Population | None
    flops: float
    uncounted: str | None
    resume: bool
    given: Callable[..., Any] | None
    told: dict[str, Any]

    def first_state(self) -> State:
        """The state that the run begins with, placed."""
        if self.population is None:
            return init_state(self.task, self.tx, self.batch, seed=self.seed, strategy=self.strategy, given=self.given)
        alone = parallel.single(self.strategy.devices[0])
        state = init_state(self.task, self.tx, self.batch, seed=self.seed, strategy=alone, given=self.given)
        return self.strategy.put_state(populations.spread(state, self.population))

    def conditions(self, driven: engine.Engine) -> Conditions:
        """What it is trained with, and how it was driven."""
        return Conditions(
            tx=self.tx,
            source=self.source,
            strategy=self.strategy,
            seed=self.seed,
            plan=self.plan,
            resident=self.resident is not None,
            most=self.k_max,
            steps=driven.steps,
            dispatches=driven.dispatches,
            traced=tuple(driven.traced),
            settings=self.settings,
        )

    def windows(self) -> Windows | populations.PopulationWindows:
        """What makes rows of the sums."""
        numbers = (self.plan.log_every, self.plan.epoch, self.task.finish)
        return (
            Windows(*numbers)
            if self.population is None
            else populations.PopulationWindows(len(self.population), *numbers)
        )

    def engine(self, state: State, data_step: int, deliver: engine.Deliver) -> engine.Engine:
        """What drives the run from a state on, which the first step donates."""
        if self.resident is not None:
            grouped = self.strategy if isinstance(self.strategy, parallel.Members) else None
            return engine.ResidentEngine(
                self.step,
                self.sums if grouped is None else grouped.of_group(self.sums),
                self.resident,
                state,
                data_step,
                self.ids,
                self.k_max,
                self.strategy,
                deliver,
                self.debug,
            )
        return engine.StreamingEngine(
            self.step,
            self.source,
            state,
            data_step,
            self.plan.steps,
            self.ids,
            self.strategy,
            deliver,
            self.debug,
            values.step_check(WHERE, self.lookups),
        )


def prepare(
    task: Task,
    tx: optax.GradientTransformation,
    source: Source,
    *,
    batch_size: int,
    steps: int | None,
    epochs: int | None,
    seed: int,
    strategy: Strategy | None,
    step: Step | None,
    validation: Source | None,
    validate_every: int | None,
    hooks: Sequence[Hook],
    out: str | os.PathLike[str] | None,
    resume: bool | str,
    log: Log | None,
    save: Checkpointing | None,
    dispatch: Dispatch | None,
    debug: bool,
    population: optim.Population | None,
    config: Mapping[str, Any] | None,
    init_from: Any,
) -> Prepared:
    """Checks the arguments of `fit` and traces the step. A new run's folder is made last, once nothing is refused.

    Args and Raises as in `fit`.
    """
    log = Log() if log is None else log
    resume = folders.resumes(out, resume)
    dispatch = Dispatch() if dispatch is None else dispatch
    settings = Step() if step is None else step
    checks.is_task(WHERE, task)
    checks.is_optimizer(WHERE, tx)
    checks.is_source(WHERE, "the data", source)
    strategy = strategy if strategy is not None else parallel.single()
    checks.is_strategy(WHERE, strategy)
    setting_checks.step(WHERE, settings, debug)
    task = in_precision(task, settings.precision)
    one = strategy  # what one step runs under
    if population is not None:
        setting_checks.population(WHERE, population, hooks, debug)
        one = parallel.single(strategy.devices[0])
        strategy = parallel.members(strategy, len(population), populations.AXES)
    n = len(source)
    size = setting_checks.batch_size(WHERE, batch_size, n, one, settings)
    epoch = order.steps_per_epoch(n, size)
    total = setting_checks.duration(WHERE, steps, epochs, epoch)
    seed = rng.check_seed(seed, WHERE)
    setting_checks.settings(
        WHERE, log, save or Checkpointing(), dispatch, hooks, out, resume, validation is not None, validate_every
    )
    setting_checks.profile(WHERE, log.profile, total)
    if save is not None and out is None:
        raise ValueError(f"{WHERE}: save= has nowhere to write. Pass out=, the run's folder.")
    save = save or Checkpointing()
    ids = engine.Order(seed, source, size)
    lengths = batch_lengths(source)
    # Where batches differ in length the longest ones are what must fit.
    batch = host_batch(source, ids(0, 1)[0], length=max(lengths, default=None))
    variables = checks.init_shapes(WHERE, task, batch)
    checks.trainable(WHERE, variables[0])
    given, begin = None, None
    if init_from is not None:
        begin = beginning.given(WHERE, init_from, variables[0].keys() if isinstance(variables[0], Mapping) else ())
        beginning.check_beginning(WHERE, variables, begin)
        given = lambda *drawn: tuple(map(beginning.begun_from, drawn, begin))  # noqa: E731
    if task.frozen is not None:
        beginning.check_frozen(WHERE, variables[0], begin, task.frozen)
    reported, lookups = checks.loss_shapes(WHERE, task, variables, batch)
    values.within(WHERE, batch, lookups, "the first batch")
    declared = lambda: roles(task, batch)  # noqa: E731
    with tree.declaring(declared):
        checks.optimizer_accepts(WHERE, tx, variables[0])
    setting_checks.schedules_last(WHERE, tx, total)
    setting_checks.schedules_make_sense(WHERE, tx, total)
    if validation is not None:
        checks.is_source(WHERE, "validation", validation)
        alike = not lengths and not batch_lengths(validation)
        checks.same_fields(WHERE, batch, host_batch(validation, np.zeros(1, np.int64)), alike)
    told = {} if out is None else beginning.told(source, validation, init_from, out)

    # A run that was killed while its folder was made is made anew.
    folder = folders.opened(out) if out is not None and resume else None
    try:
        recorded: dict[str, Any] = {}
        if folder is not None:
            recorded = folder.config.get("fit", {})
        if save.best is None and recorded.get("best"):  # or the best checkpoint so far would be removed
            save = dataclasses.replace(save, best=recorded["best"], best_mode=recorded["best_mode"])
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
        resident = _resident(source, dispatch, strategy, recorded)
        if resident is not None:
            values.resident_within(WHERE, source, resident, lookups)
        # Every batch that `fit` builds has an example that is no padding.
        full = task.weighs_mask and "weights" not in batch
        run_step = make_step(task, tx, one, settings, grad_norm=log.grad_norm, debug=debug, never_empty=full)
        run_step = engine.scalars(run_step)
        with tree.declaring(declared):
            shapes = _state_shapes(tx, variables)
        if population is not None:
            run_step, shapes = populations.vmapped(run_step), populations.shapes(shapes, population)
        traced, sums = checks.traced_step(WHERE, run_step, shapes, batch, strategy)
        k_max = (dispatch.most or recorded.get("k_max") or dispatch_steps(size, sums)) if resident is not None else 1

        every_hook: list[Hook] = []
        if validation is not None:
            score = evaluate if population is None else functools.partial(populations.evaluate, lookups=lookups)
            look = lambda state: score(task, state, validation, batch_size=size, strategy=strategy)  # noqa: E731
            every_hook.append(Evaluate(look))
        every_hook += [*hooks, StopOnNonFinite()]
        names = [name for name in sums if not name.startswith(LEAVES)]
        names += [f"val_{name}" for name in reported] if validation is not None else []
        setting_checks.hooks_accept(WHERE, every_hook, plan, shapes, names, save)
        facts = {
            "steps": steps,
            "epochs": epochs,
            "batch_size": size,
            "examples": n,
            "seed": seed,
            "strategy": type(strategy).__name__.lower(),
            "devices": len(strategy.devices),
            "log_every": plan.log_every,
            "validate_every": plan.validate_every,
            "resident": resident is not None,
            "k_max": k_max,
            "debug": debug,
        } | settings.facts()
        if save.best:
            facts |= {"best": save.best, "best_mode": direction(WHERE, save.best, save.best_mode, "best_mode")}
        if begin is not None and task.frozen is not None:
            facts["init_from"] = beginning.fingerprint(begin.params, task.frozen)
        if lengths:
            facts["lengths"] = counted(source)  # the order depends on them
        if population is not None:
            facts["population"] = {name: list(values) for name, values in population.values.items()}
        full = {"fit": facts, "config": dict(config or {})}
        together.same_program(full, strategy)
        changed: list[str] = []
        if folder is not None:
            changed = folders.checked(folder, full, FREE, total)
        elif out is not None:
            folder = folders.created(out, full)
        flops, uncounted = (math.nan, f"batches differ in length ({counted(source)})") if lengths else _flops(traced)
    except BaseException:
        if folder is not None:
            folder.release()
        raise
    return Prepared(
        task=task,
        tx=tx,
        source=source,
        seed=seed,
        strategy=strategy,
        plan=plan,
        log=log,
        save=save,
        hooks=every_hook,
        folder=folder,
        config=full,
        changed=changed,
        batch=batch,
        ids=ids,
        settings=settings,
        step=run_step,
        shapes=shapes,
        sums=sums,
        lookups=lookups,
        resident=resident,
        k_max=k_max,
        debug=debug,
        population=population,
        flops=flops,
        uncounted=uncounted,
        resume=resume is True,
        given=given,
        told=told,
    )


def _resident(source: Source, dispatch: Dispatch, strategy: Strategy, recorded: Mapping[str, Any]) -> Resident | None:
    """The data in the form that lives on the device, where the run is to use it and there is one."""
    if dispatch.resident is False or getattr(source, "takes_step", False) or not recorded.get("resident", True):
        return None
    resident = source.resident() if dispatch.resident else engine.resident_data(source, strategy.devices)
    if resident is None and (dispatch.resident or recorded.get("resident")):
        raise ValueError(
            f"{WHERE}: {type(source).__name__} has no form that lives on the device. Leave Dispatch(resident=...) out."
        )
    return resident


def _state_shapes(tx: optax.GradientTransformation, variables: Any) -> State:
    """The shapes of a run's state, without computing it."""
    params, model_state = variables
    scalar = jax.ShapeDtypeStruct((), np.int32)
    opt_state = jax.eval_shape(tx.init, params)
    return State(scalar, scalar, params, model_state, abstract(opt_state), jax.ShapeDtypeStruct((2,), np.uint32))


def _flops(traced: Any) -> tuple[float, str | None]:
    """The floating-point operations of a step, or NaN and why they cannot be counted."""
    try:
        return cost.of(traced, compile=False).flops, None
    except Exception as error:  # a statistic: whatever a new primitive does to the count must not stop a run
        return math.nan, checks.reason(error)
