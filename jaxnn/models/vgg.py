"""VGG: plain stacks of 3x3 convolutions with pooling between, 11 to 19 layers, with or without BatchNorm.

Parameters are `conv_0`, `norm_0`, ... in order, then `dense_0`, `dense_1`, `head`.

Shape suffixes: B examples, H W rows and columns, C channels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxnn import rng, sharding
from jaxnn.models.given import dropout_key
from jaxnn.models.layers import BatchNorm, Conv, Dense
from jaxnn.models.pooling import Form, max_pool
from jaxnn.models.vision import adaptive_avg_pool, check_choice, check_input, check_rate, check_sizes, preset
from jaxnn.typing import Array

# How parameters are split over devices that share a layer (`parallel.tensor`): by output channels.
RULES: Mapping[str, P] = {
    r"conv_\d+/kernel": P(None, None, None, "model"),
    "dense_0/kernel": P(None, "model"),
    "dense_1/kernel": P("model", None),
    "role:vector": P(),
    "role:head": P(),
}
_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_PRESETS: Mapping[str, Mapping[str, Any]] = {
    f"vgg{n}{end}": {"stages": stages, "norm": bool(end), "classes": 1000, "head": "imagenet"}
    for n, stages in _STAGES.items()
    for end in ("", "_bn")
}
_HE = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class VGGConfig:
    """What a VGG is made of.

    Attributes:
        stages: Convolutions of each stage; 2x2 max pooling after each.
        widths: Channels of each stage.
        norm: Whether BatchNorm follows each convolution, which has a bias all the same, as in torchvision.
        head: "imagenet" (means over 7x7 regions, two dense layers of `dense` units with dropout, the classes) or
            "small" (the mean over the image, the classes; stages pool only what has two pixels a side).
        dense: Units of each hidden dense layer of the "imagenet" head.
        dropout: Rate after each of them, while training.
        classes: Width of the head.
        channels: Of the images.
        form: Of the convolutions; see `ResNetConfig.form`.
        matmul_dtype: Precision of the products' operands; see `products.matmul`.
    """

    stages: tuple[int, ...] = (1, 1, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    norm: bool = True
    head: Literal["imagenet", "small"] = "small"
    dense: int = 4096
    dropout: float = 0.5
    classes: int = 10
    channels: int = 3
    form: Form | None = None
    matmul_dtype: Any = None

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: If a size is below 1, stages and widths differ in number, or a choice is unknown.
        """
        names = ("stages", "widths", "dense", "classes", "channels")
        check_sizes("VGGConfig", {name: getattr(self, name) for name in names})
        if (
            not isinstance(self.stages, tuple)
            or not isinstance(self.widths, tuple)
            or len(self.stages) != len(self.widths)
        ):
            raise ValueError(
                f"models.VGGConfig: stages={self.stages}, widths={self.widths}. Tried: one width a stage. Give as many."
            )
        check_choice("VGGConfig", "head", self.head, ("imagenet", "small"))
        check_rate("VGGConfig", "dropout", self.dropout)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "VGGConfig":
        """A named network, with fields replaced: "vgg11", 13, 16, 19, and with BatchNorm "vgg11_bn", ...

        Raises:
            ValueError: If the name is unknown, or the overrides do not fit.
        """
        return cls(**{**preset("VGGConfig", _PRESETS, name), **overrides})


class VGG(nn.Module):
    """Images -> class logits.

    Source:
        Simonyan and Zisserman 2015, arXiv:1409.1556; regions and BatchNorm as in torchvision.
    """

    config: VGGConfig

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        """[B, H, W, channels] -> logits [B, classes], float32.

        Args:
            x: Images; for the "imagenet" head at least 32 pixels a side with five stages.
            train: Batch statistics ("batch_stats" must be mutable) and dropout (needs rngs={"dropout": key}).
            mask: [B], 0 for padding examples, which enter no statistic.

        Raises:
            ValueError: If `x` is not [B, H, W, channels], or too small.
        """
        c = self.config
        small = c.head == "small"
        check_input("VGG", x, c.channels, 1 if small else 2 ** len(c.stages), () if small else ("head='small'",))
        n = 0
        for count, width in zip(c.stages, c.widths, strict=True):
            for _ in range(count):
                x = Conv(width, (3, 3), 1, 1, c.form, True, c.matmul_dtype, _HE, name=f"conv_{n}")(x)
                if c.norm:
                    x = BatchNorm(name=f"norm_{n}")(x, mask, train=train)
                x = sharding.constrain(nn.relu(x), "batch", None, None, "channels")
                n += 1
            if min(x.shape[1:3]) > 1:
                x = max_pool(x, 2)
        key = dropout_key("VGG", self) if train and c.dropout and not small else None
        if small:
            x = jnp.mean(x, axis=(1, 2))
        else:
            x = adaptive_avg_pool(x, 7).reshape(x.shape[0], -1)
            for i in range(2):
                x = nn.relu(Dense(c.dense, matmul_dtype=c.matmul_dtype, name=f"dense_{i}")(x))
                if key is not None:
                    x = rng.dropout(rng.named_key(key, f"dense_{i}"), x, c.dropout)
        return Dense(c.classes, matmul_dtype=c.matmul_dtype, role="head", name="head")(x).astype(jnp.float32)
