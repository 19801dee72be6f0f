"""One process of a job, as a program: `python -m tests.integration.job --out OUT --model mlp ...`.

Imported by the tests, which run the same function in their own process for the run that it must equal.
"""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import optax

from jaxnn import data, losses, models, parallel, train

RULES = {"mlp": models.mlp.RULES, "cnn": models.cnn.RULES, "gpt": models.gpt.RULES, "packed": models.gpt.RULES}
RULES["buckets"] = RULES["gpt"]
SEED = 3
EXAMPLES, BATCH, STEPS = 70, 16, 50  # an epoch's last batch is ragged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A small run."""

    model: str = "mlp"
    strategy: str = "replicate"
    where: str = "device"  # or host: streamed
    steps: int = STEPS
    batch: int = BATCH
    every: int = 10
    out: str | None = None
    resume: bool = False
    pause: float = 0.0  # seconds a step
    ids: str | None = None  # a folder for the ids that are read
    fail: int = -1  # the step at which process 1 does what `how` says, in the first attempt or (loop) in each
    how: str = "raise"
    vary: bool = False  # another config on each process
    bad: bool = False  # a token that the model has not, in an example that only process 1 reads, in a later batch


class Recorded:
    """A source that writes down which examples each process reads for which step, and the targets of packed ones."""

    takes_step = True

    def __init__(self, source: Any, path: Path):
        self.source, self.path = source, path
        self.padded_to = getattr(source, "padded_to", None)

    def __len__(self) -> int:
        return len(self.source)

    def take(self, index: np.ndarray, step: int = 0, length: int | None = None) -> dict[str, np.ndarray]:
        rows = self.source.take(index) if length is None else self.source.take(index, length=length)
        targets = [[]] * len(index)
        if "segment" in rows:
            targets = [y[weights > 0].tolist() for y, weights in zip(rows["y"], rows["weights"])]
        with open(self.path, "a") as file:
            file.write(json.dumps([step, np.asarray(index).tolist(), targets]) + "\n")
        return rows

    def resident(self) -> None:
        return None


class Trouble(train.Hook):
    """Waits at every step, and gets process 1 into trouble."""

    def __init__(self, cfg: Config):
        self.cfg = cfg

    def every(self, plan: train.Plan) -> int:
        return 1 if self.cfg.pause or self.cfg.fail >= 0 else 10

    def act(self, at: train.Moment) -> None:
        time.sleep(self.cfg.pause)
        again = "JAXNN_RESUME" in os.environ
        if at.step == self.cfg.fail and parallel.process_index() == 1 and (not again or self.cfg.how == "loop"):
            if self.cfg.how in ("raise", "loop"):
                raise RuntimeError("a bug in process 1")
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[self.cfg.how])


# Of the packed model: every token of document d is d + 1.
DOCUMENTS = [np.full(size, d + 1) for d, size in enumerate(np.random.default_rng(1).integers(2, 20, 50))]


def parts(model: str) -> tuple[train.Task, Any]:
    """Task and data; each model has a parameter that strategies split."""
    draw = np.random.default_rng(0)
    if model == "mlp":
        x = draw.normal(size=(EXAMPLES, 4)).astype(np.float32)
        return train.supervised(models.MLP((64, 32, 2), dropout=0.2), losses.mse), data.Arrays(x, x[:, :2] ** 2)
    if model == "cnn":
        x, y = draw.normal(size=(EXAMPLES, 6, 6, 1)).astype(np.float32), draw.integers(0, 3, EXAMPLES)
        module = models.CNN((4,), (64,), 3, batch_norm=True, dropout=0.1)
        return train.supervised(module, losses.cross_entropy), data.Arrays(x, y)
    sizes = {"length": 8, "layers": 1, "heads": 2, "width": 32, "mlp_ratio": 2, "dropout": 0.1}
    if model == "packed":
        config = models.GPTConfig(vocab=len(DOCUMENTS) + 1, **sizes)
        return train.supervised(models.GPT(config), losses.cross_entropy), data.Packed(DOCUMENTS, length=8)
    tokens = draw.integers(0, 16, (EXAMPLES, 9)).astype(np.int32)
    task = train.supervised(models.GPT(models.GPTConfig(vocab=16, **sizes)), losses.cross_entropy)
    if model == "gpt":
        return task, data.Arrays(tokens[:, :-1], tokens[:, 1:])
    lengths = draw.integers(1, 9, EXAMPLES)
    weights = (np.arange(8) < lengths[:, None]).astype(np.float32)
    source = data.Arrays(tokens[:, :-1], tokens[:, 1:], weights=weights)
    return task, data.bucketed(source, lengths, (3, 5), arrays=("x", "y", "weights"))


def main(cfg: Config) -> None:
    # Two devices share a layer where layers are shared, of one process or of two.
    strategy = parallel.by_name(cfg.strategy, None, RULES[cfg.model], 2)
    run = fit(cfg, strategy)
    if parallel.process_index() == 0:
        print(f"finished {int(run.state.data_step)}", flush=True)


def fit(cfg: Config, strategy: Any) -> train.Run:
    task, source = parts(cfg.model)
    if cfg.bad:
        ids = data.epoch_order(source, SEED, cfg.batch)(2, 1)[0]
        source.arrays["x"][ids[-1], 3] = 99
    validation = source[:20] if isinstance(source, data.Arrays) else None
    if cfg.ids is not None:
        source = Recorded(source, Path(f"{cfg.ids}-{parallel.process_index()}"))
    return train.fit(
        task,
        optax.sgd(0.05, momentum=0.9),
        source,
        batch_size=cfg.batch,
        steps=cfg.steps,
        seed=SEED,
        strategy=strategy,
        validation=validation,
        validate_every=15 if validation is not None else None,
        hooks=[Trouble(cfg)],
        log=train.Log(every=1, progress=False),
        save=train.Checkpointing(every=cfg.every, minutes=None),
        dispatch=train.Dispatch(resident=cfg.where == "device" and cfg.ids is None),
        out=cfg.out,
        resume=cfg.resume,
        config={"model": cfg.model} | ({"width": parallel.process_index()} if cfg.vary else {}),
    )


if __name__ == "__main__":
    train.command(main, Config)
