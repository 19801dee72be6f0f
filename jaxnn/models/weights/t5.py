"""T5's files: `T5ForConditionalGeneration`, of T5 and of T5 1.1 (gated, untied)."""

from collections.abc import Mapping
from typing import Any

from jaxnn.models.transformer import Transformer
from jaxnn.models.transformer_config import TransformerConfig
from jaxnn.models.weights.claims import Claims
from jaxnn.models.weights.table import SAME, TRANSPOSED, Architecture, Entry, choose, count, expect, need, number

_GATED = {"gated-gelu": "gelu", "gated-silu": "silu", "gated-relu": "relu"}
_FORMS = {"relu": "relu", "gelu_new": "gelu", "silu": "silu", **_GATED}
_FARTHEST = 2**20  # tokens: no text that a T5 reads is as long, and the files have no axis to hold this against
_BIAS = "{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def _dense(ours: str, theirs: str) -> Entry:
    return Entry(f"{ours}/kernel", (f"{theirs}.weight",), TRANSPOSED)


def _scale(ours: str, theirs: str) -> Entry:
    return Entry(f"{ours}/scale", (f"{theirs}.weight",), SAME)


def _entries(module: Transformer) -> list[Entry]:
    c = module.config
    entries = [Entry("embed/embedding", ("shared.weight",), SAME)]
    sides = (("encoder", c.layers), ("decoder", c.decoder_layers or c.layers))
    for side, blocks in sides:
        entries += [
            Entry(f"{side}_bias", (_BIAS.format(side),), SAME),
            _scale(f"norm_{side}", f"{side}.final_layer_norm"),
        ]
        branches = [("attention", "SelfAttention"), *([("cross", "EncDecAttention")] if side == "decoder" else [])]
        for i in range(blocks):
            ours, theirs = f"{side}_{i}", f"{side}.block.{i}.layer"
            for j, (branch, name) in enumerate(branches):
                entries += [
                    _dense(f"{ours}/{branch}/{a}", f"{theirs}.{j}.{name}.{b}")
                    for a, b in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))
                ]
                entries.append(_scale(f"{ours}/norm_{branch}", f"{theirs}.{j}.layer_norm"))
            mlp = f"{theirs}.{len(branches)}.DenseReluDense"
            inner = {"mlp_gate": "wi_0", "mlp_in": "wi_1"} if c.gated else {"mlp_in": "wi"}
            entries += [_dense(f"{ours}/{a}", f"{mlp}.{b}") for a, b in (inner | {"mlp_out": "wo"}).items()]
            entries.append(_scale(f"{ours}/norm_mlp", f"{theirs}.{len(branches)}.layer_norm"))
    return entries if c.tied else [*entries, _dense("head", "lm_head")]


def _twins(module: Transformer) -> dict[str, str]:
    copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    return dict.fromkeys([*copies, *(["lm_head.weight"] if module.config.tied else [])], "shared.weight")


def _read(config: Mapping[str, Any], names: frozenset[str]) -> Transformer:
    del names
    expect("t5", config, layer_norm_epsilon=1e-6, is_encoder_decoder=True)
    vocab, width, head_width, hidden, layers, heads = need(
        "t5", config, "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"
    )
    distance = count("t5", config, "relative_attention_max_distance", 128)
    if distance > _FARTHEST:
        raise ValueError(
            f"models.load: config.json of a t5 has relative_attention_max_distance={distance}. Tried: up to "
            f"{_FARTHEST}, for a table of that length. Give the model's own config.json."
        )
    activation = choose("t5", config, "feed_forward_proj", _FORMS, "relu")
    # transformers from 5 on writes of every T5 that it is tied, and of 1.1 that its outputs are not scaled.
    tied = bool(config.get("tie_word_embeddings", True)) and bool(config.get("scale_decoder_outputs", True))
    return Transformer(
        TransformerConfig(
            vocab=vocab,
            layout="t5",
            width=width,
            heads=heads,
            head_width=head_width,
            hidden=hidden,
            layers=layers,
            decoder_layers=count("t5", config, "num_decoder_layers", 0) or layers,
            activation=activation,  # type: ignore[arg-type]
            gated=config.get("feed_forward_proj") in _GATED,
            tied=tied,
            buckets=count("t5", config, "relative_attention_num_buckets", 32),
            distance=distance,
            dropout=number("t5", config, "dropout_rate", 0.1),
            pad=count("t5", config, "pad_token_id", 0),
            start=count("t5", config, "decoder_start_token_id", 0),
            end=count("t5", config, "eos_token_id", 1),
        )
    )


def _claims(module: Transformer) -> Claims:
    c = module.config
    sizes = {
        "vocab_size": c.vocab,
        "d_model": c.width,
        "d_ff": c.hidden,
        "num_heads * d_kv": c.inner,
        "relative_attention_num_buckets": c.buckets,
    }
    layers = {
        "num_layers": ("encoder.block.", c.layers),
        "num_decoder_layers": ("decoder.block.", c.decoder_layers or c.layers),
    }
    return Claims(layers, sizes)


def _write(module: Transformer) -> dict[str, Any]:
    c = module.config
    (form,) = (said for said, ours in _FORMS.items() if ours == c.activation and (said in _GATED) == c.gated)
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "vocab_size": c.vocab,
        "d_model": c.width,
        "d_kv": c.inner // c.heads,
        "d_ff": c.hidden,
        "num_layers": c.layers,
        "num_decoder_layers": c.decoder_layers or c.layers,
        "num_heads": c.heads,
        "relative_attention_num_buckets": c.buckets,
        "relative_attention_max_distance": c.distance,
        "dropout_rate": c.dropout,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": form,
        "tie_word_embeddings": c.tied,
        "pad_token_id": c.pad,
        "decoder_start_token_id": c.start,
        "eos_token_id": c.end,
    }


ARCHITECTURE = Architecture(
    kind="t5",
    module=Transformer,
    fits=lambda module: module.config.layout == "t5",
    read=_read,
    write=_write,
    entries=_entries,
    layers=lambda module: (1, False),  # the table names every layer itself: a decoder may have others than an encoder
    claims=_claims,
    prefix="",
    bare=lambda module: False,
    twins=_twins,
    noise=("EncDecAttention.relative_attention_bias.weight",),  # of old files; never read
)
