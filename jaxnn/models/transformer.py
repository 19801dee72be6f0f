"""The encoder-decoder transformer in two layouts, T5's and Marian's, with a cache of keys and values for writing.

Shape suffixes: B examples, S source and T target positions, E width, H heads, D head width, F hidden, V vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxnn import rng, sharding
from jaxnn.models.attention import attention, attention_weights
from jaxnn.models.attention.rules import relative_bias
from jaxnn.models.blocks import layer
from jaxnn.models.given import check_config, dropout_key
from jaxnn.models.layers import Dense, Embed, LayerNorm, RMSNorm, declare
from jaxnn.models.seq2seq import check_pair
from jaxnn.models.transformer_config import TransformerConfig
from jaxnn.typing import Array, HostArray

_ACTIVATIONS = {"relu": nn.relu, "gelu": lambda x: nn.gelu(x, approximate=True), "silu": nn.silu}


def sinusoids(positions: Array, width: int) -> Array:
    """[T] -> [T, width]: the sines of all frequencies, then their cosines.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.5, in Marian's order.
    """
    rates = 10_000.0 ** (-jnp.arange(width // 2, dtype=jnp.float32) * 2 / width)
    angles = positions[:, None].astype(jnp.float32) * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _bucket_table(buckets: int, distance: int) -> HostArray:
    """The bucket of each distance 0 to `distance`: one each up to half the buckets, then of logarithmic width."""
    exact = buckets // 2
    far = np.arange(distance + 1, dtype=np.float32)
    wide = exact + (np.log(np.maximum(far, 1) / exact) / math.log(distance / exact) * (buckets - exact)).astype(int)
    return np.where(far < exact, far, np.minimum(wide, buckets - 1)).astype(np.int32)


def relative_buckets(offsets: Array, buckets: int, distance: int, causal: bool) -> Array:
    """The bucket in [0, buckets) of each offset (key's position minus query's), integers of any shape.

    Looking both ways, half of the buckets is for keys that come later; causally, those share bucket 0.

    Source:
        Raffel et al. 2020, arXiv:1910.10683, section 2.1; the logarithm as in Mesh TensorFlow.
    """
    if causal:
        return jnp.take(_bucket_table(buckets, distance), jnp.clip(-offsets, 0, distance))
    later = jnp.where(offsets > 0, buckets // 2, 0)
    return later + jnp.take(_bucket_table(buckets // 2, distance), jnp.minimum(jnp.abs(offsets), distance))


# How parameters are split over the devices that share a layer (`parallel.tensor`); as `gpt.RULES`.
RULES: Mapping[str, P] = {
    "(attention|cross)/[qkv]/kernel": P(None, "model"),
    "(attention|cross)/[qkv]/bias": P("model"),
    "(attention|cross)/out/kernel": P("model", None),
    "mlp_(in|gate)/kernel": P(None, "model"),
    "mlp_(in|gate)/bias": P("model"),
    "mlp_out/kernel": P("model", None),
    "(encoder|decoder)_bias": P(None, "model"),
    "embed/embedding": P("model", None),
    "head/kernel": P(None, "model"),
    "logits_bias": P("model"),
    "role:vector": P(),
}


class Attention(nn.Module):
    """Multi-head attention whose keys and values may come from elsewhere.

    `q`, `k`, `v` and `out`, [E, H D] and back.
    """

    config: TransformerConfig

    def setup(self) -> None:
        """Declares the projections."""
        c = self.config
        if c.layout == "t5":  # scores are not divided by sqrt(D), so that the queries are made smaller
            q, kv, out = (nn.initializers.normal(n**-0.5) for n in (c.width * (c.inner // c.heads), c.width, c.inner))
        else:
            q = kv = out = nn.initializers.glorot_uniform()
        settings: dict[str, Any] = {"use_bias": c.layout == "marian", "matmul_dtype": c.matmul_dtype}
        self.q = Dense(c.inner, kernel_init=q, **settings)
        self.k = Dense(c.inner, kernel_init=kv, **settings)
        self.v = Dense(c.inner, kernel_init=kv, **settings)
        self.out = Dense(c.width, kernel_init=out, **settings)

    def _heads(self, x: Array) -> Array:
        return sharding.constrain(x.reshape(*x.shape[:2], self.config.heads, -1), "batch", "time", "heads", None)

    def project(self, x: Array) -> tuple[Array, Array]:
        """Keys and values [B, S, H, D] of what is read, [B, S, E]."""
        return self._heads(self.k(x)), self._heads(self.v(x))

    def __call__(
        self, x: Array, keys: Array, values: Array, looks: bool = False, **rules: Any
    ) -> tuple[Array, Array | None]:
        """What `x` [B, T, E] finds by `attention`'s `rules`, [B, T, E], and the weights [B, H, T, S] if it `looks`."""
        q = self._heads(self.q(x))
        scale = 1.0 if self.config.layout == "t5" else None
        y = attention(q, keys, values, scale=scale, **rules)
        found = attention_weights(q, keys, mask=rules["mask"], scale=scale) if looks else None
        return self.out(y.reshape(*x.shape[:2], -1)), found


