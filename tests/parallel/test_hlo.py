"""What a step sends between devices, read from the optimized HLO: one variadic all-reduce of the gradients and scalars.

A second all-reduce, or any other collective, is a stray that XLA's partitioner or a careless mean put in.
"""

import math
import re
from typing import Any

import jax
import numpy as np
import optax
import pytest

from jaxnn import core, data, losses, models, parallel, tree
from jaxnn.core.step import check_step, make_chunk, make_step, trace_step

STRATEGIES = {"replicate": parallel.replicate, "pmap": parallel.pmap}
BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1}
COLLECTIVE = re.compile(
    r"= (?P<type>.*?) (?P<op>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast)"
    r"(-start)?\("
)


def collectives(hlo: str) -> list[tuple[str, int]]:
    """(operation, bytes of its results) of every collective in an HLO module's text."""
    found = []
    for line in hlo.splitlines():
        if match := COLLECTIVE.search(line):
            shapes = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", match["type"])
            assert shapes, line
            size = sum(BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in shapes)
            found.append((match["op"], size))
    return found


def programs(module: Any, loss: Any, batch: Any, strategy: Any, tx: Any) -> tuple[Any, list[str]]:
    """The first state and the optimized HLO of the train step and of the chunk."""
    task = core.supervised(module, loss, penalty=lambda p: 1e-3 * sum((x**2).sum() for x in jax.tree.leaves(p)))
    step = make_step(task, tx, strategy)
    batch = core.state.complete(batch)
    state = core.init_state(task, tx, batch, strategy=strategy)
    sums = check_step(trace_step(step, state, batch, strategy), state)
    resident = data.Arrays({k: v for k, v in batch.items() if k not in ("mask", "index")}).resident()
    chunk = strategy.compile(make_chunk(step, resident, sums, 4))
    rows = strategy.put_rows(np.zeros((4, 8), np.int32))
    lowered = [
        strategy.compile_step(step).lower(state, strategy.put_batch(batch)),
        chunk.lower(state, strategy.put_shared(resident.arrays), rows, np.int32(2)),
    ]
    return state, [low.compile().as_text() for low in lowered]


def test_the_parser_reads_collectives():
    text = """
  %all-reduce.3 = (f32[4,2]{1,0}, f32[]) all-reduce(%a, %b), channel_id=1, to_apply=%add
  %x = f32[8]{0} add(f32[8] %all-reduce.3, f32[8] %c)
  ROOT %ag = bf16[16,3] all-gather(bf16[2,3] %p), dimensions={0}
"""
    assert collectives(text) == [("all-reduce", 36), ("all-gather", 96)]


BATCHES = {
    "mlp": {"x": np.ones((8, 3), np.float32), "y": np.ones((8, 1), np.float32)},
    "gpt": {"x": np.ones((8, 4), np.int32), "y": np.ones((8, 4), np.int32)},
    "cnn": {"x": np.ones((8, 6, 6, 1), np.float32), "y": np.ones(8, np.int32)},
}
GPT = models.GPT(models.GPTConfig(vocab=8, length=4, layers=1, heads=1, width=4, mlp_ratio=1, dropout=0.1))
MODULES = {"mlp": models.MLP((16, 1), dropout=0.1), "gpt": GPT, "cnn": models.CNN((4,), (), 3, batch_norm=True)}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", [pytest.param("mlp", marks=pytest.mark.slow), "gpt"])
def test_one_all_reduce_of_the_gradients_and_scalars(name, strategy):
    loss = losses.mse if name == "mlp" else losses.cross_entropy
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state, texts = programs(MODULES[name], loss, BATCHES[name], STRATEGIES[strategy](), tx)
    for text in texts:  # the chunk's is inside the loop, once
        ((op, size),) = collectives(text)
        assert op == "all-reduce"
        assert size == tree.nbytes(state.params) + 2 * 4  # and the total and the weight, in float32


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_batch_norm_adds_its_statistics_only(strategy):
    state, texts = programs(
        MODULES["cnn"], losses.cross_entropy, BATCHES["cnn"], STRATEGIES[strategy](), optax.sgd(0.1)
    )
    statistic = 4 * 4  # bytes
    for text in texts:
        found = collectives(text)
        assert {op for op, _ in found} == {"all-reduce"}
        # Forward: the sums with their count, then the squares of what is centred; backward through both; the gradients.
        assert len(found) == 5
        rest = 2 * (statistic + 4 + statistic)
        assert sum(size for _, size in found) == tree.nbytes((state.params, state.model_state)) + 2 * 4 + rest
        assert max(size for _, size in found) >= tree.nbytes((state.params, state.model_state))


def test_a_line_search_evaluates_without_gradients_on_the_wire():
    tx = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=3))
    state, texts = programs(MODULES["mlp"], losses.mse, BATCHES["mlp"], parallel.replicate(), tx)
    gradients = tree.nbytes(state.params) + 2 * 4
    sizes = sorted(size for _, size in collectives(texts[0]))
    assert sizes[-1] == gradients
    assert all(size <= 2 * 4 for size in sizes[:-1])  # the objective's total and weight, in the search's loop
    assert len(sizes) > 1
