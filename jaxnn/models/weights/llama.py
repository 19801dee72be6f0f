"""Llama's files, `LlamaModel` and `LlamaForCausalLM`; Mistral's and Qwen2's hold the same under the same names."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnn.models.attention import RotaryScaling
from jaxnn.models.gpt import GPT, GPTConfig
from jaxnn.models.weights.claims import Claims
from jaxnn.models.weights.table import (
    SAME,
    TRANSPOSED,
    Architecture,
    Arrays,
    Entry,
    Transform,
    count,
    expect,
    need,
    number,
)
from jaxnn.typing import HostArray


def grouped(heads: int, key_heads: int) -> Transform:
    """Queries [H D, in], keys and values [K D, in] (or biases) as our kernel, a group's side by side."""
    groups = heads // key_heads

    def join(xs: Arrays) -> HostArray:
        parts = [x.reshape(key_heads, n, -1, *x.shape[1:]) for x, n in zip(xs, (groups, 1, 1), strict=True)]
        return np.concatenate(parts, axis=1).reshape(-1, *xs[0].shape[1:]).T

    def split(x: HostArray) -> Arrays:
        parts = x.T.reshape(key_heads, groups + 2, -1, *x.shape[:-1])
        ranges = ((0, groups), (groups, groups + 1), (groups + 1, groups + 2))
        return [parts[:, a:b].reshape(-1, *x.shape[:-1]) for a, b in ranges]

    return Transform(join, split)


def _rotary(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Base and scaling, as files of transformers 5 (`rope_parameters`) or earlier ones (`rope_scaling`) say them."""
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(said, Mapping):
        said = {"rope_type": said}
    form = said.get("rope_type", said.get("type", "default"))
    if form not in ("default", "llama3") or said.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"models.load: config.json of a {kind} has rotary positions {dict(said)!r}. Tried: 'default', 'llama3', on "
            f"whole heads. Use a model that has such."
        )
    base = number(kind, said, "rope_theta", number(kind, config, "rope_theta", 10_000.0))
    if form == "default":
        return {"rotary_base": base}
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if missing := [name for name in names if said.get(name) is None]:
        raise ValueError(
            f"models.load: config.json of a {kind} has llama3 positions without {missing[0]!r}. Tried: {dict(said)!r}. "
            f"Give the model's own config.json."
        )
    factor, low, high = (number(kind, said, name, 1.0) for name in names[:3])
    (length,) = need(kind, said, names[3])
    return {"rotary_base": base, "rotary_scaling": RotaryScaling(factor, low, high, length)}


def read_config(kind: str, config: Mapping[str, Any], **more: Any) -> GPT:
    """The module that a config.json of this kind describes; `more` are fields that its family has of its own."""
    expect(kind, config, hidden_act="silu", attention_bias=False, mlp_bias=False)
    vocab, length, layers, heads, width, hidden = need(
        kind,
        config,
        "vocab_size",
        "max_position_embeddings",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_size",
        "intermediate_size",
    )
    each = count(kind, config, "head_dim", 0)
    return GPT(
        GPTConfig(
            vocab=vocab,
            length=length,
            layers=layers,
            heads=heads,
            width=width,
            mlp_width=hidden,
            kv_heads=count(kind, config, "num_key_value_heads", 0) or heads,
            head_width=None if not each or each * heads == width else each,
            activation="swiglu",
            norm="rms",
            epsilon=number(kind, config, "rms_norm_eps", 1e-6),
            tied=bool(config.get("tie_word_embeddings", False)),
            **_rotary(kind, config),
            **more,
        )
    )


def write_config(kind: str, name: str, c: GPTConfig) -> dict[str, Any]:
    """config.json of this kind; the architecture is `{name}ForCausalLM`."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rotary_base}
    if c.rotary_scaling is not None:
        s = c.rotary_scaling
        rope |= {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low,
            "high_freq_factor": s.high,
            "original_max_position_embeddings": s.length,
        }
    return {
        "model_type": kind,
        "architectures": [f"{name}ForCausalLM"],
        "vocab_size": c.vocab,
        "max_position_embeddings": c.length,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.key_heads,
        "head_dim": c.each,
        "hidden_size": c.width,
        "intermediate_size": c.hidden,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6 if c.epsilon is None else c.epsilon,
        "tie_word_embeddings": c.tied,
        "rope_parameters": rope,
        # The same for transformers before 5.
        "rope_theta": c.rotary_base,
        **({} if c.rotary_scaling is None else {"rope_scaling": rope}),
    }


def claims(module: GPT) -> Claims:
    """What the tensors of all three families must show; the length is no axis of any."""
    c = module.config
    sizes = {
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "intermediate_size": c.hidden,
        "num_attention_heads * head_dim": c.heads * c.each,
    }
    return Claims({"num_hidden_layers": ("layers.", c.layers)}, sizes)


def fits(module: GPT) -> bool:
    """Whether the module is of this kind, but for the bias of queries, keys and values, and the window."""
    c = module.config
    return (c.positions, c.activation, c.norm, c.bias) == ("rotary", "swiglu", "rms", False)


def entries(module: GPT) -> list[Entry]:
    """The table of all three families."""
    c = module.config
    layer = "model.layers.{i}"
    qkv = grouped(c.heads, c.key_heads)
    leaves = (("kernel", "weight"), ("bias", "bias"))[: 2 if c.qkv_bias else 1]
    table = [
        Entry("embed/embedding", ("model.embed_tokens.weight",), SAME),
        Entry("blocks_{i}/norm_attention/scale", (f"{layer}.input_layernorm.weight",), SAME),
        *(
            Entry(f"blocks_{{i}}/qkv/{leaf}", tuple(f"{layer}.self_attn.{n}_proj.{end}" for n in "qkv"), qkv)
            for leaf, end in leaves
        ),
        Entry("blocks_{i}/attention_out/kernel", (f"{layer}.self_attn.o_proj.weight",), TRANSPOSED),
        Entry("blocks_{i}/norm_mlp/scale", (f"{layer}.post_attention_layernorm.weight",), SAME),
        Entry("blocks_{i}/mlp_gate/kernel", (f"{layer}.mlp.gate_proj.weight",), TRANSPOSED),
        Entry("blocks_{i}/mlp_in/kernel", (f"{layer}.mlp.up_proj.weight",), TRANSPOSED),
        Entry("blocks_{i}/mlp_out/kernel", (f"{layer}.mlp.down_proj.weight",), TRANSPOSED),
        Entry("norm_out/scale", ("model.norm.weight",), SAME),
    ]
    if not c.tied:
        table.append(Entry("head/kernel", ("lm_head.weight",), TRANSPOSED))
    return table


def family(kind: str, name: str, read: Any, write: Any, own: Any) -> Architecture:
    """The architecture of one family: what it reads and writes of its own, and whether a config `own` is of it."""
    return Architecture(
        kind=kind,
        module=GPT,
        fits=lambda module: fits(module) and own(module.config),
        read=lambda config, names: read_config(kind, config, **read(config)),
        write=lambda module: write_config(kind, name, module.config) | write(module.config),
        entries=entries,
        layers=lambda module: (module.config.layers, module.config.scanned),
        claims=claims,
        prefix="model.",
        bare=lambda module: False,
        twins=lambda module: {"lm_head.weight": "model.embed_tokens.weight"} if module.config.tied else {},
        noise=(".rotary_emb.inv_freq",),
    )


ARCHITECTURE = family(
    "llama",
    "Llama",
    lambda config: {},
    lambda c: {"attention_bias": False, "mlp_bias": False},
    lambda c: not c.qkv_bias and c.window is None,
)
