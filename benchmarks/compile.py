"""Seconds to compile the GPT's train step against depth: 12 and 48 layers of the tiny width, layers looped and scanned.

python -m benchmarks.compile [--layers 12 48] [--rounds 1]

Trace, lower and compile are timed apart, from cold caches, in turns. The goal: a scanned model of 48 layers compiles in
at most 1.25 times the CPU seconds of one of 12, because its program is the same but for a number; the looped ones show
what that saves. CPU seconds are of all threads, the first call of the program included.
"""

import itertools
import time
from dataclasses import dataclass

import jax
import numpy as np
import optax
import tyro

from jaxnn import bench, core, losses, models, parallel
from jaxnn.bench import schema
from jaxnn.bench.compilation import Compile, build
from jaxnn.core.state import complete
from jaxnn.core.step import make_step

GOAL = 1.25


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to compile, and how often."""

    layers: tuple[int, ...] = (12, 48)  # depths; the first is the measure of the others
    forms: tuple[str, ...] = ("scan", "loop")
    rounds: int = 1  # every program is compiled so often, in turns; medians are shown


def case(layers: int, form: str) -> bench.Case:
    """The train step of a GPT: AdamW, 4 windows of 64 bytes."""
    config = models.GPTConfig.preset("tiny", layers=layers, scan=form == "scan")
    task = core.supervised(models.GPT(config), losses.cross_entropy)
    strategy, tx = parallel.single(), optax.adamw(1e-3)
    text = np.random.default_rng(0).integers(0, 256, (4, 65)).astype(np.int32)
    batch = {"x": text[:, :-1], "y": text[:, 1:]}
    state = core.init_state(task, tx, batch, strategy=strategy)
    args = (jax.device_put(state), strategy.put_batch(complete(batch)))
    return bench.Case(f"{form} {layers}", make_step(task, tx, strategy), args, "thread")


def main(cfg: Config) -> dict[str, float]:
    """Prints the table; returns the median CPU seconds of each program."""
    where = schema.environment()
    print(f"{where['device']}, {where['processor']}, jax {where['jax']}, {cfg.rounds} rounds, seconds")
    programs = list(itertools.product(cfg.forms, cfg.layers))
    found: dict[tuple[str, int], list[Compile]] = {program: [] for program in programs}
    cpu: dict[tuple[str, int], list[float]] = {program: [] for program in programs}
    for _ in range(cfg.rounds):
        for form, layers in programs:
            made = case(layers, form)
            start = time.process_time()
            found[form, layers].append(build(made).compile)
            cpu[form, layers].append(time.process_time() - start)
    row = "{:12}{:>8}{:>8}{:>9}{:>9}{:>9}{:>12}  {}".format
    print(row("", "trace", "lower", "compile", "all", "CPU", "executable", f"CPU against {cfg.layers[0]} layers"))
    totals: dict[str, float] = {}
    for (form, layers), compiles in found.items():
        used = totals[f"{form} {layers}"] = float(np.median(cpu[form, layers]))
        parts = (f"{median(compiles, part):.2f}" for part in ("trace_s", "lower_s", "compile_s", "total_s"))
        size = f"{(compiles[0].executable_bytes or 0) / 1e6:.1f} MB"
        ratio = totals[f"{form} {layers}"] / totals[f"{form} {cfg.layers[0]}"]
        print(
            row(
                f"{form} {layers}", *parts, f"{used:.2f}", size, verdict(form, ratio) if layers != cfg.layers[0] else ""
            )
        )
    return totals


def median(compiles: list[Compile], part: str) -> float:
    return float(np.median([getattr(each, part) for each in compiles]))


def verdict(form: str, ratio: float) -> str:
    if form != "scan":
        return f"{ratio:.2f}"
    return f"{ratio:.2f} (goal {GOAL}: {'met' if ratio <= GOAL else 'MISSED'})"


if __name__ == "__main__":
    main(tyro.cli(Config))
