"""Multilayer perceptron."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
from jax.sharding import PartitionSpec as P

from jaxnn import rng, sharding
from jaxnn.models.given import check_array, check_rate, check_sizes, check_width, dropout_key
from jaxnn.models.layers import Dense, Initializer
from jaxnn.tree import describe
from jaxnn.typing import Array

# How parameters are split over devices that share a layer (`parallel.tensor`): by columns and by rows in turn.
RULES: Mapping[str, P] = {
    r"hidden_\d*[02468]/kernel": P(None, "model"),
    r"hidden_\d*[02468]/bias": P("model"),
    r"hidden_\d*[13579]/kernel": P("model", None),
    "role:vector": P(),
    "role:head": P(),
}


class MLP(nn.Module):
    """Dense layers `hidden_0`, `hidden_1`, ... with an activation and dropout after each, then a linear `head`.

    Attributes:
        features: Widths of the layers; the last is the output's. `MLP((1,))` is a linear model.
        activation: Elementwise, after each hidden layer.
        dropout: Rate after each hidden layer, while training.
        matmul_dtype: Precision of the products' operands; see `products.matmul`.
        kernel_init: Of every layer's kernel.
    """

    features: tuple[int, ...]
    activation: Callable[[Array], Array] = nn.relu
    dropout: float = 0.0
    matmul_dtype: Any = None
    kernel_init: Initializer = nn.initializers.lecun_normal()

    def __post_init__(self) -> None:
        """Checks the settings."""
        if not isinstance(self.features, Iterable) or isinstance(self.features, str):
            raise ValueError(f"models.MLP: features={self.features!r}. Tried: a width a layer. Write (64, 1), say.")
        check_sizes("MLP", {"features": tuple(self.features)})
        check_rate("MLP", "dropout", self.dropout)
        if not callable(self.activation):
            raise TypeError(f"models.MLP: activation={self.activation!r}. Tried: a function. Write jax.nn.relu, say.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """[B, ...] -> [B, features[-1]]; each example is flattened first. Dropout needs rngs={"dropout": key}.

        Raises:
            ValueError: If `x` is a scalar, or of another width than the parameters.
            TypeError: If it is no array.
        """
        check_array("MLP", "x", x, "[B, ...]")
        if not x.ndim or not x.size:
            raise ValueError(f"models.MLP: x is {describe(x)}. Tried: [B, ...], at least one value. Write x[None].")
        x = x.reshape(x.shape[0], -1)
        check_width("MLP", self, "hidden_0" if len(self.features) > 1 else "head", x)
        key = dropout_key("MLP", self) if train and self.dropout else None
        dense = functools.partial(Dense, matmul_dtype=self.matmul_dtype, kernel_init=self.kernel_init)
        for i, width in enumerate(self.features[:-1]):
            x = self.activation(dense(width, name=f"hidden_{i}")(x))
            x = sharding.constrain(x, "batch", "mlp")
            if key is not None:
                x = rng.dropout(rng.named_key(key, f"hidden_{i}"), x, self.dropout)
        return dense(self.features[-1], role="head", name="head")(x)
