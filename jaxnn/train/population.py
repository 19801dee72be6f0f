"""Many runs in one program: the step vmapped over members that differ in their optimizer's hyperparameters.

Members share the data, its order, the seed and so the first parameters; each has its own parameters, model state and
optimizer state. A row holds every member's value as `name@member`, and under the plain name that of the best, so that
whatever watches a run watches the best member. A member whose values are no longer finite is on its own: the others go
on.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import metrics, optim
from jaxnn.core import State, Task
from jaxnn.core.state import abstract
from jaxnn.core.step import make_value_fn
from jaxnn.data import epoch_order, host_batch, order
from jaxnn.optim.population import Population
from jaxnn.report import curve
from jaxnn.runs import Section
from jaxnn.train.values import Lookups, within
from jaxnn.typing import Batch, Mean, Source, Strategy

# What of a state is one a member; data order, seed and position are shared.
AXES: Any = State(step=0, data_step=None, params=0, model_state=0, opt_state=0, key=None)


def vmapped(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step of members, from that of one: `(state, batch) -> (state, sums)`, sums with leaves [members].

    On CPU each member gets a copy of rows of numbers, floating [B, features]. The first layer would multiply what is
    shared by all members' kernels side by side otherwise, and its results be laid out anew, forward and backward; that
    costs more than the copy. Other leaves are shared: a first convolution gains by it.
    """

    def of_one(state: State, batch: Batch) -> tuple[State, Any]:
        new, sums = step(state, batch)
        # The position is shared, but a step ties it to the weight, of which each member may have its own.
        return new._replace(data_step=state.data_step + 1), sums

    def of_members(state: State, batch: Batch) -> tuple[State, Any]:
        count = state.step.shape[0]
        rows = {
            name
            for name, x in batch.items()
            if jax.default_backend() == "cpu" and np.ndim(x) == 2 and jnp.issubdtype(x.dtype, jnp.floating)
        }
        own = {name: jnp.broadcast_to(x, (count, *x.shape)) if name in rows else x for name, x in batch.items()}
        axes = {name: 0 if name in rows else None for name in batch}
        return jax.vmap(of_one, in_axes=(AXES, axes), out_axes=(AXES, 0))(state, own)

    return of_members


def spread(state: State, population: Population) -> State:
    """The first state of all members, from that of one."""
    count = len(population)
    every = lambda tree: jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (count, *np.shape(x))), tree)  # noqa: E731
    return State(
        step=every(state.step),
        data_step=state.data_step,
        params=every(state.params),
        model_state=every(state.model_state),
        opt_state=jax.jit(population.spread)(state.opt_state),
        key=state.key,
    )


def member(state: State, index: int) -> State:
    """One member's state, on the host's side of the device: what `evaluate` and `predict` take."""
    own = lambda tree: jax.tree.map(lambda x: x[index], tree)  # noqa: E731
    return State(*(own(part) if axis == 0 else part for part, axis in zip(state, AXES, strict=True)))


def shapes(state: State, population: Population) -> State:
    """The shapes of the state of all members, from those of one.

    Raises:
        ValueError: If the optimizer's state lacks a hyperparameter of the population.
    """
    count = len(population)
    stacked = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), tree)  # noqa: E731
    spread_state = abstract(jax.eval_shape(population.spread, state.opt_state))
    parts = [stacked(part) if axis == 0 else part for part, axis in zip(state, AXES, strict=True)]
    return State(*parts)._replace(opt_state=spread_state)


@functools.lru_cache(maxsize=8)
def _sums_program(task: Task) -> Callable[..., Any]:
    return jax.jit(jax.vmap(make_value_fn(task, train=False), in_axes=(0, 0, None, None)))


def evaluate(
    task: Task, state: State, source: Source, *, batch_size: int, strategy: Strategy, lookups: Lookups
) -> dict[str, Any]:
    """The objective and the task's scalar metrics of every member over all of `source`, as a row holds them.

    Raises:
        ValueError: If a batch has numbers that the model cannot look up, of which `lookups` tells.
    """
    n = len(source)
    size = min(batch_size, n)
    params = jax.vmap(optim.eval_params)(state.opt_state, state.params)
    totals: dict[str, list[np.ndarray]] = {}
    ids = epoch_order(source, 0, size, shuffle=False)
    for first in range(order.steps_per_epoch(n, size)):
        batch = host_batch(source, ids(first, 1)[0])
        within("train.fit", batch, lookups, f"validation batch {first}")
        sums = _sums_program(task)(params, state.model_state, strategy.put_batch(batch), state.key)
        for name, mean in jax.device_get(sums).items():
            if np.ndim(mean.sum) == 1:
                held = totals.setdefault(name, [np.zeros(1), np.zeros(1)])
                totals[name] = [old + np.asarray(new, np.float64) for old, new in zip(held, mean, strict=True)]
    found: dict[str, Any] = {}
    for name, (total, weight) in totals.items():
        found |= columns(
            name, [task.finish(name, Mean(a, b)) for a, b in zip(total, np.broadcast_to(weight, total.shape))]
        )
    return found


def columns(name: str, values: list[Any]) -> dict[str, Any]:
    """A row's entries for one value of every member: the best under `name`, where there is such a thing."""
    row: dict[str, Any] = {}
    better = metrics.better(name)
    if better is not None:
        finite = [v for v in values if math.isfinite(v)]
        row[name] = (min if better == "min" else max)(finite) if finite else math.nan
    return row | {f"{name}@{i}": value for i, value in enumerate(values)}


