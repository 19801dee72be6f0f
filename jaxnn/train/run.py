"""What a training run gives back, and the values that set it up."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import optax

from jaxnn import metrics, tree
from jaxnn.core import State, Step, Task
from jaxnn.optim.population import Population
from jaxnn.report import html_table, sparkline
from jaxnn.runs import RunFolder, curves
from jaxnn.train import population as populations
from jaxnn.train.hooks import Plan
from jaxnn.typing import Source, Strategy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a run was trained with and how it was driven, for `train.diagnose`: references, no copies.

    Attributes:
        tx: The optimizer.
        source: Training data.
        strategy: How steps were spread over devices.
        seed: The source of randomness.
        plan: What was going to be done.
        resident: Whether the data lived on the device.
        most: Steps a dispatch at most.
        steps: Data steps done by this call.
        dispatches: In how many dispatches.
        traced: The batches that the step was traced for, each as text; of streamed data, else none.
        settings: Of the step.
    """

    tx: optax.GradientTransformation
    source: Source
    strategy: Strategy
    seed: int
    plan: Plan
    resident: bool
    most: int
    steps: int
    dispatches: int
    traced: tuple[str, ...]
    settings: Step


@dataclasses.dataclass
class Run:
    """A finished, stopped or interrupted run.

    Attributes:
        task: What was learned.
        state: The last state.
        history: Rows in order, each a dict of "step", "epoch" and values by name; validation has rows of its own.
        stopped: Why the run ended before its last step; None where it did not.
        folder: Its folder, where `out` was given.
        population: What its members differ in, where it trained several; `state` then has their leading axis.
        timing: What the clock said between rows: steps a second, the share of the time spent waiting for data.
        conditions: What it was trained with; None of a member of a population.
    """

    task: Task
    state: State
    history: list[dict[str, Any]]
    stopped: str | None = None
    folder: RunFolder | None = None
    population: Population | None = None
    timing: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    conditions: Conditions | None = None

    def member(self, index: int) -> "Run":
        """One member of a population's run: its state and its rows, as its run alone would have them.

        Raises:
            ValueError: If the run is of no population, or has no such member.
        """
        if self.population is None or not 0 <= index < len(self.population):
            have = "no population" if self.population is None else f"{len(self.population)} members"
            raise ValueError(f"Run.member: there is no member {index}: the run has {have}.")
        rows = populations.history_of(self.history, index)
        return Run(self.task, populations.member(self.state, index), rows, self.stopped)

    def __repr__(self) -> str:
        # Without the arrays: `train.fit(...)` is often the last expression of a notebook's cell.
        return f"Run({self._about()})"

    def _about(self) -> str:
        where = f", in {self.folder.path}" if self.folder is not None else ""
        why = f", stopped: {self.stopped}" if self.stopped is not None else ""
        return f"{int(self.state.data_step)} steps, {tree.size(self.state.params):,} parameters{where}{why}"

    def _repr_html_(self) -> str:
        found = curves.series(self.history)
        rows = []
        for name in [name for names in curves.families(found).values() for name in names]:
            steps, values = found[name]
            best = curves.best(steps, values, metrics.better(name)) or (None, None)
            rows.append((name, sparkline(values), float(values[-1]), *best))
        return html_table(rows, ("value", "curve", "last", "best", "at step"), "Run", self._about())

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """The steps and values at which `name` was reported.

        Raises:
            KeyError: If it never was; lists what was.
        """
        rows = [row for row in self.history if name in row]
        if not rows:
            known = sorted({key for row in self.history for key in row})
            raise KeyError(f"Run.column: {name!r} was never reported. Reported: {known}.{_rate_hint(name)}")
        return [row["step"] for row in rows], [row[name] for row in rows]

    def plot(self, names: str | Sequence[str] | None = None) -> "Figure":
        """Draws the run's curves: a panel for each reported value, training and validation in one.

        A logarithmic axis where positive values cover more than a factor of 20. Values that are not finite leave gaps.
        After a resume the curves begin where the run began.

        Args:
            names: Reported names; "loss" brings "val_loss", "val_loss" stands alone. By default all that change, at
                most twelve, the loss first.

        Returns:
            A matplotlib figure, which a notebook shows; `.savefig("curves.png")` writes it.

        Raises:
            ValueError: If a name was never reported, or nothing was yet.
        """
        found = curves.series(self.history)
        if not found:
            raise ValueError("Run.plot: no values were reported yet. Train for at least one step.")
        wanted = [names] if isinstance(names, str) else list(names or ())
        if unknown := [name for name in wanted if name not in found]:
            raise ValueError(f"Run.plot: {unknown[0]!r} was never reported. Reported: {', '.join(sorted(found))}.")
        groups = curves.families(found)
        if wanted:
            chosen = {name: [n for n in groups[curves.family(name)] if n in (name, f"val_{name}")] for name in wanted}
            return curves.panels(found, chosen)
        moving = {f: members for f, members in groups.items() if curves.moves(found[n] for n in members)}
        return curves.panels(found, dict(list((moving or groups).items())[: curves.FIGURES]))


