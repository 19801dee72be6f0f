"""RoBERTa's files: BERT's encoder under other names, positions that begin after the padding's, heads of its own."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxnn.models.bert import BERT, BERTConfig
from jaxnn.models.weights.bert import body, claims, read_config, uses_pooler, write_config
from jaxnn.models.weights.table import SAME, Architecture, Entry, count, linear, norm


def _read(config: Mapping[str, Any], names: frozenset[str]) -> BERT:
    pad = count("roberta", config, "pad_token_id", 1)
    return BERT(read_config("roberta", config, names, pad + 1))


def _write(module: BERT) -> dict[str, Any]:
    c: BERTConfig = module.config
    if c.pad is None or c.position_offset != c.pad + 1:
        raise ValueError(
            f"models.save: a RoBERTa with pad={c.pad} and position_offset={c.position_offset}. Tried: positions that "
            f"begin after row pad. Write position_offset=pad + 1."
        )
    config = {"model_type": "roberta", **write_config("Roberta", c)}
    return config | {"type_vocab_size": c.types, "bos_token_id": 0, "eos_token_id": 2}


def _entries(module: BERT) -> list[Entry]:
    c = module.config
    entries = body("roberta.", c)
    if c.head == "classify" and c.pooler:
        entries += linear("pooler", "classifier.dense") + linear("head", "classifier.out_proj")
    elif uses_pooler(c):
        entries += linear("pooler", "roberta.pooler.dense")
    if c.head == "mlm":
        entries += linear("mlm_dense", "lm_head.dense") + norm("mlm_norm", "lm_head.layer_norm")
        entries.append(Entry("mlm_bias", ("lm_head.bias",), SAME))
    elif c.head == "tokens" or (c.head == "classify" and not c.pooler):
        entries += linear("head", "classifier")
    return entries


def _other(module: BERT) -> set[str]:
    names = {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    for head in ("pooled", "classify", "tokens", "mlm"):
        variant = dataclasses.replace(module.config, head=head, pooler=True)
        names |= {name for entry in _entries(BERT(variant)) for name in entry.theirs if "{i}" not in name}
    return names


def _twins(module: BERT) -> dict[str, str]:
    if module.config.head != "mlm":
        return {}
    return {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }


ARCHITECTURE = Architecture(
    kind="roberta",
    module=BERT,
    fits=lambda module: module.config.position_offset > 0,
    read=_read,
    write=_write,
    entries=_entries,
    layers=lambda module: (module.config.layers, module.config.scanned),
    claims=lambda module: claims(module.config),
    prefix="roberta.",
    bare=lambda module: module.config.head in ("hidden", "pooled", "embed"),
    other=_other,
    twins=_twins,
    noise=("embeddings.position_ids", "embeddings.token_type_ids"),
    renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
)
