"""Drawing the next token from logits, an example at a time."""

import jax
import jax.numpy as jnp

from jaxnn.typing import Array


def filter_logits(logits: Array, top_k: int | None = None, top_p: Array | float | None = None) -> Array:
    """`logits` [..., V] with -inf where a token is not to be drawn.

    Args:
        logits: [..., V], divided by the temperature.
        top_k: Keep the k likeliest tokens, and those that tie with the last of them.
        top_p: Keep the likeliest tokens that together have at least this probability, among those that `top_k` keeps
            ("nucleus"); the likeliest always.

    Source:
        Fan et al. 2018, arXiv:1805.04833 (top-k); Holtzman et al. 2020, arXiv:1904.09751 (top-p).
    """
    if top_k is not None and top_k < logits.shape[-1]:
        logits = jnp.where(logits >= jax.lax.top_k(logits, top_k)[0][..., -1:], logits, -jnp.inf)
    if top_p is not None:
        best = -jnp.sort(-logits, axis=-1)
        weights = jax.nn.softmax(best, axis=-1)
        before = jnp.cumsum(weights, axis=-1) - weights
        # The last token whose likelier ones do not yet have the probability; ties with it stay.
        keep = (before < top_p).at[..., 0].set(True)
        least = jnp.min(jnp.where(keep, best, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def draw(
    keys: Array,
    logits: Array,
    temperature: Array | float,
    top_k: int | None = None,
    top_p: Array | float | None = None,
) -> Array:
    """A token an example: int32 [B].

    Args:
        keys: Typed keys [B], so that an example's token depends on its own key only.
        logits: [B, V].
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: See `filter_logits`.
        top_p: See `filter_logits`.
    """
    scaled = filter_logits(logits / jnp.where(temperature > 0, temperature, 1), top_k, top_p)
    drawn = jax.vmap(jax.random.categorical)(keys, scaled)
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
