"""A plain convolutional classifier of small images."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jax.sharding import PartitionSpec as P

from jaxnn import rng, sharding
from jaxnn.models.given import check_array, check_rate, check_sizes, check_width, dropout_key
from jaxnn.models.layers import BatchNorm, Conv, Dense, max_pool
from jaxnn.models.vision import check_input
from jaxnn.typing import Array

# How parameters are split over devices that share a layer (`parallel.tensor`): by output channels.
RULES: Mapping[str, P] = {
    r"conv_\d+/kernel": P(None, None, None, "model"),
    r"dense_\d+/kernel": P(None, "model"),
    "role:vector": P(),
    "role:head": P(),
}


class CNN(nn.Module):
    """Stages of (3x3 convolution, BatchNorm if asked, relu, 2x2 max pooling), dense relu layers, a linear head.

    The convolutions use no padding, as Keras's `Conv2D` by default, so that a stage leaves (n - 2) // 2 of n pixels a
    side: 28 -> 13 -> 5.

    Attributes:
        channels: Of each stage.
        dense: Widths of the hidden dense layers.
        classes: Width of the head.
        batch_norm: Whether to normalise after each convolution (which then has no bias).
        batch_norm_groups: Over how many groups of examples apart; see `BatchNorm`.
        dropout: Rate after each hidden dense layer, while training.
        matmul_dtype: Precision of the products' operands; see `products.matmul`.
    """

    channels: tuple[int, ...] = (32, 64)
    dense: tuple[int, ...] = (128,)
    classes: int = 10
    batch_norm: bool = False
    batch_norm_groups: int = 1
    dropout: float = 0.0
    matmul_dtype: Any = None

    def __post_init__(self) -> None:
        """Checks the settings."""
        for name, value in (("channels", self.channels), ("dense", self.dense)):
            if not isinstance(value, (tuple, list)):
                raise ValueError(f"models.CNN: {name}={value!r}. Tried: a width a layer. Write (32, 64), say.")
            check_sizes("CNN", {name: tuple(value)} if value else {})
        check_sizes("CNN", {"classes": self.classes})
        check_rate("CNN", "dropout", self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        """[B, H, W, C] -> logits [B, classes].

        Args:
            x: Images; at least 4 pixels a side for one stage, 10 for two.
            train: Batch statistics ("batch_stats" must be mutable) and dropout (needs rngs={"dropout": key}).
            mask: [B], 0 for padding examples, which enter no statistic.

        Raises:
            ValueError: If `x` is not rank 4, empty, too small for the stages, or of other channels than the parameters.
            TypeError: If it is no array.
        """
        check_array("CNN", "x", x, "[B, H, W, C]")
        if x.ndim == 4:
            # A stage of n pixels a side is made of 2 n + 2.
            smallest, fewer = 3 * 2 ** len(self.channels) - 2, ["fewer channels"] if self.channels[1:] else []
            check_input("CNN", x, max(x.shape[-1], 1), smallest, fewer)
            check_width("CNN", self, "conv_0" if self.channels else "", x)
        for i, width in enumerate(self.channels):
            conv = Conv(
                width, padding="VALID", use_bias=not self.batch_norm, matmul_dtype=self.matmul_dtype, name=f"conv_{i}"
            )
            x = conv(x)
            if self.batch_norm:
                x = BatchNorm(groups=self.batch_norm_groups, name=f"norm_{i}")(x, mask, train=train)
            # relu of the largest is the largest relu, with the same gradient, over a quarter of the elements.
            x = sharding.constrain(nn.relu(max_pool(x, 2)), "batch", None, None, "channels")
        x = x.reshape(x.shape[0], -1)
        key = dropout_key("CNN", self) if train and self.dropout else None
        for i, width in enumerate(self.dense):
            x = nn.relu(Dense(width, matmul_dtype=self.matmul_dtype, name=f"dense_{i}")(x))
            if key is not None:
                x = rng.dropout(rng.named_key(key, f"dense_{i}"), x, self.dropout)
        return Dense(self.classes, matmul_dtype=self.matmul_dtype, role="head", name="head")(x)
