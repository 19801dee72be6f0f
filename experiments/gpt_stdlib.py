"""A byte-level GPT on Python's standard library: 1.535 bits a byte on held-out files (one run), 11 min, 2 CPU cores.

python -m experiments.gpt_stdlib                          # 1.8 M parameters; gzip -9 gives 2.094, xz -9e 1.972
python -m experiments.gpt_stdlib --size tiny --steps 200  # a minute; a fifth of the files scored
python -m experiments.gpt_stdlib --devices 8 --strategy replicate
python -m jaxnn launch --processes 4 -- python -m experiments.gpt_stdlib --strategy replicate
python -m experiments.gpt_stdlib --resume                 # goes on with the newest run, to the byte
"""

import dataclasses
import gzip
import lzma
import sys
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn import data, losses, metrics, models, parallel, rng, runs, train, tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(train.StepOptions, train.RunOptions):
    """A byte-level GPT on the sources of Python's standard library."""

    size: Literal["tiny", "small", "gpt2"] = "small"  # architecture
    steps: int = 4800  # updates
    batch: int = 8  # global windows a step
    lr: float = 0.02  # peak rate of Muon, for matrices
    adam_lr: float = 3e-3  # peak rate of Adam, for everything else
    warmup: int = 60  # steps to the peak; then linear decay to 3 %
    clip: float = 1.0  # global gradient norm
    dropout: float = 0.0
    precision: train.PrecisionName = "matmul_bf16"  # bfloat16 operands in products, for CPU
    profile: str | None = None  # data steps to trace, "20:25"


# ---- data


def sources(length: int) -> tuple[data.TextFiles, data.TextFiles, list[Any]]:
    """Windows of the training files, windows of the held-out ones, and the held-out files."""
    train_files, held_out = data.stdlib_files()
    return data.TextFiles(train_files, length=length), data.TextFiles(held_out, length=length), held_out


# ---- model


