"""my_experiment: a small network predicts one column of a table from the others.

python my_experiment.py --data MINE.csv --target COLUMN  # your table; a target of numbers, or of classes
python my_experiment.py --steps 20                       # a quick look, at houses that are made up here
python my_experiment.py                                  # the run: values and curves in runs/my_experiment-001
python my_experiment.py --resume                         # goes on with the newest run, also after a crash
python my_experiment.py --help                           # what can be set
"""

import dataclasses
import pathlib
from typing import Literal

import numpy as np
import optax

from jaxnn import data, figures, losses, metrics, models, runs, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line; each comment is its help."""

    data: str = "my_experiment.csv"  # a CSV file; where it is this one and not there, made-up houses are written to it
    target: str = "price"  # the column to predict
    ignore: tuple[str, ...] = ()  # columns that are left out
    missing: Literal["error", "mean"] = "error"  # empty cells: refused, or the mean; of texts, a category of their own
    held_out: float = 0.2  # share of the rows that is not trained on
    steps: int = 2000  # updates
    batch: int = 32  # rows a step
    lr: float = 1e-3  # per update
    width: int = 64  # of the two hidden layers
    seed: int = 0  # of the first parameters, the order of rows, and what is held out
    out: str | None = None  # the run's folder; None for the next free runs/my_experiment-N
    resume: bool = False  # go on with the run in `out`, or with the newest


# ---- data


def table(cfg: Config) -> data.CSV:
    """The rows: numbers scaled, texts as categories."""
    path = pathlib.Path(cfg.data)
    if cfg.data == Config.data and not path.exists():
        rng = np.random.default_rng(0)
        lines = ["area,rooms,town,price"]
        for _ in range(800):
            area, town = rng.uniform(30, 200), rng.integers(0, 3)
            price = 1500 * area + (0, 60_000, 25_000)[town] + rng.normal(0, 15_000)
            lines.append(f"{area:.1f},{round(area / 30) + 1},{('Oslo', 'Rome', 'Lima')[town]},{price:.0f}")
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return data.CSV(path, cfg.target, ignore=cfg.ignore, missing=cfg.missing, standardize_target=True)


# ---- model, loss, optimizer


def build(cfg: Config) -> train.Setup:
    """Everything that `fit` needs."""
    rows, held_out = table(cfg).split(1 - cfg.held_out, cfg.seed)
    network = models.MLP((cfg.width, cfg.width, rows.outputs))
    if rows.classes is not None:
        task = train.supervised(network, losses.cross_entropy, {"accuracy": metrics.accuracy})
    else:
        task = train.supervised(network, losses.mse, {"mae": metrics.mae})  # in standard deviations of the target
    return train.Setup(task=task, tx=optax.adam(cfg.lr), data=rows, validation=held_out)


# ---- the run


def main(cfg: Config) -> dict[str, float]:
    """Trains, evaluates on the rows held out, and writes what it predicts for them beside them."""
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
    held_out = setup.validation
    assert isinstance(held_out, data.CSV)
    assert run.folder is not None
    outputs = train.predict(run.task, run.state, held_out)
    written = data.write_csv(run.folder.path / "held_out.csv", held_out.decode(outputs), beside=held_out)
    print(f"rows held out, and what was predicted for them: {written}")
    if held_out.classes is not None:
        counts = np.zeros((held_out.outputs, held_out.outputs), int)
        np.add.at(counts, (held_out.arrays["y"], np.argmax(outputs, axis=-1)), 1)
        picture = figures.matrix(counts, "Rows held out", names=held_out.classes)
    else:
        true, given = (held_out.decode(y)[f"predicted_{cfg.target}"] for y in (held_out.arrays["y"], outputs))
        ends = [true.min(), true.max()]
        picture = figures.points(true, given, {"equal": (ends, ends)}, "Rows held out", cfg.target, "predicted")
    result = train.evaluate(run.task, run.state, held_out)
    return train.conclude(run, result, runs.Section("Predictions", figure=picture))


if __name__ == "__main__":
    train.command(main, Config)
