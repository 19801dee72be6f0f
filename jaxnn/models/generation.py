"""Text from a GPT: token by token with a cache of keys and values, by drawing or by beam search.

One compiled program a bucket of sizes. Prompts are padded on their left, so that all end in one slot; each example has
its own key, so that what it writes depends neither on the others nor on how they are batched.
"""

import functools
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn import rng
from jaxnn.models.attention import Cache
from jaxnn.models.beam import beam_search
from jaxnn.models.given import own_params
from jaxnn.models.gpt import GPT, init_cache
from jaxnn.models.sampling import draw
from jaxnn.tree import describe
from jaxnn.typing import Array, HostArray, Params

Prompt = bytes | HostArray | Sequence[int]


def _bucket(count: int, least: int = 16) -> int:
    """A size of at least `count` that many counts share: powers of two up to 128, then multiples of 128."""
    if count > 128:
        return -(-count // 128) * 128
    return max(least, 1 << (count - 1).bit_length())


def _apply(model: GPT, params: Params, tokens: Array, **settings: Any) -> Any:
    return model.apply({"params": params}, tokens, **settings)


def _prefill(model: GPT, params: Params, tokens: Array, start: Array, slots: int) -> Cache:
    """The cache after all tokens [B, P] but the last, which begins the loop."""
    cache = init_cache(model.config, tokens.shape[0], slots, start)
    return _apply(model, params, tokens[:, :-1], cache=cache, last=True)[1]


Carry = tuple[Array, Array, Any, Array, Array]  # steps done, last tokens [B], what the model keeps, written, ended [B]


def _loop(advance: Any, tokens: Array, kept: Any, limit: Array, room: int, stop: Array) -> Array:
    """Calls `advance(tokens [B], kept, i) -> (tokens, kept)` until all examples have stopped: tokens [B, room]."""

    def going(carry: Carry) -> Array:
        return (carry[0] < limit) & ~jnp.all(carry[4])

    def step(carry: Carry) -> Carry:
        i, tokens, kept, written, ended = carry
        tokens, kept = advance(tokens, kept, i)
        written = lax.dynamic_update_slice(written, tokens[:, None], (0, i))
        return i + 1, tokens, kept, written, ended | (tokens == stop)

    batch = tokens.shape[0]
    begin = (jnp.zeros((), jnp.int32), tokens, kept, jnp.zeros((batch, room), jnp.int32), jnp.zeros(batch, bool))
    return lax.while_loop(going, step, begin)[3]


@functools.partial(jax.jit, static_argnames=("model", "room", "top_k", "nucleus"))
def _cached(
    model: GPT,
    params: Params,
    tokens: Array,
    start: Array,
    keys: Array,
    drawing: tuple[Array, Array],
    limits: tuple[Array, Array],
    room: int,
    top_k: int | None,
    nucleus: bool,
) -> Array:
    (temperature, top_p), (limit, stop) = drawing, limits
    cache = _prefill(model, params, tokens, start, tokens.shape[1] - 1 + room)
    # Inside the loop the number of slots in use is an array.
    cache = cache._replace(filled=jnp.asarray(cache.filled, jnp.int32))

    def advance(tokens: Array, cache: Cache, i: Array) -> tuple[Array, Cache]:
        logits, cache = _apply(model, params, tokens[:, None], cache=cache)
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        return draw(folded, logits[:, 0], temperature, top_k, top_p if nucleus else None), cache

    return _loop(advance, tokens[:, -1], cache, limit, room, stop)


@functools.partial(jax.jit, static_argnames=("model", "room", "top_k", "nucleus"))
def _windowed(
    model: GPT,
    params: Params,
    window: Array,
    filled: Array,
    keys: Array,
    drawing: tuple[Array, Array],
    limits: tuple[Array, Array],
    room: int,
    top_k: int | None,
    nucleus: bool,
) -> Array:
    (temperature, top_p), (limit, stop), size = drawing, limits, window.shape[1]

    def put(window: Array, filled: Array, token: Array) -> Array:
        window = jnp.where(filled == size, jnp.roll(window, -1), window)
        return window.at[jnp.minimum(filled, size - 1)].set(token)

    def advance(tokens: Array, kept: tuple[Array, Array], i: Array) -> tuple[Array, tuple[Array, Array]]:
        window, filled = kept
        logits = _apply(model, params, window)
        logits = jnp.take_along_axis(logits, (filled - 1)[:, None, None], axis=1)[:, 0]
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        tokens = draw(folded, logits, temperature, top_k, top_p if nucleus else None)
        return tokens, (jax.vmap(put)(window, filled, tokens), jnp.minimum(filled + 1, size))

    return _loop(advance, window[:, 0], (window, filled), limit, room, stop)


@functools.partial(jax.jit, static_argnames=("model", "steps", "beams", "length_penalty"))
def _beams(
    model: GPT,
    params: Params,
    tokens: Array,
    start: Array,
    stop: Any,
    steps: int,
    beams: int,
    length_penalty: float,
) -> Array:
    prefilled = _prefill(model, params, tokens, start, tokens.shape[1] - 1 + steps)
    stacked = model.config.scanned
    turn = lambda x, there, back: jax.tree.map(lambda y: jnp.moveaxis(y, there, back), x) if stacked else x  # noqa: E731

    def step(tokens: Array, cache: Any, i: Array) -> tuple[Array, Any]:
        keys, values, start = cache
        full = Cache(turn(keys, 0, 1), turn(values, 0, 1), start, prefilled.filled + i)
        logits, full = _apply(model, params, tokens[:, None], cache=full)
        return logits[:, 0], (turn(full.keys, 1, 0), turn(full.values, 1, 0), start)

    cache = (turn(prefilled.keys, 1, 0), turn(prefilled.values, 1, 0), prefilled.start)
    return beam_search(
        step,
        cache,
        batch=tokens.shape[0],
        start=tokens[:, -1],
        end=stop,
        length=steps,
        beams=beams,
        length_penalty=length_penalty,
    )[0][:, 0]


def _ids(prompt: Any, vocab: int, given: str) -> HostArray:
    ids = np.frombuffer(prompt, np.uint8) if isinstance(prompt, bytes) else np.asarray(prompt)
    if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"{given}: prompt of shape {ids.shape} and {ids.dtype}. Tried: bytes or integer ids [n], n >= 1. Write "
            f"one token at least (a new line's, say, to start from nothing), a list of prompts for several."
        )
    if ids.min() < 0 or ids.max() >= vocab:
        raise ValueError(
            f"{given}: ids {ids.min()} to {ids.max()} for a vocabulary of {vocab}. Tried: ids in it. Encode the prompt "
            f"as in training."
        )
    return ids.astype(np.int32)