def model(cfg: Config) -> models.GPT:
    """The network: vocabulary of 256 bytes."""
    return models.GPT(models.GPTConfig.preset(cfg.size, vocab=256, dropout=cfg.dropout))


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
    up = optax.schedules.linear_schedule(cfg.lr / (warmup + 1), cfg.lr, warmup)
    down = optax.schedules.linear_schedule(cfg.lr, 0.03 * cfg.lr, cfg.steps - warmup)
    schedule = optax.schedules.join_schedules([up, down], [warmup])
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
    windows, held_out, _ = sources(model(cfg).config.length)
    task = train.supervised(model(cfg), losses.cross_entropy, {"bits_per_byte": metrics.bits_per_byte})
    sample = data.Arrays(held_out.take(np.arange(0, len(held_out), max(1, len(held_out) // 64))))
    return train.Setup(task=task, tx=cfg.settings().optimizer(optimizer(cfg)), data=windows, validation=sample)


# ---- samples


class Samples(train.Hook):
    """Lets the model write at several points of the run."""

    at_end = True
    prompt = b"def "

    def __init__(self, net: models.GPT):
        self.net = net

    def every(self, plan: train.Plan) -> int:
        return max(1, plan.steps // 50)

    def act(self, at: train.Moment) -> None:
        if not at.final and at.step // self.every(at.plan) not in (1, 2, 5, 12, 25, 40):
            return
        params, key = jax.device_put(parallel.fetch((at.state.params, at.state.key)), jax.local_devices()[0])
        tokens = models.generate(self.net, params, self.prompt, steps=240, temperature=0.7, key=rng.wrap(key))
        text = (self.prompt + bytes(tokens.tolist())).decode("utf-8", "replace")
        text = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
        at.journal("sample", text=text)
        at.show(f"---- step {at.step} writes\n{text}\n----")


# ---- the comparison

THOROUGH = 1000  # steps of a run that scores all held-out files; shorter ones score as many fewer


def scored(cfg: Config, files: list[Any]) -> list[Any]:
    """The held-out files that a run scores: all, or every n-th where it has an n-th of `THOROUGH` steps."""
    return files[:: -(-THOROUGH // min(cfg.steps, THOROUGH))]


def compare(cfg: Config, task: train.Task, state: train.State) -> tuple[dict[str, float], list[list[Any]]]:
    """Bits per byte of the files that are `scored`, every byte once: totals by name, and a row a file."""

    def nats(params: Any, model_state: Any, batch: Any) -> Any:
        logits = task.predict(params, model_state, batch)
        return jnp.sum(losses.cross_entropy(logits, batch["y"]) * batch["weights"], axis=-1)

    def compressed(text: bytes) -> tuple[int, int]:
        return 8 * len(gzip.compress(text, 9)), 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))

    length = model(cfg).config.length
    files = scored(cfg, sources(length)[2])
    texts = [file.read_bytes() for file in files]
    windows = [data.scoring_windows(text, length) for text in texts]
    joined = data.Arrays({name: np.concatenate([w[name] for w in windows]) for name in windows[0]})
    per_window = train.predict(dataclasses.replace(task, predict=nats), state, joined, batch_size=4 * cfg.batch)
    ends = np.cumsum([len(w["x"]) for w in windows])[:-1]
    by_file = [part.sum() / np.log(2) for part in np.split(per_window.astype(np.float64), ends)]
    bits = np.array([[ours, *compressed(text)] for ours, text in zip(by_file, texts, strict=True)])
    sizes = np.array([len(text) for text in texts])
    rows = [[f.name, n, *b] for f, n, b in zip(files, sizes.tolist(), (bits / sizes[:, None]).tolist(), strict=True)]
    totals = [*bits.sum(0), *compressed(b"".join(texts))]
    names = ("ours", "gzip", "xz", "gzip_concatenated", "xz_concatenated")
    return {name: float(total / sizes.sum()) for name, total in zip(names, totals, strict=True)}, rows


# ---- the run


def main(cfg: Config) -> dict[str, float]:
    """Trains, scores the held-out files and writes the report; gives the totals in bits per byte."""
    parallel.compilation_cache()
    strategy = cfg.placed(models.gpt.RULES)
    say = print if parallel.process_index() == 0 else lambda *_, **__: None
    setup = build(cfg)
    out = train.run_folder("gpt_stdlib", cfg.out, cfg.resume)
    say(f"{setup.data}\n-> {out}", flush=True)
    run = train.fit(
        setup.task,
        setup.tx,
        setup.data,
        batch_size=cfg.batch,
        steps=cfg.steps,
        seed=cfg.seed,
        strategy=strategy,
        step=cfg.settings(),
        validation=setup.validation,
        hooks=[Samples(model(cfg))],
        log=train.Log(every=10, grad_norm=True, peaks=True, profile=train.span(cfg.profile)),
        out=out,
        resume=cfg.resume,
        config=dataclasses.asdict(cfg),
    )
    if run.stopped or run.folder is None:
        sys.exit(f"stopped: {run.stopped}")
    held_out = sources(model(cfg).config.length)[2]
    some, all_ = (sum(file.stat().st_size for file in files) for files in (scored(cfg, held_out), held_out))
    share = f"{some:,} of {all_:,} bytes of the held-out files"
    say(f"scoring {share} ...", flush=True)
    totals, rows = compare(cfg, run.task, run.state)
    whole = [[name, totals[name], totals.get(f"{name}_concatenated")] for name in ("ours", "gzip", "xz")]
    summary = runs.Section(f"Bits per byte: {share}", whole, ["", "file by file", "concatenated"])
    by_file = runs.Section("File by file", rows, ["held-out file", "bytes", "this model", "gzip -9", "xz -9e"])
    return train.conclude(run, totals, summary, by_file)


if __name__ == "__main__":
    train.command(main, Config)
