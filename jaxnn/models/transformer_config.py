"""What an encoder-decoder transformer is made of: its sizes and choices, checked where they are written.

Shapes as in `models.transformer`.
"""

import dataclasses
from typing import Any, Literal

from jaxnn.models.given import check_rate, check_sizes


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """What an encoder-decoder is made of.

    Attributes:
        vocab: Number of tokens; one table serves source, target and, where `tied`, the logits.
        layout: "t5" (relative position buckets, RMSNorm before each branch, no biases, scores not divided by sqrt(D)),
            or "marian" (sinusoidal positions, LayerNorm after each branch, biases, embeddings times sqrt(E)).
        width: E.
        heads: H.
        head_width: D; width / heads where None.
        hidden: F, of the MLPs.
        layers: Of the encoder.
        decoder_layers: Of the decoder; as many where None.
        activation: "relu", "gelu" (tanh form) or "silu", in the MLPs.
        gated: Whether an MLP's activation gates a second product (Shazeer 2020, arXiv:2002.05202).
        tied: Whether the token table is the output matrix too; T5 then divides what it reads by sqrt(E).
        buckets: Of relative positions ("t5").
        distance: From here on all relative positions share a bucket ("t5").
        dropout: Rate after the embedding and on each residual branch, while training.
        pad: Token that fills up; source positions that hold it are not read.
        start: Token that the decoder begins with.
        end: Token that ends a sequence.
        matmul_dtype: Precision of the projections' operands; see `products.matmul`.
    """

    vocab: int
    layout: Literal["t5", "marian"] = "t5"
    width: int = 256
    heads: int = 4
    head_width: int | None = None
    hidden: int = 1024
    layers: int = 3
    decoder_layers: int | None = None
    activation: Literal["relu", "gelu", "silu"] = "relu"
    gated: bool = False
    tied: bool = True
    buckets: int = 32
    distance: int = 128
    dropout: float = 0.0
    pad: int = 0
    start: int = 1
    end: int = 2
    matmul_dtype: Any = None

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: If a size is out of range, the heads do not divide the width, or a choice is unknown.
        """
        where = "models.TransformerConfig"
        names = ("vocab", "width", "heads", "head_width", "hidden", "layers", "decoder_layers", "buckets", "distance")
        sizes = {name: getattr(self, name) for name in names}
        check_sizes("TransformerConfig", {name: size for name, size in sizes.items() if size is not None})
        if self.head_width is None and self.width % self.heads:
            raise ValueError(
                f"{where}: heads={self.heads} do not divide width={self.width}. Tried: equal heads. Write a divisor, "
                "or head_width."
            )
        if self.layout == "marian" and self.width % 2:
            raise ValueError(f"{where}: width={self.width}. Tried: sines and cosines. Write an even width.")
        if self.buckets < 4 or self.buckets % 4 or self.distance <= self.buckets // 2:
            raise ValueError(
                f"{where}: buckets={self.buckets}, distance={self.distance}. Tried: a multiple of 4, and a distance "
                "beyond half of them. Write 32 and 128, say."
            )
        check_rate("TransformerConfig", "dropout", self.dropout)
        for name in ("pad", "start", "end"):
            if not 0 <= getattr(self, name) < self.vocab:
                raise ValueError(
                    f"{where}: {name}={getattr(self, name)!r} for a vocabulary of {self.vocab}. Tried: a token id. "
                    "Write one in [0, vocab)."
                )
        for name, allowed in {"layout": ("t5", "marian"), "activation": ("relu", "gelu", "silu")}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{where}: {name}={getattr(self, name)!r}. Tried: {', '.join(allowed)}. Write one of them."
                )

    @property
    def inner(self) -> int:
        """H D, the width of all heads together."""
        return self.heads * (self.head_width or self.width // self.heads)
