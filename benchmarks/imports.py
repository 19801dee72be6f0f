"""What importing jaxnn costs beyond jax, flax.linen and optax: median ratio of interleaved pairs of fresh processes.

python -m benchmarks.imports --runs 15

The bar is 1.2 (goal 1.1) on the median of CPU time; wall time is shown beside it and follows whatever else runs.
"""

import os
import pathlib
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import tyro

ROOT = pathlib.Path(__file__).resolve().parent.parent
BASE = "import jax, flax.linen, optax"
OURS = f"{BASE}; from jaxnn import data, losses, metrics, models, parallel, train"


@dataclass(frozen=True, kw_only=True)
class Config:
    """How often to measure."""

    runs: int = 15  # pairs of processes


def measure(code: str) -> tuple[float, float]:
    """CPU and wall seconds of a fresh interpreter that runs `code`."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, wall


def interval(samples: np.ndarray) -> tuple[float, float]:
    """A 95 % interval of the median, by 2,000 bootstrap resamples."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(samples, (2000, len(samples))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)


def main(cfg: Config) -> dict[str, float]:
    measure(OURS)  # writes the byte code and fills the page cache
    pairs = []
    for run in range(cfg.runs):
        first, second = (BASE, OURS) if run % 2 else (OURS, BASE)
        times = {first: measure(first), second: measure(second)}
        pairs.append((times[BASE], times[OURS]))
    base, ours = np.moveaxis(np.array(pairs), 0, 1)  # each [runs, (cpu, wall)]
    result = {}
    for column, name in enumerate(("cpu", "wall")):
        ratios = ours[:, column] / base[:, column]
        low, high = interval(ratios)
        result[name] = float(np.median(ratios))
        print(
            f"{name:4}  {result[name]:.3f} [{low:.3f}, {high:.3f}]   "
            f"{np.median(ours[:, column]):.3f} s against {np.median(base[:, column]):.3f} s, {cfg.runs} pairs"
        )
    print("bar: 1.2, goal 1.1:", "met" if result["cpu"] <= 1.1 else "bar met" if result["cpu"] <= 1.2 else "missed")
    return result


if __name__ == "__main__":
    main(tyro.cli(Config))