def _keys(key: Any, count: int, needed: bool, given: str) -> Array:
    """A typed key a prompt."""
    if key is None and needed:
        raise ValueError(f"{given}: no key. Tried: drawing. Write key=jax.random.key(0), or temperature=0.")
    key = rng.wrap(np.zeros(2, np.uint32)) if key is None else key
    if not hasattr(key, "dtype"):
        raise ValueError(f"{given}: key is {describe(key)}. Tried: a typed key. Write jax.random.key(0).")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(f"{given}: key {key.dtype}{list(key.shape)}. Tried: a typed key. Write jax.random.key(0).")
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))
    if key.shape != (count,):
        raise ValueError(f"{given}: keys {list(key.shape)} for {count} prompts. Tried: one, or one a prompt.")
    return key


def generate(
    model: GPT,
    params: Params,
    prompt: Prompt | Sequence[Prompt],
    *,
    steps: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | None = None,
    beams: int = 1,
    length_penalty: float = 1.0,
    key: Array | None = None,
    cache: bool | None = None,
) -> Any:
    """Continues a prompt, or each of several, by at most `steps` tokens.

    Each token is drawn from the model's distribution given the last `length` tokens. While prompt and text fit into
    `length`, keys and values are computed once and kept; beyond it every token costs a pass over the whole window.

    Args:
        model: The module.
        params: Its parameters.
        prompt: Bytes, or integer ids [n], at least one; or a list of such, of any lengths. Of one longer than `length`
            the last tokens count.
        steps: How many tokens to add; at least 1.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Draw from the k likeliest tokens only (and those that tie with the last of them); None draws from all.
        top_p: Draw from the likeliest tokens that together have this probability, in (0, 1]; None draws from all.
        stop: A token that ends a text, and is its last; None for none.
        beams: Hypotheses of a beam search, which draws nothing; 1 for none. See `beam.beam_search`.
        length_penalty: See `beam.beam_search`.
        key: Typed key, folded by a prompt's number in the list; or one a prompt [B]. The same key gives the same
            tokens, whatever the other prompts. May be None where nothing is drawn.
        cache: Whether to keep keys and values; None keeps them where prompt and text fit into `length`.

    Returns:
        int32 [n] with n = `steps`, or less where `stop` was written; a list of such for a list of prompts.
        `bytes(tokens.tolist())` where tokens are bytes.

    Raises:
        ValueError: If a prompt is empty or has ids outside the vocabulary, or a setting is out of range.
    """
    if not isinstance(model, GPT):
        raise TypeError(
            f"models.generate: model is {type(model).__name__}. Tried: models.GPT. For an encoder-decoder write "
            f"models.translate."
        )
    c = model.config
    given = f"models.generate: steps={steps}, temperature={temperature}, top_k={top_k}, top_p={top_p}"
    several = isinstance(prompt, (list, tuple)) and not all(isinstance(x, (int, np.integer)) for x in prompt)
    prompts: Any = prompt if several else [prompt]
    ids = [_ids(p, c.vocab, given) for p in prompts]
    if not ids:
        raise ValueError(f"{given}: no prompts. Tried: continuing them. Give at least one.")
    whole = all(isinstance(n, numbers.Integral) for n in (steps, beams, *(x for x in (top_k, stop) if x is not None)))
    real = all(isinstance(x, numbers.Real) for x in (temperature, length_penalty, 1 if top_p is None else top_p))
    if (
        not whole
        or not real
        or steps < 1
        or not 0 <= temperature < np.inf
        or (top_k is not None and not 1 <= top_k <= c.vocab)
    ):
        raise ValueError(
            f"{given}, beams={beams}. Tried: whole steps >= 1 and beams, a finite temperature >= 0, top_k None or 1 to "
            f"{c.vocab}, numbers. Write such values."
        )
    if (top_p is not None and not 0 < top_p <= 1) or (stop is not None and not 0 <= stop < c.vocab):
        raise ValueError(f"{given}, stop={stop}. Tried: top_p in (0, 1], stop in the vocabulary. Write such values.")
    if beams < 1 or (beams > 1 and (top_k is not None or top_p is not None or cache is False)):
        raise ValueError(
            f"{given}, beams={beams}, cache={cache}. Tried: a search, which draws nothing and keeps a cache. Write "
            f"beams without top_k, top_p and cache=False."
        )
    ids = [x[-c.length :] for x in ids]
    longest = max(x.size for x in ids)
    fits = longest + steps <= c.length
    if not fits and (cache or beams > 1):
        raise ValueError(
            f"{given}: a prompt of {longest} tokens and {steps} more for length={c.length}. Tried: a cache, whose "
            f"positions do not move. Write fewer steps, or cache=None without beams."
        )
    room, end = _bucket(steps, 64), np.int32(-1 if stop is None else stop)
    if beams > 1:
        tokens, start = _left(ids, _bucket(longest))
        with own_params("generate"):
            out = _beams(model, params, tokens, start, end, steps, beams, float(length_penalty))
    else:
        keys = _keys(key, len(ids), temperature > 0, given)
        drawing = (np.float32(temperature), np.float32(1 if top_p is None else top_p))
        rest = (keys, drawing, (np.int32(steps), end), room, top_k, top_p is not None)
        if fits and cache is not False:
            with own_params("generate"):
                out = _cached(model, params, *_left(ids, _bucket(longest)), *rest)
        else:
            size = min(c.length, _bucket(longest) + room)
            window = np.zeros((len(ids), size), np.int32)
            for row, x in zip(window, ids):
                row[: x.size] = x
            with own_params("generate"):
                out = _windowed(model, params, window, np.array([x.size for x in ids], np.int32), *rest)
    texts = [_cut(row[:steps], stop) for row in np.asarray(out)]
    return texts if several else texts[0]


def _left(ids: list[HostArray], size: int) -> tuple[HostArray, HostArray]:
    """Prompts in rows [B, size], ends flush, and where each begins [B]."""
    rows = np.zeros((len(ids), size), np.int32)
    for row, x in zip(rows, ids):
        row[size - x.size :] = x
    return rows, np.array([size - x.size for x in ids], np.int32)


def _cut(tokens: HostArray, stop: int | None) -> HostArray:
    """`tokens` up to the first `stop`, that one included."""
    if stop is None:
        return tokens
    ends = np.flatnonzero(tokens == stop)
    return tokens[: ends[0] + 1] if ends.size else tokens