class Interrupted(KeyboardInterrupt):
    """A run was asked to stop, by Ctrl-C or SIGTERM; it has saved and closed its files.

    Attributes:
        run: What it had come to; None if a study was stopped between the runs of its parts.
        signal: Its number.
        folder: To go on with: the run's, or that of the study which the run was a part of; None without one.
    """

    def __init__(self, message: str, run: Run | None, signal: int, folder: RunFolder | None = None):
        super().__init__(message)
        self.run, self.signal = run, signal
        self.folder = run.folder if folder is None and run is not None else folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What an experiment builds from its config: everything that `fit` needs, for tools to reuse.

    Attributes:
        task: What is learned.
        tx: The optimizer.
        data: Training data.
        validation: Held-out data, or None.
        rules: Sharding rules by parameter path, for strategies that split parameters.
    """

    task: Task
    tx: optax.GradientTransformation
    data: Source
    validation: Source | None = None
    rules: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """When `fit` saves into its run folder.

    Attributes:
        every: Data steps between checkpoints; None for none but by `minutes`.
        minutes: Wall-clock minutes between checkpoints; None for none.
        keep: How many of the newest are kept.
        best: A reported name ("val_loss"): whenever a report of it improves on all before, that step is saved, and the
            best one kept. None for no such.
        best_mode: Whether its smallest or its largest value is the best; None where the name is one of this library's
            losses and metrics ("loss", "accuracy").
    """

    every: int | None = None
    minutes: float | None = 5.0
    keep: int = 3
    best: str | None = None
    best_mode: Literal["min", "max"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Log:
    """What `fit` reports and where.

    Attributes:
        every: Data steps a row covers; None for an epoch at most, or a fiftieth of the run.
        progress: Whether to show progress.
        grad_norm: Whether to report the global norm of the gradients; costs a pass over them.
        tensorboard: Whether to write TensorBoard files into the run folder (needs the `tensorboard` extra).
        peaks: Whether to measure the machine's peaks at the end of the run (about 3 s), so that the report can set the
            model's FLOPs a second against them; needs a run folder. A job of several processes measures none.
        profile: Data steps (start, stop) to trace with jax's profiler into the run folder's `profile/`, with a table of
            the costliest operations.
    """

    every: int | None = None
    progress: bool = True
    grad_norm: bool = False
    tensorboard: bool = False
    peaks: bool = False
    profile: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dispatch:
    """How steps reach the device. The default chooses; both are recorded in the run and kept on resume.

    Attributes:
        resident: Whether the data lives on the device, many steps a dispatch; None where it fits.
        most: Steps a dispatch at most (K_max); None from the sizes of its buffers. A resumed run must keep it.
    """

    resident: bool | None = None
    most: int | None = None


def _rate_hint(name: str) -> str:
    """What to do where the rate is asked for and the optimizer does not report it."""
    if name not in ("lr", "learning_rate"):
        return ""
    return (
        " jaxnn.optim's optimizers report their rate as 'lr'; one of optax does as 'learning_rate' inside "
        "optax.inject_hyperparams: optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3)."
    )
