"""Recurrent translation with additive attention: a bidirectional encoder, a decoder that looks back at all of it.

Shape suffixes: B examples, S source and T target positions, E embedding, H state, A attention width, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxnn import lookups, rng, sharding
from jaxnn.models import rnn
from jaxnn.models.given import check_array, check_config, check_rate, check_sizes, dropout_key
from jaxnn.models.layers import Dense, Embed
from jaxnn.models.rnn import RNN, Cell, GRUCell
from jaxnn.tree import describe
from jaxnn.typing import Array


class AdditiveAttention(nn.Module):
    """`softmax(v . tanh(W query + U key + b))` over the keys, and the values' mean under it.

    It reads whatever has positions: an encoder's states for a decoder's state, an RNN's outputs for a classifier, a
    CNN's feature map as [B, rows * columns, C]. Without a query one learned vector asks, the same for every example:
    that is attention pooling.

    Attributes:
        features: A.
        matmul_dtype: Precision of the products' operands; see `products.matmul`.

    Source:
        Bahdanau, Cho and Bengio 2015, arXiv:1409.0473, appendix A.1.2.
    """

    features: int
    matmul_dtype: Any = None

    def setup(self) -> None:
        """Declares the parameters: `key/kernel` [K, A], `key/bias`, `query/kernel` [Q, A], `score/kernel` [A, 1]."""
        if self.features < 1:
            raise ValueError(f"models.AdditiveAttention: features={self.features!r}. Tried: a width. Write at least 1.")
        self.key = Dense(self.features, matmul_dtype=self.matmul_dtype)
        self.query = Dense(self.features, use_bias=False, matmul_dtype=self.matmul_dtype)
        self.score = Dense(1, use_bias=False)

    def project(self, keys: Array) -> Array:
        """`U key + b`, [B, S, K] -> [B, S, A]: the part that a decoder computes once for all its steps."""
        return self.key(keys)

    def attend(
        self, query: Array | None, projected: Array, values: Array, valid: Array | None = None
    ) -> tuple[Array, Array]:
        """As `__call__`, from projected keys."""
        q = None if query is None else self.query(query)
        if q is not None and q.ndim == 3:
            q, projected = q[:, :, None], projected[:, None]
        elif q is not None:
            q = q[:, None]
        scores = self.score(jnp.tanh(projected if q is None else projected + q))[..., 0].astype(jnp.float32)
        if valid is not None:
            at = valid[:, None] if scores.ndim == 3 else valid
            # Finite, so that a row without any valid key gives equal weights rather than NaN, and then nothing.
            scores = jnp.where(at, scores, jnp.finfo(jnp.float32).min)
            weights = jnp.where(at, jax.nn.softmax(scores), 0)
        else:
            weights = jax.nn.softmax(scores)
        sums = "bts,bsv->btv" if weights.ndim == 3 else "bs,bsv->bv"
        return jnp.einsum(sums, weights.astype(values.dtype), values), weights

    def __call__(
        self, query: Array | None, keys: Array, values: Array | None = None, valid: Array | None = None
    ) -> tuple[Array, Array]:
        """What the query finds, and where it looked.

        Args:
            query: [B, Q], or [B, T, Q] for T queries at once, or None.
            keys: [B, S, K].
            values: [B, S, W]; the keys where None.
            valid: bool [B, S]: positions that may be read; where none may, the result is 0.

        Returns:
            Contexts [B, W] or [B, T, W], and weights [B, S] or [B, T, S], float32, which sum to 1 over S.

        Raises:
            ValueError: If the shapes do not fit.
        """
        values = keys if values is None else values
        fits = keys.ndim == 3 and values.ndim == 3 and values.shape[:2] == keys.shape[:2]
        fits = fits and (query is None or (query.ndim in (2, 3) and query.shape[0] == keys.shape[0]))
        if not fits or (valid is not None and valid.shape != keys.shape[:2]):
            raise ValueError(
                f"models.AdditiveAttention: query {describe(query)}, keys {describe(keys)}, values {describe(values)}, "
                f"valid {describe(valid)}. Tried: [B, Q] or [B, T, Q], [B, S, K], [B, S, W], [B, S]. Reshape a feature "
                "map [B, rows, columns, C] to [B, rows * columns, C]."
            )
        return self.attend(query, self.project(keys), values, valid)


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig:
    """What a recurrent translator is made of.

    Attributes:
        vocab: Number of tokens of both languages together.
        embed: E.
        width: H, of every state; the encoder has it in each direction.
        attention: A.
        layers: Recurrent layers of the encoder, and of the decoder.
        cell: `GRUCell`, `LSTMCell` or `SimpleCell`.
        tied: Whether the token table is the output matrix too.
        dropout: Rate on embeddings, between layers and before the logits, while training.
        pad: Token that fills up; source positions that hold it are not read.
        start: Token that the decoder begins with.
        end: Token that ends a sequence.
        matmul_dtype: Precision of the products' operands; see `products.matmul`.
    """

    vocab: int
    embed: int = 128
    width: int = 256
    attention: int = 128
    layers: int = 1
    cell: type[Cell] = GRUCell
    tied: bool = True
    dropout: float = 0.0
    pad: int = 0
    start: int = 1
    end: int = 2
    matmul_dtype: Any = None

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: If a size is below 1, or a token or rate is out of range.
        """
        names = ("vocab", "embed", "width", "attention", "layers")
        check_sizes("Seq2SeqConfig", {name: getattr(self, name) for name in names})
        if not (isinstance(self.cell, type) and issubclass(self.cell, Cell)):
            raise ValueError(
                f"models.Seq2SeqConfig: cell={self.cell!r:.60}. Tried: a class of cells. Write models.GRUCell, itself."
            )
        for name in ("pad", "start", "end"):
            if not 0 <= getattr(self, name) < self.vocab:
                raise ValueError(
                    f"models.Seq2SeqConfig: {name}={getattr(self, name)!r} for a vocabulary of {self.vocab}. Tried: a "
                    "token id. Write one in [0, vocab)."
                )
        check_rate("Seq2SeqConfig", "dropout", self.dropout)


