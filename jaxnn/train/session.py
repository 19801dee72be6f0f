"""The loop between two points of a run: advance, deliver rows, let hooks act, save, and end in good order."""

import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxnn import optim, parallel
from jaxnn.core import State
from jaxnn.runs import RunFolder, TensorBoard, usage
from jaxnn.train.actions import Actions
from jaxnn.train.engine import Engine
from jaxnn.train.hooks import Hook, Plan
from jaxnn.train.population import PopulationWindows
from jaxnn.train.profile import Profile
from jaxnn.train.progress import Progress
from jaxnn.train.run import Checkpointing
from jaxnn.train.saving import Saver
from jaxnn.train.signals import Signals
from jaxnn.train.speed import Speed
from jaxnn.train.together import Together, refuse
from jaxnn.train.windows import Windows
from jaxnn.typing import Mean, Strategy


class Session:
    """Everything that one call of `fit` holds while it runs.

    Args:
        plan: What is going to be done.
        strategy: Where the state lives.
        windows: What makes rows of the sums.
        hooks: In the order in which they act.
        folder: The run's folder, or None.
        save: When to save.
        progress: The display, or None.
        tensorboard: Whether to write TensorBoard files.
        like: Shapes and dtypes of the state.
        flops: Floating-point operations of a step; NaN where they could not be counted.
        windowed: Names of the values that every row of a log window has.
    """

    def __init__(
        self,
        plan: Plan,
        strategy: Strategy,
        windows: Windows | PopulationWindows,
        hooks: Sequence[Hook],
        folder: RunFolder | None,
        save: Checkpointing,
        progress: Progress | None,
        tensorboard: bool,
        like: State,
        flops: float,
        windowed: Sequence[str],
    ):
        self.plan, self.strategy, self.folder, self.save, self.progress = plan, strategy, folder, save, progress
        self.hooks = list(hooks)
        # Small programs emit a row every few microseconds: a call for each hook that has no use for it would be felt.
        self._takers = [h.row for h in self.hooks if getattr(h.row, "__func__", None) is not Hook.row]
        self.windows = windows
        self.history: list[dict[str, Any]] = []
        self.timing: list[dict[str, Any]] = []
        self.values: dict[str, Any] = {}  # the last of each name, of step and epoch too
        self.skips: list[tuple[int, int]] = []
        self.finite = True
        self.like = like
        self._driver: Engine | None = None
        self.saver = None if folder is None else Saver(folder, save, like)
        writer = folder if folder is not None and folder.writes else None
        self._board = TensorBoard(writer.path / "tensorboard") if writer is not None and tensorboard else None
        # Where the best checkpoint is that of a window's value, the loop looks at the end of every window.
        self._best_every = plan.log_every if self.saver is not None and save.best in windowed else None
        self._halt: int | None = None  # the step of a row that is not finite, until hooks have acted on it
        self.speed = Speed(plan, flops)
        self._first = 0
        self.profile: Profile | None = None
        self._together = Together() if parallel.process_count() > 1 else None
        self._actions = Actions(self)
        self.stored: Mapping[str, Any] = {}  # the optimizer's constants, as the checkpoint had them

    @property
    def engine(self) -> Engine:
        """What drives the state; set once the state exists."""
        assert self._driver is not None, "the session has no engine yet"
        return self._driver

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self._driver = engine

    # ---- rows

    def deliver(self, first: int, sums: Mapping[str, Mean]) -> None:
        """Takes the sums of steps from the engine, in order."""
        rows = self.windows.add(first, sums)
        if first == self._first and not rows:
            self.speed.restart(self.windows.step, self.engine.wait_s)  # the first step waited for the compiler
            if self.progress is not None:
                self.progress.first(first + 1, self.windows.first_values(sums))
        if rows:
            self._time(sums)
        for row in rows:
            if self._halt is None:
                self.emit(row)
                self._halt = row["step"] if "nonfinite_step" in row else None

    def emit(self, row: dict[str, Any]) -> None:
        """A completed row: to the history, the files and the hooks."""
        self.history.append(row)
        self.values.update(row)
        if "nonfinite_step" in row:
            self.finite = False
        if self.folder is not None:
            self.folder.metrics.append(row)
        if self._board is not None:
            self._board.scalars(row["step"], row)
        if self.saver is not None:
            self.saver.row(row)
        for take in self._takers:
            take(row)
        if self.progress is not None:
            self.progress.row({name: value for name, value in row.items() if "@" not in name})

    def _time(self, sums: Mapping[str, Mean]) -> None:
        row = self.speed.row(self.windows.step, self.engine.wait_s, sums["loss"])
        self.timing.append(row)
        if self.folder is not None:
            self.folder.timing.append(row)
        if self.progress is not None:
            self.progress.timing(row)

    # ---- the loop

    def run(self, signals: Signals) -> str | None:
        """Runs to the plan's end, a hook's stop or a signal; gives why it stopped early."""
        engine, plan = self.engine, self.plan
        periods = [(hook, hook.every(plan)) for hook in self.hooks]
        self._first = engine.data_step
        if self.saver is not None:
            self.saver.rest()
        self.speed.restart(engine.data_step, engine.wait_s)
        self._profile(engine.data_step)
        while engine.data_step < plan.steps:
            self._jump()
            at = engine.data_step
            stops = [
                at - at % n + n
                for n in [
                    *(n for hook, n in periods if n and hook.cuts),
                    *(n for n in (self.save.every, self._best_every) if n),
                ]
            ]
            if self._together is not None:
                stops.append(self._together.after(at))
            stops += [a for a in [*(a for a, _ in self.skips), *(self.profile.span if self.profile else ())] if a > at]
            target = min([plan.steps, *stops])
            save_due = self._advance(target, signals)
            engine_at = engine.data_step
            stop: str | None = None
            if engine_at == target or self._halt:
                engine.drain()
                # Where a row is not finite the device may be ahead of it; what it did since does not count.
                step = self._halt or engine_at
                due = [hook for hook, n in periods if n and step % n == 0 and (hook.cuts or self._halt)]
                with self.speed.aside():
                    stop = self._actions.take(due, final=False, step=step)
                self._halt = None
                if engine.data_step < engine_at:  # rewound
                    continue
                if (self.save.every and engine_at % self.save.every == 0) or self._is_best(engine_at):
                    self.checkpoint()
                self._profile(engine_at)
            if stop is not None:
                return stop
            if signals.received is not None:
                name = signal.Signals(signals.received).name
                self.journal("interrupted", signal=name)
                engine.drain()
                self.checkpoint()
                return f"interrupted by {name}"
            if save_due:
                self.checkpoint()
        return None

    def _advance(self, target: int, signals: Signals) -> bool:
        """Runs to a data step, or until something is to be done before; gives whether a save is due by the clock.

        Several processes take neither signals nor clocks for a reason to stop between two steps at which they meet.
        """
        engine, together = self.engine, self._together
        if together is None:
            engine.advance(target, lambda: signals.received is not None or bool(self._halt) or self._save_is_due())
            return self._save_is_due()
        began, first = time.perf_counter(), engine.data_step
        engine.advance(target, lambda: bool(self._halt))
        engine.drain()
        if engine.apart:
            refuse(engine.refused)
        together.seconds += time.perf_counter() - began
        together.steps += engine.data_step - first
        if engine.data_step < min(together.at, self.plan.steps):
            return False
        due, per_step = together.meet(engine.data_step, signals, self._save_is_due())
        engine.pace(per_step)
        return due

    def hear(self, signals: Signals) -> None:
        """Takes in a signal that came at the end."""
        if self._together is not None:
            self._together.meet(self.engine.data_step, signals, False)

    def _profile(self, step: int) -> None:
        if self.profile is None:
            return
        with self.speed.aside():
            table = self.profile.at(step)
        if table is not None:
            self.journal("profile", table=table)
            self.show(
                f"---- data steps {self.profile.span[0]} to {step}, traced in {self.profile.folder}\n{table}\n----"
            )

    def end(self, stopped: str | None) -> str | None:
        """The last checkpoint, the unfinished row, and what hooks do at the end of a run that was not interrupted.

        A hook may stop the run even here, which says why it ended as it did, or rewind it, and then it is not over.
        """
        engine = self.engine
        engine.drain()
        self.checkpoint()
        finite = self.finite
        if self.windows.pending and finite:
            self.emit(self.windows.flush() | {"partial": True})
        if stopped is None or finite:  # there is nothing to evaluate in what is not finite
            step, state = engine.data_step, engine.state
            due = [h for h in self.hooks if h.at_end and (n := h.every(self.plan)) and step % n]
            stopped = self._actions.take(due, final=True, stop=stopped)
            if engine.data_step < step:
                return None
            if self._is_best(step):
                assert self.saver is not None
                with self.speed.aside(saving=True):
                    self.saver.rate(state, finite=self.finite)
                self.journal("save")
        self.journal("end", stopped=stopped)
        return stopped

    def close(self) -> None:
        """Releases threads, files and the display; waits for a save in flight."""
        try:
            self.speed.close()
            if self.profile is not None:
                self.profile.close()
            if self._driver is not None:
                self._driver.close()
            for hook in self.hooks:
                hook.finish()
            if self.saver is not None:
                self.saver.close()
        finally:
            if self.progress is not None:
                self.progress.finish()
            if self._board is not None:
                self._board.close()

    # ---- skipped steps

    def _jump(self) -> None:
        """Leaves out the data steps that a rewind named, the rest of them where a run had ended among them."""
        engine = self.engine
        for start, stop in sorted(self.skips):
            at, to = engine.data_step, min(stop, self.plan.steps)
            if start <= at < to:
                engine.drain()
                self.journal("skip", start=at, stop=to)
                state = engine.state._replace(data_step=np.asarray(to, np.int32))
                engine.move(self.strategy.put_state(state), to)
                self.speed.step += to - at

    # ---- saving

    def journal(self, event: str, **fields: Any) -> None:
        """Records an event at the present step, and what the process has used by then."""
        if self.folder is not None:
            self.folder.journal.append(event, self.engine.data_step, **(usage() | fields))

    def show(self, text: str) -> None:
        """Prints above the display; silent where there is none."""
        if self.progress is not None:
            self.progress.show(text)

    def _save_is_due(self) -> bool:
        return self.saver is not None and self.saver.is_due()

    def _is_best(self, step: int) -> bool:
        return self.saver is not None and self.finite and self.saver.wants(step)

    def checkpoint(self) -> None:
        """Saves here, with everything that a resumed run needs to write the same bytes; at most once a step."""
        if self.saver is None:
            return
        self.engine.drain()
        step = self.engine.data_step
        if self.saver.step != step:
            extra = {
                "rows": len(self.history),
                "windows": self.windows.memory(),
                "hooks": {hook.name: hook.memory() for hook in self.hooks},
                "skips": [list(skip) for skip in self.skips],
            }
            with self.speed.aside(saving=True):
                self.saver.write(self.engine.state, step, extra, finite=self.finite)
            self.journal("save")
        self.saver.rest()

    def restore(self, step: int | None, *, hooks: bool) -> tuple[State, int]:
        """Goes back to a checkpoint: the unfinished row, the rows written and, if asked, the hooks' memory.

        Gives the state, placed, and its data step.
        """
        assert self.saver is not None
        restored, self.history = self.saver.restore(step)
        for message in restored.set_aside:
            if self.progress is None:
                warnings.warn(message, RuntimeWarning, stacklevel=2)
            self.show(message)
            self.saver.folder.journal.append("set_aside", restored.step, message=message)
        extra = restored.extra
        self.values = {}
        for row in self.history:
            self.values.update(row)
        self.finite = not any("nonfinite_step" in row for row in self.history)
        self.windows.recall(extra["windows"])
        if hooks:
            self.skips = [(a, b) for a, b in extra["skips"]]
            for hook in self.hooks:
                if hook.name in extra["hooks"]:
                    hook.recall(extra["hooks"][hook.name])
        state = State(*restored.state)
        self.stored = optim.constants(state.opt_state)
        return self.strategy.put_state(state), int(state.data_step)
