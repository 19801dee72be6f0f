"""The articles' five programs in jaxnn, by hand, in Keras and in PyTorch: a step, the first step, the whole program.

make bench-peers                                     # everything; the first time it makes .venv-peers
python -m benchmarks.articles --programs mnist_mlp --rounds 3 --whole 1
python -m benchmarks.articles --report               # the table and the picture of what was measured before

Every arm runs in a process of its own, on the same data, with the same batch size, steps and float32; arms take turns,
in an order drawn anew for each round, so that what else the machine does falls on all. Stopped, it goes on where it
was: samples are kept in OUT/samples.jsonl.

"whole" is a process from its start to its end: import, fit, evaluate, predict, with an empty folder of compiled
programs (cold) or the one that such a run left (warm). "first" is the part of it from the imports' end to the first
step's. "steady" is a step in the middle of a long training; a ratio is the median of those of the rounds, its interval
the sign test's at 95 % or more.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks import article_report
from benchmarks.article_programs import CACHE, PROGRAMS, write_data
from benchmarks.article_worker import ARMS, OURS
from benchmarks.workers import ROOT, Worker
from jaxnn.runs.environment import cpu_count, cpu_model

# (arm, cache, how many of the whole rounds it takes part in): what takes minutes takes part in few.
WHOLE = (
    ("fit", "cold", 1.0),
    ("fit", "warm", 1.0),
    ("torch", "none", 1.0),
    ("keras_tensorflow", "none", 1.0),
    ("keras_jax", "none", 0.5),
    ("torch_compiled", "cold", 0.2),
)
Sample = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure, and how often."""

    programs: tuple[str, ...] = tuple(PROGRAMS)
    arms: tuple[str, ...] = tuple(ARMS)
    rounds: int = 7  # stretches of half a second of steady training, of each arm
    whole: int = 2  # whole programs of each arm; fewer of the slowest
    out: Path = Path("runs/articles")  # samples.jsonl, articles.json, articles.md, articles.png
    peers: Path = Path(".venv-peers/bin/python")  # the interpreter of Keras and PyTorch
    fresh: bool = False  # forget what was measured before
    report: bool = False  # measure nothing


def read(path: Path) -> list[Sample]:
    """The samples of a file; a line that was cut short is left out."""
    samples = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            samples.append(json.loads(line))
    return samples


