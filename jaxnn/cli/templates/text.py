"""my_experiment: a small GPT learns to write like the text it is given.

python my_experiment.py --data BOOK.txt  # your text: a file, or a folder of .txt files
python my_experiment.py --steps 20       # a quick look, at the sources of Python's standard library
python my_experiment.py                  # the run: values, curves and a sample in runs/my_experiment-001/report.html
python my_experiment.py --resume         # goes on with the newest run, also after a crash
python my_experiment.py --help           # what can be set
"""

import dataclasses
import pathlib
from typing import Literal

import jax
import numpy as np
import optax

from jaxnn import data, losses, metrics, models, runs, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line; each comment is its help."""

    data: str | None = None  # a text file, or a folder of .txt files; None for Python's own sources
    held_out: float = 0.1  # share at the end of the text that is not trained on
    size: Literal["tiny", "small"] = "tiny"  # 0.1 or 1.8 million parameters, which read 64 or 256 bytes at once
    steps: int = 2000  # updates
    batch: int = 16  # windows a step
    lr: float = 3e-3  # peak, per update; a short climb, then a cosine to 0
    prompt: str = "The "  # what the sample begins with
    seed: int = 0  # of the first parameters, the order of windows, and the sample
    out: str | None = None  # the run's folder; None for the next free runs/my_experiment-N
    resume: bool = False  # go on with the run in `out`, or with the newest


# ---- data: bytes, in windows that each predict their next byte


def text(cfg: Config) -> bytes:
    """The whole text, files one after the other."""
    if cfg.data is None:
        files = data.stdlib_files()[0][:200]
    else:
        path = pathlib.Path(cfg.data).expanduser()
        files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
        if not files or not all(file.is_file() for file in files):
            raise ValueError(f"data.text: {cfg.data!r} is no text file, and no folder with .txt files in it.")
    return b"\n".join(pathlib.Path(file).read_bytes() for file in files)


def windows(content: bytes, length: int) -> data.Arrays:
    """Windows of `length` bytes one after the other, and the same a byte later."""
    tokens = np.frombuffer(content, np.uint8).astype(np.int32)
    count = (len(tokens) - 1) // length
    if count < 1:
        raise ValueError(f"data.text: {len(tokens)} bytes are too few for windows of {length}. Give a longer text.")
    x, y = (tokens[start : start + count * length].reshape(count, length) for start in (0, 1))
    return data.Arrays(x, y)


# ---- model, loss, optimizer


def model(cfg: Config) -> models.GPT:
    """The network, over the 256 bytes."""
    return models.GPT(models.GPTConfig.preset(cfg.size, vocab=256))


def build(cfg: Config) -> train.Setup:
    """Everything that `fit` needs."""
    content, length = text(cfg), model(cfg).config.length
    end = round(len(content) * (1 - cfg.held_out))
    task = train.supervised(model(cfg), losses.cross_entropy, {"bits_per_byte": metrics.bits_per_byte})
    rate = optax.schedules.warmup_cosine_decay_schedule(0.0, cfg.lr, cfg.steps // 20, cfg.steps)
    held_out = windows(content[end:], length)
    some = data.Arrays(held_out.take(np.arange(0, len(held_out), max(1, len(held_out) // 256))))
    return train.Setup(task=task, tx=optax.adamw(rate), data=windows(content[:end], length), validation=some)


# ---- the run


def main(cfg: Config) -> dict[str, float]:
    """Trains, evaluates on the end of the text, and lets the model write."""
    setup = build(cfg)
    run = train.fit(
        setup.task,
        setup.tx,
        setup.data,
        steps=cfg.steps,
        batch_size=cfg.batch,
        seed=cfg.seed,
        validation=setup.validation,
        out=train.run_folder("my_experiment", cfg.out, cfg.resume),
        resume=cfg.resume,
        config=dataclasses.asdict(cfg),
    )
    key = jax.random.key(cfg.seed)
    written = models.generate(
        model(cfg), run.state.params, cfg.prompt.encode(), steps=300, temperature=0.8, top_k=40, key=key
    )
    sample = cfg.prompt + bytes(written.tolist()).decode("utf-8", "replace")
    print(sample)
    assert setup.validation is not None
    result = train.evaluate(run.task, run.state, setup.validation)
    return train.conclude(run, result, runs.Section("Sample", text=sample))


if __name__ == "__main__":
    train.command(main, Config)
