"""One small GPT on 1, 2, 4 and 8 devices under every strategy: the same losses, other memory, other messages.

python -m experiments.data_parallel                                          # forced devices where there is a CPU alone
python -m experiments.data_parallel --strategies replicate zero3 --devices 1 4 --steps 100
"""

import dataclasses
import functools
from collections import Counter
from typing import Any

import jax
import numpy as np
import optax

from jaxnn import cost, data, losses, models, parallel, report, train
from jaxnn.core.state import complete
from jaxnn.core.step import make_step
from jaxnn.data import host_batch
from jaxnn.runs import Section


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A byte-level GPT on Python's standard library, trained once for each strategy and number of devices."""

    strategies: tuple[str, ...] = tuple(parallel.STRATEGIES)  # names
    devices: tuple[int, ...] = (1, 2, 4, 8)  # 1 is "single", which all are compared with; others where they exist
    steps: int = 40  # updates
    batch: int = 16  # global windows a step
    lr: float = 3e-3  # of AdamW, per update
    layers: int = 2
    width: int = 64  # of 8 heads
    length: int = 64  # bytes of a window
    dropout: float = 0.1
    scan: bool = True  # the layers are one loop in the program
    seed: int = 0
    out: str | None = None  # folder; None for the next free runs/data_parallel-N
    resume: bool = False  # go on with what is missing in `out`, or in the newest, with the same settings


# ---- data, model, optimizer


def build(cfg: Config) -> train.Setup:
    """Everything that a run needs, for tools to reuse."""
    sizes = {"layers": cfg.layers, "width": cfg.width, "length": cfg.length, "dropout": cfg.dropout}
    module = models.GPT(models.GPTConfig(vocab=256, heads=8, scan=cfg.scan, **sizes))
    windows = data.TextFiles(data.stdlib_files()[0], length=cfg.length)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(cfg.lr))
    return train.Setup(task=train.supervised(module, losses.cross_entropy), tx=tx, data=windows, rules=models.gpt.RULES)


# ---- one run


def held(values: Any) -> int:
    """Bytes that the first device holds of arrays."""
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(values))


def trained(name: str, devices: int, setup: train.Setup, cfg: Config) -> dict[str, Any]:
    """The losses of every step, what a device holds, and what it sends a step: as JSON."""
    strategy = parallel.by_name(name, devices, rules=setup.rules)
    rows = np.random.default_rng(cfg.seed).permutation(len(setup.data))[: cfg.steps * cfg.batch]
    batches = [complete(host_batch(setup.data, ids)) for ids in rows.reshape(cfg.steps, cfg.batch)]
    state = train.init_state(setup.task, setup.tx, batches[0], seed=cfg.seed, strategy=strategy)
    step = strategy.compile_step(make_step(setup.task, setup.tx, strategy))
    program = step.lower(state, strategy.put_batch(batches[0])).compile()  # what is run is what is looked into
    memory, found = cost.memory(program), cost.collectives(program, getattr(strategy, "mesh", ()))
    keeps = {"parameters": held(state.params), "optimizer": held(state.opt_state)}
    values = []
    for batch in batches:
        state, sums = program(state, strategy.put_batch(batch))
        loss = jax.device_get(sums["loss"])
        values.append(float(loss.sum / loss.weight))
    sends = [[c.kind, "x".join(c.axes or ()), c.count * c.trip, c.total_bytes] for c in found]
    keeps["temporaries"] = memory.temporaries if memory else 0
    return {"losses": values, "keeps": keeps, "sends": sends}


# ---- the report

HEADERS = ["strategy", "devices", "last loss", "largest difference", "state MB", "temporaries MB", "sent a step"]
SENDS = ["strategy", "devices", "collective", "axes", "times a step", "MB a step"]


def gaps(run: dict[str, Any], first: dict[str, Any]) -> np.ndarray:
    """How far each step's loss is from that of the first run."""
    return np.abs(np.subtract(run["losses"], first["losses"]))


