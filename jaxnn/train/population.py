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
import numpy as np

from jaxnn import metrics, optim
from jaxnn.core import State, Task
from jaxnn.core.state import abstract
from jaxnn.core.step import make_value_fn
from jaxnn.data import host_batch, order
from jaxnn.optim.population import Population
from jaxnn.report import curve
from jaxnn.runs import Section
from jaxnn.train.windows import Windows
from jaxnn.typing import Mean, Source, Strategy

# What of a state is one a member; data order, seed and position are shared.
AXES: Any = State(step=0, data_step=None, params=0, model_state=0, opt_state=0, key=None)


def vmapped(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step of all members, from that of one: `(state, batch) -> (state, sums)`, sums with leaves [members]."""
    return jax.vmap(step, in_axes=(AXES, None), out_axes=(AXES, 0))


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


def evaluate(task: Task, state: State, source: Source, *, batch_size: int, strategy: Strategy) -> dict[str, Any]:
    """The objective and the task's scalar metrics of every member over all of `source`, as a row holds them."""
    n = len(source)
    size = min(batch_size, n)
    params = jax.vmap(optim.eval_params)(state.opt_state, state.params)
    totals: dict[str, list[np.ndarray]] = {}
    for first in range(order.steps_per_epoch(n, size)):
        batch = host_batch(source, order.examples(0, first, 1, n=n, batch_size=size, shuffle=False)[0])
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
    """`Windows` for every member, their rows merged; takes sums with leaves [k, members].

    Args:
        count: Members.
        every: Data steps a row.
        epoch: Data steps an epoch.
        finish: `(name, Mean) -> value`.
    """

    def __init__(self, count: int, every: int, epoch: int, finish: Callable[[str, Mean], Any]):
        self._each = [Windows(every, epoch, finish) for _ in range(count)]
        self._told: set[int] = set()  # members whose first value that is not finite was reported

    @property
    def step(self) -> int:
        """The data step up to which sums were taken in."""
        return self._each[0].step

    @property
    def pending(self) -> bool:
        """Whether steps were taken in since the last row."""
        return self._each[0].pending

    def _of(self, sums: Mapping[str, Mean], index: int) -> dict[str, Mean]:
        return {name: Mean(np.asarray(m.sum)[:, index], np.asarray(m.weight)[:, index]) for name, m in sums.items()}

    def add(self, first: int, sums: Mapping[str, Mean]) -> list[dict[str, Any]]:
        """Takes in the steps from data step `first` on; gives the rows they complete."""
        rows = [windows.add(first, self._of(sums, i)) for i, windows in enumerate(self._each)]
        return [self._merged(list(parts)) for parts in zip(*rows, strict=True)]

    def flush(self) -> dict[str, Any]:
        """The row of what was taken in since the last one."""
        return self._merged([windows.flush() for windows in self._each])

    def first_values(self, sums: Mapping[str, Mean]) -> dict[str, Any]:
        """The values of the first of some steps."""
        found: dict[str, Any] = {}
        for name in sums:
            values = [w.first_values(self._of(sums, i))[name] for i, w in enumerate(self._each)]
            found |= {k: v for k, v in columns(name, values).items() if "@" not in k}
        return found

    def _merged(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        row = {"step": parts[0]["step"], "epoch": parts[0]["epoch"]}
        for name in parts[0]:
            if name not in row and not name.startswith("nonfinite"):
                row |= columns(name, [part[name] for part in parts])
        bad = {i: part for i, part in enumerate(parts) if "nonfinite_step" in part}
        row |= {f"nonfinite_step@{i}": part["nonfinite_step"] for i, part in bad.items() if i not in self._told}
        self._told |= bad.keys()
        if len(bad) == len(parts):
            row |= {"nonfinite_step": parts[0]["nonfinite_step"], "nonfinite_name": parts[0]["nonfinite_name"]}
        return row

    def memory(self) -> dict[str, Any]:
        """The unfinished row, as JSON."""
        return {"each": [windows.memory() for windows in self._each], "told": sorted(self._told)}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Goes on from `memory`."""
        for windows, own in zip(self._each, memory["each"], strict=True):
            windows.recall(own)
        self._told = set(memory["told"])


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
