"""A line through 100 noisy points, y = 2x + 1, one point a step: slope 1.99 +- 0.01, intercept 0.99, 3 seeds.

python -m experiments.linear_regression
"""

import dataclasses

import numpy as np
import optax

from jaxnn import data, figures, losses, models, parallel, runs, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(train.RunOptions):
    """y = 2x + 1 + noise, learned by stochastic gradient descent."""

    epochs: int = 100  # passes over the points
    batch: int = 1  # points a step
    lr: float = 0.01  # per update
    noise: float = 0.1  # standard deviation


# ---- data


def points(cfg: Config) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [100, 1] in [-1, 1) and targets [100, 1]."""
    rng = np.random.default_rng(cfg.seed)
    x = rng.uniform(-1, 1, (100, 1))
    return x.astype(np.float32), (2 * x + 1 + cfg.noise * rng.normal(size=x.shape)).astype(np.float32)


# ---- model, loss, optimizer


def build(cfg: Config) -> train.Setup:
    """Everything that `fit` needs, for tools to reuse."""
    return train.Setup(
        task=train.supervised(models.MLP((1,)), losses.mse), tx=optax.sgd(cfg.lr), data=data.Arrays(*points(cfg))
    )


# ---- the run


def main(cfg: Config) -> dict[str, float]:
    """Fits, evaluates and predicts; the picture of the line is in the run's report."""
    parallel.compilation_cache()
    strategy = cfg.placed(models.mlp.RULES)
    setup = build(cfg)
    run = train.fit(
        setup.task,
        setup.tx,
        setup.data,
        batch_size=cfg.batch,
        epochs=cfg.epochs,
        seed=cfg.seed,
        strategy=strategy,
        out=train.run_folder("linear_regression", cfg.out, cfg.resume),
        resume=cfg.resume,
        config=dataclasses.asdict(cfg),
    )
    x, y = points(cfg)
    result = train.evaluate(run.task, run.state, setup.data)
    ends = np.array([[-1.0], [1.0]], np.float32)
    low, high = train.predict(run.task, run.state, ends)[:, 0]
    result |= {"slope": float(high - low) / 2, "intercept": float(high + low) / 2}
    slope, intercept = np.polyfit(x[:, 0], y[:, 0], 1)
    lines = {"learned": (ends, [low, high]), "least squares": (ends, slope * ends + intercept)}
    figure = figures.points(x, y, lines, "The points and the line", "x", "y")
    print(f"least squares: slope {slope:.4f}, intercept {intercept:.4f}")
    return train.conclude(run, result, runs.Section("Fit", figure=figure))


if __name__ == "__main__":
    train.command(main, Config)
