"""Seconds to compile an update of many leaves, ours beside optax's, each in a process of its own.

python -m benchmarks.optimizer_compile               # all; 5 minutes, alone on the machine
python -m benchmarks.optimizer_compile --only muon

A process compiles one program, from a function to its executable, and ends: what the one before left in its memory
would be paid by the next. It has compiled the update of two leaves before, then cleared its caches. Arms take turns; of
several rounds the best counts.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

from jaxnn import optim

LR = 1e-3
Maker = Callable[[], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Program:
    """Optimizers of which updates of the same leaves are compiled.

    Attributes:
        count: Leaves.
        shape: Of each.
        makers: Arms; "optax" is what the others are compared with.
        must: Times faster that "jaxnn" must be.
        goal: Times faster that it should be.
        rounds: Compilations of each arm.
    """

    count: int
    shape: tuple[int, int]
    makers: Mapping[str, Maker]
    must: float
    goal: float
    rounds: int = 1


def flat_core() -> optax.GradientTransformation:
    """AdamW of which the core alone is flat, as where some leaves decay."""
    return optim.stages(adam=optim.flat(optim.adamw_core()), decay=optim.decay(0.01), lr=optim.scale_by_lr(LR))


ADAMW: dict[str, Maker] = {
    "optax": lambda: optax.adamw(LR, weight_decay=0.01),
    "jaxnn": lambda: optim.flat(optim.adamw(LR)),
}
PROGRAMS: dict[str, Program] = {
    "muon": Program(
        96,
        (64, 64),
        {
            "optax": lambda: optax.contrib.muon(LR),
            "jaxnn": lambda: optim.stacked(optim.muon(LR)),
            "jaxnn, by leaves": lambda: optim.muon(LR),
        },
        8,
        12,
        5,
    ),
    "adamw": Program(
        3000,
        (16, 16),
        {**ADAMW, "jaxnn, core alone flat": flat_core, "jaxnn, by leaves": lambda: optim.adamw(LR)},
        3,
        5,
    ),
    "adamw_67x100": Program(3000, (67, 100), ADAMW, 3, 5),
}


def update(tx: optax.GradientTransformation) -> Callable[..., Any]:
    """`(params, state, grads) -> (params, state)`, the update applied."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    return step


def compile_s(name: str, arm: str) -> float:
    """Seconds from a function to its program, in this process."""
    program = PROGRAMS[name]
    tx = program.makers[arm]()

    def compiled(count: int) -> float:
        leaf = jax.ShapeDtypeStruct(program.shape, jnp.float32)
        params = {f"layer_{i:04d}": {"kernel": leaf} for i in range(count)}
        state = jax.eval_shape(tx.init, params)
        began = time.perf_counter()
        jax.jit(update(tx), donate_argnums=(0, 1)).lower(params, state, params).compile()
        return time.perf_counter() - began

    compiled(2)  # the compiler is there, and what it loads at first use
    jax.clear_caches()
    return compiled(program.count)


def apart(name: str, arm: str) -> float:
    """`compile_s` in a process of its own."""
    line = [sys.executable, "-m", "benchmarks.optimizer_compile", "--inside", name, arm]
    env = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    out = subprocess.run(line, capture_output=True, text=True, check=True, env=env | {"JAX_PLATFORMS": "cpu"}).stdout
    return float(json.loads(out.splitlines()[-1]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to compile."""

    only: tuple[str, ...] = tuple(PROGRAMS)
    inside: tuple[str, ...] = ()  # for the processes that it starts: a program and an arm


def main(cfg: Config) -> bool:
    """Prints the seconds of each; whether every must was met."""
    if cfg.inside:
        print(json.dumps(compile_s(*cfg.inside)))
        return True
    met = True
    for name in cfg.only:
        program = PROGRAMS[name]
        seconds: dict[str, list[float]] = {arm: [] for arm in program.makers}
        for _ in range(program.rounds):
            for arm, found in seconds.items():
                found.append(apart(name, arm))
        best = {arm: min(found) for arm, found in seconds.items()}
        print(f"{name}: {program.count} leaves of {program.shape}, best of {program.rounds}, jax {jax.__version__}")
        for arm, least in best.items():
            ratio = best["optax"] / least
            judged = ""
            if arm == "jaxnn":
                met &= ratio >= program.must
                said = "goal met" if ratio >= program.goal else "met" if ratio >= program.must else "MISSED"
                judged = f"  {said} (must {program.must:g}, goal {program.goal:g})"
            print(f"  {arm:24} {least:6.2f} s  {ratio:5.2f} times faster{judged}", flush=True)
    return met


if __name__ == "__main__":
    sys.exit(0 if main(tyro.cli(Config)) else 1)
