"""GPT: a pre-norm decoder over tokens, from a few thousand parameters to GPT-2's exact architecture.

Shape suffixes: B examples, T time, E width, H heads, D head width, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxnn import rng, sharding
from jaxnn.models.attention import attention, rotary
from jaxnn.models.blocks import layer
from jaxnn.models.layers import Dense, Embed, LayerNorm, RMSNorm, declare
from jaxnn.tree import describe
from jaxnn.typing import Array, Params

# How parameters are split over the devices that share a layer (`parallel.tensor`): a block's first matrix by columns,
# its second by rows, so that it takes two all-reduces; tables by token.
RULES: Mapping[str, P] = {
    "(qkv|mlp_in)/kernel": P(None, "model"),
    "(qkv|mlp_in)/bias": P("model"),
    "(attention_out|mlp_out)/kernel": P("model", None),
    "embed/embedding": P("model", None),
    "head/kernel": P(None, "model"),
    "position_embed": P(),
    "role:vector": P(),
}
_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"layers": 2, "heads": 2, "width": 64, "length": 64},
    "small": {"layers": 4, "heads": 3, "width": 192, "length": 256},
    "gpt2": {
        "vocab": 50257,
        "layers": 12,
        "heads": 12,
        "width": 768,
        "length": 1024,
        "positions": "learned",
        "activation": "gelu",
        "norm": "layer",
        "bias": True,
    },
}


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """What a GPT is made of.

    Attributes:
        vocab: Number of tokens; 256 for bytes.
        length: Longest sequence, in tokens: the table's size for learned positions, the window of `generate`.
        layers: Blocks.
        heads: Attention heads; must divide `width`.
        width: E.
        mlp_ratio: Hidden width of a block's MLP over `width`.
        positions: "rotary", or "learned" (a table [length, width]).
        activation: "squared_relu" (So et al. 2021, arXiv:2109.08668), or "gelu" (tanh form, as GPT-2).
        norm: "rms", or "layer".
        tied: Whether the token table is the output matrix too.
        dropout: Rate after the embedding and on each residual branch, while training.
        scan: Whether one traced block runs as a scan over stacked parameters; None decides by depth and backend. The
            values are the same; `stack_layers` and `unstack_layers` convert parameters.
        matmul_dtype: Precision of the products' operands; see `products.matmul`.
        bias: Whether dense layers and LayerNorms have biases.
    """

    vocab: int = 256
    length: int = 256
    layers: int = 4
    heads: int = 4
    width: int = 192
    mlp_ratio: int = 4
    positions: Literal["rotary", "learned"] = "rotary"
    activation: Literal["squared_relu", "gelu"] = "squared_relu"
    norm: Literal["rms", "layer"] = "rms"
    tied: bool = True
    dropout: float = 0.0
    scan: bool | None = None
    matmul_dtype: Any = None
    bias: bool = False

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: If a size is below 1, the heads do not divide the width, or a choice is unknown.
        """
        for name in ("vocab", "length", "layers", "heads", "width", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"models.GPTConfig: {name}={getattr(self, name)!r}. Tried: a size. Write at least 1.")
        if self.width % self.heads:
            fits = [h for h in range(1, self.width + 1) if self.width % h == 0 and h <= 2 * self.heads]
            raise ValueError(
                f"models.GPTConfig: heads={self.heads} do not divide width={self.width}. Tried: equal heads. "
                f"Write heads as one of {fits}."
            )
        if self.positions == "rotary" and (self.width // self.heads) % 2:
            raise ValueError(
                f"models.GPTConfig: width={self.width} over heads={self.heads} is {self.width // self.heads} a head. "
                f"Tried: rotary pairs. Write an even head width, or positions='learned'."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"models.GPTConfig: dropout={self.dropout!r}. Tried: a rate in [0, 1). Write 0.1, say.")
        choices = {"positions": ("rotary", "learned"), "activation": ("squared_relu", "gelu"), "norm": ("rms", "layer")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"models.GPTConfig: {name}={getattr(self, name)!r}. Tried: {', '.join(allowed)}. Write one of them."
                )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "GPTConfig":
        """A named size, with fields replaced: "tiny" (0.1 M parameters), "small" (1.8 M) or "gpt2" (124.4 M).

        Raises:
            ValueError: If the name is unknown, or the overrides do not fit.
        """
        if name not in _PRESETS:
            raise ValueError(
                f"models.GPTConfig.preset: {name!r} is unknown. Tried: {', '.join(_PRESETS)}. Write one of them."
            )
        return cls(**{**_PRESETS[name], **overrides})

    @property
    def scanned(self) -> bool:
        """Whether the blocks are scanned: from 24 layers compile time outweighs the loop's speed, but not on CPU."""
        if self.scan is not None:
            return self.scan
        return self.layers >= 24 and jax.default_backend() != "cpu"


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`, with dropout on both branches."""

    config: GPTConfig

    def _norm(self, name: str) -> nn.Module:
        if self.config.norm == "rms":
            return RMSNorm(name=name)
        return LayerNorm(use_bias=self.config.bias, name=name)

    def _dense(self, features: int, name: str, residual: bool = False) -> Dense:
        # Each block adds two branches to the residual stream: their scale keeps its variance independent of depth.
        std = 0.02 / math.sqrt(2 * self.config.layers) if residual else 0.02
        return Dense(
            features,
            use_bias=self.config.bias,
            matmul_dtype=self.config.matmul_dtype,
            kernel_init=nn.initializers.normal(std),
            name=name,
        )

    def _drop(self, x: Array, key: Array | None, layer: Array | int, site: int) -> Array:
        if key is None:
            return x
        return rng.dropout(jax.random.fold_in(jax.random.fold_in(key, layer), site), x, self.config.dropout)

    @nn.compact
    def __call__(
        self, x: Array, layer: Array | int, key: Array | None, positions: Array, segment: Array | None
    ) -> tuple[Array, None]:
        """One layer on `x` [B, T, E]; the None is what a scan wants."""
        c = self.config
        # A head's queries, keys and values side by side, so that heads can be split over devices where they are.
        qkv = self._dense(3 * c.width, "qkv")(self._norm("norm_attention")(x))
        qkv = qkv.reshape(*x.shape[:2], c.heads, 3, c.width // c.heads)
        qkv = sharding.constrain(qkv, "batch", "time", "heads", None, None)
        q, k, v = (qkv[..., i, :] for i in range(3))
        if c.positions == "rotary":
            q, k = rotary(q, positions), rotary(k, positions)
        y = attention(q, k, v, causal=True, segment=segment, matmul_dtype=c.matmul_dtype)
        y = self._dense(c.width, "attention_out", residual=True)(y.reshape(x.shape))
        x = sharding.constrain(x + self._drop(y, key, layer, 0), "batch", "sequence", "embed")
        y = self._dense(c.mlp_ratio * c.width, "mlp_in")(self._norm("norm_mlp")(x))
        y = sharding.constrain(y, "batch", "time", "mlp")
        y = jnp.square(nn.relu(y)) if c.activation == "squared_relu" else nn.gelu(y, approximate=True)
        y = self._dense(c.width, "mlp_out", residual=True)(y)
        return sharding.constrain(x + self._drop(y, key, layer, 1), "batch", "sequence", "embed"), None


class GPT(nn.Module):
    """Tokens -> next-token logits. Parameters `blocks_0/qkv/kernel`, ..., or stacked `blocks/qkv/kernel` under a scan.

    GPT-2's architecture with the preset "gpt2", but for dropout on the attention weights, which no preset has.

    Source:
        Radford et al. 2019, "Language models are unsupervised multitask learners".
    """

    config: GPTConfig

    @nn.compact
    def __call__(
        self, tokens: Array, *, train: bool = False, segment: Array | None = None, position: Array | None = None
    ) -> Array:
        """Logits [B, T, V], float32, of the token that follows each.

        Args:
            tokens: Integers [B, T] in [0, vocab).
            train: Whether to drop out; needs rngs={"dropout": key}.
            segment: Document ids [B, T]; attention stays within a document.
            position: Positions [B, T] of packed documents; 0, 1, ... where None.

        Raises:
            ValueError: If the tokens are not [B, T], or longer than the table of learned positions.
            TypeError: If they are not integers.
        """
        c = self.config
        if tokens.ndim != 2:
            raise ValueError(
                f"models.GPT: tokens are {describe(tokens)}. Tried: [B, T]. Write tokens[None] for one sequence."
            )
        if c.positions == "learned" and tokens.shape[1] > c.length:
            raise ValueError(
                f"models.GPT: {tokens.shape[1]} tokens for {c.length} learned positions. Tried: T <= length. "
                f"Cut the sequences, or write GPTConfig(length={tokens.shape[1]})."
            )
        embed = Embed(c.vocab, c.width, matmul_dtype=c.matmul_dtype, name="embed")
        x = embed(tokens)
        positions = jnp.arange(tokens.shape[1]) if position is None else position
        if c.positions == "learned":
            init = declare(nn.initializers.normal(0.02), "embedding")
            table = self.param("position_embed", init, (c.length, c.width), jnp.float32)
            x = x + jnp.take(table, positions, axis=0)
        x = sharding.constrain(x, "batch", "sequence", "embed")
        key = self.make_rng("dropout") if train and c.dropout else None
        if key is not None:
            x = rng.dropout(rng.named_key(key, "embed"), x, c.dropout)
        if c.scanned:
            scan = nn.scan(
                layer(Block),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
                length=c.layers,
            )
            x, _ = scan(c, name="blocks")(x, jnp.arange(c.layers), key, positions, segment)
        else:
            for i in range(c.layers):
                x, _ = layer(Block)(c, name=f"blocks_{i}")(x, i, key, positions, segment)
        x = RMSNorm(name="norm_out")(x) if c.norm == "rms" else LayerNorm(use_bias=c.bias, name="norm_out")(x)
        if c.tied:
            logits = embed.attend(x)
        else:
            init = nn.initializers.normal(0.02)
            head = Dense(
                c.vocab, use_bias=False, matmul_dtype=c.matmul_dtype, role="head", kernel_init=init, name="head"
            )
            logits = head(x)
        return sharding.constrain(logits.astype(jnp.float32), "batch", "time", "vocab")


def stack_layers(params: Params) -> Params:
    """Parameters of the loop's layout (`blocks_0`, `blocks_1`, ...) in the scan's (`blocks`, stacked on axis 0).

    Raises:
        ValueError: If there are no such blocks.
    """
    names = sorted((k for k in params if k.startswith("blocks_")), key=lambda k: int(k.rsplit("_", 1)[1]))
    if not names:
        raise ValueError(
            f"models.stack_layers: found {sorted(params)}. Tried: blocks_0, blocks_1, .... Give a loop's params."
        )
    rest = {k: v for k, v in params.items() if k not in names}
    return {**rest, "blocks": jax.tree.map(lambda *xs: jnp.stack(xs), *(params[k] for k in names))}


def unstack_layers(params: Params) -> Params:
    """The inverse of `stack_layers`.

    Raises:
        ValueError: If there is no stacked `blocks`.
    """
    if "blocks" not in params:
        raise ValueError(f"models.unstack_layers: found {sorted(params)}. Tried: blocks. Give a scan's params.")
    rest = {k: v for k, v in params.items() if k != "blocks"}
    layers = jax.tree.leaves(params["blocks"])[0].shape[0]
    return {**rest, **{f"blocks_{i}": jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(layers)}}
