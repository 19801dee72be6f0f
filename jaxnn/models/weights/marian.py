"""Marian's files, the OPUS translators': `MarianMTModel`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnn.models.transformer import Transformer
from jaxnn.models.transformer_config import TransformerConfig
from jaxnn.models.weights.claims import Claims
from jaxnn.models.weights.table import (
    SAME,
    Architecture,
    Entry,
    Transform,
    choose,
    count,
    expect,
    linear,
    need,
    norm,
    number,
)

_ACTIVATIONS = {"relu": "relu", "swish": "silu", "silu": "silu", "gelu_new": "gelu"}
_ROW = Transform(lambda xs: xs[0].reshape(-1), lambda x: [np.asarray(x).reshape(1, -1)])
_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}


def _entries(module: Transformer) -> list[Entry]:
    c = module.config
    entries = [
        Entry("embed/embedding", ("model.shared.weight",), SAME),
        Entry("logits_bias", ("final_logits_bias",), _ROW),
    ]
    for side, blocks in (("encoder", c.layers), ("decoder", c.decoder_layers or c.layers)):
        branches = {"attention": "self_attn", **({"cross": "encoder_attn"} if side == "decoder" else {})}
        for i in range(blocks):
            ours, theirs = f"{side}_{i}", f"model.{side}.layers.{i}"
            for branch, name in branches.items():
                for a, b in _PROJECTIONS.items():
                    entries += linear(f"{ours}/{branch}/{a}", f"{theirs}.{name}.{b}")
                entries += norm(f"{ours}/norm_{branch}", f"{theirs}.{name}_layer_norm")
            entries += linear(f"{ours}/mlp_in", f"{theirs}.fc1")
            entries += linear(f"{ours}/mlp_out", f"{theirs}.fc2")
            entries += norm(f"{ours}/norm_mlp", f"{theirs}.final_layer_norm")
    return entries


def _read(config: Mapping[str, Any], names: frozenset[str]) -> Transformer:
    del names
    expect(
        "marian",
        config,
        scale_embedding=True,
        share_encoder_decoder_embeddings=True,
        tie_word_embeddings=True,
        is_encoder_decoder=True,
        normalize_before=False,
        normalize_embedding=False,
        add_final_layer_norm=False,
        static_position_embeddings=True,
    )
    vocab, width, hidden, heads, layers, decoder_layers = need(
        "marian",
        config,
        "vocab_size",
        "d_model",
        "encoder_ffn_dim",
        "encoder_attention_heads",
        "encoder_layers",
        "decoder_layers",
    )
    expect("marian", config, decoder_attention_heads=heads, decoder_ffn_dim=hidden)
    pad = count("marian", config, "pad_token_id", vocab - 1)
    return Transformer(
        TransformerConfig(
            vocab=vocab,
            layout="marian",
            width=width,
            heads=heads,
            hidden=hidden,
            layers=layers,
            decoder_layers=decoder_layers,
            activation=choose("marian", config, "activation_function", _ACTIVATIONS, "gelu"),  # type: ignore[arg-type]
            dropout=number("marian", config, "dropout", 0.1),
            pad=pad,
            start=count("marian", config, "decoder_start_token_id", pad),
            end=count("marian", config, "eos_token_id", 0),
        )
    )


def _claims(module: Transformer) -> Claims:
    c = module.config
    sizes = {"vocab_size": c.vocab, "d_model": c.width, "encoder_ffn_dim": c.hidden, "encoder_attention_heads": c.heads}
    layers = {
        "encoder_layers": ("encoder.layers.", c.layers),
        "decoder_layers": ("decoder.layers.", c.decoder_layers or c.layers),
    }
    return Claims(layers, sizes)


def _write(module: Transformer) -> dict[str, Any]:
    c = module.config
    if c.gated or not c.tied or (c.head_width not in (None, c.width // c.heads)):
        raise ValueError(
            f"models.save: gated={c.gated}, tied={c.tied}, head_width={c.head_width}. Tried: Marian's files, which "
            "have no word for it. Use an ungated, tied model whose heads divide its width, or layout='t5'."
        )
    return {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "is_encoder_decoder": True,
        "vocab_size": c.vocab,
        "d_model": c.width,
        "encoder_layers": c.layers,
        "decoder_layers": c.decoder_layers or c.layers,
        "encoder_attention_heads": c.heads,
        "decoder_attention_heads": c.heads,
        "encoder_ffn_dim": c.hidden,
        "decoder_ffn_dim": c.hidden,
        "activation_function": {"silu": "swish", "gelu": "gelu_new"}.get(c.activation, c.activation),
        "dropout": c.dropout,
        "scale_embedding": True,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "static_position_embeddings": True,
        "max_position_embeddings": 1024,
        "pad_token_id": c.pad,
        "decoder_start_token_id": c.start,
        "eos_token_id": c.end,
    }


ARCHITECTURE = Architecture(
    kind="marian",
    module=Transformer,
    fits=lambda module: module.config.layout == "marian",
    read=_read,
    write=_write,
    entries=_entries,
    layers=lambda module: (1, False),  # the table names every layer itself
    claims=_claims,
    prefix="",
    bare=lambda module: False,
    twins=lambda module: dict.fromkeys(
        ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"),
        "model.shared.weight",
    ),
    noise=("embed_positions.weight",),  # sines and cosines
)
