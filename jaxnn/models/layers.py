"""Layers that two or more model families share: dense, embedding, norms, convolution, pooling.

Every parameter is declared with its role (`matrix`, `embedding`, `head`, `vector`, `conv`), because optimizers and
sharding rules need to know what a leaf is and neither its name nor its rank says so reliably. Forms that only differ in
speed are chosen by backend and give the same values.

Shape suffixes: B examples, H W rows and columns, C channels, E features.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnn import lookups, tree
from jaxnn.models.batch_norm import BatchNorm as BatchNorm
from jaxnn.models.convolution import Padding as Padding, convolve as convolve
from jaxnn.models.declared import (
    Declared as Declared,
    Initializer as Initializer,
    along_last as along_last,
    declare as declare,
)
from jaxnn.models.pooling import (
    Form,
    avg_pool as avg_pool,
    check_images,
    max_pool as max_pool,
)
from jaxnn.models.products import matmul as matmul
from jaxnn.typing import Array


class Dense(nn.Module):
    """`x @ kernel + bias` over the last axis.

    Attributes:
        features: N, the output width.
        use_bias: Whether to add a bias [N].
        matmul_dtype: Precision of the products' operands; see `matmul`.
        role: Of the kernel [K, N]: "matrix", or "head" for an output layer.
        kernel_init: Of the kernel.
        bias_init: Of the bias.
    """

    features: int
    use_bias: bool = True
    matmul_dtype: Any = None
    role: str = "matrix"
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., K] -> [..., N]."""
        init = declare(self.kernel_init, self.role)
        y = matmul(x, self.param("kernel", init, (x.shape[-1], self.features), jnp.float32), self.matmul_dtype)
        if self.use_bias:
            bias = self.param("bias", declare(self.bias_init, "vector"), (self.features,), jnp.float32)
            y = y + along_last(bias, y)
        return y


def within(ids: Array, count: int, what: str, advice: str) -> Array:
    """Integers of which none counts from the end: those outside of [0, count) are refused where they are known, and
    are `count` or more where they are traced, which `jnp.take` reads as NaN.

    Args:
        ids: Any shape.
        count: How many there are.
        what: Their name, in an error.
        advice: What to do instead, in an error.

    Raises:
        ValueError: If there are no ids, or known ones are out of range.
    """
    if 0 in ids.shape:
        raise ValueError(f"{what} are {tree.describe(ids)}. Tried: at least one. Leave empty texts out.")
    noticed = lookups.notice(ids, lookups.Lookup(count, what, advice))
    if not noticed and not isinstance(ids, jax.core.Tracer):
        low, high = np.asarray(ids).min(), np.asarray(ids).max()
        if low < 0 or high >= count:
            raise ValueError(f"{what} {tree.describe(ids)} are {low} to {high}. Tried: ids in [0, {count}). {advice}")
    if not jnp.issubdtype(ids.dtype, jnp.signedinteger):
        return ids
    ids = ids.astype(jnp.promote_types(ids.dtype, jnp.int32))  # one of 8 bits may not hold the count
    return jnp.where(ids < 0, count, ids)


def rows_of(table: Array, ids: Array, what: str, advice: str) -> Array:
    """`table[ids]`, [..., E], of a table [n, E] and integers [...]; NaN for those outside of [0, n) that are traced.

    Raises:
        ValueError: If there are no ids, or known ones are out of range; see `within`.
    """
    return jnp.take(table, within(ids, table.shape[0], what, advice), axis=0)


class Embed(nn.Module):
    """A table [vocab, features], read by token and, where it is tied to the head, used as the output matrix.

    Attributes:
        vocab: Number of tokens. An id out of range is an error where its value is known, and in the data of `fit`,
            `evaluate` and `predict` where it comes to the layer as it is; where it is being traced, it reads NaN.
        features: E.
        embedding_init: Of the table.
        matmul_dtype: Of the products in `attend`.
    """

    vocab: int
    features: int
    embedding_init: Initializer = nn.initializers.normal(0.02)
    matmul_dtype: Any = None

    def setup(self) -> None:
        """Declares the table."""
        shape = (self.vocab, self.features)
        self.embedding = self.param("embedding", declare(self.embedding_init, "embedding"), shape, jnp.float32)

    def __call__(self, tokens: Array) -> Array:
        """Integers [...] -> [..., E].

        Raises:
            TypeError: If the tokens are not integers.
            ValueError: If there is none, or one that is known is out of range.
        """
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(
                f"layers.Embed: tokens are {tree.describe(tokens)}. Tried: integer ids in [0, {self.vocab}). "
                f"Write tokens.astype(int)."
            )
        advice = "Encode them by the tokenizer that the model was made for."
        return rows_of(self.embedding, tokens, "layers.Embed: tokens", advice)

    def attend(self, x: Array) -> Array:
        """Scores of `x` [..., E] against every row: [..., vocab]."""
        return matmul(x, self.embedding.T, self.matmul_dtype)


class LayerNorm(nn.Module):
    """`(x - mean) / sqrt(var + epsilon) * scale + bias` over the last axis, statistics in float32.

    Source:
        Ba et al. 2016, arXiv:1607.06450.
    """

    epsilon: float = 1e-5
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., E] -> [..., E], in the dtype of `x`."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        y = centred * lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.epsilon)
        ones = declare(nn.initializers.ones, "vector")
        y = y * along_last(self.param("scale", ones, (x.shape[-1],), jnp.float32), y)
        if self.use_bias:
            zeros = declare(nn.initializers.zeros, "vector")
            y = y + along_last(self.param("bias", zeros, (x.shape[-1],), jnp.float32), y)
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + epsilon) * scale` over the last axis, statistics in float32.

    Source:
        Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., E] -> [..., E], in the dtype of `x`."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = wide * lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        ones = declare(nn.initializers.ones, "vector")
        return (y * along_last(self.param("scale", ones, (x.shape[-1],), jnp.float32), y)).astype(x.dtype)


class Conv(nn.Module):
    """A convolution of images [B, H, W, C] to [B, H', W', features], with a bias; see `convolve`.

    Attributes:
        features: Output channels.
        kernel: Window (rows, columns).
        strides: Steps between windows.
        padding: "SAME", "VALID", or zeros on each side; see `convolve`.
        form: None chooses by backend.
        use_bias: Whether to add a bias [features].
        matmul_dtype: Precision of the operands; see `matmul`.
        kernel_init: Of the kernel [kh, kw, C, features].
    """

    features: int
    kernel: tuple[int, int] = (3, 3)
    strides: int | tuple[int, int] = 1
    padding: Padding = "SAME"
    form: Form | None = None
    use_bias: bool = True
    matmul_dtype: Any = None
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, H', W', features]."""
        check_images("Conv", x, self.kernel)
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", declare(self.kernel_init, "conv"), shape, jnp.float32)
        y = convolve(x, kernel, self.strides, self.padding, self.form, self.matmul_dtype)
        if self.use_bias:
            zeros = declare(nn.initializers.zeros, "vector")
            y = y + along_last(self.param("bias", zeros, (self.features,), jnp.float32), y)
        return y
