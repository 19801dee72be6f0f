"""What a run saves and when, and the way back: checkpoints at their times, and at the step of the best value."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn import parallel
from jaxnn.core import State
from jaxnn.runs import Restored, RunFolder
from jaxnn.train.beginning import with_frozen, without_frozen
from jaxnn.train.hooks import direction
from jaxnn.train.run import Checkpointing
from jaxnn.train.together import first_does
from jaxnn.typing import Params


@jax.jit
def _all_finite(values: Any) -> Any:
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(values) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.asarray(finite)) if finite else jnp.asarray(True)


class Saver:
    """The checkpoints of a run as `fit` writes them.

    A checkpoint bears the value of `settings.best` only where that was reported at its very step, so that the best
    checkpoint holds the state that the best value was measured on.

    Args:
        folder: The run's folder.
        settings: When to save.
        like: Shapes and dtypes of the state.
    """

    def __init__(self, folder: RunFolder, settings: Checkpointing, like: State):
        self.folder, self.settings, self.like = folder, settings, like
        self._frozen: Callable[[str], bool] | None = None
        self._first: Callable[[], Params] = dict
        mode = direction("train.Checkpointing", settings.best, settings.best_mode) if settings.best else None
        self._sign = -1 if mode == "max" else 1
        # Process 0 first: it removes what a killed save has left.
        opened = first_does(lambda: folder.checkpoints(keep=settings.keep, keep_best=mode))
        token = parallel.agree(opened.token if opened else None)
        self.checkpoints = opened or folder.checkpoints(keep=settings.keep, keep_best=mode, token=token)
        self.step: int | None = None  # of the newest checkpoint that this run wrote or came from
        self._extra: Mapping[str, Any] = {}
        self._rated = False  # whether the checkpoint at `step` bears a value
        self._best: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None
        self.rest()

    def leave_out(self, frozen: Callable[[str], bool] | None, first: Callable[[], Params]) -> None:
        """Keeps parameters that never change out of checkpoints; `first()` gives those that the run began with."""
        self._frozen, self._first = frozen, first

    def rest(self) -> None:
        """Begins to count the minutes to the next checkpoint."""
        self._saved_at = time.perf_counter()

    def is_due(self) -> bool:
        """Whether the minutes between checkpoints have passed."""
        minutes = self.settings.minutes
        return minutes is not None and time.perf_counter() - self._saved_at > 60 * minutes

    def row(self, row: Mapping[str, Any]) -> None:
        """Takes in a reported row. One that covers a part of a window is not compared with whole ones."""
        if self.settings.best not in row or row.get("partial"):
            return
        value = float(row[self.settings.best])
        self._last = (row["step"], value)
        if not math.isnan(value) and (self._best is None or self._sign * (value - self._best[1]) < 0):
            self._best = self._last

    def wants(self, step: int) -> bool:
        """Whether the best value so far was reported at this step and no checkpoint bears it."""
        return self._best is not None and self._best[0] == step and not (self.step == step and self._rated)

    def write(self, state: State, step: int, extra: Mapping[str, Any], *, finite: bool) -> None:
        """Saves in the background.

        Args:
            state: The state at `step`.
            step: Data steps done.
            extra: What the loop needs to go on.
            finite: Whether all values up to here are.
        """
        self.folder.metrics.sync()  # a resume needs all the rows that the checkpoint counts
        metric = self._last[1] if self._last is not None and self._last[0] == step else None
        self.step, self._extra, self._rated = step, extra, metric is not None
        kept = without_frozen(state, self._frozen)
        self.checkpoints.save(step, kept, extra, metric=metric)
        parallel.beat()
        if finite and bool(_all_finite((state.params, state.model_state))):
            self.checkpoints.mark_good(step)

    def rate(self, state: State, *, finite: bool) -> None:
        """Saves the newest step again with the value that was reported after it was saved, at the end of the run.

        What the loop needs to go on stays as it was: a run that is made longer has no rows of an end here.
        """
        assert self.step is not None
        self.write(state, self.step, self._extra, finite=finite)

    def begins_again(self) -> bool:
        """Whether a resumed run was killed before its first checkpoint; drops the rows that it had written, then."""
        if parallel.agree(self.checkpoints.latest() is not None or bool(self.checkpoints.set_aside())):
            return False
        self.folder.metrics.keep(0)
        self.folder.timing.truncate(0)
        return True

    def good_before(self, step: int) -> int | None:
        """The newest good checkpoint at or before a step, once the save in flight has ended."""
        self.checkpoints.wait()
        return parallel.agree(max((good for good in self.checkpoints.good_steps() if good <= step), default=None))

    def restore(self, step: int | None) -> tuple[Restored, list[dict[str, Any]]]:
        """Goes back to a checkpoint, by default the newest good one; gives it and the rows up to there.

        Later checkpoints and rows are removed, and the best value is that of the rows that are left.

        Raises:
            ValueError: If there is none to go on from, or rows that it counts are missing.
        """
        restored = first_does(lambda: self._back_to(step))
        found = parallel.agree(restored.step if restored is not None else None)
        if restored is None:  # the others read what process 0 chose, which it will not touch
            restored = self.checkpoints.restore(without_frozen(self.like, self._frozen), found)
            self.checkpoints.discard_after(found)
        rows = self.folder.metrics.read()
        self.step, self._extra = restored.step, restored.extra
        self._recall(rows)
        parallel.meet("jaxnn.restored")  # before process 0 adds rows
        if self._frozen is not None:
            whole = with_frozen(State(*restored.state), self._frozen, self._first())
            restored = restored._replace(state=whole)
        return restored, rows

    def _back_to(self, step: int | None) -> Restored:
        """Reads the checkpoint and removes what is later."""
        try:
            restored = self.checkpoints.restore(without_frozen(self.like, self._frozen), step)
        except (FileNotFoundError, RuntimeError) as error:
            raise ValueError(
                f"train.fit: the run in {self.folder.path} cannot go on: "
                f"{str(error).removeprefix('runs.Checkpoints.restore: ')} Look with `jaxnn checkpoint verify "
                f"{self.folder.path}`; to begin again give another out=."
            ) from error
        self.folder.metrics.require(restored.extra["rows"])  # before what is later is removed
        self.checkpoints.discard_after(restored.step)
        self.folder.metrics.keep(restored.extra["rows"])
        self.folder.timing.truncate(restored.step)
        return restored

    def _recall(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """The best value again, from the rows and from what checkpoints bear: the value at the end of a shorter run is
        in no row."""
        self._best = self._last = None
        rated = self.checkpoints.metrics()
        self._rated = self.step in rated
        if self.settings.best is not None:
            for step, value in rated.items():
                self.row({"step": step, self.settings.best: value})
        for row in rows:
            self.row(row)

    def close(self) -> None:
        """Waits for the save in flight."""
        self.checkpoints.close()
