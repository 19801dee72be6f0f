"""Small models and a stretch of training that is as ragged as it gets, to be run under any strategy.

Each program is one chunk over resident data: a dozen seconds of compilation for all of this folder, not a dozen a test.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn import core, data, losses, models
from jaxnn.core.settings import PLAIN
from jaxnn.core.step import check_step, make_chunk, make_step, trace_step
from jaxnn.data import host_batch
from jaxnn.train.engine import scalars

EXAMPLES, BATCH, STEPS = 96, 24, 50  # 24 examples divide over 2, 3 and 8 devices
GPT_CONFIG = models.GPTConfig(
    vocab=16,
    length=8,
    layers=1,
    heads=2,
    width=16,
    mlp_ratio=2,
    dropout=0.1,
    bias=True,
    norm="layer",
    positions="learned",
)


def l2(params: Any) -> Any:
    return 1e-3 * sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))


class Case(NamedTuple):
    task: core.Task
    source: data.Arrays


@functools.cache
def case(name: str) -> Case:
    draw = np.random.default_rng(0)
    if name == "mlp":
        x = draw.normal(size=(EXAMPLES, 6)).astype(np.float32)
        y = np.sin(x @ draw.normal(size=(6, 2))).astype(np.float32)
        weights = draw.uniform(0.2, 2, EXAMPLES).astype(np.float32)
        module = models.MLP((16, 2), dropout=0.2)
        return Case(core.supervised(module, losses.mse, penalty=l2), data.Arrays(x, y, weights=weights))
    if name in ("cnn", "ghost", "poisoned"):
        x = draw.normal(size=(EXAMPLES, 8, 8, 1)).astype(np.float32)
        y = draw.integers(0, 3, EXAMPLES)
        groups = 8 if name == "ghost" else 1
        module = models.CNN((4,), (8,), 3, batch_norm=True, batch_norm_groups=groups, dropout=0.1)
        if name == "poisoned":
            x[-1, 3, 3] = np.nan
        return Case(core.supervised(module, losses.cross_entropy, penalty=l2), data.Arrays(x, y, allow_nonfinite=True))
    tokens = draw.integers(0, 16, (EXAMPLES, 9)).astype(np.int32)
    weights = (draw.random((EXAMPLES, 8)) > 0.3).astype(np.float32)  # token weights
    task = core.supervised(models.GPT(GPT_CONFIG), losses.cross_entropy, penalty=l2)
    return Case(task, data.Arrays(tokens[:, :-1], tokens[:, 1:], weights=weights))


def rows(steps: int = STEPS) -> np.ndarray:
    """Example ids [steps, BATCH]; -1 is padding. Every fifth step is ragged, some lack whole shards, one lacks all."""
    ids = np.random.default_rng(1).integers(0, EXAMPLES, (steps, BATCH)).astype(np.int32)
    ids[0::5, 17:] = -1
    ids[1::5, : BATCH // 8] = -1  # the first of 8 devices sees nothing
    ids[2::5, BATCH // 8 :] = -1  # it alone sees something
    ids[8] = -1
    return ids


class Trained(NamedTuple):
    first: core.State
    state: core.State
    losses: np.ndarray
    weights: np.ndarray


def start(name: str, tx: optax.GradientTransformation, strategy: Any, seed: int = 7) -> core.State:
    task, source = case(name)
    return core.init_state(task, tx, host_batch(source, np.arange(BATCH)), seed=seed, strategy=strategy)


def compiled_chunk(
    name: str,
    tx: optax.GradientTransformation,
    strategy: Any,
    k_max: int = STEPS,
    settings: core.Step = PLAIN,
) -> tuple[Any, ...]:
    """The chunk, its first state and its data, all placed."""
    task, source = case(name)
    step = scalars(make_step(task, tx, strategy, settings))
    state = start(name, tx, strategy)
    sums = check_step(trace_step(step, state, host_batch(source, np.arange(BATCH)), strategy), state)
    resident = source.resident()
    return strategy.compile(make_chunk(step, resident, sums, k_max)), state, strategy.put_shared(resident.arrays)


def train(
    name: str,
    tx: optax.GradientTransformation,
    strategy: Any,
    settings: core.Step = PLAIN,
    steps: int = STEPS,
) -> Trained:
    """The first `steps` of STEPS steps over `rows()`, in one dispatch."""
    chunk, state, arrays = compiled_chunk(name, tx, strategy, settings=settings)
    first = jax.device_get(state)
    state, report = chunk(state, arrays, strategy.put_rows(rows()), np.int32(steps))
    loss = jax.device_get(report["loss"])
    objective = np.divide(loss.sum, loss.weight, out=np.zeros_like(loss.sum), where=loss.weight > 0)
    return Trained(first, jax.device_get(state), objective, loss.weight)
