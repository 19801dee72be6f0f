"""A training step of every model family beside the same network in PyTorch, eager and compiled.

python -m benchmarks.models                                           # all rows; 15 minutes, alone on the machine
python -m benchmarks.models --families gpt_small lstm --rounds 3
python -m benchmarks.models --report --card docs/results/models_speed.md   # of what was measured before

A step is forward, backward and AdamW's update, in float32, on two threads. Every arm is a process of its own; arms take
turns, in an order drawn anew for each round, and each stretch of ours is followed by the probe of the machine's matrix
products. Both frameworks begin with the same weights and see the same batches: where their first three losses differ by
more than 1e-3 of themselves, the row is refused. Ours runs as `train.fit` runs it: token models in its loop over data
on the device, images a step a dispatch. PyTorch's figures are of `torch.optim.AdamW` with its default settings, and
"compiled" is `torch.compile` of model and loss.

Rows that are not of two frameworks: "generation", what the cache is worth (`benchmarks.generation`), and "curve", the
losses of GPT small on text with float32 and with bf16 products.

Stopped, it goes on where it was: samples are kept in OUT/samples.jsonl.
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks import articles, generation, model_report
from benchmarks.articles import Store
from benchmarks.model_families import CHECKED, FAMILIES, OURS, TOLERANCE, arms
from benchmarks.workers import Worker

EXTRA = ("generation", "curve")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure, and how often."""

    families: tuple[str, ...] = (*FAMILIES, *EXTRA)
    rounds: int = 7  # stretches of 0.4 s or a step of each arm
    threads: int = 2  # of each arm
    steps: int = 100  # of the loss curves
    out: Path = Path("runs/models")  # samples.jsonl, models.json, models_speed.md
    torch: Path = Path(".venv-peers/bin/python")  # the interpreter of PyTorch
    card: Path | None = None  # the Markdown card, if not OUT/models_speed.md
    fresh: bool = False  # forget what was measured of these families before
    report: bool = False  # measure nothing


def sample(phase: str, family: str, arm: str, number: int) -> dict[str, Any]:
    """What tells a sample apart."""
    return {"phase": phase, "program": family, "arm": arm, "cache": "none", "round": number}