class PopulationWindows:
    """`Windows` of all members at once: sums with leaves [k, members] become rows, every member's in float64 and in
    order.

    Args:
        count: Members.
        every: Data steps a row.
        epoch: Data steps an epoch.
        finish: `(name, Mean) -> value`.
    """

    def __init__(self, count: int, every: int, epoch: int, finish: Callable[[str, Mean], Any]):
        self.count, self.every, self.epoch, self.finish = count, every, epoch, finish
        self._sums: dict[str, np.ndarray] = {}  # name -> [2, members]: sum and weight
        self._bad: dict[int, int] = {}  # member -> its first step that was not finite
        self._told: set[int] = set()  # members of whom a row has said so
        self.step = 0

    @property
    def pending(self) -> bool:
        """Whether steps were taken in since the last row."""
        return bool(self._sums)

    def add(self, first: int, sums: Mapping[str, Mean]) -> list[dict[str, Any]]:
        """Takes in the steps from data step `first` on; gives the rows they complete."""
        both = {name: np.stack([np.asarray(part, np.float64) for part in mean], axis=1) for name, mean in sums.items()}
        self._watch(first, sums)
        count = len(next(iter(both.values())))
        rows, start = [], 0
        while start < count:
            stop = min(count, start + self.every - (first + start) % self.every)
            for name, parts in both.items():
                held = self._sums.get(name, np.zeros((2, self.count)))
                self._sums[name] = np.cumsum(np.concatenate([held[None], parts[start:stop]]), axis=0)[-1]
            self.step = first + stop
            start = stop
            if self.step % self.every == 0:
                rows.append(self.flush())
        return rows

    def _watch(self, first: int, sums: Mapping[str, Mean]) -> None:
        for name in ("loss", "grad_norm"):
            if name in sums:
                bad = ~np.isfinite(np.asarray(sums[name].sum))
                for i in np.flatnonzero(bad.any(axis=0)).tolist():
                    step = first + int(np.argmax(bad[:, i])) + 1
                    self._bad[i] = min(step, self._bad.get(i, step))

    def flush(self) -> dict[str, Any]:
        """The row of what was taken in since the last one."""
        row: dict[str, Any] = {"step": self.step, "epoch": round(self.step / self.epoch, 6)}
        for name, (totals, weights) in self._sums.items():
            row |= columns(name, [self.finish(name, Mean(a, b)) for a, b in zip(totals.tolist(), weights.tolist())])
        self._sums = {}
        bad = {i: step for i, step in self._bad.items() if step <= self.step}
        row |= {f"nonfinite_step@{i}": step for i, step in sorted(bad.items()) if i not in self._told}
        self._told |= bad.keys()
        if len(bad) == self.count:
            row |= {"nonfinite_step": max(bad.values()), "nonfinite_name": "loss of every member"}
        return row

    def first_values(self, sums: Mapping[str, Mean]) -> dict[str, Any]:
        """The values of the first of some steps."""
        found: dict[str, Any] = {}
        for name, mean in sums.items():
            values = [
                self.finish(name, Mean(a, b)) for a, b in zip(np.asarray(mean.sum)[0], np.asarray(mean.weight)[0])
            ]
            found |= {key: value for key, value in columns(name, values).items() if "@" not in key}
        return found

    def memory(self) -> dict[str, Any]:
        """The unfinished row, as JSON."""
        return {
            "sums": {name: parts.tolist() for name, parts in self._sums.items()},
            "step": self.step,
            "bad": sorted(self._bad.items()),
            "told": sorted(self._told),
        }

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Goes on from `memory`."""
        self._sums = {name: np.asarray(parts) for name, parts in memory["sums"].items()}
        self.step, self._told = memory["step"], set(memory["told"])
        self._bad = dict(memory["bad"])


def history_of(history: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    """One member's rows, as its run alone would have them."""
    ending = f"@{index}"
    return [
        {"step": row["step"], "epoch": row["epoch"]}
        | {name.removesuffix(ending): value for name, value in row.items() if name.endswith(ending)}
        | ({"partial": True} if row.get("partial") else {})
        for row in history
    ]


def section(population: Population, history: list[dict[str, Any]]) -> Section:
    """A report's section: every member's loss over the steps, and a table of hyperparameters and last values, best
    first."""
    name = "val_loss" if any("val_loss" in row for row in history) else "loss"
    rows = {i: history_of(history, i) for i in range(len(population))}
    lines = {i: [(row["step"], row[name]) for row in rows[i] if name in row] for i in rows}
    last = {i: points[-1][1] if points else math.nan for i, points in lines.items()}
    ranked = sorted(last, key=lambda i: (not math.isfinite(last[i]), last[i]))
    shown = ranked[:8]  # as many as there are colours
    finite = [v for i in shown for _, v in lines[i] if math.isfinite(v) and v > 0]
    figure = curve(
        {population.label(i): [step for step, _ in lines[i]] for i in shown},
        {population.label(i): [value for _, value in lines[i]] for i in shown},
        f"{name.replace('_', ' ')} of the {len(shown)} best members",
        "step",
        logy=bool(finite) and max(finite) > 20 * min(finite),
    )
    names = list(dict.fromkeys(key for row in rows[ranked[0]] for key in row if metrics.better(key)))
    final = {i: {key: row[key] for row in rows[i] for key in names if key in row} for i in ranked}
    table = [[i, *population[i].values(), *(final[i].get(key) for key in names)] for i in ranked]
    return Section("Members", table, ["member", *population.values, *names], "", figure)
