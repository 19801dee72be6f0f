"""Llama, Mistral and Qwen2 against what transformers computes with them (tests/fixtures/weights)."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import models
from jaxnn.models.weights import tensors

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "weights"
NAMES = [pytest.param("llama", marks=pytest.mark.slow), "llama3", "mistral", "qwen2"]


def stored(folder):
    return {name: np.array(tensor.read()) for name, tensor in tensors.read_folder(Path(folder)).items()}


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_gradients_are_the_references_and_a_round_trip_changes_no_bit(name, tmp_path):
    with np.load(FIXTURES / name / "expected.npz") as arrays:
        wanted = dict(arrays)
    model, params = models.load(FIXTURES / name)

    def objective(params):
        out = model.apply({"params": params}, wanted["ids"].astype(np.int32))
        return jnp.sum(out * wanted["cotangent"]), out

    (_, out), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    np.testing.assert_allclose(out, wanted["logits"], atol=1e-4)
    kind = json.loads((FIXTURES / name / "config.json").read_text())["model_type"]
    models.save(model, grads, tmp_path / "grads")
    ours = stored(tmp_path / "grads")
    references = {k.removeprefix("grad:"): v for k, v in wanted.items() if k.startswith("grad:")}
    assert references.keys() <= ours.keys()
    for path, gradient in references.items():
        np.testing.assert_allclose(ours[path], gradient, atol=1e-4 * max(1, np.abs(gradient).max()), err_msg=path)
    models.save(model, params, tmp_path / "same")
    assert json.loads((tmp_path / "same" / "config.json").read_text())["model_type"] == kind
    before, after = stored(FIXTURES / name), stored(tmp_path / "same")
    assert before.keys() == after.keys()
    for path, array in after.items():
        np.testing.assert_array_equal(array, before[path], err_msg=path)
    assert models.load(tmp_path / "same")[0].config == model.config


def copy(name, tmp_path, **config):
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def test_older_files_say_their_positions_otherwise(tmp_path):
    config = json.loads((FIXTURES / "llama3" / "config.json").read_text())
    rope = dict(config["rope_parameters"])
    old = {"rope_parameters": None, "rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    assert models.load(copy("llama3", tmp_path, **old))[0] == models.load(FIXTURES / "llama3")[0]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("llama", {"attention_bias": True}, "attention_bias=True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rotary positions .*'yarn'"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "without 'factor'"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, "max_window_layers=1"),
        ("llama", {"num_key_value_heads": 3}, "kv_heads=3"),
        ("llama", {"num_key_value_heads": 1}, r"self_attn.k_proj.weight' is \[8, 16\]. Tried: \[4, 16\]"),
    ],
)
def test_what_we_cannot_compute_is_refused(name, config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        models.load(copy(name, tmp_path, **config))
