"""A config.json that lies about its tensors is refused before a model of that size is made."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from jaxnn import models
from jaxnn.models.weights import claims, tensors
from jaxnn.models.weights.folder import architecture

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "weights"


@pytest.fixture(autouse=True)
def at_once():
    """A hang is a failure, and no wait."""

    def stop(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def lying(name, tmp_path, **config):
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("gpt2", {"n_layer": 10**6}, r"n_layer=1000000. Tried: the tensors, which are of 2 such layers"),
        (
            "bert_mlm",
            {"num_hidden_layers": 2**31 - 1},
            "num_hidden_layers=2147483647. Tried: the tensors, which are of 2",
        ),
        ("llama", {"num_hidden_layers": 3}, "num_hidden_layers=3. Tried: the tensors, which are of 2"),
        ("gpt2", {"vocab_size": 2**31 - 1, "n_embd": 2**31 - 2, "n_head": 4}, "heads=4 do not divide width=2147483646"),
        ("gpt2", {"n_embd": 2**30, "n_head": 2**28}, r"n_head=268435456. Tried: the tensors, whose longest axis is 64"),
        ("bert_mlm", {"vocab_size": 10**9}, "vocab_size=1000000000. Tried: the tensors, whose longest axis is 50"),
        ("llama", {"head_dim": 2**30}, "head_dim=4294967296. Tried: the tensors, whose longest axis is 50"),
        ("llama", {"head_dim": "ab"}, "head_dim='ab'"),
        ("llama", {"num_key_value_heads": [2]}, r"num_key_value_heads=\[2\]"),
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps='small'"),
        ("llama", {"rope_parameters": {"rope_theta": {}}}, "rope_theta={}"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": None}}, "llama3 positions without 'factor'"),
        ("mistral", {"sliding_window": "all"}, "sliding_window='all'"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": []}, "max_window_layers="),
        ("bert_mlm", {"architectures": 5}, "architectures=5"),
        ("bert_mlm", {"hidden_act": ["gelu"]}, r"hidden_act=\['gelu'\]"),
        ("bert_classify", {"id2label": 7}, "id2label=7"),
        ("bert_mlm", {"pad_token_id": "none"}, "pad_token_id='none'"),
        ("roberta_mlm", {"pad_token_id": -3}, "pad_token_id=-3"),
        ("bert_mlm", {"hidden_dropout_prob": float("nan")}, "hidden_dropout_prob=nan"),
        ("gpt2", {"n_inner": 1.5}, "n_inner=1.5"),
        ("gpt2", {"model_type": ["gpt2"]}, r"model_type=\['gpt2'\]. Tried: bert"),
        ("gpt2", {"model_type": {}}, "model_type={}"),
    ],
)
def test_a_lying_config_is_refused_at_once(name, config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        models.load(lying(name, tmp_path, **config))


@pytest.mark.parametrize(("layout", "field"), [("t5", "num_decoder_layers"), ("marian", "encoder_layers")])
def test_translators_that_lie_are_refused_too(layout, field, tmp_path):
    module = models.Transformer(
        models.TransformerConfig(vocab=12, layout=layout, width=8, heads=2, hidden=8, layers=1, buckets=4, distance=8)
    )
    found = architecture(layout)
    stored = {
        name: tensors.Stored((64, 8), np.dtype(np.float32), lambda: np.zeros((64, 8), np.float32))
        for entry in found.entries(module)
        for name in entry.theirs
    }
    claims.check(tmp_path, found.claims(module), stored)
    config = found.write(module) | {field: 10**6}
    with pytest.raises(ValueError, match=rf"{field}=1000000\. Tried: the tensors, which are of 1 such"):
        claims.check(tmp_path, found.claims(found.read(config, frozenset(stored))), stored)
    absurd, told = (
        (("d_model", 8.5), r"d_model=8\.5")
        if layout == "marian"
        else (("relative_attention_max_distance", 2**30), "distance=1073741824")
    )
    with pytest.raises(ValueError, match=told):
        found.read(config | dict([absurd]), frozenset())
