"""A byte-level GPT learns Python from the standard library's own sources.

python -m experiments.gpt_stdlib                          # 1.9 M parameters, 10-15 minutes on 2 CPU cores
python -m experiments.gpt_stdlib --size tiny --steps 200  # a minute
python -m experiments.gpt_stdlib --devices 8 --strategy replicate
python -m experiments.gpt_stdlib --resume                 # goes on with the newest run, to the byte
"""

import dataclasses
import gzip
import lzma
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from jaxnn import data, losses, metrics, models, parallel, rng, runs, train, tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A byte-level GPT on the sources of Python's standard library."""

    size: Literal["tiny", "small", "gpt2"] = "small"  # architecture
    steps: int = 4800  # updates
    batch: int = 8  # global windows a step
    lr: float = 0.02  # peak rate of Muon, for matrices
    adam_lr: float = 3e-3  # peak rate of Adam, for everything else
    warmup: int = 60  # steps to the peak; then linear decay to 3 %
    clip: float = 1.0  # global gradient norm
    dropout: float = 0.0
    precision: Literal["float32", "matmul_bf16"] = "matmul_bf16"  # operands of matrix products
    seed: int = 0
    strategy: Literal["single", "replicate", "pmap"] = "single"
    devices: int = 1  # data-parallel devices; forced ones where there is no accelerator
    out: str | None = None  # the run's folder; None for the next free runs/gpt_stdlib-N
    resume: bool = False  # go on with the run in `out`, or with the newest
    tensorboard: bool = False
    profile: str | None = None  # data steps to trace, "20:25"


# ---- data


def sources(length: int) -> tuple[data.TextFiles, data.TextFiles, list[Path]]:
    """Windows of the training files, windows of the held-out ones, and the held-out files."""
    train_files, held_out = data.stdlib_files()
    return data.TextFiles(train_files, length=length), data.TextFiles(held_out, length=length), held_out


# ---- model


def model(cfg: Config) -> models.GPT:
    """The network: vocabulary of 256 bytes."""
    dtype = jnp.bfloat16 if cfg.precision == "matmul_bf16" else None
    return models.GPT(models.GPTConfig.preset(cfg.size, vocab=256, dropout=cfg.dropout, matmul_dtype=dtype))


# ---- optimizer


def muon() -> optax.GradientTransformation:
    """Orthogonalised momentum over matrices [in, out], scaled by sqrt(max(1, out / in)) (Jordan et al. 2024)."""
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=0, output_axis=1)
    by_shape = optax.stateless(
        lambda updates, _: jax.tree.map(lambda u: u * max(1.0, u.shape[1] / u.shape[0]) ** 0.5, updates)
    )
    orthogonal = optax.contrib.scale_by_muon(
        weight_dimension_numbers=lambda updates: jax.tree.map(lambda _: axes, updates)
    )
    return optax.chain(orthogonal, by_shape)


def optimizer(cfg: Config) -> optax.GradientTransformation:
    """Muon for matrices and Adam for the rest under one schedule; `learning_rate` in the state is Muon's."""
    warmup = min(cfg.warmup, cfg.steps // 2)
    schedule = optax.schedules.join_schedules(
        [
            optax.schedules.linear_schedule(cfg.lr / (warmup + 1), cfg.lr, warmup),
            optax.schedules.linear_schedule(cfg.lr, 0.03 * cfg.lr, cfg.steps - warmup),
        ],
        [warmup],
    )
    groups: dict[Any, optax.GradientTransformation] = {
        "muon": muon(),
        "adam": optax.chain(optax.scale_by_adam(b2=0.95), optax.scale(cfg.adam_lr / cfg.lr)),
    }
    rule = {"muon": lambda path, leaf: tree.guess_role(path, leaf).name == "matrix"}
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip),
        optax.partition(groups, lambda params: tree.labels(params, rule, otherwise="adam")),
        optax.inject_hyperparams(optax.scale_by_learning_rate)(learning_rate=schedule),
    )


