"""How fast a run goes: what the clock says between rows, apart from what the run computes."""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxnn.train.hooks import Plan
from jaxnn.typing import Mean

_COMPILED = "/jax/core/compile/backend_compile_duration"


class Speed:
    """Keeps the clock between rows. Time in hooks and checkpoints is set apart: rates are of training alone.

    Args:
        plan: What is going to be done.
        flops: Floating-point operations of a step, on all devices; NaN where they could not be counted.
    """

    def __init__(self, plan: Plan, flops: float):
        self.plan, self.flops = plan, flops
        self._compilations = 0
        self.restart(0, 0.0)
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            self._compilations += 1

    def restart(self, step: int, waited_s: float) -> None:
        """Begins to count at a step: at the start, after the first compilation, and after a jump.

        Args:
            step: Data steps done.
            waited_s: Seconds that the engine has waited for data so far.
        """
        self.step, self._at, self._waited_s = step, time.perf_counter(), waited_s
        self._aside_s = self._saving_s = 0.0

    @contextlib.contextmanager
    def aside(self, *, saving: bool = False) -> Iterator[None]:
        """Time spent inside is no training time; one span may lie in another, and the clock be restarted inside."""
        began, before = time.perf_counter(), self._aside_s
        try:
            yield
        finally:
            took = time.perf_counter() - max(began, self._at)
            self._aside_s = took + (before if began >= self._at else 0.0)
            self._saving_s += took if saving else 0.0

    def row(self, step: int, waited_s: float, loss: Mean) -> dict[str, Any]:
        """The speed since the last row.

        Args:
            step: Data steps done.
            waited_s: Seconds that the engine has waited for data so far.
            loss: The sums of some of the steps, leaves [k]; their weights tell tokens from examples.

        Returns:
            Rates in units a second of training, shares of the time, seconds left, and programs compiled.
        """
        now = time.perf_counter()
        took, self._at = max(now - self._at, 1e-9), now
        steps, self.step = max(1, step - self.step), step
        training = max(took - self._aside_s, 1e-9)
        rate = steps / training
        row = {
            "step": step,
            "steps_per_s": rate,
            "examples_per_s": rate * self.plan.batch_size,
            **({} if math.isnan(self.flops) else {"flops_per_s": rate * self.flops}),
            "wait_share": min(1.0, (waited_s - self._waited_s) / training),
            "save_share": min(1.0, self._saving_s / took),
            "left_s": (self.plan.steps - step) * took / steps,
            "compilations": self._compilations,
        }
        per_step = float(np.mean(loss.weight))
        if per_step > 1.5 * self.plan.batch_size:  # the loss counts tokens, or other parts of an example
            row["tokens_per_s"] = rate * per_step
        self._aside_s = self._saving_s = 0.0
        self._waited_s, self._compilations = waited_s, 0
        return row

    def close(self) -> None:
        """Stops counting compilations."""
        jax.monitoring.unregister_event_duration_listener(self._listen)
