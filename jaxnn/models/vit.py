"""ViT: an image as a sequence of patches through a pre-norm encoder.

Shape suffixes: B examples, T tokens (patches, and one for the class), E width, H heads, D head width.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxnn import rng, sharding
from jaxnn.models.attention import attention
from jaxnn.models.blocks import layer
from jaxnn.models.given import dropout_key
from jaxnn.models.layers import Dense, LayerNorm, declare
from jaxnn.models.sizes import divisors
from jaxnn.models.vision import check_choice, check_input, check_rate, check_sizes, preset
from jaxnn.tree import describe
from jaxnn.typing import Array

# How parameters are split over the devices that share a layer (`parallel.tensor`); as `gpt.RULES`.
RULES: Mapping[str, P] = {
    "(qkv|mlp_in)/kernel": P(None, "model"),
    "(qkv|mlp_in)/bias": P("model"),
    "(attention_out|mlp_out)/kernel": P("model", None),
    "patch_embed/kernel": P(),
    "position_embed|class_token": P(),
    "role:vector": P(),
    "role:head": P(),
}
_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "vit_mini": {"layers": 6, "heads": 3, "width": 96, "mlp_ratio": 2, "image": 28, "patch": 4, "classes": 10},
    "vit_tiny": {"layers": 12, "heads": 3, "width": 192},
    "vit_small": {"layers": 12, "heads": 6, "width": 384},
    "vit_base": {"layers": 12, "heads": 12, "width": 768},
}
_INIT = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """What a ViT is made of.

    Attributes:
        image: Pixels a side; positions are learned for this size.
        patch: Pixels a side of a patch; must divide `image`.
        layers: Blocks.
        heads: Attention heads; must divide `width`.
        width: E.
        mlp_ratio: Hidden width of a block's MLP over `width`.
        pool: "class" (a token of its own, as published) or "mean" (over the patches).
        classes: Width of the head.
        channels: Of the images.
        dropout: Rate after the embedding and on each residual branch, while training.
        matmul_dtype: Precision of the products' operands; see `products.matmul`.
    """

    image: int = 224
    patch: int = 16
    layers: int = 12
    heads: int = 3
    width: int = 192
    mlp_ratio: int = 4
    pool: Literal["class", "mean"] = "class"
    classes: int = 1000
    channels: int = 3
    dropout: float = 0.0
    matmul_dtype: Any = None

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: If a size is below 1, the patch does not divide the image, the heads not the width, or a choice
                is unknown.
        """
        names = ("image", "patch", "layers", "heads", "width", "mlp_ratio", "classes", "channels")
        check_sizes("ViTConfig", {name: getattr(self, name) for name in names})
        for part, whole in (("patch", "image"), ("heads", "width")):
            a, b = getattr(self, part), getattr(self, whole)
            if b % a:
                fits = divisors(b, 2 * a)
                raise ValueError(
                    f"models.ViTConfig: {part}={a} does not divide {whole}={b}. Tried: equal parts. Write {part} as "
                    f"one of {fits}."
                )
        check_choice("ViTConfig", "pool", self.pool, ("class", "mean"))
        check_rate("ViTConfig", "dropout", self.dropout)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "ViTConfig":
        """A named size, with fields replaced: "vit_tiny", "vit_small", "vit_base" (Ti, S, B over 224 pixels and patches
        of 16), or "vit_mini" (0.5 M parameters over 28 pixels and patches of 4).

        Raises:
            ValueError: If the name is unknown, or the overrides do not fit.
        """
        return cls(**{**preset("ViTConfig", _PRESETS, name), **overrides})

    @property
    def tokens(self) -> int:
        """T."""
        return (self.image // self.patch) ** 2 + (self.pool == "class")


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`, with dropout on both branches."""

    config: ViTConfig

    def _dense(self, features: int, name: str) -> Dense:
        init = nn.initializers.xavier_uniform()
        return Dense(features, matmul_dtype=self.config.matmul_dtype, kernel_init=init, name=name)

    @nn.nowrap
    def _drop(self, x: Array, key: Array | None, site: int) -> Array:
        return x if key is None else rng.dropout(jax.random.fold_in(key, site), x, self.config.dropout)

    @nn.compact
    def __call__(self, x: Array, key: Array | None) -> Array:
        """One layer on `x` [B, T, E]."""
        c = self.config
        # A head's queries, keys and values side by side, so that heads can be split over devices where they are.
        qkv = self._dense(3 * c.width, "qkv")(LayerNorm(1e-6, name="norm_attention")(x))
        qkv = qkv.reshape(*x.shape[:2], c.heads, 3, c.width // c.heads)
        qkv = sharding.constrain(qkv, "batch", "time", "heads", None, None)
        q, k, v = (qkv[..., i, :] for i in range(3))
        y = attention(q, k, v, causal=False, matmul_dtype=c.matmul_dtype)
        y = self._dense(c.width, "attention_out")(y.reshape(x.shape))
        x = sharding.constrain(x + self._drop(y, key, 0), "batch", "sequence", "embed")
        y = self._dense(c.mlp_ratio * c.width, "mlp_in")(LayerNorm(1e-6, name="norm_mlp")(x))
        y = sharding.constrain(y, "batch", "time", "mlp")
        y = self._dense(c.width, "mlp_out")(nn.gelu(y, approximate=False))
        return sharding.constrain(x + self._drop(y, key, 1), "batch", "sequence", "embed")


class ViT(nn.Module):
    """Images -> class logits. Parameters `patch_embed`, `class_token`, `position_embed`, `blocks_0/qkv/kernel`, ...

    Source:
        Dosovitskiy et al. 2021, arXiv:2010.11929; Ti and S from Touvron et al. 2021, arXiv:2012.12877.
    """

    config: ViTConfig

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """[B, image, image, channels] -> logits [B, classes], float32.

        Args:
            x: Images.
            train: Whether to drop out; needs rngs={"dropout": key}.

        Raises:
            ValueError: If `x` is not of that shape.
        """
        c = self.config
        check_input("ViT", x, c.channels)
        if x.shape[1:3] != (c.image, c.image):
            raise ValueError(
                f"models.ViT: x is {describe(x)} for positions over {c.image}x{c.image} pixels. Tried: images of that "
                f"size. Resize them (data.resize), or write image={x.shape[1]} in the config where they are square."
            )
        batch, side = x.shape[0], c.image // c.patch
        # A convolution whose windows lie side by side is a product with each patch.
        x = x.reshape(batch, side, c.patch, side, c.patch, c.channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, side * side, -1)
        x = Dense(c.width, matmul_dtype=c.matmul_dtype, name="patch_embed")(x)
        if c.pool == "class":
            zeros = declare(nn.initializers.zeros, "embedding")
            first = self.param("class_token", zeros, (1, c.width), jnp.float32)
            x = jnp.concatenate([jnp.broadcast_to(first.astype(x.dtype), (batch, 1, c.width)), x], axis=1)
        table = self.param("position_embed", declare(_INIT, "embedding"), (c.tokens, c.width), jnp.float32)
        x = sharding.constrain(x + table.astype(x.dtype)[None], "batch", "sequence", "embed")
        key = dropout_key("ViT", self) if train and c.dropout else None
        if key is not None:
            x = rng.dropout(rng.named_key(key, "embed"), x, c.dropout)
        for i in range(c.layers):
            own = None if key is None else jax.random.fold_in(key, i)
            x = layer(Block)(c, name=f"blocks_{i}")(x, own)
        x = LayerNorm(1e-6, name="norm_out")(x)
        x = x[:, 0] if c.pool == "class" else jnp.mean(x, axis=1)
        zeros = nn.initializers.zeros
        head = Dense(c.classes, matmul_dtype=c.matmul_dtype, role="head", kernel_init=zeros, name="head")
        return head(x).astype(jnp.float32)
