"""What `fit` refuses of its settings and hooks, before anything is compiled: numbers, periods and names."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn import optim, parallel
from jaxnn.core import State, Step, host
from jaxnn.core.step import check_divides
from jaxnn.runs import RunFolder
from jaxnn.train.checks import given, whole
from jaxnn.train.hooks import Hook, Plan, check_mode, direction
from jaxnn.train.run import Checkpointing, Dispatch, Log
from jaxnn.typing import Strategy


def duration(where: str, steps: Any, epochs: Any, epoch: int) -> int:
    """The number of data steps from `steps` or `epochs`, exactly one of which must be given."""
    if (steps is None) == (epochs is None):
        said = "neither" if steps is None else "both"
        raise ValueError(
            f"{where}: give steps= or epochs=, got {said}. steps counts batches, epochs passes over the data."
        )
    if steps is not None:
        return whole(where, "steps", steps, 1, "It counts batches.")
    return whole(where, "epochs", epochs, 1, "It counts passes over the data.") * epoch


def step(where: str, settings: Any, debug: bool) -> None:
    """Refuses what are no settings of a step, and a debug run that would leave out what it looks for."""
    if not isinstance(settings, Step):
        raise TypeError(
            f"{where}: step must be a train.Step, got {settings!r:.60}. Write step=train.Step(accumulate=4); the "
            "number of steps is steps=."
        )
    if debug and settings.nonfinite == "skip":
        raise ValueError(
            f"{where}: debug=True looks for what is not finite, and nonfinite='skip' leaves such steps out. Write one "
            "of them."
        )


def batch_size(where: str, value: Any, n: int, strategy: Strategy, settings: Step) -> int:
    """A global batch size that the data has, the devices divide, and their part the micro-batches."""
    size = whole(where, "batch_size", value, 1, "It counts the examples of a step, over all devices.")
    if size > n:
        raise ValueError(
            f"{where}: batch_size {size} is larger than the data ({n} examples). Use at most {n} (full batch)."
        )
    check_divides(size, strategy, where, settings)
    return size


def settings(
    where: str,
    log: Any,
    save: Any,
    dispatch: Any,
    hooks: Any,
    out: Any,
    resume: Any,
    validation: bool,
    validate_every: Any,
) -> None:
    """The settings that have a type and a range."""
    for name, value, kind in (("log", log, Log), ("save", save, Checkpointing), ("dispatch", dispatch, Dispatch)):
        if not isinstance(value, kind):
            raise TypeError(
                f"{where}: {name} must be a train.{kind.__name__}, got {value!r:.60}. "
                f"Write {name}=train.{kind.__name__}(...)."
            )
    for name, value in (
        ("log.every", log.every),
        ("save.every", save.every),
        ("save.keep", save.keep),
        ("dispatch.most", dispatch.most),
        ("validate_every", validate_every),
    ):
        if value is not None:
            whole(where, name, value, 1, "Leave it out for the default.")
    if save.minutes is not None and save.minutes <= 0:
        raise ValueError(f"{where}: save.minutes must be positive, got {save.minutes}. None saves by steps only.")
    check_mode(where, "save.best_mode", save.best_mode)
    if isinstance(hooks, Hook | type) or not isinstance(hooks, Sequence):
        raise TypeError(f"{where}: hooks must be a list of train.Hook objects, got {given(hooks)}. Write hooks=[...].")
    for hook in hooks:
        if not isinstance(hook, Hook):
            made = f" Call it: {hook.__name__}(...)." if isinstance(hook, type) else " Subclass train.Hook."
            raise TypeError(f"{where}: hooks must be train.Hook objects, got {given(hook)}.{made}")
    if resume and out is None:
        raise ValueError(f"{where}: resume=True needs out=, the folder of the run to go on with.")
    for name in ("tensorboard", "peaks", "profile"):
        if getattr(log, name) and out is None:
            raise ValueError(f"{where}: log.{name} writes into the run's folder, and there is none. Pass out=.")
    if validate_every is not None and not validation:
        raise ValueError(f"{where}: validate_every={validate_every} without validation data. Pass validation= too.")


def hooks_accept(
    where: str, hooks: Sequence[Hook], plan: Plan, state: State, names: Sequence[str], save: Checkpointing
) -> None:
    """Refuses hooks that cannot work in this run: two of one name, a period that is none, settings that do not fit.

    Args:
        where: The function that was called.
        hooks: All hooks, built-in ones too.
        plan: What the run is going to do.
        state: Shapes and dtypes of its state.
        names: What is going to be reported, but by hooks.
        save: Whose `best`, if any, must be one of the names, too.
    """
    called = [hook.name for hook in hooks]
    twice = sorted({name for name in called if called.count(name) > 1})
    if twice:
        raise ValueError(
            f"{where}: several hooks are called {twice}: their memories would overwrite each other in checkpoints. "
            "Give each its own name."
        )
    monitored = [(f"hook {hook.name} monitors", name) for hook in hooks if (name := getattr(hook, "monitor", None))]
    monitored += [("save.best is", save.best)] if save.best else []
    # Somebody's own hook may report names of its own; a hook says itself that it needs validation.
    ours = all(type(hook).__module__.startswith("jaxnn.") for hook in hooks)
    for said, name in monitored if ours else []:
        awaits = name.startswith("val_") and plan.validate_every is None and said.startswith("hook ")
        if name not in names and not awaits:
            raise ValueError(f"{where}: {said} {name!r}, which nothing reports. Choose one of {sorted(names)}.")
    if save.best:
        direction(where, save.best, save.best_mode, "best_mode")
    for hook in hooks:
        hook.start(plan, state)
        period = hook.every(plan)
        if period is not None:
            whole(where, f"hook {hook.name}: every(plan)", period, 1, "It counts data steps; None for never.")


def profile(where: str, span: Any, steps: int) -> None:
    """Refuses a span of data steps to profile that the run does not have."""
    if span is not None and (len(span) != 2 or not 0 <= span[0] < span[1] <= steps):
        raise ValueError(
            f"{where}: log.profile is {span} in a run of {steps} steps. "
            f"Give (start, stop), 0 <= start < stop <= {steps}."
        )


def goes_on(where: str, folder: RunFolder, steps: int) -> None:
    """Refuses to resume a run that has gone further already than it is to go."""
    at = folder.good_step()
    if at is not None and at > steps:
        raise ValueError(
            f"{where}: the run in {folder.path} is at step {at} already; steps={steps} in all were asked for. "
            f"Give steps >= {at} (or as many epochs), or another out= for a shorter run."
        )


def schedules_last(where: str, tx: optax.GradientTransformation, steps: int) -> None:
    """Refuses a run that is longer than a schedule of its optimizer: the rest would run at the schedule's last value.

    Only schedules that say where they end are known (those of `optim`, in transformations of `optim`).
    """
    for name, schedule in optim.schedules_of(tx).items():
        ends = getattr(schedule, "ends", None)
        if ends is not None and ends < steps:
            raise ValueError(
                f"{where}: the schedule of {name!r} ends at step {ends}, the run has {steps} steps: {schedule!r}. "
                f"Give it steps={steps}, or join it to what follows: "
                "optim.joined((schedule, steps), (optim.constant(1e-5), None))."
            )


POINTS = 33  # steps of a run at which its schedules are looked at


def schedules_make_sense(where: str, tx: optax.GradientTransformation, steps: int) -> None:
    """Refuses a run in which a schedule leaves the values that make sense: a rate that turns negative climbs.

    They are looked at on a grid of the run's steps; what is off by rounding passes.
    """
    grid = np.linspace(0, steps - 1, POINTS).round().astype(np.int32)
    domains = optim.schedule_domains(tx)
    for name, schedule in optim.schedules_of(tx).items():
        values = _on_grid(schedule, grid)
        domain = domains[name]
        nearly = 1e-6 * float(np.abs(values).max(initial=0))
        for step, value in zip(grid.tolist(), values.tolist(), strict=True):
            if value not in domain and not (abs(value) <= nearly and 0 in domain):
                raise ValueError(
                    f"{where}: the schedule of {name!r} is {value:g} at step {step} of {steps}. Give one that is "
                    f"{domain} in the whole run."
                )


def _on_grid(schedule: Callable[[Any], Any], steps: np.ndarray) -> np.ndarray:
    """A schedule's values at these steps, float32; without a compiler, where it is made of what the host knows."""

    def values(steps: jax.Array) -> jax.Array:
        return jax.vmap(lambda step: jax.lax.convert_element_type(jnp.asarray(schedule(step)), jnp.float32))(steps)

    try:
        return host.evaluate(jax.make_jaxpr(values)(steps), steps)[0]
    except host.Unknown:
        return np.asarray(jax.jit(values)(steps))


def population(where: str, members: Any, hooks: Sequence[Hook], debug: bool) -> None:
    """Refuses what is no population, and what does not go with one."""
    if not isinstance(members, optim.Population):
        raise TypeError(
            f"{where}: population must be optim.grid(lr=[...]) or optim.members(lr=[...]), got {members!r:.60}."
        )
    replacing = [hook.name for hook in hooks if hook.replaces]
    if replacing:
        raise ValueError(
            f"{where}: hook {replacing[0]} changes the state of one run, and population= trains {len(members)}. Leave "
            "it out, or train the member alone: population=None."
        )
    if parallel.process_count() > 1:
        raise ValueError(
            f"{where}: population= in a job of {parallel.process_count()} processes. Tried: members over the devices "
            "of one process. Start it in one process, over all devices of its machine."
        )
    if debug:
        raise ValueError(
            f"{where}: debug=True looks into one run. Train the member in question alone: population=None."
        )
