"""Evaluation and prediction: over every example exactly once, whatever the batch size and the devices."""

import functools
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn import data, optim, parallel, tree
from jaxnn.core import State, Task, roles
from jaxnn.core.parts import given_whole
from jaxnn.core.state import abstract
from jaxnn.core.step import make_value_fn
from jaxnn.data import epoch_order, host_batch, order
from jaxnn.data.bucketing import batch_lengths
from jaxnn.train import checks, values
from jaxnn.train.together import each_does
from jaxnn.typing import Batch, Mean, PyTree, Source, Strategy

Accepts = Callable[[str, Task, State, Batch], values.Lookups]
IN_FLIGHT = 4


def strategy_of(state: State) -> Strategy:
    """A strategy for a state that is placed already: data parallelism over the devices it is on."""
    leaves = [x for x in jax.tree.leaves((state.params, state.model_state)) if isinstance(x, jax.Array)]
    devices = sorted(leaves[0].sharding.device_set, key=lambda d: d.id) if leaves else jax.devices()[:1]
    return parallel.replicate(devices) if len(devices) > 1 else parallel.single(devices[0])


def _placed(state: State, strategy: Strategy | None) -> tuple[Strategy, State]:
    """The strategy to use, and what of the state is needed, on its devices."""
    there = strategy_of(state)
    if strategy is None or set(strategy.devices) == set(there.devices):
        return strategy or there, state
    params, model_state, key = strategy.put_state((state.params, state.model_state, state.key))
    return strategy, state._replace(params=params, model_state=model_state, key=key)


def judged(state: State) -> State:
    """The state with the parameters to evaluate, where the optimizer keeps others than it trains (`optim.ema`)."""
    return state._replace(params=optim.eval_params(state.opt_state, state.params))


class _Program(NamedTuple):
    """A jitted function, and the shapes that were checked, with what is looked up of such batches: a check traces,
    which is slow beside a small model."""

    run: Callable[..., Any]
    accepted: dict[Any, values.Lookups]

    def check(self, accepts: Accepts, where: str, task: Task, state: State, batch: Batch, number: int) -> None:
        leaves, structure = jax.tree.flatten(abstract((state.params, state.model_state, batch)))
        shapes = (structure, *leaves)
        if shapes not in self.accepted:
            self.accepted[shapes] = accepts(where, task, state, batch)
        values.within(where, batch, self.accepted[shapes], f"batch {number}")


@functools.lru_cache(maxsize=32)
def _sums_program(task: Task, strategy: Strategy) -> _Program:
    return _Program(strategy.compile_sums(make_value_fn(task, train=False)), {})


@functools.lru_cache(maxsize=32)
def _map_program(task: Task, strategy: Strategy) -> _Program:
    return _Program(strategy.compile_map(given_whole(task.predict)), {})


def _batches(source: Source, batch_size: int, strategy: Strategy, check: Callable[[Batch, int], None]) -> Any:
    """Host batches, the last one padded, a multiple of the devices each: this process's part, and the ids of the whole.

    In the order of the source; where examples differ in length, in that of their lengths. Each is checked, by its
    number too.
    """
    n, parts = len(source), strategy.shards
    size = -(-min(batch_size, n) // parts) * parts
    ids_of = epoch_order(source, 0, size, shuffle=False)
    for first in range(order.steps_per_epoch(n, size)):
        ids = ids_of(first, 1)[0]

        def read(ids: np.ndarray = ids, number: int = first) -> Batch:
            batch = host_batch(source, ids, part=strategy.part)
            check(batch, number)
            return batch

        yield each_does(read), ids


def evaluate(
    task: Task, state: State, source: Source, *, batch_size: int = 256, strategy: Strategy | None = None
) -> dict[str, Any]:
    """The objective ("loss") and the task's metrics over all examples of `source`.

    Sums are added in float64 on the host, so that a ragged last batch, masks and the number of devices do not matter.

    Args:
        task: What was learned.
        state: A run's state; where its optimizer averages parameters, the average is evaluated.
        source: The data.
        batch_size: Global examples a program run; only speed and memory depend on it.
        strategy: By default data parallelism over the devices that hold the state.

    Raises:
        ValueError: If the data does not fit the task: its shapes, or a number that the model has no row or class for.
    """
    checks.evaluation_arguments("train.evaluate", task, state, source, batch_size, strategy)
    state = judged(state)
    strategy, state = _placed(state, strategy)
    totals: dict[str, Mean] = {}
    flying: deque[Any] = deque()

    def land() -> None:
        parallel.beat()
        for name, mean in jax.device_get(flying.popleft()).items():
            held = totals.get(name, Mean(0.0, 0.0))
            totals[name] = Mean(
                held.sum + np.asarray(mean.sum, np.float64), held.weight + np.asarray(mean.weight, np.float64)
            )

    program = _sums_program(task, strategy)
    check = functools.partial(program.check, checks.task_accepts, "train.evaluate", task, state)
    for batch, _ in _batches(source, batch_size, strategy, check):
        with tree.declaring(lambda batch=batch: roles(task, batch)):
            flying.append(program.run(state.params, state.model_state, strategy.put_part(batch), state.key))
        if len(flying) > IN_FLIGHT:
            land()
    while flying:
        land()
    return {name: task.finish(name, mean) for name, mean in totals.items()}


def predict(task: Task, state: State, x: Any, *, batch_size: int = 256, strategy: Strategy | None = None) -> PyTree:
    """The model's outputs for every example, as NumPy arrays in input order.

    Args:
        task: What was learned.
        state: A run's state.
        x: Inputs [N, ...] as an array, a mapping of arrays, or a `Source`.
        batch_size: Global examples a program run.
        strategy: By default data parallelism over the devices that hold the state.

    Returns:
        A pytree like one batch's outputs, leaves [N, ...].

    Raises:
        ValueError: If the data does not fit the task, or outputs are as long as their batch and batches differ.
    """
    source = x if hasattr(x, "take") and hasattr(x, "resident") else data.Arrays(x)
    checks.evaluation_arguments("train.predict", task, state, source, batch_size, strategy)
    state = judged(state)
    strategy, state = _placed(state, strategy)
    program = _map_program(task, strategy)
    parts: list[PyTree] = []
    places: list[np.ndarray] = []
    flying: deque[tuple[Any, np.ndarray]] = deque()

    def land() -> None:
        parallel.beat()
        outputs, ids = flying.popleft()
        parts.append(jax.tree.map(lambda leaf: np.asarray(leaf)[ids >= 0], parallel.fetch(outputs)))
        places.append(ids[ids >= 0])

    check = functools.partial(program.check, checks.predict_accepts, "train.predict", task, state)
    for batch, ids in _batches(source, batch_size, strategy, check):
        with tree.declaring(lambda batch=batch: roles(task, batch)):
            outputs = program.run(state.params, state.model_state, strategy.put_part(batch))
        flying.append((outputs, ids))
        if len(flying) > IN_FLIGHT:
            land()
    while flying:
        land()
    if not batch_lengths(source):
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    checks.joinable("train.predict", parts)
    at = np.argsort(np.concatenate(places))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[at], *parts)
