"""GPT: a pre-norm decoder over tokens, from a few thousand parameters to the architectures of GPT-2, Llama, Mistral and
Qwen2.

Shape suffixes: B examples, T time, E width, H heads, K heads of keys and values, D head width, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxnn import rng, sharding
from jaxnn.models.attention import Cache, alibi_slopes, attention, cached_attention, rotary
from jaxnn.models.blocks import layer
from jaxnn.models.given import check_array, check_config, check_positions, dropout_key
from jaxnn.models.gpt_config import GPTConfig as GPTConfig
from jaxnn.models.layers import Dense, Embed, LayerNorm, RMSNorm, declare, rows_of
from jaxnn.tree import describe
from jaxnn.typing import Array, Params

# How parameters are split over the devices that share a layer (`parallel.tensor`): a block's first matrix by columns,
# its second by rows, so that it takes two all-reduces; tables by token.
RULES: Mapping[str, P] = {
    "(qkv|mlp_in|mlp_gate)/kernel": P(None, "model"),
    "(qkv|mlp_in|mlp_gate)/bias": P("model"),
    "(attention_out|mlp_out)/kernel": P("model", None),
    "embed/embedding": P("model", None),
    "head/kernel": P(None, "model"),
    "position_embed": P(),
    "role:vector": P(),
}


def _norm(c: GPTConfig, name: str) -> nn.Module:
    if c.norm == "rms":
        return RMSNorm(epsilon=1e-6 if c.epsilon is None else c.epsilon, name=name)
    return LayerNorm(epsilon=1e-5 if c.epsilon is None else c.epsilon, use_bias=c.bias, name=name)


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`, with dropout on both branches."""

    config: GPTConfig

    def _dense(self, features: int, name: str, residual: bool = False, bias: bool | None = None) -> Dense:
        # Each block adds two branches to the residual stream: their scale keeps its variance independent of depth.
        std = 0.02 / math.sqrt(2 * self.config.layers) if residual else 0.02
        return Dense(
            features,
            use_bias=self.config.bias if bias is None else bias,
            matmul_dtype=self.config.matmul_dtype,
            kernel_init=nn.initializers.normal(std),
            name=name,
        )

    def _drop(self, x: Array, key: Array | None, layer: Array | int, site: int) -> Array:
        if key is None:
            return x
        return rng.dropout(jax.random.fold_in(jax.random.fold_in(key, layer), site), x, self.config.dropout)

    def _attend(
        self, q: Array, k: Array, v: Array, segment: Array | None, past: tuple[Any, ...], own: Any, key: Array | None
    ) -> Array:
        c = self.config
        alibi = jnp.asarray(alibi_slopes(c.heads)) if c.positions == "alibi" else None
        start, filled = past
        if own is not None:
            return cached_attention(q, k, v, *own, filled=filled, start=start, window=c.window, alibi=alibi)
        mask = None if start is None else jnp.arange(k.shape[1])[None] >= start[:, None]
        rules: dict[str, Any] = {"segment": segment, "mask": mask, "window": c.window, "alibi": alibi}
        if key is not None and c.attention_dropout:
            rules |= {"dropout": c.attention_dropout, "key": key}
        return attention(q, k, v, causal=True, matmul_dtype=c.matmul_dtype, form=c.attention, **rules)

    @nn.compact
    def __call__(
        self,
        x: Array,
        layer: Array | int,
        key: Array | None,
        positions: Array,
        segment: Array | None,
        past: tuple[Any, ...] = (None, None),
        own: tuple[Array, Array] | None = None,
    ) -> tuple[Array, Any]:
        """One layer on `x` [B, T, E], and what a cache wants of it: keys and values [B, T, K, D], or None.

        `past` is a cache's (start, filled), `own` its keys and values of this layer where some slots are filled.
        """
        c = self.config
        groups = c.heads // c.key_heads
        # The queries of a group, its key and its value side by side, so that heads can be split over devices with them.
        y = sharding.constrain(_norm(c, "norm_attention")(x), "batch", "time", "embed")
        qkv = self._dense(c.key_heads * (groups + 2) * c.each, "qkv", bias=c.qkv_bias)(y)
        qkv = qkv.reshape(*x.shape[:2], c.key_heads, groups + 2, c.each)
        qkv = sharding.constrain(qkv, "batch", "time", "heads", None, None)
        q = qkv[..., :groups, :].reshape(*x.shape[:2], c.heads, c.each)
        k, v = (qkv[..., groups + i, :] for i in range(2))
        if c.positions == "rotary":
            q, k = (rotary(y, positions, c.rotary_base, c.rotary_scaling) for y in (q, k))
        own_key = None if key is None else jax.random.fold_in(jax.random.fold_in(key, layer), 2)
        y = self._attend(q, k, v, segment, past, own, own_key)
        y = sharding.constrain(y, "batch", "time", "heads", None).reshape(*x.shape[:2], -1)
        y = self._dense(c.width, "attention_out", residual=True)(y)
        x = sharding.constrain(x + self._drop(y, key, layer, 0), "batch", "sequence", "embed")
        y = sharding.constrain(_norm(c, "norm_mlp")(x), "batch", "time", "embed")
        gate = self._dense(c.hidden, "mlp_gate")(y) if c.activation == "swiglu" else None
        y = sharding.constrain(self._dense(c.hidden, "mlp_in")(y), "batch", "time", "mlp")
        if gate is not None:
            y = nn.silu(sharding.constrain(gate, "batch", "time", "mlp")) * y
        else:
            y = jnp.square(nn.relu(y)) if c.activation == "squared_relu" else nn.gelu(y, approximate=True)
        y = self._dense(c.width, "mlp_out", residual=True)(y)
        x = sharding.constrain(x + self._drop(y, key, layer, 1), "batch", "sequence", "embed")
        return x, None if past[0] is None else (k, v)


