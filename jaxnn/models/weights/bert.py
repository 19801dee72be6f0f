"""BERT's files: `BertModel`, `BertForMaskedLM`, `BertForSequenceClassification`, `BertForTokenClassification`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxnn.models.bert import BERT, BERTConfig
from jaxnn.models.weights.claims import Claims
from jaxnn.models.weights.table import (
    SAME,
    Architecture,
    Entry,
    choose,
    count,
    expect,
    heads_apart,
    linear,
    need,
    norm,
    number,
)

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
_CLASSES = {"mlm": "ForMaskedLM", "classify": "ForSequenceClassification", "tokens": "ForTokenClassification"}


def body(prefix: str, c: BERTConfig) -> list[Entry]:
    """The encoder's table, the same for both families."""
    layer = f"{prefix}encoder.layer.{{i}}"
    attention = f"{layer}.attention.self"
    qkv = heads_apart(c.heads)
    entries = [
        Entry("embed/embedding", (f"{prefix}embeddings.word_embeddings.weight",), SAME),
        Entry("position_embed", (f"{prefix}embeddings.position_embeddings.weight",), SAME),
        *norm("norm_embed", f"{prefix}embeddings.LayerNorm"),
        *(
            Entry(f"blocks_{{i}}/qkv/{leaf}", tuple(f"{attention}.{n}.{end}" for n in ("query", "key", "value")), qkv)
            for leaf, end in (("kernel", "weight"), ("bias", "bias"))
        ),
        *linear("blocks_{i}/attention_out", f"{layer}.attention.output.dense"),
        *norm("blocks_{i}/norm_attention", f"{layer}.attention.output.LayerNorm"),
        *linear("blocks_{i}/mlp_in", f"{layer}.intermediate.dense"),
        *linear("blocks_{i}/mlp_out", f"{layer}.output.dense"),
        *norm("blocks_{i}/norm_mlp", f"{layer}.output.LayerNorm"),
    ]
    if c.types:
        entries.append(Entry("type_embed", (f"{prefix}embeddings.token_type_embeddings.weight",), SAME))
    return entries


def uses_pooler(c: BERTConfig) -> bool:
    """Whether the model has the parameters of a pooler."""
    return c.pooler and c.head in ("hidden", "pooled", "embed", "classify")


def _entries(module: BERT) -> list[Entry]:
    c = module.config
    entries = body("bert.", c)
    if uses_pooler(c):
        entries += linear("pooler", "bert.pooler.dense")
    if c.head == "mlm":
        entries += linear("mlm_dense", "cls.predictions.transform.dense")
        entries += norm("mlm_norm", "cls.predictions.transform.LayerNorm")
        entries.append(Entry("mlm_bias", ("cls.predictions.bias",), SAME))
    elif c.head in ("classify", "tokens"):
        entries += linear("head", "classifier")
    return entries


def _other(module: BERT) -> set[str]:
    c = module.config
    names = {f"cls.seq_relationship.{end}" for end in ("weight", "bias")}
    for head in ("classify", "mlm"):
        variant = dataclasses.replace(c, head=head, pooler=True)
        names |= {name for entry in _entries(BERT(variant)) for name in entry.theirs if "{i}" not in name}
    return names | {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}


def _twins(module: BERT) -> dict[str, str]:
    if module.config.head != "mlm":
        return {}
    return {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }


def read_head(where: str, config: Mapping[str, Any]) -> str:
    """Our head for the class that config.json names; "hidden" for the bare model and for heads that we have not."""
    names = config.get("architectures") or [""]
    if not isinstance(names, list) or not isinstance(names[0], str):
        raise ValueError(
            f"models.load: config.json of a {where} has architectures={names!r:.80}. Tried: a list of one class's "
            f"name. Give the model's own config.json."
        )
    name = names[0]
    if name.endswith(("ForQuestionAnswering", "ForMultipleChoice", "ForCausalLM", "LMHeadModel")):
        raise ValueError(
            f"models.load: config.json of a {where} has architectures={[name]!r}. Tried: the bare model, and "
            f"{', '.join(_CLASSES.values())}. Use a model with such a head."
        )
    return next((head for head, end in _CLASSES.items() if name.endswith(end)), "hidden")


