"""Greedy and beam search over any model that gives the next token's logits from a cache.

A model brings one function, `step(tokens, cache, i) -> (logits, cache)`, and a cache whose every leaf has the example
axis first: keys and values, a recurrent state, what an encoder made. Nothing here knows what is in it.

Shape suffixes: B examples, K beams, N = B K, L tokens written, V vocabulary.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn.models.given import own_params
from jaxnn.tree import describe
from jaxnn.typing import Array, HostArray, Params, PyTree

StepFn = Callable[[Array, PyTree, Array], tuple[Array, PyTree]]


def _check(where: str, cache: PyTree, batch: int, length: int, beams: int) -> None:
    if not all(isinstance(n, int) and n >= 1 for n in (length, beams, batch)):
        raise ValueError(
            f"{where}: batch={batch}, length={length}, beams={beams}. Tried: at least 1 of each. Write such numbers."
        )
    for leaf in jax.tree.leaves(cache):
        if jnp.shape(leaf)[:1] != (batch,):
            raise ValueError(
                f"{where}: the cache has a leaf {describe(leaf)} for {batch} examples. Tried: the example axis first. "
                "Give every leaf a leading axis of the examples; what all of them share belongs into the function."
            )


def _starts(where: str, start: int | Array, batch: int) -> Array:
    if not jnp.issubdtype(jnp.result_type(start), jnp.integer) or jnp.shape(start) not in ((), (batch,)):
        raise ValueError(
            f"{where}: start is {describe(start)} for {batch} examples. Tried: a token, or one an example. Give an "
            f"integer, or integers [{batch}]."
        )
    return jnp.broadcast_to(jnp.asarray(start, jnp.int32), (batch,))


def _stepped(where: str, step: StepFn, tokens: Array, cache: PyTree, i: Array) -> tuple[Array, PyTree]:
    """What `step` gives, held to what it must be: logits [N, V], and a cache like the one that it was given."""
    given = step(tokens, cache, i)
    if not isinstance(given, tuple) or len(given) != 2:
        raise TypeError(f"{where}: step gave {describe(given)}. Tried: logits and the cache. Return (logits, cache).")
    logits, new = given
    if jnp.ndim(logits) != 2 or len(logits) != len(tokens):
        raise ValueError(
            f"{where}: step gave logits {describe(logits)} for tokens {describe(tokens)}. Tried: [N, V], one row a "
            f"token. Leave the time axis out, and take N from the tokens: beams are examples to it."
        )
    shapes = [jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), c) for c in (cache, new)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{where}: step gave a cache of {shapes[1]!s:.200} for one of {shapes[0]!s:.200}. Tried: the same shapes "
            f"and dtypes at every step. Write into the cache's places, with room for all steps."
        )
    return logits, new


def greedy_search(
    step: StepFn, cache: PyTree, *, batch: int, start: int | Array, end: int, length: int, pad: int = 0
) -> tuple[Array, Array]:
    """The likeliest token after each, until all examples have ended; traceable.

    Args:
        step: `step(tokens [B], cache, i) -> (logits [B, V], cache)`, the i-th time.
        cache: Pytree, every leaf [B, ...].
        batch: B.
        start: The token to begin with, or one an example [B]; it is not in the result.
        end: The token that ends a sequence, and the last one in it; -1 for none.
        length: L.
        pad: What follows an end.

    Returns:
        Tokens int32 [B, L] and the sum of their log-probabilities [B], in nats.

    Raises:
        ValueError: If a size is below 1 or a leaf of the cache has another leading axis.
    """
    _check("models.greedy_search", cache, batch, length, 1)

    def going(carry: tuple[Any, ...]) -> Array:
        i, _, _, _, done, _ = carry
        return (i < length) & ~jnp.all(done)

    def advance(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        i, tokens, cache, written, done, score = carry
        logits, cache = _stepped("models.greedy_search", step, tokens, cache, i)
        logs = jax.nn.log_softmax(logits.astype(jnp.float32))
        tokens = jnp.where(done, pad, jnp.argmax(logs, axis=-1).astype(jnp.int32))
        score = score + jnp.where(done, 0, jnp.max(logs, axis=-1))
        written = lax.dynamic_update_slice(written, tokens[:, None], (0, i))
        return i + 1, tokens, cache, written, done | (tokens == end), score

    written = jnp.full((batch, length), pad, jnp.int32)
    nothing = jnp.zeros(batch, bool), jnp.zeros(batch, jnp.float32)
    begin = (jnp.zeros((), jnp.int32), _starts("models.greedy_search", start, batch), cache, written, *nothing)
    _, _, _, written, _, score = lax.while_loop(going, advance, begin)
    return written, score


class _Beams(NamedTuple):
    """Hypotheses that go on and ones that ended, both best first; scores of the ended ones are normalised."""

    i: Array
    cache: PyTree
    tokens: Array  # [B, K], the last ones of those that go on
    written: Array  # [B, K, L]
    scores: Array  # [B, K]
    ended: Array  # [B, K, L]
    ended_scores: Array  # [B, K], -inf where there is none yet


def _best(scores: Array, count: int, *arrays: Array) -> tuple[Array, ...]:
    """The `count` best of [B, M] scores, and the rows [B, count, ...] of the arrays that belong to them."""
    best, at = lax.top_k(scores, count)
    return best, *(jnp.take_along_axis(a, at.reshape(*at.shape, *(1,) * (a.ndim - 2)), axis=1) for a in arrays)


def beam_search(
    step: StepFn,
    cache: PyTree,
    *,
    batch: int,
    start: int | Array,
    end: int,
    length: int,
    beams: int = 4,
    length_penalty: float = 1.0,
    pad: int = 0,
) -> tuple[Array, Array]:
    """The best of the sequences that a beam of `beams` hypotheses finds, best first; traceable.

    A hypothesis that ends leaves the beam for a list of the best ended ones, so that it takes nobody's place. The
    search ends at `length`, or when no example's beam can still beat the worst of its list.

    Args:
        step: `step(tokens [N], cache, i) -> (logits [N, V], cache)` with N = B K, hypotheses of an example together.
        cache: Pytree, every leaf [B, ...]; each hypothesis gets a copy, which follows it when beams are reordered.
        batch: B.
        start: The token to begin with, or one an example [B]; it is not in the result.
        end: The token that ends a sequence, and the last one in it.
        length: L.
        beams: K; 1 is not quite `greedy_search`, which ends where the end is likeliest.
        length_penalty: Scores are log-probabilities over (tokens written) ** length_penalty; 0 favours the short. At
            least 0.
        pad: What follows an end.

    Returns:
        Tokens int32 [B, K, L] and scores [B, K]; a hypothesis that has not ended at `length` counts as it stands.
        Places without any hypothesis have the score -inf.

    Raises:
        ValueError: If a size is below 1, the penalty is negative, or a leaf of the cache has another leading axis.

    Source:
        Graves 2012, arXiv:1211.3711, section 3; length normalisation by division, as Bahdanau et al. 2015 note.
    """
    _check("models.beam_search", cache, batch, length, beams)
    if not 0 <= length_penalty < math.inf:
        raise ValueError(
            f"models.beam_search: length_penalty={length_penalty}. Tried: a power of the length. Write 0 or more."
        )
    rows = jnp.arange(batch)[:, None] * beams

    def normal(scores: Array, written: Array | int) -> Array:
        return scores / jnp.asarray(written, jnp.float32) ** length_penalty

    def going(now: _Beams) -> Array:
        # Scores only fall; divided by the longest length they are as good as they can get (for penalties >= 0).
        reachable = jnp.maximum(normal(now.scores[:, 0], length), normal(now.scores[:, 0], now.i + 1))
        return (now.i < length) & jnp.any(now.ended_scores[:, -1] < reachable)

    def advance(now: _Beams) -> _Beams:
        logits, cache = _stepped("models.beam_search", step, now.tokens.reshape(-1), now.cache, now.i)
        vocab = logits.shape[-1]
        logs = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch, beams, vocab)
        total = (now.scores[..., None] + logs).reshape(batch, -1)
        # At most one extension of each hypothesis ends, so 2 K hold K that do not.
        scores, at = lax.top_k(total, min(2 * beams, beams * vocab))
        source, tokens = at // vocab, (at % vocab).astype(jnp.int32)
        written = jnp.take_along_axis(now.written, source[..., None], axis=1)
        written = lax.dynamic_update_slice(written, tokens[..., None], (0, 0, now.i))
        ends = tokens == end
        finished = jnp.where(ends, normal(scores, now.i + 1), -jnp.inf)
        ended_scores, ended = _best(
            jnp.concatenate([now.ended_scores, finished], axis=1),
            beams,
            jnp.concatenate([now.ended, written], axis=1),
        )
        scores, written, tokens, source = _best(jnp.where(ends, -jnp.inf, scores), beams, written, tokens, source)
        order = (rows + source).reshape(-1)
        cache = jax.tree.map(lambda x: jnp.take(x, order, axis=0), cache)
        return _Beams(now.i + 1, cache, tokens, written, scores, ended, ended_scores)

    repeated = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), cache)
    blank = jnp.full((batch, beams, length), pad, jnp.int32)
    none = jnp.full((batch, beams), -jnp.inf)
    first = none.at[:, 0].set(0.0)  # all hypotheses are one before the first token
    tokens = jnp.repeat(_starts("models.beam_search", start, batch)[:, None], beams, axis=1)
    begin = _Beams(jnp.zeros((), jnp.int32), repeated, tokens, blank, first, blank, none)
    last = lax.while_loop(going, advance, begin)
    # What goes on counts as it stands: an end that nobody believes in is not better for being one.
    open_scores = normal(last.scores, jnp.maximum(last.i, 1))
    scores, tokens = _best(
        jnp.concatenate([last.ended_scores, open_scores], axis=1),
        beams,
        jnp.concatenate([last.ended, last.written], axis=1),
    )
    return tokens, scores


@functools.partial(jax.jit, static_argnames=("model", "length", "beams", "length_penalty"))
def _translate(
    model: Any, params: Params, source: Array, length: int, beams: int, length_penalty: float
) -> tuple[Array, Array]:
    variables = {"params": params}
    cache = model.apply(variables, source, length, method="begin")

    def step(tokens: Array, cache: PyTree, i: Array) -> tuple[Array, PyTree]:
        return model.apply(variables, tokens, cache, i, method="step")

    c = model.config
    settings = {"batch": source.shape[0], "start": c.start, "end": c.end, "length": length, "pad": c.pad}
    if beams == 1:
        return greedy_search(step, cache, **settings)
    tokens, scores = beam_search(step, cache, beams=beams, length_penalty=length_penalty, **settings)
    return tokens[:, 0], scores[:, 0]


def translate(
    model: Any,
    params: Params,
    source: Any,
    *,
    length: int,
    beams: int = 1,
    length_penalty: float = 1.0,
) -> HostArray:
    """What an encoder-decoder (`Seq2Seq`, `Transformer`) makes of source sequences, from a cache; compiled by shape.

    Args:
        model: A module with `config.start`, `.end`, `.pad` and the methods `begin(source, length) -> cache` and
            `step(tokens, cache, i) -> (logits, cache)`.
        params: Its parameters.
        source: Integers [B, S], padded by `config.pad`.
        length: Tokens to write at most.
        beams: Hypotheses; 1 is greedy.
        length_penalty: See `beam_search`.

    Returns:
        int32 [B, length]; the end token is in it, `config.pad` follows.

    Raises:
        ValueError: If the source is not [B, S] of ids in the vocabulary, a row is padding only, a size is below 1, or
            the parameters are not the model's.
        TypeError: If it is not integers, or the model translates nothing.
    """
    if not (hasattr(model, "begin") and hasattr(model, "step")):
        raise TypeError(
            f"models.translate: model is {type(model).__name__}. Tried: Seq2Seq, Transformer. For a GPT write "
            f"models.generate."
        )
    _check("models.translate", (), 1, length, beams)
    try:
        source = np.asarray(source)
    except ValueError as error:
        raise ValueError(
            f"models.translate: source is {describe(source)}, rows of other lengths. Tried: [B, S]. Pad them by "
            f"{model.config.pad}."
        ) from error
    given = f"models.translate: source {describe(source)}"
    if not np.issubdtype(source.dtype, np.integer):
        raise TypeError(f"{given}. Tried: token ids. Encode the text first.")
    if source.ndim != 2 or not source.size:
        raise ValueError(f"{given}. Tried: ids [B, S], B and S at least 1. Write source[None] for one sequence.")
    if source.min() < 0 or source.max() >= model.config.vocab:
        raise ValueError(
            f"{given} has ids {source.min()} to {source.max()} for a vocabulary of {model.config.vocab}. Encode it as "
            "in training."
        )
    if len(nothing := np.flatnonzero((source == model.config.pad).all(axis=1))):
        raise ValueError(
            f"{given}: row {nothing[0]} is padding only ({model.config.pad}). Tried: a text to translate. Leave empty "
            "texts out."
        )
    with own_params("translate"):
        return np.asarray(_translate(model, params, source.astype(np.int32), length, beams, length_penalty)[0])
