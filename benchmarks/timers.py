"""The same compiled step timed by `bench.measure`, pyperf and torch.utils.benchmark.Timer: do they agree?

python -m benchmarks.timers [--rounds 9]

pyperf and PyTorch are not dependencies of jaxnn: install them to take part (`pip install pyperf torch`); who is absent
is named. Timers take turns, and a pyperf round is a process of its own, which compiles the step again. An answer is the
median over rounds of (other / bench) with the sign test's interval; they agree where 1 lies in it, or where it lies
within 3 % of 1.
"""

import importlib.util
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks import bench_of_bench, steps
from jaxnn import bench
from jaxnn.bench import schema, statistics
from jaxnn.bench.compilation import build

CLOSE = 0.03
ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Config:
    """How often to measure."""

    rounds: int = 9  # turns of every timer; fewer than 6 have no interval
    seconds: float = 1.0  # that a timer measures for in a turn
    only: str = ""  # the step with this name


def case(name: str) -> bench.Case:
    """One of the steps: the dial of 2 ms, or the MLP's train step, its state not donated: anybody may call it."""
    if name == "dial":
        return bench_of_bench.case("dial", bench_of_bench.TRIPS, 96)
    function, args = steps.mlp_step()
    return bench.Case("mlp", function, args)


def ready(name: str) -> Callable[[], Any]:
    """A call of the compiled step that waits for its outputs: what a stranger's timer is given."""
    program = build(case(name))
    return lambda: jax.block_until_ready(program.call(*program.args))


def by_bench(name: str, seconds: float) -> float:
    """Median seconds a call by `bench.measure`."""
    made = case(name)
    found = bench.measure(name, made.function, args=made.args, max_seconds=seconds, precision=1e-9)
    return found.median_s


def by_torch(name: str, seconds: float) -> float:
    """Median seconds a call by PyTorch's Timer."""
    timer = importlib.import_module("torch.utils.benchmark").Timer(stmt="call()", globals={"call": ready(name)})
    return float(timer.blocked_autorange(min_run_time=seconds).median)


def by_pyperf(name: str, seconds: float) -> float:
    """Median seconds a call by pyperf, in one process of its own."""
    values = max(3, round(seconds / 0.1))
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "pyperf.json")
        options = [
            "--processes=1",
            f"--values={values}",
            "--warmups=1",
            "--min-time=0.1",
            "--copy-env",
            "-q",
            "-o",
            out,
        ]
        command = [sys.executable, "-m", "benchmarks.timers", PERF, name, *options]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return float(importlib.import_module("pyperf").Benchmark.load(out).median())


PERF = "pyperf"


def pyperf_program() -> None:
    """What pyperf's manager and its worker run: this file again, with the step's name kept among the arguments."""
    name, sys.argv = sys.argv[2], [sys.argv[0], *sys.argv[3:]]
    pyperf = importlib.import_module("pyperf")
    again = ["-m", "benchmarks.timers", PERF, name]
    pyperf.Runner(program_args=again).bench_func(name, ready(name) if "--worker" in sys.argv else None)


TIMERS: dict[str, Callable[[str, float], float]] = {"torch": by_torch, "pyperf": by_pyperf}


def compare(name: str, timers: list[str], cfg: Config) -> dict[str, float]:
    """Prints a line a timer; returns its median ratio to bench."""
    times: dict[str, list[float]] = {"bench": [], **{timer: [] for timer in timers}}
    for number in range(cfg.rounds):
        order = list(times)[:: 1 if number % 2 else -1]
        for timer in order:
            times[timer].append((by_bench if timer == "bench" else TIMERS[timer])(name, cfg.seconds))
    ratios = {}
    for timer in timers:
        logs = np.log(times[timer]) - np.log(times["bench"])
        interval = statistics.sign_interval(logs, 0.95).exp()
        ratios[timer] = float(np.exp(np.median(logs)))
        near = 1.0 in interval or (interval.low > 1 - CLOSE and interval.high < 1 + CLOSE)
        verdict = ("agree" if near else "DISAGREE") if math.isfinite(interval.half) else "too few rounds"
        ours, others = (1e3 * float(np.median(times[who])) for who in ("bench", timer))
        print(
            f"{name:5} bench {ours:7.3f} ms   {timer:7} {others:7.3f} ms   "
            f"{timer} / bench {ratios[timer]:.3f} {interval}   {verdict}",
            flush=True,
        )
    return ratios


def main(cfg: Config) -> dict[str, dict[str, float]]:
    """Prints the table."""
    where = schema.environment()
    print(f"{where['device']}, {where['processor']}, jax {where['jax']}, load {where['load']:.1f}, {cfg.rounds} rounds")
    there = [timer for timer in TIMERS if importlib.util.find_spec(timer) is not None]
    if absent := [timer for timer in TIMERS if timer not in there]:
        print(f"not installed, and left out: {', '.join(absent)}")
    return {name: compare(name, there, cfg) for name in ("dial", "mlp") if cfg.only in name}


if __name__ == "__main__":
    if sys.argv[1:2] == [PERF]:
        pyperf_program()
    else:
        main(tyro.cli(Config))