def environment(cfg: Config) -> dict[str, str]:
    """A worker's: compiled programs are kept, as a second start need not compile them again."""
    cache = (cfg.out / "caches").resolve()
    own = {"JAXNN_MODELS_CACHE": str(cache / "xla"), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")}
    return os.environ | own | {"JAX_PLATFORMS": "cpu"}


def differ(losses: dict[str, list[float]], checked: int) -> str | None:
    """How the first `checked` losses of an arm differ from those of ours, or None where all agree."""
    base = next(arm for arm in losses if arm in OURS and not arm.endswith("_bf16"))
    for arm, found in losses.items():
        gap = np.max(np.abs(np.asarray(found[:checked]) / np.asarray(losses[base][:checked]) - 1))
        if not gap <= TOLERANCE:
            return f"the first losses of {arm}, {found}, are not those of {base}, {losses[base]}"
    return None


@contextlib.contextmanager
def workers(cfg: Config, family: str, store: Store) -> Iterator[dict[str, Worker]]:
    """A worker an arm, each ready, its first losses checked; those that cannot run are noted and left out."""
    started: dict[str, Worker] = {}
    first: dict[str, dict[str, Any]] = {}
    try:
        for arm in arms(FAMILIES[family]):
            python = sys.executable if arm in OURS else str(cfg.torch)
            path = cfg.out / "data" / f"{family}.npz"
            line = [python, "-m", "benchmarks.model_worker", arm, family, str(path), str(cfg.threads)]
            worker = Worker(line, environment(cfg), cfg.out / f"{family}-{arm}.log")
            started[arm] = worker
            found = worker.hear()
            if "failed" in found:
                print(f"  {family} {arm}: {found['failed']}", flush=True)
                note(store, sample("first", family, arm, 0), failed=found["failed"])
                started.pop(arm).end()
                continue
            worker.hear()
            first[arm] = found
        wrong = differ({arm: found["losses"] for arm, found in first.items()}, FAMILIES[family].checked)
        for arm, found in first.items():
            note(store, sample("first", family, arm, 0), losses=found["losses"], first_s=found["first_s"])
        note(store, sample("proof", family, "all", 0), wrong=wrong, checked=CHECKED)
        if wrong is not None:
            print(f"  {family}: refused: {wrong}", flush=True)
        yield {} if wrong is not None else dict(started)
    finally:
        for worker in started.values():
            worker.end()


def note(store: Store, which: dict[str, Any], **values: Any) -> None:
    """Keeps a sample that is there once, the newest."""
    store.samples[:] = [s for s in store.samples if articles.key(s) != articles.key(which)]
    store.add(**which, **values)


def measure(cfg: Config, store: Store, family: str) -> None:
    """Stretches of training, arms in turns."""
    taking_part = [a for a in arms(FAMILIES[family]) if a in OURS or cfg.torch.exists()]
    failed = {s["arm"] for s in store.samples if s["program"] == family and s["phase"] == "first" and "failed" in s}

    def done(number: int) -> bool:
        return all(
            articles.key(sample("steady", family, a, number)) in store.done for a in taking_part if a not in failed
        )

    left = [n for n in range(cfg.rounds) if not done(n)]
    if not left:
        return
    path = cfg.out / "data" / f"{family}.npz"
    if not path.exists() or ("work", family) not in {(s["phase"], s["program"]) for s in store.samples}:
        from benchmarks import model_jax

        note(store, sample("work", family, "all", 0), flops=model_jax.write(family, FAMILIES[family], path))
    draw = np.random.default_rng(1)
    with workers(cfg, family, store) as started:
        for number in left:
            # A round that was cut short is done again by all of its arms: they are compared within it.
            found = {arm: started[arm].stretch() for arm in draw.permutation(list(started))}
            for arm, values in found.items():
                steps = values.pop("epochs")
                each = {name: values.pop(name) / steps for name in ("seconds", "cpu_s")}
                note(store, sample("steady", family, arm, number), steps=steps, **each, **values)
    print(f"  {family:12} {model_report.brief(store.samples, family)}", flush=True)


def main(cfg: Config) -> bool:
    """Measures what is missing, and writes the report; whether every must was met."""
    unknown = [name for name in cfg.families if name not in (*FAMILIES, *EXTRA)]
    if unknown:
        sys.exit(f"benchmarks.models: no family {', '.join(unknown)}. There are {', '.join((*FAMILIES, *EXTRA))}.")
    store = Store(cfg.out / "samples.jsonl")
    if cfg.fresh and not cfg.report:
        kept = [s for s in store.samples if s["program"] not in cfg.families]
        store.path.write_text("".join(json.dumps(s) + "\n" for s in kept))
        store = Store(store.path)
    if not cfg.torch.exists():
        print(f"{cfg.torch} does not exist: PyTorch is left out. `make bench-peers` makes it.")
    for name in () if cfg.report else cfg.families:
        if name in FAMILIES:
            measure(cfg, store, name)
        elif name == "generation":
            once(store, sample("extra", name, "all", 0), generation.measured)
        else:
            once(store, sample("extra", name, "all", 0), lambda: curve(cfg.steps))
    found = articles.versions(articles.Config(peers=cfg.torch))
    line = "python -m benchmarks.models" + (f" --rounds {cfg.rounds}" if cfg.rounds != Config.rounds else "")
    return model_report.write(store.samples, found, cfg.out, cfg.card, line)


def once(store: Store, which: dict[str, Any], measured: Callable[[], dict[str, Any]]) -> None:
    """Keeps what `measured` gives, unless it is there."""
    if articles.key(which) not in store.done:
        note(store, which, **measured())


def curve(steps: int) -> dict[str, Any]:
    """The loss curves of GPT small."""
    from benchmarks import model_jax

    return {"losses": model_jax.curve("gpt_small", FAMILIES["gpt_small"], steps)}


if __name__ == "__main__":
    sys.exit(0 if main(tyro.cli(Config)) else 1)
