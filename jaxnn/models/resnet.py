"""ResNet: residual convolutional classifiers, for ImageNet (18 to 152 layers) and for small images (20 to 110).

The ImageNet family is "v1.5": a bottleneck's stride is in its 3x3 convolution. Parameters lie as in torchvision:
`stem`, `stem_norm`, `layer1_0/conv1`, `layer1_0/bn1`, ..., `head`, so that `weights.resnet` is a table of names.

Shape suffixes: B examples, H W rows and columns, C channels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxnn import sharding
from jaxnn.models.blocks import layer
from jaxnn.models.layers import BatchNorm, Conv, Dense
from jaxnn.models.pooling import Form
from jaxnn.models.vision import check_choice, check_input, check_sizes, padded_max_pool, preset
from jaxnn.typing import Array

# How parameters are split over devices that share a layer (`parallel.tensor`): by output channels.
RULES: Mapping[str, P] = {
    "(stem|conv1|conv2|conv3|downsample)/kernel": P(None, None, None, "model"),
    "role:vector": P(),
    "role:head": P(),
}
_IMAGENET = {"widths": (64, 128, 256, 512), "stem": "imagenet", "shortcut": "projection", "classes": 1000}
_SMALL = {"widths": (16, 32, 64), "block": "basic", "stem": "small", "shortcut": "pad", "classes": 10}
_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "resnet18": {**_IMAGENET, "block": "basic", "stages": (2, 2, 2, 2)},
    "resnet34": {**_IMAGENET, "block": "basic", "stages": (3, 4, 6, 3)},
    "resnet50": {**_IMAGENET, "block": "bottleneck", "stages": (3, 4, 6, 3)},
    "resnet101": {**_IMAGENET, "block": "bottleneck", "stages": (3, 4, 23, 3)},
    "resnet152": {**_IMAGENET, "block": "bottleneck", "stages": (3, 8, 36, 3)},
    **{f"resnet{6 * n + 2}": {**_SMALL, "stages": (n, n, n)} for n in (3, 5, 7, 9, 18)},
}
# Of the variance over the fan out, as He et al. 2015 (arXiv:1502.01852) derive for relu.
_HE = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """What a ResNet is made of.

    Attributes:
        stages: Blocks in each stage; every stage but the first halves the image.
        widths: Channels of each stage; a bottleneck gives four times as many.
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, 1x1).
        stem: "imagenet" (7x7 at stride 2, 3x3 max pooling at stride 2) or "small" (3x3 at stride 1).
        shortcut: Where a block changes the shape: "projection" (1x1 convolution and norm), or "pad" (every second
            pixel, zeros for the added channels; no parameters, as He et al. on CIFAR).
        classes: Width of the head.
        channels: Of the images.
        form: Of the convolutions, "patches" or "lax"; None for what is faster inside a loop on this backend. A step by
            itself, as streamed data has it, runs "lax" faster on CPU too: ResNet-20 in half the time.
        matmul_dtype: Precision of the products' operands; see `products.matmul`.
    """

    stages: tuple[int, ...] = (3, 3, 3)
    widths: tuple[int, ...] = (16, 32, 64)
    block: Literal["basic", "bottleneck"] = "basic"
    stem: Literal["imagenet", "small"] = "small"
    shortcut: Literal["projection", "pad"] = "pad"
    classes: int = 10
    channels: int = 3
    form: Form | None = None
    matmul_dtype: Any = None

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: If a size is below 1, stages and widths differ in number, or a choice is unknown.
        """
        where = "ResNetConfig"
        names = ("stages", "widths", "classes", "channels")
        check_sizes(where, {name: getattr(self, name) for name in names})
        if len(self.stages) != len(self.widths):
            raise ValueError(
                f"models.{where}: stages={self.stages}, widths={self.widths}. Tried: one width a stage. Write as many."
            )
        check_choice(where, "block", self.block, ("basic", "bottleneck"))
        check_choice(where, "stem", self.stem, ("imagenet", "small"))
        check_choice(where, "shortcut", self.shortcut, ("projection", "pad"))
        if self.shortcut == "pad" and (self.block == "bottleneck" or list(self.widths) != sorted(self.widths)):
            raise ValueError(
                f"models.{where}: shortcut='pad' with block={self.block!r}, widths={self.widths}. Tried: adding "
                "channels of zeros. Write shortcut='projection'."
            )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "ResNetConfig":
        """A named network, with fields replaced: "resnet18", 34, 50, 101, 152 (ImageNet), 20, 32, 44, 56, 110 (small).

        Raises:
            ValueError: If the name is unknown, or the overrides do not fit.
        """
        return cls(**{**preset("ResNetConfig", _PRESETS, name), **overrides})

    def blocks(self) -> list[tuple[str, int, int, bool]]:
        """Of each block its name, its width, its stride and whether it has a projection."""
        found, given = [], self.widths[0]
        for stage, (count, width) in enumerate(zip(self.stages, self.widths, strict=True)):
            out = width * (4 if self.block == "bottleneck" else 1)
            for i in range(count):
                stride = 2 if stage and not i else 1
                changes = stride != 1 or given != out
                found.append((f"layer{stage + 1}_{i}", width, stride, changes and self.shortcut == "projection"))
                given = out
        return found


