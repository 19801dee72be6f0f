"""What is measured for a diagnosis: a run's examples and parameters, put through a few steps on one device."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn import cost, data, parallel, tree
from jaxnn.core import State, init_state, roles
from jaxnn.core.state import abstract
from jaxnn.core.step import make_step
from jaxnn.data.bucketing import batch_lengths
from jaxnn.train.diagnosis.layers import Layers, measure
from jaxnn.train.evaluation import judged
from jaxnn.train.run import Run
from jaxnn.typing import Source

EXAMPLES = 512  # looked at in one go: a unit that answers to one example in a hundred is seen with 99 %
INPUT_BYTES, OUTPUT_BYTES = 16 << 20, 64 << 20  # or fewer, where they are large
TRIAL_STEPS = 64  # of a trial at another rate: several times the memory of Adam's first moment
TRIAL_BYTES = 64 << 20
TRIAL_S = 1.0  # that a trial, or a pass over the examples, may take, as fast as the run went; but at least a few steps
LEAST_STEPS = 8


class Probe:
    """Measures when it is asked, once each; what it runs, it runs on the strategy's first device.

    Args:
        run: With its conditions.
        source: Where examples are taken from.
    """

    def __init__(self, run: Run, source: Source):
        assert run.conditions is not None
        self.task, self.conditions, self.source = run.task, run.conditions, source
        self._last, self._timing = run.state, run.timing
        self._device = parallel.single(run.conditions.strategy.devices[0])

    @property
    def size(self) -> int:
        """Examples a step."""
        return self.conditions.plan.batch_size

    @functools.cached_property
    def _rate(self) -> float:
        """Steps a second of the run, without waiting for data; infinite where no clock ran."""
        rows = [row for row in self._timing if row.get("steps_per_s")]
        own = [row["steps_per_s"] / max(1e-3, 1 - row.get("wait_share", 0.0)) for row in rows]
        return float(np.median(own)) if own else float("inf")

    @functools.cached_property
    def batch(self) -> dict[str, Any]:
        """The first batch of an epoch, [B, ...]; on the host."""
        return self.take(self._ids(0, 1)[0])

    @functools.cached_property
    def examples(self) -> dict[str, Any]:
        """Some hundred examples, evenly from the whole source, never fewer than a batch; on the host."""
        n = len(self.source)
        each = sum(x.nbytes for x in self.batch.values()) / self.size
        outputs = jax.eval_shape(lambda p, s, b: self.task.predict(p, s, b), *self._shapes, abstract(self.batch))
        given = tree.nbytes(outputs) / self.size
        most = int(min(EXAMPLES, INPUT_BYTES / each, OUTPUT_BYTES / max(given, 1), self._rate * self.size * TRIAL_S))
        return self.take(np.linspace(0, n - 1, min(n, max(self.size, most))).astype(np.int64))

    def take(self, ids: np.ndarray) -> dict[str, Any]:
        """Examples by number, with `mask` and `index`, all of one length; on the host."""
        return data.host_batch(self.source, ids, length=self._length)

    @functools.cached_property
    def _length(self) -> int | None:
        return max(batch_lengths(self.source), default=None)

    @functools.cached_property
    def _shapes(self) -> tuple[Any, Any]:
        return abstract((self._last.params, self._last.model_state))

    @functools.cached_property
    def last(self) -> State:
        """The state at the end of the run."""
        return self._device.put_state(jax.device_get(self._last))

    @functools.cached_property
    def first(self) -> State:
        """The state that the run began with: its seed gives it again."""
        conditions = self.conditions
        return init_state(self.task, conditions.tx, self.batch, seed=conditions.seed, strategy=self._device)

    @functools.cached_property
    def finite(self) -> bool:
        """Whether the parameters at the end are."""
        return all(bool(np.isfinite(x).all()) for x in jax.tree.leaves(jax.device_get(self._last.params)))

    # ---- layers

    @functools.cached_property
    def at_first(self) -> Layers:
        """The layers at the first parameters."""
        return self._measured(self.first)

    @functools.cached_property
    def at_last(self) -> Layers | None:
        """The layers at the last parameters; None where these are not finite."""
        return self._measured(self.last) if self.finite else None

    @functools.cached_property
    def _roles(self) -> dict[str, tree.Role]:
        return roles(self.task, self.batch)

    def _measured(self, state: State) -> Layers:
        with tree.declaring(lambda: self._roles):
            return measure(self.task, self.conditions.tx, state, self.batch, self.examples, self._roles)

    @functools.cached_property
    def ratio(self) -> float:
        """Update over parameter, a step, the median over layers: the largest of the first step's, the last's and the
        way from the first parameters to the last over the steps. Schedules begin and end near 0; the way does not."""
        found = [self.at_first.median_ratio]
        if self.at_last is not None:
            found.append(self.at_last.median_ratio)
            steps = max(1, int(self._last.step))
            first, last = (tree.leaves_by_path(jax.device_get(s.params)) for s in (self.first, self.last))
            moved = [
                float(np.linalg.norm(np.subtract(last[path], first[path], dtype=np.float64)) / norm / steps)
                for path in self.at_first.weights
                if (norm := np.linalg.norm(np.asarray(first[path], np.float64))) > 0
            ]
            found += [float(np.median(moved))] if moved else []
        return max(found)

    @functools.cached_property
    def outputs(self) -> Any:
        """The model's outputs for `examples` at the last parameters; on the host."""
        state = judged(self.last)
        return jax.device_get(jax.jit(self.task.predict)(state.params, state.model_state, self.examples))

    # ---- trials

    def _ids(self, first: int, count: int) -> np.ndarray:
        return data.epoch_order(self.source, self.conditions.seed, self.size)(first, count)

    @functools.cached_property
    def _batches(self) -> Any:
        """The run's first batches, stacked [k, B, ...]; on the device.

        Raises:
            ValueError: If they differ in shape.
        """
        each = sum(x.nbytes for x in self.batch.values())
        quick = max(LEAST_STEPS, TRIAL_S * self._rate)
        count = int(max(1, min(TRIAL_STEPS, quick, TRIAL_BYTES / max(each, 1))))
        batches = [
            data.host_batch(self.source, ids, step, length=self._length) for step, ids in enumerate(self._ids(0, count))
        ]
        return jax.device_put(jax.tree.map(lambda *xs: np.stack(xs), *batches), self._device.device)

    @functools.cached_property
    def _trial(self) -> Any:
        task, tx, device, settings = self.task, self.conditions.tx, self._device, self.conditions.settings

        def run(state: State, batches: Any, factor: Any) -> Any:
            inner = optax.with_extra_args_support(tx)

            def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
                updates, state = inner.update(updates, state, params, **extra_args)
                return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates), state

            step = make_step(task, optax.GradientTransformationExtraArgs(inner.init, update), device, settings)

            def body(state: State, batch: Any) -> Any:
                state, sums = step(state, batch)
                return state, sums["loss"].sum / jnp.maximum(sums["loss"].weight, 1e-30)

            return jax.lax.scan(body, state, batches)

        return jax.jit(run)

    def trial(self, factor: float, *, first: bool) -> np.ndarray:
        """The losses [k] of some steps from the first state or the last, every update times `factor`.

        Raises:
            ValueError: If the run's batches differ in shape.
        """
        state = self.first if first else self.last
        with tree.declaring(lambda: self._roles):
            losses = self._trial(state, self._batches, np.float32(factor))[1]
        return np.asarray(jax.device_get(losses), np.float64)

    @functools.cached_property
    def step_s(self) -> float:
        """Seconds a step takes when nothing is between it and the next: the least of three runs of one program.

        Raises:
            ValueError: If the run's batches differ in shape.
        """
        times = []
        for _ in range(4):  # the first compiles
            start = time.perf_counter()
            self.trial(1.0, first=True)
            times.append(time.perf_counter() - start)
        return min(times[1:]) / len(self._batches["mask"])

    @functools.cached_property
    def batch_s(self) -> float:
        """Seconds that a batch takes to be made on the host: the median of four."""
        times = []
        for ids in self._ids(0, 4):
            start = time.perf_counter()
            data.host_batch(self.source, ids)
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    @functools.cached_property
    def cost(self) -> cost.Cost:
        """What a step costs; compiles nothing."""
        step = make_step(self.task, self.conditions.tx, self._device, self.conditions.settings)
        return cost.of(step, abstract(self._last), abstract(self.batch), compile=False)