class Block(nn.Module):
    """Attention to its own sequence, in a decoder attention to the source, and an MLP, each a residual branch."""

    config: TransformerConfig
    decoder: bool = False

    def setup(self) -> None:
        """Declares the branches."""
        c = self.config
        check_config("Transformer", c, TransformerConfig)
        t5 = c.layout == "t5"
        self.attention = Attention(c)
        if self.decoder:
            self.cross = Attention(c)
            self.norm_cross = self._norm()

        def dense(features: int, fan: int) -> Dense:
            init = nn.initializers.normal(fan**-0.5) if t5 else nn.initializers.glorot_uniform()
            return Dense(features, use_bias=not t5, matmul_dtype=c.matmul_dtype, kernel_init=init)

        self.norm_attention, self.norm_mlp = self._norm(), self._norm()
        self.mlp_in, self.mlp_out = dense(c.hidden, c.width), dense(c.width, c.hidden)
        if c.gated:
            self.mlp_gate = dense(c.hidden, c.width)

    def _norm(self) -> nn.Module:
        return RMSNorm() if self.config.layout == "t5" else LayerNorm()

    def _mlp(self, x: Array) -> Array:
        activation = _ACTIVATIONS[self.config.activation]
        y = activation(self.mlp_gate(x)) * self.mlp_in(x) if self.config.gated else activation(self.mlp_in(x))
        return self.mlp_out(sharding.constrain(y, "batch", "time", "mlp"))

    def __call__(
        self,
        x: Array,
        rules: dict[str, Any],
        seen: Array | None = None,
        seen_mask: Array | None = None,
        key: Array | None = None,
        cache: dict[str, Array] | None = None,
        i: Array | None = None,
        looks: bool = False,
    ) -> tuple[Array, dict[str, Array], Array | None]:
        """`x` [B, T, E] one layer on, its cache where it was given one, and the weights [B, H, T, S] if it `looks`.

        Args:
            x: Activations; with a cache those of position `i` alone.
            rules: Of the attention to its own sequence, as `attention` takes them.
            seen: What the encoder made, [B, S, E]; a cache has its keys and values.
            seen_mask: Which of it may be read, [B, S].
            key: For dropout; None drops nothing.
            cache: "k", "v" [B, L, H, D] and "seen_k", "seen_v" [B, S, H, D].
            i: Position of `x` in the cache.
            looks: Whether to give the weights of the attention to `seen`.
        """
        pre = self.config.layout == "t5"
        cache = dict(cache or {})
        found = None

        def add(x: Array, y: Array, norm: Any, site: int) -> Array:
            if key is not None:
                y = rng.dropout(jax.random.fold_in(key, site), y, self.config.dropout)
            y = x + y if pre else norm(x + y)
            return sharding.constrain(y, "batch", "sequence", "embed")

        y = self.norm_attention(x) if pre else x
        k, v = self.attention.project(y)
        if i is not None:
            k, v = (
                lax.dynamic_update_slice(cache[n], new.astype(cache[n].dtype), (0, i, 0, 0))
                for n, new in (("k", k), ("v", v))
            )
            cache |= {"k": k, "v": v}
        x = add(x, self.attention(y, k, v, **rules)[0], self.norm_attention, 0)
        if self.decoder:
            y = self.norm_cross(x) if pre else x
            k, v = (cache["seen_k"], cache["seen_v"]) if seen is None else self.cross.project(seen)
            y, found = self.cross(y, k, v, looks, causal=False, mask=seen_mask)
            x = add(x, y, self.norm_cross, 1)
        x = add(x, self._mlp(self.norm_mlp(x) if pre else x), self.norm_mlp, 2)
        return x, cache, found

    def begin(self, seen: Array, length: int) -> dict[str, Array]:
        """A decoder layer's cache for `length` positions."""
        k, v = self.cross.project(seen)
        empty = jnp.zeros((seen.shape[0], length, *k.shape[2:]), k.dtype)
        return {"k": empty, "v": empty, "seen_k": k, "seen_v": v}


