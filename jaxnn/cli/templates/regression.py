"""my_experiment: a small network learns a curve from noisy points.

python my_experiment.py --steps 20  # a quick look
python my_experiment.py             # the run: values, curves and a picture in runs/my_experiment-001/report.html
python my_experiment.py --resume    # goes on with the newest run, also after a crash
python my_experiment.py --help      # what can be set
"""

import dataclasses

import numpy as np
import optax

from jaxnn import data, figures, losses, metrics, models, runs, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line; each comment is its help."""

    steps: int = 3000  # updates
    batch: int = 64  # examples a step
    lr: float = 1e-3  # per update
    width: int = 64  # of the two hidden layers
    seed: int = 0  # of the data, the first parameters and the order of examples
    out: str | None = None  # the run's folder; None for the next free runs/my_experiment-N
    resume: bool = False  # go on with the run in `out`, or with the newest


# ---- data: put your own arrays here, examples first: x [N, ...], y [N, outputs]


def examples(count: int, seed: int) -> data.Arrays:
    """Points on a wave, with noise."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-3, 3, size=(count, 1))
    y = np.sin(2 * x) + 0.3 * x + rng.normal(0, 0.15, size=x.shape)
    return data.Arrays(x.astype(np.float32), y.astype(np.float32))


# ---- model, loss, optimizer


def build(cfg: Config) -> train.Setup:
    """Everything that `fit` needs."""
    task = train.supervised(models.MLP((cfg.width, cfg.width, 1)), losses.mse, {"mae": metrics.mae})
    return train.Setup(
        task=task, tx=optax.adam(cfg.lr), data=examples(1000, cfg.seed), validation=examples(300, cfg.seed + 1)
    )


# ---- the run


def main(cfg: Config) -> dict[str, float]:
    """Trains, evaluates on points that were not trained on, and draws the curve."""
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
    fresh = examples(300, cfg.seed + 1)
    line = np.linspace(-3, 3, 200, dtype=np.float32)[:, None]
    learned = train.predict(run.task, run.state, line)
    x, y = fresh.arrays["x"], fresh.arrays["y"]
    picture = figures.points(x, y, {"learned": (line, learned)}, "Held-out points", "x", "y")
    result = train.evaluate(run.task, run.state, fresh)
    return train.conclude(run, result, runs.Section("The curve", figure=picture))


if __name__ == "__main__":
    train.command(main, Config)
