"""GPT-2's files: `GPT2Model` and `GPT2LMHeadModel`."""

from collections.abc import Mapping
from typing import Any

from jaxnn.models.gpt import GPT, GPTConfig
from jaxnn.models.weights.claims import Claims
from jaxnn.models.weights.table import (
    SAME,
    TRANSPOSED,
    Architecture,
    Entry,
    count,
    expect,
    heads_inside,
    linear,
    need,
    norm,
    number,
)


def _read(config: Mapping[str, Any], names: frozenset[str]) -> GPT:
    del names
    expect(
        "gpt2",
        config,
        activation_function="gelu_new",
        layer_norm_epsilon=1e-5,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    vocab, length, layers, heads, width = need(
        "gpt2", config, "vocab_size", "n_positions", "n_layer", "n_head", "n_embd"
    )
    inner = count("gpt2", config, "n_inner", 0) or 4 * width
    if inner % width:
        raise ValueError(
            f"models.load: config.json of a gpt2 has n_inner={inner} for n_embd={width}. Tried: a multiple, which is "
            f"how our model says it. Use a model that has one."
        )
    return GPT(
        GPTConfig(
            vocab=vocab,
            length=length,
            layers=layers,
            heads=heads,
            width=width,
            mlp_ratio=inner // width,
            positions="learned",
            activation="gelu",
            norm="layer",
            bias=True,
            tied=bool(config.get("tie_word_embeddings", True)),
            dropout=number("gpt2", config, "resid_pdrop", 0.1),
        )
    )


def _claims(module: GPT) -> Claims:
    c = module.config
    sizes = {"vocab_size": c.vocab, "n_positions": c.length, "n_head": c.heads, "n_embd": c.width, "n_inner": c.hidden}
    return Claims({"n_layer": ("h.", c.layers)}, sizes)


def _fits(module: GPT) -> bool:
    c = module.config
    usual = (c.key_heads, c.qkv_bias is not False, c.window, c.epsilon or 1e-5) == (c.heads, True, None, 1e-5)
    whole = c.each * c.heads == c.width and c.hidden % c.width == 0
    return (c.positions, c.activation, c.norm, c.bias) == ("learned", "gelu", "layer", True) and usual and whole


def _write(module: GPT) -> dict[str, Any]:
    c = module.config
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": c.vocab,
        "n_positions": c.length,
        "n_layer": c.layers,
        "n_head": c.heads,
        "n_embd": c.width,
        "n_inner": c.hidden,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.attention_dropout,
        "tie_word_embeddings": c.tied,
        "bos_token_id": min(50256, c.vocab - 1),
        "eos_token_id": min(50256, c.vocab - 1),
    }


def _entries(module: GPT) -> list[Entry]:
    c = module.config
    layer = "transformer.h.{i}"
    inside = heads_inside(c.heads)
    entries = [
        Entry("embed/embedding", ("transformer.wte.weight",), SAME),
        Entry("position_embed", ("transformer.wpe.weight",), SAME),
        *norm("blocks_{i}/norm_attention", f"{layer}.ln_1"),
        # GPT-2's layers are "Conv1D": kernels [in, out], as ours.
        Entry("blocks_{i}/qkv/kernel", (f"{layer}.attn.c_attn.weight",), inside),
        Entry("blocks_{i}/qkv/bias", (f"{layer}.attn.c_attn.bias",), inside),
        *linear("blocks_{i}/attention_out", f"{layer}.attn.c_proj", SAME),
        *norm("blocks_{i}/norm_mlp", f"{layer}.ln_2"),
        *linear("blocks_{i}/mlp_in", f"{layer}.mlp.c_fc", SAME),
        *linear("blocks_{i}/mlp_out", f"{layer}.mlp.c_proj", SAME),
        *norm("norm_out", "transformer.ln_f"),
    ]
    if not c.tied:
        entries.append(Entry("head/kernel", ("lm_head.weight",), TRANSPOSED))
    return entries


ARCHITECTURE = Architecture(
    kind="gpt2",
    module=GPT,
    fits=_fits,
    read=_read,
    write=_write,
    entries=_entries,
    layers=lambda module: (module.config.layers, module.config.scanned),
    claims=_claims,
    prefix="transformer.",
    bare=lambda module: False,
    twins=lambda module: {"lm_head.weight": "transformer.wte.weight"} if module.config.tied else {},
    noise=(".attn.bias", ".attn.masked_bias"),
)