def _conv(c: ResNetConfig, features: int, window: int, stride: int, name: str) -> Conv:
    kernel, pad = (window, window), window // 2
    return Conv(features, kernel, stride, pad, c.form, False, c.matmul_dtype, _HE, name=name)


class Block(nn.Module):
    """`relu(shortcut(x) + convolutions(x))`, each convolution followed by BatchNorm."""

    config: ResNetConfig
    width: int
    stride: int
    project: bool
    train: bool

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        """[B, H, W, C] -> [B, H / stride, W / stride, C']."""
        bottleneck = self.config.block == "bottleneck"
        out = self.width * (4 if bottleneck else 1)
        # (window, features, stride) of each convolution
        plan = [(3, self.width, self.stride), (3, out, 1)]
        if bottleneck:
            plan = [(1, self.width, 1), (3, self.width, self.stride), (1, out, 1)]
        y = x
        for i, (window, features, stride) in enumerate(plan, 1):
            y = _conv(self.config, features, window, stride, f"conv{i}")(y)
            y = BatchNorm(name=f"bn{i}")(y, mask, train=self.train)
            if i < len(plan):
                y = sharding.constrain(nn.relu(y), "batch", None, None, "channels")
        if self.project:
            x = _conv(self.config, out, 1, self.stride, "downsample")(x)
            x = BatchNorm(name="downsample_norm")(x, mask, train=self.train)
        elif self.stride != 1 or x.shape[-1] != out:
            x = x[:, :: self.stride, :: self.stride]
            more = out - x.shape[-1]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)))
        return sharding.constrain(nn.relu(x + y), "batch", None, None, "channels")


class ResNet(nn.Module):
    """Images -> class logits.

    Source:
        He et al. 2016, arXiv:1512.03385; the stride's place in bottlenecks as in torchvision.
    """

    config: ResNetConfig

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        """[B, H, W, channels] -> logits [B, classes], float32. Any size of images; odd ones are rounded up when halved.

        Args:
            x: Images, normalised as the weights want it.
            train: Batch statistics ("batch_stats" must be mutable).
            mask: [B], 0 for padding examples, which enter no statistic.

        Raises:
            ValueError: If `x` is not [B, H, W, channels].
        """
        c = self.config
        check_input("ResNet", x, c.channels)
        small = c.stem == "small"
        stem = _conv(c, c.widths[0], *((3, 1) if small else (7, 2)), name="stem")
        x = nn.relu(BatchNorm(name="stem_norm")(stem(x), mask, train=train))
        if not small:
            x = padded_max_pool(x, 3, 2, 1)
        x = sharding.constrain(x, "batch", None, None, "channels")
        for name, width, stride, project in c.blocks():
            x = layer(Block)(c, width, stride, project, train, name=name)(x, mask)
        x = jnp.mean(x, axis=(1, 2))
        return Dense(c.classes, matmul_dtype=c.matmul_dtype, role="head", name="head")(x).astype(jnp.float32)
