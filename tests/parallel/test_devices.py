"""Choosing devices, forcing them, and what placing a state may and may not do to the caller's arrays."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import core, losses, models, parallel

STRATEGIES = {"single": parallel.single, "replicate": parallel.replicate, "pmap": parallel.pmap}
FORCE = """
import os
os.environ.pop("XLA_FLAGS", None), os.environ.pop("NPROC", None)
import jax
from jaxnn import parallel
try:
    parallel.force_host_devices(0)
except ValueError as error:
    print(error)
parallel.force_host_devices(3)
print(len(jax.devices()), os.environ["NPROC"])
parallel.force_host_devices(3)  # the same number again is no error
try:
    parallel.force_host_devices(4)
except RuntimeError as error:
    print(error)
"""


def test_force_host_devices():
    done = subprocess.run([sys.executable, "-c", FORCE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    few, count, late = done.stdout.splitlines()
    assert few == "parallel.force_host_devices: count must be at least 1, got 0."
    assert count == "3 32"
    assert late == (
        "parallel.force_host_devices: JAX already started with 3 CPU devices, 4 were asked for. "
        "Call it before the first array or jax.devices()."
    )


@pytest.mark.parametrize("make", [parallel.replicate, parallel.pmap])
def test_devices_that_are_not_there(make, devices8):
    name = f"parallel.{make.__name__}"
    with pytest.raises(ValueError, match=rf"{name}: 9 devices were asked for, 8 cpu devices are there.*\(9\) first"):
        make(9)
    with pytest.raises(ValueError, match=rf"{name}: 0 devices were asked for"):
        make(0)
    with pytest.raises(ValueError, match=rf"{name}: the list of devices is empty"):
        make([])


def test_devices_are_chosen_by_number_or_by_list(devices8):
    assert parallel.replicate().devices == tuple(devices8)
    assert parallel.replicate(3).devices == tuple(devices8[:3])
    assert parallel.pmap(devices8[5:7]).devices == tuple(devices8[5:7])
    assert parallel.single().devices == (devices8[0],)
    assert parallel.single(devices8[4]).devices == (devices8[4],)


def test_strategies_are_values(devices8):
    for make in STRATEGIES.values():
        assert make() == make()
        assert hash(make()) == hash(make())
    assert parallel.replicate(2) != parallel.replicate(3)
    assert parallel.replicate(2) != parallel.pmap(2)


TASK = core.supervised(models.MLP((4, 1)), losses.mse)
BATCH = {"x": np.ones((8, 2), np.float32), "y": np.zeros((8, 1), np.float32)}
TX = optax.adam(0.1)


@pytest.mark.parametrize("name", STRATEGIES)
def test_placing_a_state_copies_it(name, devices8):
    strategy = STRATEGIES[name]()
    mine = core.State(
        step=np.zeros((), np.int32),
        data_step=np.zeros((), np.int32),
        params=jax.tree.map(jnp.array, core.init_state(TASK, TX, BATCH, strategy=parallel.single()).params),
        model_state={},
        opt_state={},
        key=np.arange(2, dtype=np.uint32),
    )
    mine = mine._replace(opt_state=jax.jit(TX.init)(mine.params))
    kept = jax.tree.map(np.array, mine)
    placed = strategy.put_state(strategy.put_state(mine))
    before = strategy.put_state(placed)  # also of a state that is placed already
    step = core.make_train_step(TASK, TX, strategy=strategy)
    after, _ = step(placed, BATCH)
    assert int(after.data_step) == 1
    for state in (mine, before):
        for leaf, was in zip(jax.tree.leaves(state), jax.tree.leaves(kept), strict=True):
            np.testing.assert_array_equal(leaf, was)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_step_donates_the_state_and_nothing_else(name, devices8):
    strategy = STRATEGIES[name]()
    batch = {k: jnp.asarray(v) for k, v in BATCH.items()}
    state = core.init_state(TASK, TX, batch, strategy=strategy)
    placed = strategy.put_batch(core.state.complete(batch))
    step = core.make_train_step(TASK, TX, strategy=strategy)
    new, _ = step(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((batch, placed, new)))
    np.testing.assert_array_equal(batch["x"], BATCH["x"])


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_state_is_where_the_strategy_says(name, devices8):
    strategy = STRATEGIES[name](*([] if name == "single" else [4]))
    state = core.init_state(TASK, TX, BATCH, strategy=strategy)
    new, _ = core.make_train_step(TASK, TX, strategy=strategy)(state, BATCH)
    for leaf in jax.tree.leaves(new):
        assert leaf.sharding.device_set == set(strategy.devices)
        assert leaf.sharding.is_fully_replicated
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, leaf)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_second_call_compiles_nothing(name, devices8, count_compiles):
    strategy = STRATEGIES[name]()
    state = core.init_state(TASK, TX, BATCH, strategy=strategy)
    step = core.make_train_step(TASK, TX, strategy=strategy)
    with count_compiles() as first:
        state, _ = step(state, BATCH)
    with count_compiles() as second:
        for _ in range(3):
            state, _ = step(state, BATCH)
    assert len(first.compiles) == 1
    assert second.compiles == second.traces == []
