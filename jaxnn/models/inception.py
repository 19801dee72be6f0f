"""Inception v3: branches of factorised convolutions side by side, and a second head that helps while training.

Parameters lie as in torchvision: `Conv2d_1a_3x3/conv`, `Mixed_5b/branch1x1/bn`, ..., `AuxLogits/fc`, `fc`.

Shape suffixes: B examples, H W rows and columns, C channels.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxnn import rng, sharding
from jaxnn.models.given import dropout_key
from jaxnn.models.layers import BatchNorm, Conv, Dense
from jaxnn.models.pooling import Form, avg_pool, max_pool
from jaxnn.models.vision import check_choice, check_input, check_rate, check_sizes, same_avg_pool
from jaxnn.typing import Array

# How parameters are split over devices that share a layer (`parallel.tensor`): by output channels.
RULES: Mapping[str, P] = {"conv/kernel": P(None, None, None, "model"), "role:vector": P(), "role:head": P()}
_INIT = nn.initializers.truncated_normal(0.1)


class Unit(NamedTuple):
    """A convolution, BatchNorm and relu: its name, channels, window, stride and padding."""

    name: str
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    pad: tuple[int, int] = (0, 0)


def _square(name: str, features: int, window: int, stride: int = 1, pad: int = 0) -> Unit:
    return Unit(name, features, (window, window), stride, (pad, pad))


def _row(name: str, features: int, window: int = 7) -> Unit:
    return Unit(name, features, (1, window), 1, (0, window // 2))


def _column(name: str, features: int, window: int = 7) -> Unit:
    return Unit(name, features, (window, 1), 1, (window // 2, 0))


class Branch(NamedTuple):
    """Pooling ("mean" at stride 1, "max" at stride 2) if any, units in a row, and units that end it side by side."""

    units: Sequence[Unit] = ()
    ends: Sequence[Unit] = ()
    pool: str | None = None


def _a(pool: int) -> list[Branch]:
    return [
        Branch([Unit("branch1x1", 64)]),
        Branch([Unit("branch5x5_1", 48), _square("branch5x5_2", 64, 5, pad=2)]),
        Branch(
            [
                Unit("branch3x3dbl_1", 64),
                _square("branch3x3dbl_2", 96, 3, pad=1),
                _square("branch3x3dbl_3", 96, 3, pad=1),
            ]
        ),
        Branch([Unit("branch_pool", pool)], pool="mean"),
    ]


def _b() -> list[Branch]:
    double = [
        Unit("branch3x3dbl_1", 64),
        _square("branch3x3dbl_2", 96, 3, pad=1),
        _square("branch3x3dbl_3", 96, 3, stride=2),
    ]
    return [Branch([_square("branch3x3", 384, 3, stride=2)]), Branch(double), Branch(pool="max")]


def _c(n: int) -> list[Branch]:
    double = [
        Unit("branch7x7dbl_1", n),
        _column("branch7x7dbl_2", n),
        _row("branch7x7dbl_3", n),
        _column("branch7x7dbl_4", n),
        _row("branch7x7dbl_5", 192),
    ]
    return [
        Branch([Unit("branch1x1", 192)]),
        Branch([Unit("branch7x7_1", n), _row("branch7x7_2", n), _column("branch7x7_3", 192)]),
        Branch(double),
        Branch([Unit("branch_pool", 192)], pool="mean"),
    ]


def _d() -> list[Branch]:
    seven = [
        Unit("branch7x7x3_1", 192),
        _row("branch7x7x3_2", 192),
        _column("branch7x7x3_3", 192),
        _square("branch7x7x3_4", 192, 3, stride=2),
    ]
    three = [Unit("branch3x3_1", 192), _square("branch3x3_2", 320, 3, stride=2)]
    return [Branch(three), Branch(seven), Branch(pool="max")]


def _e() -> list[Branch]:
    ends = [_row("branch3x3_2a", 384, 3), _column("branch3x3_2b", 384, 3)]
    double = [Unit("branch3x3dbl_1", 448), _square("branch3x3dbl_2", 384, 3, pad=1)]
    double_ends = [_row("branch3x3dbl_3a", 384, 3), _column("branch3x3dbl_3b", 384, 3)]
    return [
        Branch([Unit("branch1x1", 320)]),
        Branch([Unit("branch3x3_1", 384)], ends),
        Branch(double, double_ends),
        Branch([Unit("branch_pool", 192)], pool="mean"),
    ]


# Before the first pooling, before the second, and the modules.
FIRST = (
    _square("Conv2d_1a_3x3", 32, 3, stride=2),
    _square("Conv2d_2a_3x3", 32, 3),
    _square("Conv2d_2b_3x3", 64, 3, pad=1),
)
SECOND = (Unit("Conv2d_3b_1x1", 80), _square("Conv2d_4a_3x3", 192, 3))
MIXED = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": _b(),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": _d(),
    "Mixed_7b": _e(),
    "Mixed_7c": _e(),
}
AUX_AFTER = "Mixed_6e"
# By the stem, the smallest images that leave a pixel to the first head, and to both.
PIXELS = {"imagenet": (75, 299), "small": (7, 35)}
AUX = (Unit("conv0", 128), _square("conv1", 768, 5))


@dataclasses.dataclass(frozen=True)
class InceptionConfig:
    """What an Inception v3 is made of.

    Attributes:
        classes: Width of the heads.
        aux: Whether there is the second head; in training its logits come as well.
        dropout: Rate before the head, while training.
        channels: Of the images.
        stem: "imagenet" (a first stride of 2, 3x3 max pooling at stride 2 twice) or "small" (the same convolutions at
            stride 1, padded, and no pooling: the modules see images of full size, as 28 to 64 pixels want). Parameters
            are the same.
        form: Of the convolutions; see `ResNetConfig.form`.
        matmul_dtype: Precision of the products' operands; see `products.matmul`.
    """

    classes: int = 1000
    aux: bool = True
    dropout: float = 0.5
    channels: int = 3
    stem: Literal["imagenet", "small"] = "imagenet"
    form: Form | None = None
    matmul_dtype: Any = None

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: If a size is below 1, the dropout no rate, or the stem unknown.
        """
        check_sizes("InceptionConfig", {"classes": self.classes, "channels": self.channels})
        check_rate("InceptionConfig", "dropout", self.dropout)
        check_choice("InceptionConfig", "stem", self.stem, ("imagenet", "small"))

    def stages(self) -> tuple[tuple[Unit, ...], ...]:
        """The stem's units before the first pooling and before the second; all in one where it does not pool."""
        if self.stem == "imagenet":
            return FIRST, SECOND
        return (tuple(u._replace(stride=1, pad=(u.kernel[0] // 2, u.kernel[1] // 2)) for u in (*FIRST, *SECOND)),)


class ConvNorm(nn.Module):
    """`relu(norm(conv(x)))`."""

    config: InceptionConfig
    unit: Unit
    train: bool

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        """[B, H, W, C] -> [B, H', W', C']."""
        c, u = self.config, self.unit
        x = Conv(u.features, u.kernel, u.stride, u.pad, c.form, False, c.matmul_dtype, _INIT, name="conv")(x)
        x = BatchNorm(epsilon=1e-3, name="bn")(x, mask, train=self.train)
        return sharding.constrain(nn.relu(x), "batch", None, None, "channels")


class Mixed(nn.Module):
    """Branches side by side, their channels one after another."""

    config: InceptionConfig
    branches: Sequence[Branch]
    train: bool

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        """[B, H, W, C] -> [B, H', W', C']."""
        found = []
        for branch in self.branches:
            y = x
            if branch.pool:
                y = same_avg_pool(x) if branch.pool == "mean" else max_pool(x, 3, 2)
            for unit in branch.units:
                y = ConvNorm(self.config, unit, self.train, name=unit.name)(y, mask)
            found += [ConvNorm(self.config, u, self.train, name=u.name)(y, mask) for u in branch.ends] or [y]
        return jnp.concatenate(found, axis=-1)


class Aux(nn.Module):
    """The second head, on what the first nine modules give."""

    config: InceptionConfig
    train: bool

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        """[B, H, W, C] -> logits [B, classes]."""
        x = avg_pool(x, 5, 3)
        for unit in AUX:
            x = ConvNorm(self.config, unit, self.train, name=unit.name)(x, mask)
        return _fc(self.config)(jnp.mean(x, axis=(1, 2))).astype(jnp.float32)


def _fc(c: InceptionConfig) -> Dense:
    return Dense(c.classes, matmul_dtype=c.matmul_dtype, role="head", name="fc")


def _for_smaller(c: InceptionConfig, with_aux: bool) -> list[str]:
    """What to write for images that are too small, and from how many pixels it goes."""
    found = [f"aux=False (from {PIXELS[c.stem][False]})"] if with_aux else []
    return found if c.stem == "small" else [*found, f"stem='small' (from {PIXELS['small'][with_aux]})"]


class Inception(nn.Module):
    """Images -> class logits; in training, with `config.aux`, (logits, the second head's logits): see `with_aux`.

    Source:
        Szegedy et al. 2016, arXiv:1512.00567; sizes as in torchvision. The small stem goes on from section 8, where
        images of 79 pixels get no first stride and pooling: here no later ones either.
    """

    config: InceptionConfig

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, mask: Array | None = None) -> Array | tuple[Array, Array]:
        """[B, H, W, channels] -> logits [B, classes], float32, or two of them.

        Args:
            x: Images; 299 pixels a side as published, at least 75, and as many as published where the second head
                takes part (training, initialisation). With the small stem at least 7, and 35 with the second head.
            train: Batch statistics ("batch_stats" must be mutable) and dropout (needs rngs={"dropout": key}).
            mask: [B], 0 for padding examples, which enter no statistic.

        Raises:
            ValueError: If `x` is not [B, H, W, channels], or too small.
        """
        c = self.config
        with_aux = c.aux and (train or self.is_initializing())
        check_input("Inception", x, c.channels, PIXELS[c.stem][with_aux], _for_smaller(c, with_aux))
        for units in c.stages():
            for unit in units:
                x = ConvNorm(c, unit, train, name=unit.name)(x, mask)
            if c.stem == "imagenet":
                x = max_pool(x, 3, 2)
        second = None
        for name, branches in MIXED.items():
            x = Mixed(c, branches, train, name=name)(x, mask)
            if with_aux and name == AUX_AFTER:
                second = Aux(c, train, name="AuxLogits")(x, mask)
        x = jnp.mean(x, axis=(1, 2))
        if train and c.dropout:
            x = rng.dropout(rng.named_key(dropout_key("Inception", self), "head"), x, c.dropout)
        logits = _fc(c)(x).astype(jnp.float32)
        return logits if second is None or not train else (logits, second)


def with_aux(values: Callable[[Any, Any], Any], weight: float = 0.4) -> Callable[[Any, Any], Any]:
    """A loss of both heads' logits: `values(first) + weight values(second)`; of the first alone where there is one.

    Args:
        values: `(logits, targets) -> values [B]`; a loss, or with weight 0 a metric.
        weight: Of the second head's.
    """

    def both(outputs: Any, targets: Any) -> Any:
        if not isinstance(outputs, tuple):
            return values(outputs, targets)
        first = values(outputs[0], targets)
        return first + weight * values(outputs[1], targets) if weight else first

    return both
