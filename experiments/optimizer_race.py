"""Optimizers on the spine's GPT: same tokens, rates swept as a population, three seeds, ranked against tuned AdamW.

python -m experiments.optimizer_race                                                       # a demo
python -m experiments.optimizer_race --steps 1000 --seeds 0 1 2 --optimizers all --out runs/race   # more than in docs/
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from jaxnn import bench, data, losses, models, optim, parallel, report, train, tree
from jaxnn.core.step import make_step
from jaxnn.runs import Section


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A race of optimizers on a byte-level GPT over Python's standard library."""

    optimizers: tuple[str, ...] = ("adamw", "lion", "muon", "soap")  # names of RACERS, or "all"
    multipliers: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)  # of each optimizer's own base rate
    seeds: tuple[int, ...] = (0,)  # initial parameters and order of the data
    steps: int = 150  # updates
    batch: int = 16  # windows a step
    size: Literal["tiny", "small"] = "tiny"  # architecture
    warmup: int = 20  # steps to the peak; then linear decay to 3 %
    time_s: float = 4.0  # of measuring each optimizer's step against AdamW's; 0 for none
    out: str | None = None  # folder; None for the next free runs/optimizer_race-N
    strategy: train.options.StrategyName = "single"  # over whose devices the members of a heat are spread
    devices: int | None = None  # how many, None for all; forced ones where there is no accelerator
    resume: bool = False  # go on with the race in `out`, or with the newest


# ---- who races: base rates are where each is usually run; the sweep finds its best

ADAM = optim.adam_core(b2=0.95)


def decayed(core: optax.GradientTransformation, lr: optim.Schedule, **how: Any) -> optax.GradientTransformation:
    """A core with AdamW's decay and the race's schedule."""
    return optim.stages(core=core, decay=optim.decay(0.1, **how), lr=optim.scale_by_lr(lr))


def slow_average(steps: int) -> optax.GradientTransformation:
    """AdEMAMix with its paper's warm-ups over the run: without them its slow average never forgets the first steps."""
    alpha, b3 = optim.alpha_warmup(2.0, steps), optim.b3_warmup(0.9, 0.999, steps)
    return optim.ademamix_core(b2=0.999, b3=b3, alpha=alpha)


RACERS: Mapping[str, tuple[float, Callable[[optim.Schedule, int], optax.GradientTransformation]]] = {
    "adamw": (3e-3, lambda lr, steps: decayed(ADAM, lr)),
    "cautious adamw": (3e-3, lambda lr, steps: decayed(optim.cautious(ADAM), lr)),
    "adamw, cautious decay": (3e-3, lambda lr, steps: decayed(ADAM, lr, cautious=True)),
    "adamw hyperball": (1e-2, lambda lr, steps: optim.stages(a=ADAM, lr=optim.scale_by_lr(lr), ball=optim.hyperball())),
    "lion": (5e-4, lambda lr, steps: optim.lion(lr, weight_decay=0.5)),
    "ademamix": (3e-3, lambda lr, steps: decayed(slow_average(steps), lr)),
    "mars": (3e-3, lambda lr, steps: optim.mars(lr, weight_decay=0.1)),
    "muon": (3e-3, lambda lr, steps: optim.muon(lr, weight_decay=0.1)),
    "normuon": (3e-3, lambda lr, steps: optim.normuon(lr, weight_decay=0.1)),
    "soap": (3e-3, lambda lr, steps: optim.soap(lr, weight_decay=0.1)),
    "schedule-free adamw": (3e-3, lambda lr, steps: optim.schedule_free_adamw(lr, b2=0.95, weight_decay=0.1)),
    "sgd": (0.1, lambda lr, steps: optim.sgd(lr, 0.9, nesterov=True)),
}


def schedule(name: str, cfg: Config) -> optim.Schedule:
    """Warm-up and linear decay; warm-up alone for what needs no more."""
    base, free = RACERS[name][0], name.startswith("schedule-free")
    down = optim.linear(base, 0.03 * base, cfg.steps - cfg.warmup)
    return optim.warmup(base if free else down, cfg.warmup)


