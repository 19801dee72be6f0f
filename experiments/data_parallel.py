"""One small GPT on 1, 2, 4 and 8 devices under every strategy: the same losses, other memory, other messages.

python -m experiments.data_parallel                                          # forced devices where there is a CPU alone
python -m experiments.data_parallel --strategies replicate zero3 --devices 1 4 --steps 100
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxnn import cost, data, losses, models, parallel, report, train
from jaxnn.core.state import complete
from jaxnn.core.step import make_step
from jaxnn.data import host_batch


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
    resume: bool = False  # go on with what is missing in `out`, or in the newest


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
    return {"strategy": name, "devices": devices, "losses": values, "keeps": keeps, "sends": sends}


# ---- the report


def summed(sends: list[list[Any]]) -> str:
    """What is sent a step by kind, more than scalars, as text."""
    totals: dict[str, int] = {}
    for kind, axes, _, size in sends:
        totals[f"{kind} over {axes}"] = totals.get(f"{kind} over {axes}", 0) + size
    return ", ".join(f"{what} {size / 1e6:.2f} MB" for what, size in totals.items() if size > 1000) or "nothing"


HEADERS = ["strategy", "devices", "last loss", "largest difference", "state MB", "temporaries MB", "sent a step"]
SENDS = ["strategy", "devices", "collective", "axes", "times a step", "MB a step"]


def table(runs: list[dict[str, Any]]) -> list[list[Any]]:
    """A row a run; differences are from the first."""
    cells = []
    for run in runs:
        gap = float(np.max(np.abs(np.subtract(run["losses"], runs[0]["losses"]))))
        keeps = run["keeps"]
        state = (keeps["parameters"] + keeps["optimizer"]) / 1e6
        own = [run["losses"][-1], f"{gap:.1e}", state, keeps["temporaries"] / 1e6]
        cells.append([run["strategy"], run["devices"], *own, summed(run["sends"])])
    return cells


def memory_figure(runs: list[dict[str, Any]]) -> Any:
    """Bars of what a device holds."""
    figure = report.canvas(figsize=(8, 0.6 + 0.24 * len(runs)), layout="constrained")
    axes = figure.add_subplot()
    left = np.zeros(len(runs))
    for i, part in enumerate(("parameters", "optimizer", "temporaries")):
        values = np.array([run["keeps"][part] / 1e6 for run in runs])
        axes.barh([f"{run['strategy']} {run['devices']}" for run in runs], values, left=left, label=part,
                  color=report.line_look(i)[0])  # fmt: skip
        left += values
    axes.invert_yaxis()
    axes.set_xlabel("MB on a device")
    axes.legend(frameon=False)
    return figure


def write_page(runs: list[dict[str, Any]], cells: list[list[Any]], path: Path) -> None:
    """Losses over each other, differences, memory, messages."""
    page = report.Page(
        f"One run on {max(run['devices'] for run in runs)} devices and on fewer, {jax.default_backend()}"
    )
    page.table(cells, HEADERS)
    steps = np.arange(1, len(runs[0]["losses"]) + 1)
    for n in sorted({run["devices"] for run in runs}):
        shown = {
            f"{r['strategy']} {r['devices']}": np.array(r["losses"]) for r in runs if r is runs[0] or r["devices"] == n
        }
        if len(shown) > 1:
            page.heading(f"{n} devices")
            page.figure(report.curve(steps, shown, "losses, on top of each other", "step", "nats a byte"))
            gaps = {name: np.abs(line - runs[0]["losses"]) for name, line in list(shown.items())[1:]}
            page.figure(report.curve(steps, gaps, "difference from one device", "step", "nats a byte", logy=True))
    page.heading("What a device holds").figure(memory_figure(runs))
    sent = [
        [r["strategy"], r["devices"], kind, axes, k, size / 1e6] for r in runs for kind, axes, k, size in r["sends"]
    ]
    page.heading("What is sent").table(sent, SENDS).write(path)


def main(cfg: Config) -> list[dict[str, Any]]:
    """Trains what is missing, writes `data_parallel.html`; gives the runs."""
    parallel.force_host_devices(max(cfg.devices))  # an accelerator's devices are what they are
    parallel.compilation_cache()
    counts = [n for n in cfg.devices if 1 < n <= len(jax.devices())] or [1]
    names = [name for name in cfg.strategies if name != "single" and (max(counts) > 1 or name != "fsdp_tensor")]
    out = train.run_folder("data_parallel", cfg.out, cfg.resume)
    out.mkdir(parents=True, exist_ok=True)
    file, setup = out / "runs.jsonl", build(cfg)
    runs = [json.loads(line) for line in file.read_text().splitlines()] if cfg.resume and file.exists() else []
    try:
        for name, n in [("single", 1), *((name, n) for n in counts for name in names)]:
            if (name, n) not in {(run["strategy"], run["devices"]) for run in runs}:
                runs.append(trained(name, n, setup, cfg))
                file.write_text("".join(json.dumps(run) + "\n" for run in runs))
                print("  ".join(map(str, table(runs)[-1])), flush=True)
    except KeyboardInterrupt:
        sys.exit(f"stopped; go on: python -m experiments.data_parallel --out {out} --resume, with the same settings")
    cells = table(runs)
    write_page(runs, cells, out / "data_parallel.html")
    print(report.text_table(cells, HEADERS), f"-> {out / 'data_parallel.html'}", sep="\n")
    return runs


if __name__ == "__main__":
    train.command(main, Config)
