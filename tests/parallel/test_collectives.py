"""What each strategy sends, read from the optimized HLO by `cost`, against what theory needs; and what it keeps.

A GPT of two layers, each of whose leaves divides. Written for what XLA:CPU makes of it: it never turns an all-reduce
and a slice into a reduce-scatter, so that `fsdp` adds its gradients whole there.
"""

import functools
from collections import Counter
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest

from jaxnn import core, cost, losses, models, parallel, tree
from jaxnn.core.step import make_step
from tests.parallel.strategies import EVERY

BATCH, TIME, WIDTH, LAYERS = 8, 16, 64, 2
CONFIG = models.GPTConfig(vocab=32, length=TIME, layers=LAYERS, heads=4, width=WIDTH, mlp_ratio=2, tied=False)
SCALARS = 2 * 4  # the total and the weight, in float32


class Compiled(NamedTuple):
    state: core.State
    program: Any
    sent: Counter  # (kind, axes) -> bytes
    times: Counter  # (kind, axes) -> runs


def compiled(config: models.GPTConfig, strategy: Any, batch: int = BATCH) -> Compiled:
    task = core.supervised(models.GPT(config), losses.cross_entropy)
    tx = optax.adamw(1e-3)
    tokens = np.ones((batch, config.length), np.int32)
    full = core.state.complete({"x": tokens, "y": tokens})
    state = core.init_state(task, tx, full, strategy=strategy)
    program = strategy.compile_step(make_step(task, tx, strategy)).lower(state, strategy.put_batch(full)).compile()
    sent, times = Counter(), Counter()
    for found in cost.collectives(program, getattr(strategy, "mesh", ())):
        assert found.bounded
        assert not found.conditional
        sent[found.kind, found.axes] += found.total_bytes
        times[found.kind, found.axes] += found.count * found.trip
    return Compiled(state, program, sent, times)


@functools.cache
def step(name: str) -> Compiled:
    return compiled(CONFIG, EVERY[name]("gpt", None))


DATA, MODEL = ("data",), ("model",)


def test_zero1_adds_gradients_and_gathers_parameters():
    made = step("zero1")
    parameters = tree.nbytes(made.state.params)
    assert made.sent == {("all-reduce", DATA): parameters + SCALARS, ("all-gather", DATA): parameters}
    assert made.times["all-reduce", DATA] == 1


def test_zero2_scatters_gradients_and_gathers_parameters():
    made = step("zero2")
    parameters = tree.nbytes(made.state.params)
    assert made.sent == {
        ("reduce-scatter", DATA): parameters,
        ("all-gather", DATA): parameters,
        ("all-reduce", DATA): SCALARS,
    }
    leaves = len(jax.tree.leaves(made.state.params))
    assert made.times == {("reduce-scatter", DATA): leaves, ("all-gather", DATA): leaves, ("all-reduce", DATA): 1}


def test_zero3_scatters_gradients_and_gathers_where_parameters_are_read():
    made = step("zero3")
    parameters = tree.nbytes(made.state.params)
    assert set(made.sent) == {("reduce-scatter", DATA), ("all-gather", DATA), ("all-reduce", DATA)}
    assert made.sent["reduce-scatter", DATA] == parameters
    assert made.sent["all-reduce", DATA] == SCALARS
    # Forward and, where XLA does not find them there still, backward.
    assert parameters <= made.sent["all-gather", DATA] <= 2 * parameters


def test_fsdp_gathers_parameters_and_exchanges_no_activations():
    made = step("fsdp")
    parameters = tree.nbytes(made.state.params)
    assert set(made.sent) == {("all-reduce", DATA), ("all-gather", DATA)}
    assert made.sent["all-reduce", DATA] == parameters + SCALARS
    assert parameters <= made.sent["all-gather", DATA] <= 2 * parameters


def activations(devices_of_data: int) -> int:
    """Bytes of the residual stream of a group's examples."""
    return BATCH // devices_of_data * TIME * WIDTH * 4


def test_tensor_adds_activations_twice_a_block_each_way():
    made = step("tensor")
    assert set(made.sent) == {("all-reduce", DATA), ("all-reduce", MODEL)}
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(made.state.params))
    assert made.sent["all-reduce", DATA] == held + SCALARS
    assert made.times["all-reduce", DATA] == 1
    # Two a block each way; one behind the table, one before the head; the softmax over the vocabulary adds the maximum,
    # the sum and the target's logit, [B, T] each.
    whole = (4 * LAYERS + 2) * activations(4)
    assert whole <= made.sent["all-reduce", MODEL] <= whole + 4 * activations(4) // WIDTH
    assert made.times["all-reduce", MODEL] <= 4 * LAYERS + 2 + 3


def test_sequence_gathers_what_tensor_keeps_whole():
    made = step("sequence")
    assert set(made.sent) == {("all-reduce", DATA), ("all-reduce", MODEL), ("all-gather", MODEL)}
    assert made.sent["all-gather", MODEL] == (4 * LAYERS + 2) * activations(4)


def test_fsdp_and_tensor_together_send_what_each_does():
    made = step("fsdp_tensor")
    assert set(made.sent) == {("all-reduce", DATA), ("all-reduce", MODEL), ("all-gather", DATA)}
    assert made.times["all-reduce", MODEL] <= 4 * LAYERS + 2 + 3
    half = sum(  # of a group of two devices that share each matrix
        leaf.nbytes // (2 if "model" in str(leaf.sharding.spec) else 1) for leaf in jax.tree.leaves(made.state.params)
    )
    assert half <= made.sent["all-gather", DATA] <= 2 * half


@pytest.mark.parametrize(("name", "share"), [("zero3", 8), ("fsdp", 8), ("fsdp_tensor", 8), ("tensor", 2)])
def test_a_device_keeps_its_share_of_the_state(name, share):
    state = step(name).state
    for part in (state.params, state.opt_state[0].mu, state.opt_state[0].nu):
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(part))
        assert tree.nbytes(part) / share <= held <= (1 / share + 0.01) * tree.nbytes(part)


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_keeps_its_share_of_the_moments(stage):
    state = step(f"zero{stage}").state
    for leaf in jax.tree.leaves((state.opt_state[0].mu, state.opt_state[0].nu)):
        assert leaf.addressable_shards[0].data.nbytes * 8 == leaf.nbytes
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("name", [pytest.param("zero3", marks=pytest.mark.slow), "fsdp"])
def test_at_most_two_layers_parameters_are_gathered_at_a_time(name):
    """24 layers as a loop in the program. (Of one in Python XLA:CPU gathers all at its start: it keeps no barrier.)"""
    layers = 24
    config = models.GPTConfig(vocab=32, length=1, layers=layers, heads=4, width=96, scan=True, tied=False)
    strategy = {"zero3": parallel.zero(3), "fsdp": parallel.fsdp()}[name]
    made = compiled(config, strategy)
    layer = tree.nbytes(made.state.params["blocks"]) // layers
    assert 0.9 * layer < cost.gathered_alive(made.program) <= 2 * layer
    # Nor are they kept in another form: a third of a layer each is the shares of gradients and parameters, and a copy.
    memory = cost.memory(made.program)
    assert memory is not None
    assert memory.temporaries < (3 / 8 * layers + 2) * layer
    # Each layer's parameters are gathered once forward, once backward.
    blocks = sum(leaf.nbytes for leaf in jax.tree.leaves(made.state.params["blocks"]) if leaf.ndim == 3)
    others = tree.nbytes({k: v for k, v in made.state.params.items() if k in ("embed", "head")})
    assert made.sent["all-gather", DATA] == 2 * blocks + others
