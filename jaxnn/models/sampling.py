"""Sampling text from a GPT: one compiled program of a fixed shape, without a cache of keys and values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.models.gpt import GPT
from jaxnn.typing import Array, HostArray, Params


@functools.partial(jax.jit, static_argnames=("model", "steps", "top_k"))
def _sample(
    model: GPT,
    params: Params,
    window: Array,
    filled: Array,
    temperature: Array,
    key: Array,
    steps: int,
    top_k: int | None,
) -> Array:
    length = window.shape[0]

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        window, filled, out = carry
        logits = jnp.asarray(model.apply({"params": params}, window[None]))[0, filled - 1]
        if top_k is not None:
            logits = jnp.where(logits >= jax.lax.top_k(logits, top_k)[0][-1], logits, -jnp.inf)
        scaled = logits / jnp.where(temperature > 0, temperature, 1)
        drawn = jax.random.categorical(jax.random.fold_in(key, i), scaled)
        token = jnp.where(temperature > 0, drawn, jnp.argmax(logits)).astype(window.dtype)
        window = jnp.where(filled == length, jnp.roll(window, -1), window)
        window = window.at[jnp.minimum(filled, length - 1)].set(token)
        return window, jnp.minimum(filled + 1, length), out.at[i].set(token)

    return jax.lax.fori_loop(0, steps, step, (window, filled, jnp.zeros(steps, window.dtype)))[2]


def generate(
    model: GPT,
    params: Params,
    prompt: bytes | HostArray,
    *,
    steps: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    key: Array,
) -> HostArray:
    """Continues `prompt` by `steps` tokens, each drawn from the model's distribution given the last `length` tokens.

    Every token costs a forward pass over the whole window, which is right for showing samples and wrong for serving.

    Args:
        model: The module; compiled once for each (model, steps, top_k).
        params: Its parameters.
        prompt: Bytes, or integer ids [n]; at least one. Of a longer one the last `length` tokens count.
        steps: How many tokens to add; at least 1.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Draw from the k likeliest tokens only (and those that tie with the last of them); None draws from all.
        key: Typed key; the same key gives the same tokens.

    Returns:
        int32 [steps]; `bytes(generate(...).tolist())` where tokens are bytes.

    Raises:
        ValueError: If the prompt is empty or has ids outside the vocabulary, or a setting is out of range.
    """
    config = model.config
    ids = np.frombuffer(prompt, np.uint8) if isinstance(prompt, bytes) else np.asarray(prompt)
    given = f"models.generate: prompt of shape {ids.shape}, steps={steps}, temperature={temperature}, top_k={top_k}"
    if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"{given}. Tried: bytes or integer ids [n], n >= 1. Write prompt=b'\\n' to start from nothing."
        )
    if ids.min() < 0 or ids.max() >= config.vocab:
        raise ValueError(
            f"{given}: ids {ids.min()} to {ids.max()} for a vocabulary of {config.vocab}. Encode it as in training."
        )
    if steps < 1 or temperature < 0 or (top_k is not None and not 1 <= top_k <= config.vocab):
        raise ValueError(
            f"{given}. Tried: steps >= 1, temperature >= 0, top_k None or 1 to {config.vocab}. Write such values."
        )
    ids = ids[-config.length :].astype(np.int32)
    window = np.zeros(config.length, np.int32)
    window[: ids.size] = ids
    return np.asarray(_sample(model, params, window, np.int32(ids.size), np.float32(temperature), key, steps, top_k))
