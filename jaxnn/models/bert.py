"""BERT and RoBERTa: a post-norm encoder over tokens, with the heads that they are used with.

Shape suffixes: B examples, T time, E width, H heads, D head width, V vocabulary, C classes.
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
from jaxnn.models.given import check_array, check_config, check_positions, check_rate, check_sizes, dropout_key
from jaxnn.models.layers import Dense, Embed, LayerNorm, along_last, declare, rows_of, within
from jaxnn.models.sizes import divisors
from jaxnn.tree import describe
from jaxnn.typing import Array

_INIT = nn.initializers.normal(0.02)
_ACTIVATIONS = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
}
HEADS = ("hidden", "pooled", "embed", "mlm", "classify", "tokens")


@dataclasses.dataclass(frozen=True)
class BERTConfig:
    """What a BERT is made of; the defaults are BERT base's, uncased.

    Attributes:
        vocab: Number of tokens.
        length: Longest sequence, in tokens.
        layers: Blocks.
        heads: Attention heads; must divide `width`.
        width: E.
        mlp_width: Hidden width of a block's MLP.
        types: Token types, for pairs; 0 for a model that has none.
        pad: The token that pads: no token attends to it, no mean counts it. None where nothing is padded.
        position_offset: Row of the position table that the first token reads. RoBERTa's are 2, and there a token's
            position counts the tokens before it that are no padding.
        activation: "gelu" (exact), "gelu_tanh", or "relu".
        epsilon: Of every LayerNorm.
        head: What comes out: "hidden" [B, T, E]; "pooled" [B, E], the first token's through a dense tanh layer; "embed"
            [B, E], the mean over tokens; "mlm" [B, T, V], logits by the transposed token table; "classify" [B, C];
            "tokens" [B, T, C].
        classes: C.
        normalize: Whether "embed" is scaled to length 1.
        pooling: What "classify" reads: the "first" token, or the "mean" over tokens.
        pooler: Whether there is a dense tanh layer after pooling. "hidden" and "embed" keep its parameters and do not
            use them.
        dropout: Rate after the embedding, on each residual branch and before a classifier, while training.
        attention_dropout: Rate on the attention's weights, while training. It costs passes over them; `models.load`
            does not take it over from a folder, but where you name it.
        scan: Whether one traced block runs as a scan over stacked parameters; None decides by depth and backend.
        matmul_dtype: Precision of the products' operands; see `products.matmul`.
    """

    vocab: int = 30522
    length: int = 512
    layers: int = 12
    heads: int = 12
    width: int = 768
    mlp_width: int = 3072
    types: int = 2
    pad: int | None = 0
    position_offset: int = 0
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    epsilon: float = 1e-12
    head: Literal["hidden", "pooled", "embed", "mlm", "classify", "tokens"] = "hidden"
    classes: int = 2
    normalize: bool = True
    pooling: Literal["first", "mean"] = "first"
    pooler: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.0
    scan: bool | None = None
    matmul_dtype: Any = None

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: If a size is out of range, the heads do not divide the width, or a choice is unknown.
        """
        where = "models.BERTConfig"
        sizes = ("vocab", "length", "layers", "heads", "width", "mlp_width", "classes")
        check_sizes("BERTConfig", {name: getattr(self, name) for name in sizes})
        check_sizes("BERTConfig", {"types": self.types, "position_offset": self.position_offset}, least=0)
        if self.width % self.heads:
            fits = divisors(self.width, 2 * self.heads)
            raise ValueError(
                f"{where}: heads={self.heads} do not divide width={self.width}. Tried: equal heads. Write heads as "
                f"one of {fits}."
            )
        if self.pad is not None and not 0 <= self.pad < self.vocab:
            raise ValueError(
                f"{where}: pad={self.pad} is not one of {self.vocab} tokens. Tried: ids in [0, vocab). Write pad=None "
                f"where nothing is padded."
            )
        for name in ("dropout", "attention_dropout"):
            check_rate("BERTConfig", name, getattr(self, name))
        choices = {"activation": tuple(_ACTIVATIONS), "head": HEADS, "pooling": ("first", "mean")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{where}: {name}={getattr(self, name)!r}. Tried: {', '.join(allowed)}. Write one of them."
                )
        if self.head == "pooled" and not self.pooler:
            raise ValueError(f"{where}: head='pooled' without a pooler. Tried: pooler=False. Write pooler=True.")

    @property
    def scanned(self) -> bool:
        """Whether the blocks are scanned: from 24 layers compile time outweighs the loop's speed, but not on CPU."""
        if self.scan is not None:
            return self.scan
        return self.layers >= 24 and jax.default_backend() != "cpu"


# How parameters are split over the devices that share a layer (`parallel.tensor`); as `gpt.RULES`.
RULES: Mapping[str, P] = {
    "(qkv|mlp_in)/kernel": P(None, "model"),
    "(qkv|mlp_in)/bias": P("model"),
    "(attention_out|mlp_out)/kernel": P("model", None),
    "embed/embedding": P("model", None),
    "mlm_bias": P("model"),
    "(position|type)_embed": P(),
    "(mlm_dense|pooler)/kernel": P(),
    "role:head": P(),
    "role:vector": P(),
}