def build(cfg: Config) -> train.Setup:
    """Everything that `fit` needs, for tools to reuse."""
    net = model(cfg)
    windows, held_out, _ = sources(net.config.length)
    task = train.supervised(net, losses.cross_entropy, {"bits_per_byte": metrics.bits_per_byte})
    sample = data.Arrays(held_out.take(np.arange(0, len(held_out), max(1, len(held_out) // 64))))
    return train.Setup(task=task, tx=optimizer(cfg), data=windows, validation=sample)


# ---- samples


class Samples(train.Hook):
    """Lets the model write at several points of the run."""

    at_end = True

    def __init__(self, net: models.GPT, prompt: bytes = b"def "):
        self.net, self.prompt = net, prompt

    def every(self, plan: train.Plan) -> int:
        return max(1, plan.steps // 50)

    def act(self, at: train.Moment) -> None:
        if not at.final and at.step // self.every(at.plan) not in (1, 2, 5, 12, 25, 40):
            return
        params = jax.device_put(jax.device_get(at.state.params), jax.devices()[0])
        key = rng.wrap(jax.device_get(at.state.key))
        tokens = models.generate(self.net, params, self.prompt, steps=240, temperature=0.7, key=key)
        text = (self.prompt + bytes(tokens.tolist())).decode("utf-8", "replace")
        at.journal("sample", text=text)
        at.show(f"---- step {at.step} writes\n{text}\n----")


# ---- the comparison


def score(cfg: Config, task: train.Task, state: train.State, files: list[Path]) -> list[list[Any]]:
    """Bits per byte of every held-out file, every byte scored once: [file, bytes, ours, gzip -9, xz -9e] a row."""

    def nats(params: Any, model_state: Any, batch: Any) -> Any:
        logits = task.predict(params, model_state, batch)
        return jnp.sum(losses.cross_entropy(logits, batch["y"]) * batch["weights"], axis=-1)

    length = model(cfg).config.length
    texts = [file.read_bytes() for file in files]
    windows = [data.scoring_windows(text, length) for text in texts]
    joined = data.Arrays({name: np.concatenate([w[name] for w in windows]) for name in windows[0]})
    per_window = train.predict(dataclasses.replace(task, predict=nats), state, joined, batch_size=4 * cfg.batch)
    ends = np.cumsum([len(w["x"]) for w in windows])
    rows: list[list[Any]] = []
    for file, text, part in zip(files, texts, np.split(per_window.astype(np.float64), ends[:-1]), strict=True):
        ours = part.sum() / np.log(2) / len(text)
        rows.append([file.name, len(text), ours, *(8 * len(c) / len(text) for c in compressed(text))])
    return rows


def compressed(text: bytes) -> tuple[bytes, bytes]:
    """What `gzip -9` and `xz -9e` make of it."""
    return gzip.compress(text, 9), lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)


def compare(cfg: Config, task: train.Task, state: train.State) -> tuple[dict[str, float], list[list[Any]]]:
    """Totals in bits per byte over the held-out files, and the rows behind them."""
    files = sources(model(cfg).config.length)[2]
    rows = score(cfg, task, state, files)
    size = np.array([row[1] for row in rows])
    ours, by_gzip, by_xz = (float((np.array([row[i] for row in rows]) * size).sum() / size.sum()) for i in (2, 3, 4))
    whole = b"".join(file.read_bytes() for file in files)
    gzip_whole, xz_whole = (8 * len(c) / len(whole) for c in compressed(whole))
    totals = {"ours": ours, "gzip": by_gzip, "xz": by_xz, "gzip_concatenated": gzip_whole, "xz_concatenated": xz_whole}
    return totals, rows


# ---- the run


def folder(cfg: Config) -> Path:
    """`out`, the newest run, or the next free name."""
    if cfg.out is not None:
        return Path(cfg.out)
    there = sorted(Path("runs").glob("gpt_stdlib-[0-9][0-9][0-9]"))
    last = int(there[-1].name.rsplit("-", 1)[1]) if there else 0
    return Path("runs") / f"gpt_stdlib-{last if cfg.resume and last else last + 1:03d}"


def main(cfg: Config) -> dict[str, float]:
    """Trains, scores the held-out files and writes the report; gives the totals in bits per byte."""
    parallel.compilation_cache()
    strategy = parallel.by_name(cfg.strategy, cfg.devices)
    setup = build(cfg)
    out = folder(cfg)
    start, _, stop = (cfg.profile or "").partition(":")
    if cfg.profile and not (start.isdigit() and stop.isdigit()):
        sys.exit(f"--profile {cfg.profile}: give two data steps, --profile 20:25")
    span = (int(start), int(stop)) if cfg.profile else None
    print(f"{setup.data}\n-> {out}", flush=True)
    run = train.fit(
        setup.task,
        setup.tx,
        setup.data,
        batch_size=cfg.batch,
        steps=cfg.steps,
        seed=cfg.seed,
        strategy=strategy,
        validation=setup.validation,
        hooks=[Samples(model(cfg))],
        log=train.Log(every=10, grad_norm=True, tensorboard=cfg.tensorboard, peaks=True, profile=span),
        out=out,
        resume=cfg.resume,
        config=dataclasses.asdict(cfg),
    )
    if run.stopped:
        sys.exit(f"stopped: {run.stopped}")
    print("scoring every byte of the held-out files ...", flush=True)
    totals, rows = compare(cfg, run.task, run.state)
    assert run.folder is not None  # `out` was given
    run.folder.journal.append("score", cfg.steps, **totals)
    whole = [["this model", totals["ours"], None]]
    whole += [
        [f"{name} {level}", totals[name], totals[f"{name}_concatenated"]]
        for name, level in (("gzip", "-9"), ("xz", "-9e"))
    ]
    sections = [
        runs.Section("Held-out files, bits per byte", whole, ["", "file by file", "concatenated"]),
        runs.Section("File by file", rows, ["held-out file", "bytes", "this model", "gzip -9", "xz -9e"]),
    ]
    runs.write_summary(run.folder, run.state.params, sections=sections)
    print("bits per byte: " + "  ".join(f"{name} {value:.3f}" for name, value in totals.items()))
    print(f"report: {run.folder.report}")
    return totals


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except train.Interrupted as interrupted:
        print(f"\n{interrupted}", file=sys.stderr)
        sys.exit(128 + interrupted.signal)