# ---- one heat: an optimizer with a seed, all rates in one program; then what they come to


def setup(name: str, cfg: Config) -> train.Setup:
    """Everything that `fit` needs."""
    config = models.GPTConfig.preset(cfg.size, vocab=256)
    files, held_out = data.stdlib_files()
    windows, scored = data.TextFiles(files, length=config.length), data.TextFiles(held_out, length=config.length)
    sample = data.Arrays(scored.take(np.arange(0, len(scored), max(1, len(scored) // 256))))
    task = train.supervised(models.GPT(config), losses.cross_entropy)
    return train.Setup(task=task, tx=RACERS[name][1](schedule(name, cfg), cfg.steps), data=windows, validation=sample)


def heat(name: str, seed: int, cfg: Config, out: Path) -> dict[str, Any]:
    """Held-out loss of every rate over the steps, in bits a byte: {"steps": [N], "bits": [rates][N]}."""
    made = setup(name, cfg)
    print(f"---- {name}, seed {seed}, {len(cfg.multipliers)} rates", flush=True)
    run = train.fit(
        made.task,
        made.tx,
        made.data,
        batch_size=cfg.batch,
        steps=cfg.steps,
        seed=seed,
        validation=made.validation,
        validate_every=max(1, cfg.steps // 50),
        population=optim.members(lr_multiplier=cfg.multipliers),
        strategy=parallel.by_name(cfg.strategy, cfg.devices, models.gpt.RULES),
        log=train.Log(every=max(1, cfg.steps // 50)),
        out=out / f"{name.replace(' ', '_').replace(',', '')}-{seed}",
        resume="auto",
    )
    lines = [run.member(i).column("val_loss") for i in range(len(cfg.multipliers))]
    return {"steps": lines[0][0], "bits": [(np.asarray(values) / np.log(2)).tolist() for _, values in lines]}


def cost_of_steps(names: tuple[str, ...], cfg: Config) -> dict[str, list[Any]]:
    """Of each optimizer: a step's time against AdamW's, measured in turns, and its MB; the state's bytes a weight."""
    cases, state_bytes = {}, {}
    for name in dict.fromkeys(("adamw", *names)):
        made = setup(name, cfg)
        batch = made.data.take(np.arange(cfg.batch))
        state = train.init_state(made.task, made.tx, batch, strategy=parallel.single())
        state_bytes[name] = tree.nbytes(state.opt_state) / tree.size(state.params)
        full = jax.device_put({**batch, "mask": np.ones(cfg.batch, np.float32), "index": np.arange(cfg.batch)})
        cases[name] = bench.Case(name, make_step(made.task, made.tx, parallel.single()), (state, full))
    found = bench.compare(cases, max_seconds=cfg.time_s * len(cases), tolerance=0.5)
    shown = {name: row.estimate for name, row in found.rows.items()}
    ratios = {n: f"{e.ratio:.2f} [{e.interval.low:.2f}, {e.interval.high:.2f}]" for n, e in shown.items()}
    peaks = {n: m.work.memory.peak / 1e6 if m.work.memory else None for n, m in found.measurements.items()}
    return {name: [ratios.get(name, "1"), peaks[name], state_bytes[name]] for name in names}


class Row(NamedTuple):
    """An optimizer at its best rate: bits a byte at the end [seeds], over the steps [points], and of each rate."""

    optimizer: str
    rate: float
    edge: bool  # whether the best rate is the sweep's first or last
    last: np.ndarray
    steps: list[int]
    curve: np.ndarray
    sweep: np.ndarray  # bits a byte at the end, by rate


def ranked(heats: list[dict[str, Any]], cfg: Config) -> list[Row]:
    """A row an optimizer, best first."""
    rows = []
    for name in dict.fromkeys(h["optimizer"] for h in heats):
        mine = [h for h in heats if h["optimizer"] == name]
        curves = np.array([h["bits"] for h in mine])  # [seeds, rates, points]
        sweep = np.where(np.isfinite(curves[..., -1]), curves[..., -1], np.inf).mean(0)
        i = int(np.argmin(sweep))
        rate, edge = RACERS[name][0] * cfg.multipliers[i], i in (0, len(cfg.multipliers) - 1)
        rows.append(Row(name, rate, edge, curves[:, i, -1], mine[0]["steps"], curves[:, i].mean(0), sweep))
    return sorted(rows, key=lambda row: row.last.mean())


HEADERS = ["optimizer", "bits a byte", "spread", "best rate", "steps to AdamW's"]
HEADERS += ["time / AdamW's", "MB a step", "state B/param"]


def table(rows: list[Row], costs: Mapping[str, list[Any]], cfg: Config) -> list[list[Any]]:
    """The ranking as cells; among them the step at which an optimizer is where AdamW ends."""
    cells = []
    bound = next((float(row.last.mean()) for row in rows if row.optimizer == "adamw"), -np.inf)
    for row in rows:
        there = next((step for step, bits in zip(row.steps, row.curve) if bits <= bound), None)
        spread = f"± {row.last.std(ddof=1):.4f}" if len(cfg.seeds) > 1 else "one seed"
        rate = f"{row.rate:.2g}{' (edge of the sweep)' if row.edge else ''}"
        known = costs.get(row.optimizer, ["", None, None])
        cells.append([row.optimizer, f"{row.last.mean():.4f}", spread, rate, there, *known])
    return cells


def sections(rows: list[Row], cells: list[list[Any]], cfg: Config) -> list[Section]:
    """The table, the curves and the sweeps."""
    said = f"Bits a byte of held-out files after {cfg.steps} steps, the mean over seeds {list(cfg.seeds)} at the rate "
    said += "where it is lowest; ± is the standard deviation. "
    if cfg.time_s:
        said += "Times of a step were measured in turns, with their 95 % intervals; its MB are what XLA plans for "
        said += "arguments, results and all between, parameters and state donated; the state's bytes are its arrays'."
    curves = {row.optimizer: row.curve for row in rows}
    sweeps = {row.optimizer: np.where(np.isfinite(row.sweep), row.sweep, np.nan) for row in rows}
    lines = report.curve(rows[0].steps, curves, "at its best rate", "step", "bits a byte", logy=True)
    across = ("over the rates", "log10 of the rate's multiplier", "bits a byte at the end")
    return [
        Section("Ranking", cells, HEADERS, text=said),
        Section("Over the steps", figure=lines),
        Section("Over the rates", figure=report.curve(np.log10(cfg.multipliers), sweeps, *across)),
    ]


# ---- all of it


def main(cfg: Config) -> list[Row]:
    """Runs the heats that are missing, measures the steps, writes `report.html` and `card.md`; gives the ranking."""
    parallel.compilation_cache()
    parallel.by_name(cfg.strategy, cfg.devices, models.gpt.RULES)  # before anything asks for a device
    names = tuple(RACERS) if cfg.optimizers == ("all",) else cfg.optimizers
    if unknown := [name for name in names if name not in RACERS]:
        raise ValueError(f"train.optimizer_race: no racer {unknown[0]!r}. There are {list(RACERS)}, or all.")
    free = ("optimizers", "seeds", "time_s", "strategy", "devices")
    with train.Study("optimizer_race", dataclasses.asdict(cfg), free=free, out=cfg.out, resume=cfg.resume) as study:
        heats = []
        for seed, name in itertools.product(cfg.seeds, names):
            run = functools.partial(heat, name, seed, cfg, study.folder.path / "heats")
            heats.append(study.once({"optimizer": name, "seed": seed}, run))
        rows = ranked(heats, cfg)
        costs = cost_of_steps(names, cfg) if cfg.time_s and len(rows) > 1 else {}
        cells = table(rows, costs, cfg)
        print(report.text_table(cells, HEADERS))
        made = setup(names[0], cfg)
        params, _ = jax.eval_shape(made.task.init, jax.random.key(0), made.data.take(np.arange(cfg.batch)))
        found = {f"{row.optimizer}, bits a byte": float(row.last.mean()) for row in rows}
        study.conclude(found, params, cfg.steps, *sections(rows, cells, cfg))
    return rows


if __name__ == "__main__":
    train.command(main, Config)