class BERTBlock(nn.Module):
    """`x = norm(x + attention(x))`, then `norm(x + mlp(x))`, with dropout on both branches."""

    config: BERTConfig

    def _dense(self, features: int, name: str) -> Dense:
        return Dense(features, matmul_dtype=self.config.matmul_dtype, kernel_init=_INIT, name=name)

    def _drop(self, x: Array, key: Array | None, layer: Array | int, site: int) -> Array:
        if key is None:
            return x
        return rng.dropout(jax.random.fold_in(jax.random.fold_in(key, layer), site), x, self.config.dropout)

    @nn.compact
    def __call__(self, x: Array, layer: Array | int, key: Array | None, segment: Array | None) -> tuple[Array, None]:
        """One layer on `x` [B, T, E]; the None is what a scan wants."""
        c = self.config
        # A head's queries, keys and values side by side, as in `gpt`.
        y = sharding.constrain(x, "batch", "time", "embed")
        qkv = self._dense(3 * c.width, "qkv")(y).reshape(*x.shape[:2], c.heads, 3, c.width // c.heads)
        qkv = sharding.constrain(qkv, "batch", "time", "heads", None, None)
        q, k, v = (qkv[..., i, :] for i in range(3))
        drop: dict[str, Any] = {}
        if key is not None and c.attention_dropout:
            own = jax.random.fold_in(jax.random.fold_in(key, layer), 2)
            drop = {"dropout": c.attention_dropout, "key": own}
        y = attention(q, k, v, causal=False, segment=segment, matmul_dtype=c.matmul_dtype, **drop)
        y = sharding.constrain(y, "batch", "time", "heads", None).reshape(x.shape)
        y = self._dense(c.width, "attention_out")(y)
        x = LayerNorm(c.epsilon, name="norm_attention")(x + self._drop(y, key, layer, 0))
        x = sharding.constrain(x, "batch", "sequence", "embed")
        y = self._dense(c.mlp_width, "mlp_in")(sharding.constrain(x, "batch", "time", "embed"))
        y = sharding.constrain(y, "batch", "time", "mlp")
        y = self._dense(c.width, "mlp_out")(_ACTIVATIONS[c.activation](y))
        x = LayerNorm(c.epsilon, name="norm_mlp")(x + self._drop(y, key, layer, 1))
        return sharding.constrain(x, "batch", "sequence", "embed"), None


def masked_mean(x: Array, counts: Array) -> Array:
    """The mean of `x` [B, T, E] over the places of `counts` [B, T] that are not 0; 0 where there is none. [B, E]."""
    weights = (counts != 0).astype(x.dtype)[..., None]
    total = jnp.sum(weights, axis=1)
    return jnp.sum(x * weights, axis=1) / jnp.where(total > 0, total, 1)


class BERT(nn.Module):
    """Tokens -> what `config.head` says. Parameters `blocks_0/qkv/kernel`, ..., or `blocks/qkv/kernel` under a scan.

    The reference's architecture; dropout on the attention's weights is off unless asked for.

    Source:
        Devlin et al. 2018, arXiv:1810.04805; Liu et al. 2019, arXiv:1907.11692 (RoBERTa); Reimers and Gurevych 2019,
        arXiv:1908.10084 (the mean over tokens).
    """

    config: BERTConfig

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        *,
        train: bool = False,
        segment: Array | None = None,
        position: Array | None = None,
        types: Array | None = None,
        places: Array | None = None,
    ) -> Array:
        """What the head gives, float32; see `BERTConfig.head`.

        Args:
            tokens: Integers [B, T] in [0, vocab).
            train: Whether to drop out; needs rngs={"dropout": key}.
            segment: Integers [B, T]: tokens attend to those of their own segment, and segment 0 is padding. By default
                1 where the token is not `config.pad`, 0 where it is; so an attention mask may be given as it is.
            position: Positions [B, T] of packed documents, from 0.
            types: Token types [B, T] in [0, types); 0 where None.
            places: [B, N] in [0, T): "mlm" gives logits of these tokens only, [B, N, V], which is most of the work of
                a small model (`data.masked_tokens(most=N)` makes them). None for all.

        Raises:
            ValueError: If the tokens are not [B, T], longer than the table of positions, types are given to a model
                that has none, or places to another head than "mlm" or of another shape; if known tokens, types,
                positions or places are out of range (those that are traced give NaN).
            TypeError: If the tokens are not integers.
        """
        c = self.config
        check_config("BERT", c, BERTConfig)
        if places is not None and c.head != "mlm":
            raise ValueError(f"models.BERT: places for head={c.head!r}. Tried: head='mlm'. Leave places out.")
        if places is not None:
            check_array("BERT", "places", places, "[B, N]")
        if places is not None and (places.ndim != 2 or places.shape[0] != tokens.shape[0]):
            raise ValueError(
                f"models.BERT: places are {describe(places)} for tokens {describe(tokens)}. Tried: [B, N]. Write as "
                f"many for each example."
            )
        table = Embed(c.vocab, c.width, matmul_dtype=c.matmul_dtype, name="embed")
        x, segment, key = self._embed(table, tokens, train, segment, position, types)
        if c.scanned:
            scan = nn.scan(
                layer(BERTBlock),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast, nn.broadcast),
                length=c.layers,
            )
            x, _ = scan(c, name="blocks")(x, jnp.arange(c.layers), key, segment)
        else:
            for i in range(c.layers):
                x, _ = layer(BERTBlock)(c, name=f"blocks_{i}")(x, i, key, segment)
        if places is not None:
            places = within(places, x.shape[1], "models.BERT: places", "Count tokens from 0.")
            x = jnp.take_along_axis(x, places[..., None], axis=1, mode="fill")
        counts = jnp.ones(tokens.shape, jnp.int32) if segment is None else segment
        return self._head(table, x, counts, key).astype(jnp.float32)

    def _dense(self, features: int, name: str, role: str = "matrix") -> Dense:
        return Dense(features, matmul_dtype=self.config.matmul_dtype, role=role, kernel_init=_INIT, name=name)

    def _embed(
        self,
        table: Embed,
        tokens: Array,
        train: bool,
        segment: Array | None,
        position: Array | None,
        types: Array | None,
    ) -> tuple[Array, Array | None, Array | None]:
        """Activations [B, T, E], segments and the key of dropout."""
        c = self.config
        check_array("BERT", "tokens", tokens, "[B, T]")
        if tokens.ndim != 2:
            raise ValueError(
                f"models.BERT: tokens are {describe(tokens)}. Tried: [B, T]. Write tokens[None] for one sequence."
            )
        if tokens.shape[1] > c.length:
            raise ValueError(
                f"models.BERT: {tokens.shape[1]} tokens for {c.length} positions. Tried: T <= length. Cut the "
                f"sequences."
            )
        if types is not None and not c.types:
            raise ValueError("models.BERT: types for a model without any. Tried: config.types=0. Leave types out.")
        if types is not None:
            check_array("BERT", "types", types, "[B, T]")
        if types is not None and (types.shape != tokens.shape or not jnp.issubdtype(types.dtype, jnp.integer)):
            raise ValueError(
                f"models.BERT: types are {describe(types)} for tokens {describe(tokens)}. Tried: one integer a token. "
                f"Give 0 or 1 for a pair's texts."
            )
        x = table(tokens)
        if segment is None and c.pad is not None:
            segment = (tokens != c.pad).astype(jnp.int32)
        if position is None:
            position = jnp.arange(tokens.shape[1])
            if c.position_offset and segment is not None:
                position = jnp.maximum(jnp.cumsum(segment != 0, axis=1, dtype=jnp.int32) - 1, 0)
        else:
            check_positions("BERT", position, tokens)
        init = declare(_INIT, "embedding")
        places = self.param("position_embed", init, (c.length + c.position_offset, c.width), jnp.float32)
        x = x + rows_of(places, position + c.position_offset, "models.BERT: positions", "Count them from 0.")
        if c.types:
            kinds = self.param("type_embed", init, (c.types, c.width), jnp.float32)
            x = x + (
                kinds[0]
                if types is None
                else rows_of(kinds, types, "models.BERT: types", "Give 0 or 1 for a pair's texts.")
            )
        x = sharding.constrain(LayerNorm(c.epsilon, name="norm_embed")(x), "batch", "sequence", "embed")
        key = dropout_key("BERT", self) if train and (c.dropout or c.attention_dropout) else None
        return self._drop(x, key, "embed"), segment, key

    @nn.nowrap
    def _drop(self, x: Array, key: Array | None, name: str) -> Array:
        return x if key is None else rng.dropout(rng.named_key(key, name), x, self.config.dropout)

    def _head(self, table: Embed, x: Array, counts: Array, key: Array | None) -> Array:
        """Hidden states [B, T, E] -> what comes out."""
        c = self.config
        if c.head == "mlm":
            y = _ACTIVATIONS[c.activation](self._dense(c.width, "mlm_dense")(x))
            logits = table.attend(LayerNorm(c.epsilon, name="mlm_norm")(y))
            bias = self.param("mlm_bias", declare(nn.initializers.zeros, "vector"), (c.vocab,), jnp.float32)
            return sharding.constrain(logits + along_last(bias, logits), "batch", "time", "vocab")
        if c.head == "tokens":
            return self._dense(c.classes, "head", "head")(self._drop(x, key, "head"))
        mean = c.head == "embed" or (c.head == "classify" and c.pooling == "mean")
        pooled = masked_mean(x, counts) if mean else x[:, 0]
        after = pooled
        if c.pooler:
            after = jnp.tanh(self._dense(c.width, "pooler")(pooled))
        if c.head == "hidden":
            return x
        if c.head == "embed":
            if not c.normalize:
                return pooled
            norm = jnp.sqrt(jnp.sum(jnp.square(pooled.astype(jnp.float32)), axis=-1, keepdims=True))
            return pooled / jnp.maximum(norm, 1e-12)
        if c.head == "pooled":
            return after
        return self._dense(c.classes, "head", "head")(self._drop(after, key, "head"))
