"""One training run, as a process to be killed: `python child.py OUT MODEL STRATEGY DATA STEPS [resume] [unsaved]`.

MODEL is mlp, cnn or gpt; STRATEGY single or replicate (on 8 devices); DATA device or host. `unsaved` writes no
checkpoint before the end. Imported by the test, which
runs the same function in its own process for the undisturbed run.
"""

import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    os.environ.setdefault("NPROC", "32")

import numpy as np
import optax

from jaxnn import data, losses, metrics, models, parallel, train

BATCH, EVERY = 16, 10
STEPS = 100  # with a save every 10: long enough to be killed in the middle of, about two seconds


class Pace(train.Hook):
    """Waits at every fifth step, so that a kill finds the run in its middle, whatever the machine's speed."""

    def every(self, plan: train.Plan) -> int:
        return 5

    def act(self, at: train.Moment) -> None:
        time.sleep(0.02)


@functools.cache
def parts(model: str) -> tuple[train.Task, Any, data.Arrays, data.Arrays]:
    """Task, optimizer, training and validation data. 70 examples: every epoch's last batch is ragged."""
    draw = np.random.default_rng(0)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.inject_hyperparams(optax.adamw)(learning_rate=0.01))
    if model == "mlp":
        x = draw.normal(size=(70, 4)).astype(np.float32)
        task = train.supervised(models.MLP((16, 2), dropout=0.2), losses.mse, {"mae": metrics.mae})
        source = data.Arrays(x, x[:, :2] ** 2)
    elif model == "cnn":
        x, y = draw.normal(size=(70, 6, 6, 1)).astype(np.float32), draw.integers(0, 3, 70)
        module = models.CNN((4,), (8,), 3, batch_norm=True, dropout=0.1)
        task = train.supervised(module, losses.cross_entropy, {"accuracy": metrics.accuracy})
        source = data.Arrays(x, y)
    else:
        tokens = draw.integers(0, 16, (70, 9)).astype(np.int32)
        config = models.GPTConfig(vocab=16, length=8, layers=1, heads=2, width=16, mlp_ratio=2, dropout=0.1)
        task = train.supervised(models.GPT(config), losses.cross_entropy)
        source = data.Arrays(tokens[:, :-1], tokens[:, 1:])
    return task, tx, source, source[:20]


def hooks() -> list[train.Hook]:
    """Hooks that remember: what is resumed is their memory too."""
    plateau = train.ReduceOnPlateau("val_loss", factor=0.7, patience=1, min_delta=0.5)
    return [train.EarlyStopping("val_loss", patience=1000), plateau]


def fit(out: Path | str, model: str, strategy: str, where: str, steps: int, resume: bool, **options: Any) -> train.Run:
    task, tx, source, validation = parts(model)
    settings: dict[str, Any] = {
        "hooks": hooks(),
        "save": train.Checkpointing(every=EVERY, minutes=None),
        "dispatch": train.Dispatch(resident=where == "device"),
        "config": {"model": model, "width": 16},
    }
    return train.fit(
        task,
        tx,
        source,
        batch_size=BATCH,
        steps=steps,
        seed=3,
        strategy=parallel.single() if strategy == "single" else parallel.replicate(8),
        validation=validation,
        validate_every=15,
        log=train.Log(every=7, progress=False),
        out=out,
        resume=resume,
        **settings | options,
    )


if __name__ == "__main__":
    out, model, strategy, where, steps, *how = sys.argv[1:]
    every = {"save": train.Checkpointing(minutes=None)} if "unsaved" in how else {}
    try:
        fit(out, model, strategy, where, int(steps), "resume" in how, hooks=[*hooks(), Pace()], **every)
    except train.Interrupted as interrupted:
        print(interrupted, flush=True)
        sys.exit(128 + interrupted.signal)
    print("done", flush=True)
