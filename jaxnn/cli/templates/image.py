"""my_experiment: a convolutional network tells classes of images apart.

python my_experiment.py --data PHOTOS  # your images: PHOTOS/cat/*.jpg, PHOTOS/dog/*.jpg, ...
python my_experiment.py --steps 20     # a quick look, at shapes that are drawn here
python my_experiment.py                # the run: values, curves and images in runs/my_experiment-001/report.html
python my_experiment.py --resume       # goes on with the newest run, also after a crash
python my_experiment.py --help         # what can be set
"""

import dataclasses

import numpy as np
import optax

from jaxnn import data, figures, losses, metrics, models, runs, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line; each comment is its help."""

    data: str | None = None  # a folder of class folders; None for drawn shapes
    size: int = 32  # pixels a side, at least 10; your images are cropped and resized to it
    held_out: float = 0.2  # share of your images that is not trained on
    steps: int = 600  # updates
    batch: int = 32  # images a step
    lr: float = 1e-3  # peak, per update; then a cosine to 0
    dropout: float = 0.2  # before the last layer
    seed: int = 0  # of the first parameters, the order of examples, and what is held out
    out: str | None = None  # the run's folder; None for the next free runs/my_experiment-N
    resume: bool = False  # go on with the run in `out`, or with the newest


# ---- data

SHAPES = ("disc", "square", "triangle")


def shapes(count: int, size: int, seed: int) -> data.Arrays:
    """Discs, squares and triangles of any colour, size and place, on noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    x = rng.uniform(0, 0.4, size=(count, size, size, 3))
    y = rng.integers(0, 3, size=count)
    for image, label in zip(x, y):
        radius = rng.uniform(0.15, 0.3) * size
        down, right = rows - rng.uniform(radius, size - radius), columns - rng.uniform(radius, size - radius)
        disc, square = np.hypot(down, right) < radius, np.maximum(abs(down), abs(right)) < radius
        triangle = square & (2 * abs(right) < down + radius)
        image[(disc, square, triangle)[label]] = rng.uniform(0.5, 1, size=3)
    return data.Arrays(x.astype(np.float32), y.astype(np.int32))


def sources(cfg: Config) -> tuple[data.Arrays | data.ImageFolder, data.Arrays | data.ImageFolder]:
    """Images to train on, and images held out."""
    if cfg.data is None:
        return shapes(2000, cfg.size, cfg.seed), shapes(500, cfg.size, cfg.seed + 1)
    return data.ImageFolder(cfg.data, (cfg.size, cfg.size)).split(1 - cfg.held_out, cfg.seed)


def class_names(source: object) -> list[str]:
    """What the classes are called, by number."""
    return source.classes if isinstance(source, data.ImageFolder) else list(SHAPES)


# ---- model, loss, optimizer


def build(cfg: Config) -> train.Setup:
    """Everything that `fit` needs."""
    images, held_out = sources(cfg)
    classes = len(class_names(images))
    network = models.CNN(channels=(32, 64), dense=(128,), classes=classes, dropout=cfg.dropout)
    task = train.supervised(network, losses.cross_entropy, {"accuracy": metrics.accuracy})
    tx = optax.adam(optax.schedules.cosine_decay_schedule(cfg.lr, cfg.steps))
    return train.Setup(task=task, tx=tx, data=images, validation=held_out)


# ---- the run


def main(cfg: Config) -> dict[str, float]:
    """Trains, evaluates on the images held out, and shows some of them with what the network makes of them."""
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
    held_out, names = setup.validation, class_names(setup.validation)
    assert held_out is not None
    some = held_out.take(np.linspace(0, len(held_out) - 1, 24).round().astype(np.int64))
    given = np.argmax(train.predict(run.task, run.state, some["x"]), axis=-1)
    captions = [
        names[guess] if guess == true else f"{names[true]}, not {names[guess]}" for guess, true in zip(given, some["y"])
    ]
    picture = figures.images(some["x"], captions, "Images held out, and what they were taken for")
    result = train.evaluate(run.task, run.state, held_out)
    return train.conclude(run, result, runs.Section("Images", figure=picture))


if __name__ == "__main__":
    train.command(main, Config)
