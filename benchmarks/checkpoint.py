"""How long a checkpoint holds up training: seconds that `Checkpoints.save` blocks, for states of 10, 100 and 500 MB.

python -m benchmarks.checkpoint [--megabytes 10 100 500] [--rounds 3]

`save` copies the state to the host, so that its buffers may be donated at once, and writes in the background; blocking
is therefore one copy of memory. The goal: at most 0.3 ms a megabyte and 20 ms besides. Sizes take turns; such a copy by
itself (`numpy.array`) stands beside.
"""

import tempfile
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxnn import runs
from jaxnn.bench import schema

GOAL_S, GOAL_S_PER_MB = 0.020, 0.3e-3
LEAVES = 16


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to save, and how often."""

    megabytes: tuple[int, ...] = (10, 100, 500)
    rounds: int = 3  # the first round's saves also warm up, and are left out where there are more


def state(megabytes: int) -> dict[str, jax.Array]:
    """Arrays of this size in all."""
    n = megabytes * 1_000_000 // 4 // LEAVES
    return jax.block_until_ready({f"w{i}": jnp.full((n,), float(i), jnp.float32) for i in range(LEAVES)})


def save(checkpoints: runs.Checkpoints, step: int, megabytes: int) -> tuple[float, float, float]:
    """Seconds that one copy takes, that `save` blocks, and until the checkpoint is committed."""
    arrays = state(megabytes)
    start = time.perf_counter()
    copied = [np.array(array, copy=True) for array in arrays.values()]
    copy = time.perf_counter() - start
    del copied
    arrays = state(megabytes)  # a jax array keeps the host's view of it, once it has one
    start = time.perf_counter()
    checkpoints.save(step, arrays, {})
    blocked = time.perf_counter() - start
    checkpoints.wait()
    return copy, blocked, time.perf_counter() - start


def main(cfg: Config) -> dict[int, float]:
    """Prints the table; returns the blocking seconds by size."""
    where = schema.environment()
    print(f"{where['device']}, {where['processor']}, jax {where['jax']}, load {where['load']:.1f}, {cfg.rounds} rounds")
    times: dict[int, list[tuple[float, float, float]]] = {size: [] for size in cfg.megabytes}
    with tempfile.TemporaryDirectory() as folder, runs.Checkpoints(folder, keep=1) as checkpoints:
        for number in range(cfg.rounds):
            for place, size in enumerate(cfg.megabytes):
                times[size].append(save(checkpoints, number * len(times) + place, size))
    line = "{:>8}{:>12}{:>12}{:>14}{:>12}  {}".format
    print(line("MB", "copy, s", "blocks, s", "committed, s", "goal, s", ""))
    blocked = {}
    for size, samples in times.items():
        copy, block, whole = np.median(np.array(samples[1:] or samples), axis=0)
        goal = GOAL_S + GOAL_S_PER_MB * size
        blocked[size] = float(block)
        verdict = "met" if block <= goal else "MISSED"
        print(line(size, f"{copy:.3f}", f"{block:.3f}", f"{whole:.2f}", f"{goal:.3f}", verdict))
    return blocked


if __name__ == "__main__":
    main(tyro.cli(Config))
