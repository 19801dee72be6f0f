"""What a GPT is made of: its sizes and choices, checked where they are written."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax

from jaxnn.models.attention import RotaryScaling
from jaxnn.models.attention.call import FORMS, Form
from jaxnn.models.given import check_rate, check_sizes
from jaxnn.models.sizes import divisors

_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"layers": 2, "heads": 2, "width": 64, "length": 64},
    "small": {"layers": 4, "heads": 3, "width": 192, "length": 256},
    "gpt2": {
        "vocab": 50257,
        "layers": 12,
        "heads": 12,
        "width": 768,
        "length": 1024,
        "positions": "learned",
        "activation": "gelu",
        "norm": "layer",
        "bias": True,
    },
}


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """What a GPT is made of.

    Attributes:
        vocab: Number of tokens; 256 for bytes.
        length: Longest sequence, in tokens: the table's size for learned positions, the window of `generate`.
        layers: Blocks.
        heads: Attention heads; must divide `width` where `head_width` is None.
        width: E.
        mlp_ratio: Hidden width of a block's MLP over `width`.
        positions: "rotary", "learned" (a table [length, width]) or "alibi".
        activation: "squared_relu" (So et al. 2021, arXiv:2109.08668), "gelu" (tanh form, as GPT-2), or "swiglu", whose
            MLP has a third matrix, `mlp_gate` (Shazeer 2020, arXiv:2002.05202).
        norm: "rms", or "layer".
        tied: Whether the token table is the output matrix too.
        dropout: Rate after the embedding and on each residual branch, while training.
        attention_dropout: Rate on the attention's weights, while training. It costs passes over them; `models.load`
            does not take it over from a folder, but where you name it.
        scan: Whether one traced block runs as a scan over stacked parameters; None decides by depth and backend. The
            values are the same; `stack_layers` and `unstack_layers` convert parameters.
        matmul_dtype: Precision of the products' operands; see `products.matmul`.
        bias: Whether dense layers and LayerNorms have biases.
        kv_heads: Heads of keys and values, each read by heads / kv_heads heads of queries; None for as many as `heads`.
        head_width: D; None for width / heads.
        mlp_width: Hidden width of a block's MLP; None for mlp_ratio * width.
        qkv_bias: Whether the projection to queries, keys and values has a bias; None for what `bias` says.
        rotary_base: Base of rotary wavelengths.
        rotary_scaling: Change of rotary frequencies for long texts.
        epsilon: Of the norms; None for 1e-6 (rms) or 1e-5 (layer).
        window: How many positions a query reads, its own included (sliding window); None for all before it.
        attention: Form of attention, see `attention.attention`; None chooses.
    """

    vocab: int = 256
    length: int = 256
    layers: int = 4
    heads: int = 4
    width: int = 192
    mlp_ratio: int = 4
    positions: Literal["rotary", "learned", "alibi"] = "rotary"
    activation: Literal["squared_relu", "gelu", "swiglu"] = "squared_relu"
    norm: Literal["rms", "layer"] = "rms"
    tied: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    scan: bool | None = None
    matmul_dtype: Any = None
    bias: bool = False
    kv_heads: int | None = None
    head_width: int | None = None
    mlp_width: int | None = None
    qkv_bias: bool | None = None
    rotary_base: float = 10_000.0
    rotary_scaling: RotaryScaling | None = None
    epsilon: float | None = None
    window: int | None = None
    attention: Form | None = None

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: If a size is below 1, the heads do not divide the width, or a choice is unknown.
        """
        sizes = ("vocab", "length", "layers", "heads", "width", "mlp_ratio")
        sizes += tuple(n for n in ("kv_heads", "head_width", "mlp_width", "window") if getattr(self, n) is not None)
        check_sizes("GPTConfig", {name: getattr(self, name) for name in sizes})
        if self.head_width is None and self.width % self.heads:
            fits = divisors(self.width, 2 * self.heads)
            raise ValueError(
                f"models.GPTConfig: heads={self.heads} do not divide width={self.width}. Tried: equal heads. "
                f"Write heads as one of {fits}."
            )
        if self.heads % self.key_heads:
            fits = divisors(self.heads, self.heads)
            raise ValueError(
                f"models.GPTConfig: kv_heads={self.kv_heads} do not divide heads={self.heads}. Tried: equal groups. "
                f"Write kv_heads as one of {fits}."
            )
        if self.positions == "rotary" and self.each % 2:
            raise ValueError(
                f"models.GPTConfig: width={self.width} over heads={self.heads} is {self.each} a head. "
                f"Tried: rotary pairs. Write an even head width, or positions='learned'."
            )
        for name in ("dropout", "attention_dropout"):
            check_rate("GPTConfig", name, getattr(self, name))
        if self.rotary_base <= 0 or (self.epsilon is not None and self.epsilon <= 0):
            raise ValueError(
                f"models.GPTConfig: rotary_base={self.rotary_base!r}, epsilon={self.epsilon!r}. Tried: positive "
                f"numbers. Write 10000.0 and 1e-6, say."
            )
        choices: dict[str, tuple[Any, ...]] = {
            "positions": ("rotary", "learned", "alibi"),
            "activation": ("squared_relu", "gelu", "swiglu"),
            "norm": ("rms", "layer"),
            "attention": (None, *FORMS),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"models.GPTConfig: {name}={getattr(self, name)!r}. Tried: {', '.join(map(str, allowed))}. "
                    f"Write one of them."
                )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "GPTConfig":
        """A named size, with fields replaced: "tiny" (0.1 M parameters), "small" (1.8 M) or "gpt2" (124.4 M).

        Raises:
            ValueError: If the name is unknown, or the overrides do not fit.
        """
        if name not in _PRESETS:
            raise ValueError(
                f"models.GPTConfig.preset: {name!r} is unknown. Tried: {', '.join(_PRESETS)}. Write one of them."
            )
        return cls(**{**_PRESETS[name], **overrides})

    @property
    def each(self) -> int:
        """D, the width of a head."""
        return self.width // self.heads if self.head_width is None else self.head_width

    @property
    def key_heads(self) -> int:
        """K, the heads of keys and values."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def hidden(self) -> int:
        """Hidden width of a block's MLP."""
        return self.mlp_ratio * self.width if self.mlp_width is None else self.mlp_width

    @property
    def scanned(self) -> bool:
        """Whether the blocks are scanned: from 24 layers compile time outweighs the loop's speed, but not on CPU."""
        if self.scan is not None:
            return self.scan
        return self.layers >= 24 and jax.default_backend() != "cpu"
