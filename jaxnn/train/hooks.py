"""Hooks: what happens beside the steps. A hook says when it fires and what it needs, and answers with an action.

Rows (the values of a log window) reach every hook in order but late, because the host never makes the device wait. A
hook that acts on a run does so at a step that it named beforehand; there the loop has delivered every row up to that
step, so that what the hook does is a function of the run and not of timing.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from jaxnn import metrics, optim, tree
from jaxnn.core import State

Row = Mapping[str, Any]  # "step", "epoch" and values by name


@dataclasses.dataclass(frozen=True)
class Continue:
    """Nothing changes."""


@dataclasses.dataclass(frozen=True)
class Stop:
    """The run ends here, for this reason."""

    reason: str


@dataclasses.dataclass(frozen=True)
class Save:
    """A checkpoint is written here."""


@dataclasses.dataclass(frozen=True)
class Replace:
    """The state becomes `state_fn(state)`: same structure, shapes and dtypes. `why` goes to the journal."""

    state_fn: Callable[[State], State]
    why: str


@dataclasses.dataclass(frozen=True)
class Rewind:
    """The run goes back to the newest good checkpoint at or before `step`, and leaves out the data steps [skip)."""

    step: int
    skip: tuple[int, int] | None = None


Action = Continue | Stop | Save | Replace | Rewind


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run is going to do, in data steps.

    Attributes:
        steps: Where it ends.
        epoch: Data steps an epoch.
        log_every: Data steps a row covers.
        validate_every: Data steps between validations; None where there is no validation data.
        batch_size: Global examples a step.
    """

    steps: int
    epoch: int
    log_every: int
    validate_every: int | None
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Moment:
    """What a hook sees when it acts.

    Attributes:
        step: Data steps done.
        plan: The run's plan.
        state: The state; read it, do not keep it: the next step donates its buffers.
        values: The latest reported value of each name.
        final: Whether the run ends here.
        report: `report(values)` adds a row of values at this step.
        journal: `journal(event, **fields)` records an event.
        show: `show(text)` prints above the progress display.
    """

    step: int
    plan: Plan
    state: State
    values: Mapping[str, Any]
    final: bool
    report: Callable[[Mapping[str, Any]], None]
    journal: Callable[..., None]
    show: Callable[[str], None]


