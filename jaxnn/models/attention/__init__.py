"""Attention in one place: what a query may read, which positions it sees, and how the products are computed.

One function, `attention`, for self and cross attention, whole or grouped heads, packed documents, padding, windows and
biases, in forms that give the same values: `plain` stores the weights and is fastest on CPU at common lengths, `linear`
stores nothing that grows with T times S, and `jax.nn.dot_product_attention` serves elsewhere. `cached_attention` is for
generation, `attention_weights` for pictures. Positions are `rotary`, `alibi_slopes` and tables of `relative` ones.
"""

from jaxnn.models.attention.cached import Cache as Cache, cached_attention as cached_attention
from jaxnn.models.attention.call import attention as attention, attention_weights as attention_weights
from jaxnn.models.attention.positions import (
    RotaryScaling as RotaryScaling,
    alibi_slopes as alibi_slopes,
    rotary as rotary,
)
