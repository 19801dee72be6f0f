"""Batches a second of `data.Loader`, and the share of a training step's time that is spent waiting for it.

python -m benchmarks.loader [--step-ms 5] [--batches 200]

Two questions to each source, in turns: how many batches a second come when nothing else is done, and how long a
consumer waits that is busy elsewhere for `step-ms` a batch, as a host is whose accelerator computes. The goal: it waits
at most 2 % of the time. Decoding images is work for the host's cores, so theirs is stated for what it is.
"""

import functools
import pathlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np
import tyro

from jaxnn import data
from jaxnn.bench import schema
from jaxnn.data import order
from jaxnn.typing import Source

GOAL = 0.02


@dataclass(frozen=True, kw_only=True)
class Config:
    """How much to load."""

    batches: int = 200  # a round
    rounds: int = 3
    step_ms: float = 5.0  # how long a consumer is busy with a batch


def images(folder: pathlib.Path, count: int = 256) -> None:
    """PNG files of 64 x 64 pixels in two classes: noise, which compresses worst."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(count):
        file = folder / f"class{number % 2}" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(file)


def sources(folder: pathlib.Path) -> Iterator[tuple[str, Source, int]]:
    """Name, source and batch size."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50_000, 784)).astype(np.float32)
    yield "Arrays 784 f32", data.Arrays(x, rng.integers(0, 10, 50_000).astype(np.int32)), 128
    files, _ = data.stdlib_files()
    yield "TextFiles 256", data.TextFiles(files[:300], length=256, cache=None), 32
    images(folder)
    yield "ImageFolder 64", data.ImageFolder(folder, (64, 64)), 32


def consume(source: Source, batch_size: int, batches: int, busy_s: float) -> tuple[float, float]:
    """(batches a second, share of the time spent waiting), the first two batches left out."""
    ids = functools.partial(order.examples, 0, n=len(source), batch_size=batch_size)
    with data.Loader(source, ids, jax.device_put, start=0, stop=batches + 2) as loader:
        next(loader)
        next(loader)
        waited, start = loader.wait_s, time.perf_counter()
        for _, batch in loader:
            jax.block_until_ready(batch)
            if busy_s:
                time.sleep(busy_s)
        seconds = time.perf_counter() - start
        return batches / seconds, (loader.wait_s - waited) / seconds


def main(cfg: Config) -> dict[str, float]:
    """Prints the table; returns each source's share of waiting."""
    where = schema.environment()
    print(f"{where['device']}, {where['processor']}, jax {where['jax']}, load {where['load']:.1f}, {cfg.rounds} rounds")
    line = "{:16}{:>6}{:>12}{:>12}{:>10}  {}".format
    print(line("source", "B", "batches/s", "examples/s", "waiting", f"at {cfg.step_ms:g} ms a step, goal {GOAL:.0%}"))
    shares = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, source, size in sources(pathlib.Path(folder)):
            pairs = []
            for _ in range(cfg.rounds):
                free = consume(source, size, cfg.batches, 0)[0]
                # Images take a millisecond each: as many batches as fit into the time of the others.
                count = max(20, min(cfg.batches, int(free)))
                pairs.append((free, consume(source, size, count, 1e-3 * cfg.step_ms)[1]))
            rate, share = np.median(np.array(pairs), axis=0)
            shares[name] = float(share)
            decoding = name.startswith("Image")
            verdict = "decoding" if decoding else "met" if share <= GOAL else "MISSED"
            print(line(name, size, f"{rate:.0f}", f"{rate * size:.0f}", f"{share:.1%}", verdict), flush=True)
    return shares


if __name__ == "__main__":
    main(tyro.cli(Config))