class Transformer(nn.Module):
    """Source and target tokens -> logits of the next target token, by teacher forcing; `models.translate` writes.

    Of the references' dropout, that on attention weights and inside the MLP is left out.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762; Raffel et al. 2020, arXiv:1910.10683; Junczys-Dowmunt et al. 2018,
        arXiv:1804.00344.
    """

    config: TransformerConfig

    def setup(self) -> None:
        """Declares the parts."""
        c = self.config
        t5 = c.layout == "t5"
        self.embed = Embed(c.vocab, c.width, nn.initializers.normal(1.0 if t5 else c.width**-0.5), c.matmul_dtype)
        self.encoder = [layer(Block)(c) for _ in range(c.layers)]
        self.decoder = [layer(Block)(c, decoder=True) for _ in range(c.decoder_layers or c.layers)]
        if t5:
            self.norm_encoder, self.norm_decoder = RMSNorm(), RMSNorm()
            init = declare(nn.initializers.normal(c.width**-0.5), "embedding")
            self.encoder_bias = self.param("encoder_bias", init, (c.buckets, c.heads), jnp.float32)
            self.decoder_bias = self.param("decoder_bias", init, (c.buckets, c.heads), jnp.float32)
        else:
            zeros = declare(nn.initializers.zeros, "vector")
            self.logits_bias = self.param("logits_bias", zeros, (c.vocab,), jnp.float32)
        if not c.tied:
            init = nn.initializers.normal(c.width**-0.5)
            self.head = Dense(c.vocab, use_bias=False, matmul_dtype=c.matmul_dtype, role="head", kernel_init=init)

    def _embedded(self, tokens: Array, positions: Array, key: Array | None, site: int) -> Array:
        c = self.config
        x = self.embed(tokens)
        if c.layout == "marian":
            x = x * math.sqrt(c.width) + sinusoids(positions, c.width)[None].astype(x.dtype)
        x = x if key is None else rng.dropout(jax.random.fold_in(key, site), x, c.dropout)
        return sharding.constrain(x, "batch", "sequence", "embed")

    def _relative(self, table: str, causal: bool) -> Array | None:
        """What a sequence's attention to itself adds by relative position, [H, 2 R + 1] (see `attention`)."""
        if self.config.layout != "t5":
            return None
        reach = self.config.distance
        at = relative_buckets(jnp.arange(-reach, reach + 1), self.config.buckets, reach, causal)
        return jnp.take(getattr(self, table), at, axis=0).T

    def encode(self, source: Array, key: Array | None = None) -> tuple[Array, Array]:
        """What the decoder reads [B, S, E], and where it may, [B, S]: not at padding."""
        mask = source != self.config.pad
        rules = {"causal": False, "mask": mask, "relative": self._relative("encoder_bias", False)}
        x = self._embedded(source, jnp.arange(source.shape[1]), key, 0)
        for i, block in enumerate(self.encoder):
            x, _, _ = block(x, rules, None, None, _sub(key, 2 + i))
        return (self.norm_encoder(x) if self.config.layout == "t5" else x), mask

    def _logits(self, x: Array) -> Array:
        c = self.config
        if c.layout == "t5":
            x = self.norm_decoder(x)
            x = x / math.sqrt(c.width) if c.tied else x
        logits = (self.embed.attend(x) if c.tied else self.head(x)).astype(jnp.float32)
        return logits if c.layout == "t5" else logits + self.logits_bias[None, None].astype(jnp.float32)

    def __call__(
        self, source: Array, target: Array | None = None, *, train: bool = False, attention: bool = False
    ) -> Any:
        """Logits [B, T, V], float32, of the token that follows each target token.

        Args:
            source: Integers [B, S], padded by `pad`.
            target: Integers [B, T] that begin with `start`; the source itself where None.
            train: Whether to drop out; needs rngs={"dropout": key}.
            attention: Whether to return (logits, weights [B, layers, H, T, S] of the decoder's look at the source).

        Raises:
            ValueError: If the shapes are not [B, S] and [B, T].
            TypeError: If they are not integers.
        """
        target = source if target is None else target
        check_pair("models.Transformer", source, target)
        key = dropout_key("Transformer", self) if train and self.config.dropout else None
        seen, mask = self.encode(source, key)
        rules = {"causal": True, "relative": self._relative("decoder_bias", True)}
        x = self._embedded(target, jnp.arange(target.shape[1]), key, 1)
        maps = []
        for i, block in enumerate(self.decoder):
            x, _, found = block(x, rules, seen, mask, _sub(key, 2 + self.config.layers + i), looks=attention)
            maps.append(found)
        logits = sharding.constrain(self._logits(x), "batch", "time", "vocab")
        return (logits, jnp.stack(maps, axis=1)) if attention else logits

    def begin(self, source: Array, length: int) -> dict[str, Any]:
        """The cache for `length` calls of `step`: keys and values of the source, room for those of the target."""
        seen, mask = self.encode(source)
        return {"layers": [block.begin(seen, length) for block in self.decoder], "mask": mask}

    def step(self, tokens: Array, cache: dict[str, Any], i: Array) -> tuple[Array, dict[str, Any]]:
        """Tokens [B] at position i -> logits [B, V] of the next ones, and the cache."""
        i = jnp.asarray(i)
        batch, length = cache["layers"][0]["k"].shape[:2]
        rules: dict[str, Any] = {"causal": False, "mask": jnp.broadcast_to(jnp.arange(length) <= i, (batch, length))}
        if (relative := self._relative("decoder_bias", True)) is not None:
            rules["bias"] = relative_bias(relative, i, 0, 1, length)[None]
        x = self._embedded(tokens[:, None], i[None], None, 0)
        layers = []
        for block, old in zip(self.decoder, cache["layers"]):
            x, new, _ = block(x, rules, None, cache["mask"], None, old, i)
            layers.append(new)
        return self._logits(x)[:, 0], {**cache, "layers": layers}


def _sub(key: Array | None, site: int) -> Array | None:
    return None if key is None else jax.random.fold_in(key, site)