# How parameters are split over the devices that share a layer (`parallel.tensor`): the token table alone.
RULES: Mapping[str, P] = {"embed/embedding": P("model", None), **rnn.RULES}


class Seq2Seq(nn.Module):
    """Source and target tokens -> logits of the next target token, by teacher forcing; `models.translate` writes.

    At each time the decoder's top state asks the encoder's states, and what it finds goes into the next state and into
    the logits.

    Source:
        Bahdanau, Cho and Bengio 2015, arXiv:1409.0473, with the readout of Luong et al. 2015, arXiv:1508.04025.
    """

    config: Seq2SeqConfig

    def setup(self) -> None:
        """Declares the parts."""
        c = self.config
        check_config("Seq2Seq", c, Seq2SeqConfig)

        def dense(features: int, **settings: Any) -> Dense:
            return Dense(features, matmul_dtype=c.matmul_dtype, **settings)

        self.embed = Embed(c.vocab, c.embed, nn.initializers.normal(c.embed**-0.5), c.matmul_dtype)
        self.encoder = RNN(c.cell(c.width, c.matmul_dtype), c.layers, bidirectional=True, dropout=c.dropout)
        self.attention = AdditiveAttention(c.attention, c.matmul_dtype)
        self.decoder = [c.cell(c.width, c.matmul_dtype) for _ in range(c.layers)]
        self.bridge = [dense(c.cell.states * c.width) for _ in range(c.layers)]
        self.context = dense(c.cell.gates * c.width, use_bias=False)
        self.readout = dense(c.embed)
        if not c.tied:
            self.head = dense(c.vocab, use_bias=False, role="head")

    def _drop(self, x: Array, key: Array | None, site: int) -> Array:
        return x if key is None else rng.dropout(jax.random.fold_in(key, site), x, self.config.dropout)

    def encode(self, source: Array, key: Array | None = None) -> dict[str, Any]:
        """What a decoder needs of the source [B, S]: every leaf with the example axis first."""
        c = self.config
        valid = source != c.pad
        x = self._drop(self.embed(source), key, 0)
        memory, ends = self.encoder(x, valid=valid, train=key is not None)
        state: list[Any] = []
        for bridge, end in zip(self.bridge, ends):
            # The backward direction has just read the beginning.
            first = jnp.tanh(bridge(c.cell.output(end[-1])))
            state.append(first if c.cell.states == 1 else tuple(jnp.split(first, c.cell.states, axis=-1)))
        return {"memory": memory, "keys": self.attention.project(memory), "valid": valid, "state": state}

    def _advance(self, state: list[Any], gates: Array, seen: dict[str, Any]) -> tuple[list[Any], tuple[Array, ...]]:
        """The decoder's next states from a token's projected embedding; and the top state, context and weights."""
        output = self.config.cell.output
        found, weights = self.attention.attend(output(state[-1]), seen["keys"], seen["memory"], seen["valid"])
        new = [self.decoder[0].step(state[0], gates + self.context(found))]
        for cell, old in zip(self.decoder[1:], state[1:]):
            new.append(cell(old, output(new[-1]))[0])
        return new, (output(new[-1]), found, weights)

    def _logits(self, top: Array, found: Array, key: Array | None = None) -> Array:
        y = jnp.tanh(self.readout(jnp.concatenate([top, found], axis=-1)))
        y = self._drop(y, key, 2)
        return (self.embed.attend(y) if self.config.tied else self.head(y)).astype(jnp.float32)

    def __call__(self, source: Array, target: Array, *, train: bool = False, attention: bool = False) -> Any:
        """Logits [B, T, V], float32, of the token that follows each target token.

        Args:
            source: Integers [B, S], padded by `pad`.
            target: Integers [B, T] that begin with `start`.
            train: Whether to drop out; needs rngs={"dropout": key}.
            attention: Whether to return (logits, weights [B, T, S]) instead.

        Raises:
            ValueError: If the shapes are not [B, S] and [B, T].
            TypeError: If they are not integers.
        """
        check_pair("models.Seq2Seq", source, target)
        key = dropout_key("Seq2Seq", self) if train and self.config.dropout else None
        seen = self.encode(source, key)
        gates = jnp.swapaxes(self.decoder[0].project(self._drop(self.embed(target), key, 1)), 0, 1)
        if self.is_initializing():
            state, (top, found, weights) = self._advance(seen["state"], gates[0], seen)
            del state
            top, found, weights = (jnp.repeat(x[:, None], target.shape[1], axis=1) for x in (top, found, weights))
        else:
            _, parts = lax.scan(lambda state, now: self._advance(state, now, seen), seen["state"], gates)
            top, found, weights = (jnp.swapaxes(x, 0, 1) for x in parts)
        logits = sharding.constrain(self._logits(top, found, key), "batch", "time", "vocab")
        return (logits, weights) if attention else logits

    def begin(self, source: Array, length: int) -> dict[str, Any]:
        """The cache for `step`: what `encode` gives."""
        del length
        return self.encode(source)

    def step(self, tokens: Array, cache: dict[str, Any], i: Array) -> tuple[Array, dict[str, Any]]:
        """Tokens [B] -> logits [B, V] of the next ones, and the cache."""
        del i
        gates = self.decoder[0].project(self.embed(tokens))
        state, (top, found, _) = self._advance(cache["state"], gates, cache)
        return self._logits(top, found), {**cache, "state": state}