def key(sample: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells samples apart."""
    return tuple(sample[name] for name in ("phase", "program", "arm", "cache", "round"))


class Store:
    """The samples so far; each is written as soon as it is there."""

    def __init__(self, path: Path):
        self.path, self.samples = path, read(path)
        self.done = {key(sample) for sample in self.samples}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.read_text().endswith("\n"):
            path.write_text("".join(json.dumps(sample) + "\n" for sample in self.samples))

    def add(self, **sample: Any) -> None:
        """Keeps a sample."""
        self.samples.append(sample)
        self.done.add(key(sample))
        with open(self.path, "a") as file:
            file.write(json.dumps(sample) + "\n")


def command(cfg: Config, arm: str, program: str, phase: str) -> list[str]:
    """The command line of a worker."""
    python = sys.executable if arm in OURS else str(cfg.peers)
    path = str(cfg.out / "data" / f"{program}.npz")
    return [python, "-m", "benchmarks.article_worker", arm, program, path, phase]


def environment(cache: Path) -> dict[str, str]:
    """A worker's: compiled programs go to `cache`."""
    own = {CACHE: str(cache / "xla"), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"), "JAX_PLATFORMS": "cpu"}
    return os.environ | own


def whole(cfg: Config, store: Store, program: str) -> None:
    """Whole programs, arms in turns."""
    draw = np.random.default_rng(0)
    for number in range(cfg.whole):
        plan = [(a, c) for a, c, share in WHOLE if a in cfg.arms and number < max(1, round(share * cfg.whole))]
        for at in draw.permutation(len(plan)):
            arm, state = plan[at]
            sample = {"phase": "whole", "program": program, "arm": arm, "cache": state, "round": number}
            if key(sample) in store.done:
                continue
            cache = cfg.out / "caches" / f"{program}-{arm}-{state}"
            if state == "cold":
                shutil.rmtree(cache, ignore_errors=True)
            elif state == "warm" and not cache.exists():
                run_whole(cfg, arm, program, cache)
            store.add(**sample, **run_whole(cfg, arm, program, cache))
            show(store.samples[-1])


def run_whole(cfg: Config, arm: str, program: str, cache: Path) -> dict[str, Any]:
    """One whole program."""
    began = time.perf_counter()
    line = command(cfg, arm, program, "whole")
    done = subprocess.run(line, cwd=ROOT, env=environment(cache.resolve()), capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(line)} failed:\n{done.stderr[-4000:]}")
    return {"seconds": seconds, **json.loads(done.stdout.splitlines()[-1])}


def steady(cfg: Config, store: Store, program: str) -> None:
    """Stretches of training, arms in turns."""
    draw = np.random.default_rng(1)
    orders = [draw.permutation(len(cfg.arms)) for _ in range(cfg.rounds)]

    def sample(number: int, arm: str) -> Sample:
        return {"phase": "steady", "program": program, "arm": arm, "cache": "none", "round": number}

    # A round that was cut short is done again by all of its arms: they are compared within it.
    left = [n for n in range(cfg.rounds) if any(key(sample(n, arm)) not in store.done for arm in cfg.arms)]
    if not left:
        return
    with workers(cfg, program) as started:
        for number in left:
            found = {}
            for at in orders[number]:
                arm = cfg.arms[at]
                found[arm] = started[arm].stretch()
            for arm, values in found.items():
                if key(sample(number, arm)) not in store.done:
                    steps = values["epochs"] * started_steps(cfg, program)
                    store.add(**sample(number, arm), us=1e6 * values["seconds"] / steps, steps=steps)
        medians = {a: np.median(article_report.steady_us(store.samples, program, a)) for a in cfg.arms}
        print(f"  {program:18} us a step: " + "  ".join(f"{a} {us:.2f}" for a, us in medians.items()), flush=True)


def started_steps(cfg: Config, program: str) -> int:
    """Steps an epoch."""
    with np.load(cfg.out / "data" / f"{program}.npz") as file:
        return len(file["y"]) // PROGRAMS[program].batch


@contextlib.contextmanager
def workers(cfg: Config, program: str) -> Iterator[dict[str, Worker]]:
    """A worker an arm, each ready; one starts after the other."""
    started: dict[str, Worker] = {}
    try:
        for arm in cfg.arms:
            cache = cfg.out / "caches" / f"{program}-{arm}-cold"  # what its whole program left, where it did
            line, log = command(cfg, arm, program, "steady"), cfg.out / f"{program}-{arm}.log"
            started[arm] = Worker(line, environment(cache.resolve()), log)
            started[arm].hear()
        yield started
    finally:
        for worker in started.values():
            worker.end()


def show(sample: Sample) -> None:
    """A line about a whole program."""
    parts = "  ".join(f"{name} {sample[f'{name}_s']:.2f}" for name in ("import", "first", "rest"))
    values = "  ".join(f"{name} {value:.4g}" for name, value in sample["values"].items())
    label = f"{sample['program']:18} {sample['arm']:17} {sample['cache']:5}"
    print(f"  {label} {sample['seconds']:6.2f} s: {parts}  -> {values}", flush=True)


def versions(cfg: Config) -> dict[str, Any]:
    """What was measured, on what."""
    ask = (
        "import importlib.metadata as m, json, sys; names = ('jax', 'flax', 'optax', 'keras', 'tensorflow-cpu', "
        "'torch', 'numpy'); found = {d.metadata['Name']: d.version for d in m.distributions()}; "
        "print(json.dumps({'python': sys.version.split()[0]} | {n: found[n] for n in names if n in found}))"
    )
    found = {"cpu": cpu_model(), "cpus": cpu_count()}
    for name, python in (("ours", Path(sys.executable)), ("peers", cfg.peers)):
        if python.exists():
            done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True)
            found[name] = json.loads(done.stdout)
    return found


def main(cfg: Config) -> bool:
    """Measures what is missing, and writes the report; whether every must was met."""
    if not cfg.peers.exists() and set(cfg.arms) - set(OURS):
        print(f"{cfg.peers} does not exist: Keras and PyTorch are left out. `make bench-peers` makes it.")
        cfg = dataclasses.replace(cfg, arms=tuple(arm for arm in cfg.arms if arm in OURS))
    store = Store(cfg.out / "samples.jsonl")
    if cfg.fresh and not cfg.report:
        store.path.unlink(missing_ok=True)
        shutil.rmtree(cfg.out / "caches", ignore_errors=True)
        store = Store(store.path)
    for program in () if cfg.report else cfg.programs:
        write_data(program, cfg.out / "data")
        whole(cfg, store, program)
        steady(cfg, store, program)
    return article_report.write(store.samples, versions(cfg), cfg.out)


if __name__ == "__main__":
    sys.exit(0 if main(tyro.cli(Config)) else 1)