def read_config(where: str, config: Mapping[str, Any], names: frozenset[str], offset: int) -> BERTConfig:
    """The architecture that config.json describes.

    Raises:
        ValueError: If it has what we do not compute.
    """
    expect(where, config, is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
    sizes = need(
        where,
        config,
        "vocab_size",
        "max_position_embeddings",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_size",
        "intermediate_size",
    )
    vocab, length, layers, heads, width, mlp_width = sizes
    head = read_head(where, config)
    labels = config.get("id2label")
    if labels is not None and not isinstance(labels, Mapping):
        raise ValueError(
            f"models.load: config.json of a {where} has id2label={labels!r:.80}. Tried: names by class. Give the "
            f"model's own config.json."
        )
    if head == "mlm":
        expect(where, config, tie_word_embeddings=True)
    return BERTConfig(
        vocab=vocab,
        length=length - offset,
        layers=layers,
        heads=heads,
        width=width,
        mlp_width=mlp_width,
        types=count(where, config, "type_vocab_size", 2),
        pad=None
        if "pad_token_id" in config and config["pad_token_id"] is None
        else count(where, config, "pad_token_id", 1 if offset else 0),
        position_offset=offset,
        activation=choose(where, config, "hidden_act", ACTIVATIONS, "gelu"),  # type: ignore[arg-type]
        epsilon=number(where, config, "layer_norm_eps", 1e-12),
        head=head,  # type: ignore[arg-type]
        classes=len(labels) if labels else count(where, config, "num_labels", 2),
        pooler=head == "classify" or any("pooler.dense." in name for name in names),
        dropout=number(where, config, "hidden_dropout_prob", 0.1),
    )


def claims(c: BERTConfig) -> Claims:
    """What the tensors of both families must show."""
    sizes = {
        "vocab_size": c.vocab,
        "max_position_embeddings": c.length + c.position_offset,
        "num_attention_heads": c.heads,
        "hidden_size": c.width,
        "intermediate_size": c.mlp_width,
        "type_vocab_size": c.types,
    }
    return Claims({"num_hidden_layers": ("encoder.layer.", c.layers)}, sizes)


def write_config(name: str, c: BERTConfig) -> dict[str, Any]:
    """What config.json says of both families.

    Raises:
        ValueError: If the files have no word for it.
    """
    if c.head == "classify" and (c.pooling != "first" or not c.pooler):
        raise ValueError(
            f"models.save: a classifier with pooling={c.pooling!r}, pooler={c.pooler}. Tried: {name}ForSequence"
            f"Classification, which reads the first token through a pooler. Save it with head='hidden' and the head's "
            f"parameters left out, or train one with pooling='first'."
        )
    config: dict[str, Any] = {
        "architectures": [name + _CLASSES.get(c.head, "Model")],
        "vocab_size": c.vocab,
        "max_position_embeddings": c.length + c.position_offset,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "hidden_size": c.width,
        "intermediate_size": c.mlp_width,
        "type_vocab_size": c.types,
        "pad_token_id": c.pad,
        "hidden_act": {"gelu_tanh": "gelu_new"}.get(c.activation, c.activation),
        "layer_norm_eps": c.epsilon,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.attention_dropout,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
    }
    if c.head in ("classify", "tokens"):
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(c.classes)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(c.classes)}
    return config


ARCHITECTURE = Architecture(
    kind="bert",
    module=BERT,
    fits=lambda module: not module.config.position_offset,
    read=lambda config, names: BERT(read_config("bert", config, names, 0)),
    write=lambda module: {"model_type": "bert", **write_config("Bert", module.config)},
    entries=_entries,
    layers=lambda module: (module.config.layers, module.config.scanned),
    claims=lambda module: claims(module.config),
    prefix="bert.",
    bare=lambda module: module.config.head in ("hidden", "pooled", "embed"),
    other=_other,
    twins=_twins,
    noise=("embeddings.position_ids", "embeddings.token_type_ids"),
    renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
)
