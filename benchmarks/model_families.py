"""The model families as numbers, and the arms that `benchmarks.models` times: what both frameworks' models are made of.

NumPy alone is needed to read it, so that the environment of the peers, which has no jaxnn, can.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

LR = 1e-3  # of AdamW, betas 0.9 and 0.999, epsilon 1e-8, decay 0.01 in both frameworks
CHECKED = 3  # first steps whose losses must agree
TOLERANCE = 1e-3  # relative, of these losses
# Arms, and what each is called in a table.
OURS = {
    "loop": "jaxnn, in fit's loop",
    "step": "jaxnn, a step a dispatch",
    "loop_bf16": "jaxnn, in the loop, bf16 products",
}
PEERS = {"eager": "PyTorch", "compiled": "PyTorch, compiled"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One row: a network, its batch and who takes part.

    Attributes:
        about: The network and a batch in words.
        sizes: What the models of both frameworks are made of.
        batch: Examples a step.
        x: Shape of an example's input.
        y: Shape of its target.
        vocab: Inputs are integers from 1 to below this (0 is padding, and there is none), or where 0 normal floats.
        classes: Targets are integers below this.
        batches: Different batches; they come round again.
        ours: Arms of ours; the first is how `fit` runs this family, and the one that is judged.
        peers: Arms of PyTorch.
        must: Least speed against eager PyTorch, or None where only the goal is set.
        checked: First steps whose losses must agree.
    """

    about: str
    sizes: Mapping[str, Any]
    batch: int
    x: tuple[int, ...]
    y: tuple[int, ...]
    vocab: int = 0
    classes: int
    batches: int = 8
    ours: tuple[str, ...] = ("loop", "step")
    peers: tuple[str, ...] = tuple(PEERS)
    must: float | None = None
    checked: int = CHECKED


# A step a dispatch, as `experiments.image_classifier` streams images: XLA:CPU's convolutions are slow inside a loop.
_IMAGES: dict[str, Any] = {"y": (), "classes": 10, "ours": ("step",)}
_GPT: dict[str, Any] = {"vocab": 256, "classes": 256, "must": 0.8}
FAMILIES: Mapping[str, Family] = {
    "mlp": Family(
        about="MLP 784-512-256-10, 128 examples",
        sizes={"features": (512, 256, 10)},
        batch=128,
        x=(784,),
        y=(),
        classes=10,
        batches=16,
        must=0.8,
    ),
    "gpt_tiny": Family(
        about="GPT, 2 layers of width 64, 16 windows of 64 bytes",
        sizes={"layers": 2, "heads": 2, "width": 64, "length": 64},
        batch=16,
        x=(64,),
        y=(64,),
        batches=32,
        **_GPT,
    ),
    "gpt_small": Family(
        about="GPT, 4 layers of width 192, 8 windows of 256 bytes",
        sizes={"layers": 4, "heads": 3, "width": 192, "length": 256},
        batch=8,
        x=(256,),
        y=(256,),
        ours=("loop", "step", "loop_bf16"),
        **_GPT,
    ),
    "lstm": Family(
        about="LSTM over bytes, embedding 128, state 256, 32 windows of 64",
        sizes={"embed": 128, "width": 256},
        batch=32,
        x=(64,),
        y=(64,),
        vocab=256,
        classes=256,
        must=0.8,
    ),
    "seq2seq": Family(
        about="GRU encoder (both ways) and decoder of 256, additive attention, 32 pairs of 16 tokens of 2,000",
        sizes={"embed": 128, "width": 256, "attention": 128, "length": 16},
        batch=32,
        x=(32,),
        y=(16,),
        vocab=2000,
        classes=2000,
        peers=("eager",),  # torch.compile unrolls the decoder: it was stopped after six minutes
    ),
    "transformer": Family(
        about="transformer (Marian's layout), 3 + 3 layers of width 256, 32 pairs of 24 tokens of 4,000",
        sizes={"width": 256, "heads": 4, "hidden": 1024, "layers": 3, "length": 24},
        batch=32,
        x=(48,),
        y=(24,),
        vocab=4000,
        classes=4000,
    ),
    "bert": Family(
        about="BERT of MiniLM's size (6 layers of width 384, 22.7 M parameters), classifying 8 texts of 64 tokens",
        sizes={"layers": 6, "heads": 12, "width": 384, "mlp_width": 1536, "length": 512},
        batch=8,
        x=(64,),
        y=(),
        vocab=30522,
        classes=2,
    ),
    "resnet20": Family(about="ResNet-20, 64 images of 32 x 32", sizes={}, batch=64, x=(32, 32, 3), **_IMAGES),
    "vgg11": Family(
        about="VGG-11 with the small head, 32 images of 32 x 32", sizes={}, batch=32, x=(32, 32, 3), **_IMAGES
    ),
    "vit": Family(
        about="ViT, 6 layers of width 96, 64 images of 28 x 28 in patches of 4",
        sizes={"layers": 6, "heads": 3, "width": 96, "mlp_ratio": 2, "image": 28, "patch": 4},
        batch=64,
        x=(28, 28, 3),
        y=(),
        classes=10,
        ours=("step", "loop"),
    ),
    "inception": Family(
        about="Inception v3 without its second head, 8 images of 96 x 96",
        sizes={},
        batch=8,
        x=(96, 96, 3),
        # First losses are 3e-5 apart, through 94 BatchNorms of which the last see 8 values; then an update is as large
        # as the rate wherever a gradient is rounding alone. tests/models/test_vision_oracle.py holds values, gradients.
        checked=1,
        **_IMAGES,
    ),
}


def examples(family: Family, seed: int = 0) -> dict[str, np.ndarray]:
    """`x` and `y` of all of a family's batches, one after the other: noise, as what a step takes does not depend on it.

    Targets have nothing to do with inputs, so that a network learns them slowly and its gradients stay of a size.
    """
    rng = np.random.default_rng(seed)
    n = family.batch * family.batches
    if family.vocab:
        x = rng.integers(1, family.vocab, (n, *family.x)).astype(np.int32)
    else:
        x = rng.normal(size=(n, *family.x)).astype(np.float32)
    return {"x": x, "y": rng.integers(0, family.classes, (n, *family.y)).astype(np.int32)}


def arms(family: Family) -> list[str]:
    """Who takes part."""
    return [*family.ours, *family.peers]
