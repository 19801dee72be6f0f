"""Whether `bench.compare` can be believed: a dial in one program injects known slowdowns, and verdicts are counted.

python -m benchmarks.bench_of_bench --trials 8
python -m benchmarks.bench_of_bench --trials 80 --conditions quiet hog --out trials.jsonl

The step is a loop whose trip count is an argument: 200 trips against 200, 204, 208, 210 and 220, so that the truth is
known and the program is the same. "hog" runs beside one busy process a core. Trials are appended to a file; a second
start does those that are missing. Run it alone on the machine.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxnn import bench

TRIPS = 200
TOLERANCE = 0.03


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to try, and how often."""

    trials: int = 8  # of each slowdown under each condition
    slowdowns: tuple[float, ...] = (0.0, 0.02, 0.04, 0.05, 0.10)  # as ratios
    conditions: tuple[str, ...] = ("quiet",)  # "quiet", "hog"
    width: int = 96  # of the matrices in the loop: 96 gives about 2 ms
    out: pathlib.Path | None = None  # JSON lines of trials, read at the start and appended to
    raw: bool = False  # keep every round's times in the file


def dial(x: jax.Array, w: jax.Array, trips: jax.Array) -> jax.Array:
    """`trips` products of [width, width] matrices, one after the other."""
    return jax.lax.fori_loop(0, trips, lambda _, y: jnp.tanh(y @ w), x)


def case(name: str, trips: int, width: int) -> bench.Case:
    """The dial set to a number of trips."""

    def args(key: jax.Array) -> tuple[jax.Array, ...]:
        x, w = (jax.random.normal(k, (width, width)) / width**0.5 for k in jax.random.split(key))
        return x, w, jnp.int32(trips)

    return bench.Case(name, dial, args)


@contextlib.contextmanager
def load(condition: str) -> Iterator[None]:
    """Runs one process a core that never rests, where the condition is "hog"."""
    if condition not in ("quiet", "hog"):
        raise ValueError(f'bench_of_bench: no condition {condition!r}. There are "quiet" and "hog".')
    count = (os.cpu_count() or 1) if condition == "hog" else 0
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def run_trial(condition: str, slowdown: float, number: int, cfg: Config) -> dict:
    """One comparison, as the file keeps it."""
    start = time.perf_counter()
    cases = {"base": case("base", TRIPS, cfg.width), "head": case("head", round(TRIPS * (1 + slowdown)), cfg.width)}
    found = bench.compare(cases, tolerance=TOLERANCE, seed=number)
    row = found.rows["head"]
    trial = {
        "condition": condition,
        "slowdown": slowdown,
        "trial": number,
        "verdict": found.verdict,
        "reason": row.reason,
        "ratio": found.ratio,
        "low": found.interval.low,
        "high": found.interval.high,
        "aa": found.aa.ratio,
        "clock": found.clock,
        "rounds": found.rounds,
        "step_ms": 1e3 * found.measurements["base"].median_s,
        "seconds": time.perf_counter() - start,
        "load": os.getloadavg()[0],
    }
    if cfg.raw:
        arms = [m.blocks for m in found.measurements.values()]
        trial |= {c: [[block.seconds(c) for block in blocks] for blocks in arms] for c in ("wall", "cpu")}
    return trial


def read(path: pathlib.Path) -> list[dict]:
    """The trials in a file; a line that a killed run left unfinished is closed and skipped."""
    trials: list[dict] = []
    text = path.read_text() if path.exists() else ""
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            trials.append(json.loads(line))
    if text and not text.endswith("\n"):
        with path.open("a") as file:
            file.write("\n")
    return trials


def table(trials: list[dict]) -> str:
    """A row a slowdown and condition: verdicts, coverage, spread, time."""
    lines = [
        "condition  injected  trials   ok  regress  improve  inconclusive  covered  sd of ratio  cpu clock  median s"
    ]
    for condition in dict.fromkeys(t["condition"] for t in trials):
        for slowdown in sorted({t["slowdown"] for t in trials}):
            rows = [t for t in trials if (t["condition"], t["slowdown"]) == (condition, slowdown)]
            if not rows:
                continue
            count = {v: sum(t["verdict"] == v for t in rows) for v in ("ok", "regress", "improve", "inconclusive")}
            truth = round(TRIPS * (1 + slowdown)) / TRIPS
            covered = sum(t["low"] <= truth <= t["high"] for t in rows) / len(rows)
            spread = 100 * float(np.std([t["ratio"] for t in rows]))
            cpu = sum(t["clock"] == "cpu" for t in rows) / len(rows)
            lines.append(
                f"{condition:9}  {100 * slowdown:7.0f}%  {len(rows):6}  {count['ok']:3}  {count['regress']:7}  "
                f"{count['improve']:7}  {count['inconclusive']:12}  {covered:6.0%}  {spread:10.2f}%  {cpu:8.0%}  "
                f"{np.median([t['seconds'] for t in rows]):8.1f}"
            )
    return "\n".join(lines)


def musts(trials: list[dict]) -> list[tuple[str, str, bool | None]]:
    """What the tool must do, what it did, and whether that is enough; None where nothing was tried."""

    def share(condition: str, slowdown: float, verdicts: tuple[str, ...]) -> tuple[int, int]:
        rows = [t for t in trials if (t["condition"], t["slowdown"]) == (condition, slowdown)]
        return sum(t["verdict"] in verdicts for t in rows), len(rows)

    lines = []
    for what, condition, slowdown, verdicts, bound, most in (
        ("quiet: false alarms at most 1 in 40", "quiet", 0.0, ("regress", "improve"), 1 / 40, True),
        ("quiet: +4 % found in at least 85 % (goal 95 %)", "quiet", 0.04, ("regress",), 0.85, False),
        ("quiet: +4 % passed as ok at most 1 in 80", "quiet", 0.04, ("ok", "improve"), 1 / 80, True),
        ("hog: false alarms at most 1 in 40", "hog", 0.0, ("regress", "improve"), 1 / 40, True),
        ("hog: +4 % passed as ok at most 1 in 80", "hog", 0.04, ("ok", "improve"), 1 / 80, True),
    ):
        hits, of = share(condition, slowdown, verdicts)
        good = (hits <= bound * of if most else hits >= bound * of) if of else None
        lines.append((what, f"{hits} of {of}", good))
    times = [t["seconds"] for t in trials if t["condition"] == "quiet"]
    if times:
        median = float(np.median(times))
        lines.append(("quiet: median trial at most 10 s", f"{median:.1f} s", median <= 10))
    return lines


def main(cfg: Config) -> dict[str, float]:
    done = [] if cfg.out is None else read(cfg.out)
    seen = {(t["condition"], t["slowdown"], t["trial"]) for t in done}
    for condition in cfg.conditions:
        with load(condition):
            for number in range(cfg.trials):  # slowdowns in turn, so that a change of the machine meets all of them
                for slowdown in cfg.slowdowns:
                    if (condition, slowdown, number) in seen:
                        continue
                    done.append(run_trial(condition, slowdown, number, cfg))
                    if cfg.out is not None:
                        with cfg.out.open("a") as file:
                            file.write(json.dumps(done[-1]) + "\n")
    print(table(done))
    result = musts(done)
    for what, figure, good in result:
        print(f"{'not tried' if good is None else 'met' if good else 'MISSED':9}  {what}: {figure}")
    return {what: float(bool(good)) for what, _, good in result if good is not None}


if __name__ == "__main__":
    main(tyro.cli(Config))
