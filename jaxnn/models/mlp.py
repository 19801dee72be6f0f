"""Multilayer perceptron."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from jax.sharding import PartitionSpec as P

from jaxnn import rng, sharding
from jaxnn.models.layers import Dense, Initializer
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
        if not self.features or min(self.features) < 1:
            raise ValueError(
                f"models.MLP: features={self.features!r}. Tried: widths of at least 1. Write (64, 1), say."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"models.MLP: dropout={self.dropout!r}. Tried: a rate in [0, 1). Write 0.1, say.")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """[B, ...] -> [B, features[-1]]; each example is flattened first. Dropout needs rngs={"dropout": key}."""
        x = x.reshape(x.shape[0], -1)
        key = self.make_rng("dropout") if train and self.dropout else None
        dense = functools.partial(Dense, matmul_dtype=self.matmul_dtype, kernel_init=self.kernel_init)
        for i, width in enumerate(self.features[:-1]):
            x = self.activation(dense(width, name=f"hidden_{i}")(x))
            x = sharding.constrain(x, "batch", "mlp")
            if key is not None:
                x = rng.dropout(rng.named_key(key, f"hidden_{i}"), x, self.dropout)
        return dense(self.features[-1], role="head", name="head")(x)