def check_pair(where: str, source: Array, target: Array) -> None:
    """Refuses what is not a batch of source and target sequences.

    Raises:
        ValueError: If the shapes are not [B, S] and [B, T].
        TypeError: If they are not integers.
    """
    for name, x in (("source", source), ("target", target)):
        check_array(where.removeprefix("models."), name, x, "[B, S] and [B, T]")
    if source.ndim != 2 or target.ndim != 2 or source.shape[0] != target.shape[0]:
        raise ValueError(
            f"{where}: source {describe(source)} and target {describe(target)}. Tried: [B, S] and [B, T]. "
            "Pad the sequences of a batch to one length."
        )
    for name, x in (("source", source), ("target", target)):
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"{where}: {name} is {describe(x)}. Tried: token ids. Write {name}.astype(int).")


class SideBySide(nn.Module):
    """A translator given source and target as one array [B, S + T], as `train.supervised` gives it.

    Attributes:
        net: `Seq2Seq`, `Transformer`, or whatever is called with (source, target, train=).
        length: S.
    """

    net: Any
    length: int

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Logits [B, T, V]; the network's parameters are at "net".

        Raises:
            ValueError: If `x` is not [B, S + T] with a T of at least 1.
        """
        check_array("SideBySide", "x", x, "[B, S + T]")
        if x.ndim != 2 or x.shape[1] <= self.length:
            raise ValueError(
                f"models.SideBySide: x is {describe(x)} for length={self.length}. Tried: [B, {self.length} + T]. Write "
                "the source, padded to that length, and the target beside it."
            )
        sides = x[:, : self.length], x[:, self.length :]
        for side in sides:
            lookups.part_of(side, x)
        return self.net(*sides, train=train)