class Hook:
    """Base of hooks; override what you need. `name` keys its memory in checkpoints and must be unique in a run.

    The hooks that are due at a step act one after the other, in the order in which they were given. A `Stop` ends the
    run once all of them have acted, and then those with `at_end`, so that the last step is evaluated and shown like any
    other; the first reason counts. A `Save` is done after the round, too. A `Rewind` is done at once and ends the
    round, because the step at which the others would act is undone; after a `Stop` it is left out.
    """

    @property
    def name(self) -> str:
        return type(self).__name__

    # Whether the loop ends a dispatch at the hook's steps. One that does not is asked only where a row is not finite.
    cuts = True
    replaces = False  # whether it changes the state of one run, which a population has several of
    at_end = False  # whether `act` is also called at the end of a run that is not one of its steps

    def start(self, plan: Plan, state: State) -> None:
        """Before anything is compiled or written, also of a resumed run. Raise here what is wrong with the settings.

        `state` has shapes and dtypes, and no values yet.
        """

    def every(self, plan: Plan) -> int | None:
        """`act` is called at the multiples of this number of data steps; None for never."""
        return None

    def row(self, row: Row) -> None:
        """A row was completed. May come late; must not act."""

    def act(self, at: Moment) -> Action | None:
        """Called at its steps with all rows up to there delivered."""

    def memory(self) -> dict[str, Any]:
        """What must survive a resume, as JSON."""
        return {}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Restores what `memory` gave."""

    def finish(self) -> None:
        """After the last step, also when the run fails."""


Mode = Literal["min", "max"]


def check_mode(where: str, keyword: str, mode: Any) -> None:
    """Refuses what is neither "min", "max" nor None."""
    if mode not in (None, "min", "max"):
        raise ValueError(
            f'{where}: {keyword}={mode!r}. Write {keyword}="min" or {keyword}="max", or leave it out for a name '
            'like "loss".'
        )


def direction(where: str, name: str, mode: Mode | None, keyword: str = "mode") -> Mode:
    """Whether the smallest or the largest value of a reported name is the best: `mode`, or what its name says.

    The names of this library's losses and metrics, with or without "val_", and "top_N" are known.

    Raises:
        ValueError: If `mode` is None and the name is not known.
    """
    if mode is not None:
        return mode
    if (known := metrics.better(name)) is not None:
        return known
    raise ValueError(
        f"{where}: {name!r} does not say whether a smaller or a larger value is better. Known by name: "
        f'{", ".join((*metrics.SMALLER, *metrics.LARGER))}, top_5. Write {keyword}="min" or {keyword}="max".'
    )


class _Patience(Hook):
    """Counts the times that a value did not improve."""

    def __init__(self, monitor: str, patience: int, min_delta: float, mode: Mode | None):
        check_mode(f"train.{type(self).__name__}", "mode", mode)
        if patience < 1 or min_delta < 0:
            raise ValueError(
                f"train.{type(self).__name__}: patience={patience}, min_delta={min_delta}. "
                "Give patience >= 1 and min_delta >= 0."
            )
        self.monitor, self.patience, self.min_delta, self.mode = monitor, patience, min_delta, mode
        self.best: float | None = None
        self.waited = 0

    @property
    def name(self) -> str:
        return f"{type(self).__name__}({self.monitor})"

    def start(self, plan: Plan, state: State) -> None:
        self.every(plan)  # where there is no validation data, say that first
        direction(f"train.{type(self).__name__}", self.monitor, self.mode)
        self.best, self.waited = None, 0  # the same object may serve several runs, one after the other

    def every(self, plan: Plan) -> int | None:
        if self.monitor.startswith("val_"):
            if plan.validate_every is None:
                raise ValueError(
                    f"train.{type(self).__name__}: monitor={self.monitor!r} needs validation data. "
                    "Pass validation= to fit."
                )
            return plan.validate_every
        return plan.log_every

    def worse(self, at: Moment) -> bool:
        """Takes in the monitored value; True when patience has run out (and begins to wait anew)."""
        if self.monitor not in at.values:
            raise ValueError(
                f"train.{type(self).__name__}: nothing called {self.monitor!r} is reported. There is: "
                f"{sorted(at.values)}."
            )
        value = float(at.values[self.monitor])
        sign = 1 if direction(f"train.{type(self).__name__}", self.monitor, self.mode) == "min" else -1
        if self.best is None or math.isnan(self.best) or sign * (self.best - value) > self.min_delta:
            self.best, self.waited = value, 0
            return False
        self.waited += 1
        if self.waited < self.patience:
            return False
        self.waited = 0
        return True

    def memory(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def recall(self, memory: Mapping[str, Any]) -> None:
        self.best, self.waited = memory["best"], memory["waited"]


class EarlyStopping(_Patience):
    """Stops the run when a value has not improved for `patience` looks at it.

    Args:
        monitor: A reported name: "val_loss", "loss", "val_accuracy".
        patience: Looks without improvement; >= 1.
        min_delta: What counts as improvement, in the value's unit; >= 0.
        mode: Whether the smallest or the largest value is the best; None where the name is one of this library's losses
            and metrics ("loss", "accuracy").

    Raises:
        ValueError: If a number is out of range; at the start of a run, if `mode` is None and the name says nothing.
    """

    def __init__(
        self, monitor: str = "val_loss", *, patience: int = 5, min_delta: float = 0.0, mode: Mode | None = None
    ):
        super().__init__(monitor, patience, min_delta, mode)

    def act(self, at: Moment) -> Action | None:
        if self.worse(at):
            return Stop(f"{self.monitor} has not improved on {self.best:.6g} for {self.patience} looks")
        return None


def _find(opt_state: Any, name: str) -> str:
    """The one hyperparameter called `name` in an optimizer's state, as `optim.hyper` names it; "lr" is the rate, also
    where optax calls it "learning_rate". Where a schedule of optax would overwrite it, an error."""
    known = optim.hyper(opt_state)
    names = ("lr", "learning_rate") if name in ("lr", "learning_rate") else (name,)
    hits = [full for full in known if full in names or full.rpartition(".")[2] in names]
    if len(hits) != 1:
        raise ValueError(
            f"train.ReduceOnPlateau: the optimizer's state has {len(hits)} hyperparameters called {name!r}, of "
            f"{sorted(known) or 'none'}. Write optim.adam(1e-3), or optax.inject_hyperparams(optax.adam)"
            "(learning_rate=1e-3)."
        )
    last = hits[0].rpartition(".")[2]
    if any(f"hyperparams_states/{last}" in path for path in tree.leaves_by_path(opt_state)):
        raise ValueError(
            f"train.ReduceOnPlateau: {last!r} follows a schedule, which would overwrite the reduced value. "
            "Give it a number."
        )
    return hits[0]


class ReduceOnPlateau(_Patience):
    """Multiplies a hyperparameter by `factor` when a value has not improved for `patience` looks at it.

    The optimizer must keep it in its state, as those of `jaxnn.optim` do (a schedule is held at the reduced value), and
    `optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)`.

    Args:
        monitor: A reported name.
        factor: In (0, 1).
        patience: Looks without improvement; >= 1.
        min_delta: What counts as improvement; >= 0.
        hyperparameter: Its name; "lr" is the rate.
        minimum: It is not reduced below this.
        mode: As in `EarlyStopping`.

    Raises:
        ValueError: As `EarlyStopping`, or if the optimizer's state has no such hyperparameter.
    """

    replaces = True

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        factor: float = 0.5,
        patience: int = 5,
        min_delta: float = 0.0,
        hyperparameter: str = "lr",
        minimum: float = 0.0,
        mode: Mode | None = None,
    ):
        super().__init__(monitor, patience, min_delta, mode)
        if not 0 < factor < 1:
            raise ValueError(f"train.ReduceOnPlateau: factor={factor}. Give a number between 0 and 1.")
        self.factor, self.hyperparameter, self.minimum = factor, hyperparameter, minimum

    def start(self, plan: Plan, state: State) -> None:
        super().start(plan, state)
        _find(state.opt_state, self.hyperparameter)

    def act(self, at: Moment) -> Action | None:
        if not self.worse(at):
            return None
        name = _find(at.state.opt_state, self.hyperparameter)
        old = float(jax.device_get(optim.hyper(at.state.opt_state)[name]))
        new = max(old * self.factor, self.minimum)
        return Replace(
            lambda state: state._replace(opt_state=optim.set_hyper(state.opt_state, **{name: new})),
            f"{name} {old:.6g} x {self.factor}: {self.monitor} has not improved on {self.best:.6g}",
        )


class StopOnNonFinite(Hook):
    """Stops the run at the first log window that holds a NaN or an infinity, and says which step and value.

    It acts after all others, so that a hook that answers such a window with a rewind comes first.
    """

    at_end = True
    cuts = False

    def every(self, plan: Plan) -> int | None:
        return plan.log_every

    def act(self, at: Moment) -> Action | None:
        if "nonfinite_step" not in at.values:
            return None
        return Stop(f"{at.values['nonfinite_name']} is not finite at step {at.values['nonfinite_step']}")


class Evaluate(Hook):
    """Reports the task's loss and metrics on held-out data, names prefixed with "val_"."""

    at_end = True

    def __init__(self, evaluate: Callable[[State], Mapping[str, Any]]):
        self._evaluate = evaluate

    def every(self, plan: Plan) -> int | None:
        return plan.validate_every

    def act(self, at: Moment) -> Action | None:
        at.report({f"val_{name}": value for name, value in self._evaluate(at.state).items()})
        return None