def row(run: dict[str, Any], first: dict[str, Any]) -> list[Any]:
    """A run's cells; what is sent by kind, more than scalars."""
    totals: Counter[str] = Counter()
    for kind, axes, _, size in run["sends"]:
        totals[f"{kind} over {axes}"] += size
    sent = ", ".join(f"{what} {size / 1e6:.2f} MB" for what, size in totals.items() if size > 1000) or "nothing"
    state, kept = run["keeps"]["parameters"] + run["keeps"]["optimizer"], run["keeps"]["temporaries"]
    gap = f"{gaps(run, first).max():.1e}"
    return [run["strategy"], run["devices"], run["losses"][-1], gap, state / 1e6, kept / 1e6, sent]


def memory_figure(runs: list[dict[str, Any]]) -> Any:
    """Bars of what a device holds."""
    figure = report.canvas(figsize=(8, 0.6 + 0.24 * len(runs)), layout="constrained")
    axes, left = figure.add_subplot(), np.zeros(len(runs))
    names = [f"{run['strategy']} {run['devices']}" for run in runs]
    for i, part in enumerate(("parameters", "optimizer", "temporaries")):
        values = np.array([run["keeps"][part] / 1e6 for run in runs])
        axes.barh(names, values, left=left, label=part, color=report.line_look(i)[0])
        left += values
    axes.invert_yaxis()
    axes.set_xlabel("MB on a device")
    axes.legend(frameon=False)
    return figure


def sections(runs: list[dict[str, Any]], cells: list[list[Any]]) -> list[Section]:
    """Losses over each other, differences, memory, messages."""
    found = [Section("Strategies", cells, HEADERS, text=f"Losses in nats a byte, {jax.default_backend()}.")]
    first, steps = runs[0], np.arange(1, len(runs[0]["losses"]) + 1)
    for n in sorted({run["devices"] for run in runs}):
        if shown := {f"{run['strategy']} {n}": run for run in runs[1:] if run["devices"] == n}:
            lines = {name: np.array(run["losses"]) for name, run in {"single 1": first, **shown}.items()}
            apart = {name: gaps(run, first) for name, run in shown.items()}
            over = report.curve(steps, lines, "losses, on top of each other", "step", "nats a byte")
            beside = report.curve(steps, apart, "difference from one device", "step", "nats a byte", logy=True)
            found += [Section(f"{n} devices", figure=over), Section(f"{n} devices less one", figure=beside)]
    sent = [[r["strategy"], r["devices"], *what, size / 1e6] for r in runs for *what, size in r["sends"]]
    return [*found, Section("What a device holds", figure=memory_figure(runs)), Section("What is sent", sent, SENDS)]


# ---- all of it


def main(cfg: Config) -> list[dict[str, Any]]:
    """Trains what is missing, writes `report.html` and `card.md`; gives the runs."""
    parallel.force_host_devices(max(cfg.devices))  # an accelerator's devices are what they are
    parallel.compilation_cache()
    counts = [n for n in cfg.devices if 1 < n <= len(jax.devices())] or [1]
    names = [name for name in cfg.strategies if name != "single" and (max(counts) > 1 or name != "fsdp_tensor")]
    free, setup = ("strategies", "devices"), build(cfg)
    with train.Study("data_parallel", dataclasses.asdict(cfg), free=free, out=cfg.out, resume=cfg.resume) as study:
        for name, n in [("single", 1), *((name, n) for n in counts for name in names)]:
            run = study.once({"strategy": name, "devices": n}, functools.partial(trained, name, n, setup, cfg))
            print("  ".join(map(str, row(run, study.parts[0]))), flush=True)
        runs = study.parts
        cells = [row(run, runs[0]) for run in runs]
        print(report.text_table(cells, HEADERS))
        params, _ = jax.eval_shape(setup.task.init, jax.random.key(0), setup.data.take(np.arange(cfg.batch)))
        found = {f"{run['strategy']} on {run['devices']}, last loss": run["losses"][-1] for run in runs}
        study.conclude(found, params, cfg.steps, *sections(runs, cells))
    return runs


if __name__ == "__main__":
    train.command(main, Config)