class GPT(nn.Module):
    """Tokens -> next-token logits. Parameters `blocks_0/qkv/kernel`, ..., or stacked `blocks/qkv/kernel` under a scan.

    GPT-2's architecture with the preset "gpt2"; dropout on the attention's weights is off unless asked for.

    Source:
        Radford et al. 2019, "Language models are unsupervised multitask learners"; Touvron et al. 2023,
        arXiv:2302.13971 (Llama); Jiang et al. 2023, arXiv:2310.06825 (Mistral); Yang et al. 2024, arXiv:2407.10671
        (Qwen2).
    """

    config: GPTConfig

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        *,
        train: bool = False,
        segment: Array | None = None,
        position: Array | None = None,
        cache: Cache | None = None,
        last: bool = False,
    ) -> Any:
        """Logits [B, T, V], float32, of the token that follows each.

        Args:
            tokens: Integers [B, T] in [0, vocab).
            train: Whether to drop out; needs rngs={"dropout": key}.
            segment: Document ids [B, T]; attention stays within a document.
            position: Positions [B, T] of packed documents; 0, 1, ... where None.
            cache: Keys and values of what came before (see `init_cache`); the result is then (logits, cache with these
                tokens' in it). There must be room for T more. `segment` and `position` are then the cache's.
            last: Whether to give the last token's logits only, [B, 1, V].

        Raises:
            ValueError: If the tokens are not [B, T], or longer than the table of learned positions; if positions are
                not one a token.
            TypeError: If they are not integers.
        """
        c = self.config
        check_config("GPT", c, GPTConfig)
        check_array("GPT", "tokens", tokens, "[B, T]")
        if tokens.ndim != 2:
            raise ValueError(
                f"models.GPT: tokens are {describe(tokens)}. Tried: [B, T]. Write tokens[None] for one sequence."
            )
        if c.positions == "learned" and cache is None and tokens.shape[1] > c.length:
            raise ValueError(
                f"models.GPT: {tokens.shape[1]} tokens for {c.length} learned positions. Tried: T <= length. "
                f"Cut the sequences, or write GPTConfig(length={tokens.shape[1]})."
            )
        embed = Embed(c.vocab, c.width, matmul_dtype=c.matmul_dtype, name="embed")
        x = embed(tokens)
        if position is not None:
            check_positions("GPT", position, tokens)
        positions = jnp.arange(tokens.shape[1]) if position is None else position
        if cache is not None:
            positions = cache.positions(tokens.shape[1])
        if c.positions == "learned":
            init = declare(nn.initializers.normal(0.02), "embedding")
            table = self.param("position_embed", init, (c.length, c.width), jnp.float32)
            x = x + rows_of(table, positions, "models.GPT: positions", "Count them from 0.")
        x = sharding.constrain(x, "batch", "sequence", "embed")
        key = dropout_key("GPT", self) if train and (c.dropout or c.attention_dropout) else None
        if key is not None:
            x = rng.dropout(rng.named_key(key, "embed"), x, c.dropout)
        past = (None, None) if cache is None else (cache.start, cache.filled)
        read = cache is not None and not cache.empty
        if c.scanned:
            scan = nn.scan(
                layer(Block),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast, 0),
                length=c.layers,
            )
            own = (cache.keys, cache.values) if cache is not None and read else None
            x, new = scan(c, name="blocks")(x, jnp.arange(c.layers), key, positions, segment, past, own)
        else:
            each = []
            for i in range(c.layers):
                own = (cache.keys[i], cache.values[i]) if cache is not None and read else None
                x, kv = layer(Block)(c, name=f"blocks_{i}")(x, i, key, positions, segment, past, own)
                each.append(kv)
            new = tuple(zip(*each)) if cache is not None else None
        x = _norm(c, "norm_out")(x[:, -1:] if last else x)
        if c.tied:
            logits = embed.attend(x)
        else:
            init = nn.initializers.normal(0.02)
            head = Dense(
                c.vocab, use_bias=False, matmul_dtype=c.matmul_dtype, role="head", kernel_init=init, name="head"
            )
            logits = head(x)
        logits = sharding.constrain(logits.astype(jnp.float32), "batch", "time", "vocab")
        return logits if cache is None or new is None else (logits, cache.written(*new))


def init_cache(config: GPTConfig, batch: int, slots: int, start: Array | None = None) -> Cache:
    """An empty cache for `batch` texts of at most `slots` tokens.

    Args:
        config: The model's.
        batch: B.
        slots: Its size in tokens: padding, prompt and what is to follow.
        start: [B], how many tokens of padding come before each text; None for none.
    """
    dtype = config.matmul_dtype or jnp.float32
    shape = (batch, config.key_heads, slots, config.each)
    if config.scanned:
        keys, values = (jnp.zeros((config.layers, *shape), dtype) for _ in range(2))
    else:
        keys, values = (tuple(jnp.zeros(shape, dtype) for _ in range(config.layers)) for _ in range(2))
    return Cache(keys, values, jnp.zeros(batch, jnp.int32) if start is None else start, 0)


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
