"""The package transformers opens what `models.save` writes, and `models.load` what it writes: the same logits.

It is no dependency of the library or of its tests, so this is skipped where it is not installed, with PyTorch. The
figures of docs/rooms/models.md: `python -m tests.models.weights.test_transformers` in such an environment.
"""

import warnings

import jax
import numpy as np
import pytest

from jaxnn import models, tree

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # theirs, of their own dependencies
    torch = pytest.importorskip("torch")
    hf = pytest.importorskip("transformers")

PAD = 1
GPT = {"vocab": 50, "length": 20, "layers": 2, "heads": 4, "width": 16}
LLAMA = {**GPT, "kv_heads": 2, "mlp_width": 24, "activation": "swiglu", "tied": False}
BERT = {"vocab": 50, "length": 20, "layers": 2, "heads": 4, "width": 16, "mlp_width": 24, "pad": PAD}
ROBERTA = {**BERT, "types": 1, "position_offset": PAD + 1}
PAIR = {"vocab": 50, "layers": 2, "decoder_layers": 1, "heads": 4, "width": 16, "hidden": 24, "pad": PAD}
MODELS = {
    "gpt2": models.GPT(models.GPTConfig(**GPT, positions="learned", activation="gelu", norm="layer", bias=True)),
    "llama": models.GPT(models.GPTConfig(**LLAMA)),
    "mistral": models.GPT(models.GPTConfig(**LLAMA, window=4, head_width=6)),
    "qwen2": models.GPT(models.GPTConfig(**{**LLAMA, "tied": True}, qkv_bias=True, rotary_base=1e6)),
    "bert": models.BERT(models.BERTConfig(**BERT, head="mlm")),
    "bert, classes": models.BERT(models.BERTConfig(**BERT, head="classify", classes=3)),
    "roberta": models.BERT(models.BERTConfig(**ROBERTA, head="mlm")),
    "roberta, tokens": models.BERT(models.BERTConfig(**ROBERTA, head="tokens", classes=5)),
    "t5": models.Transformer(models.TransformerConfig(**PAIR)),
    "t5 1.1": models.Transformer(models.TransformerConfig(**PAIR, activation="gelu", gated=True, tied=False)),
    "marian": models.Transformer(models.TransformerConfig(**PAIR, layout="marian", activation="silu")),
}


def inputs(name):
    """Sources [3, 9], of which the second is padded where the model knows padding, and targets [3, 5]."""
    rng = np.random.default_rng(0)
    source, target = (rng.integers(3, 50, (3, time)).astype(np.int32) for time in (9, 5))
    if not isinstance(MODELS[name], models.GPT):
        source[1, 6:] = PAD
    return source, target


def drawn(name):
    """Parameters larger than initialisers draw them, so that every part matters."""
    rng = np.random.default_rng(len(name))
    source, target = inputs(name)
    like = jax.eval_shape(lambda: ours_of(MODELS[name].init, jax.random.key(0), source, target))["params"]

    def one(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        return 1 + 0.2 * noise if path.endswith("scale") else 0.3 * noise

    return tree.map_by_path(one, like)


def ours_of(call, first, source, target):
    return call(first, source, target) if "Transformer" in type(call.__self__).__name__ else call(first, source)


def ours(model, params, name):
    """Logits of the package under test."""
    return np.asarray(jax.jit(lambda p, s, t: ours_of(model.apply, {"params": p}, s, t))(params, *inputs(name)))


def theirs(model, name):
    """Logits of transformers' model."""
    source, target = (torch.from_numpy(ids.astype(np.int64)) for ids in inputs(name))
    given = {"input_ids": source, "attention_mask": (source != PAD).long()}
    if isinstance(MODELS[name], models.GPT):
        del given["attention_mask"]
    if isinstance(MODELS[name], models.Transformer):
        given["decoder_input_ids"] = target
    with torch.no_grad():
        return model(**given).logits.numpy()


def real(name, logits):
    """What is compared: everything but the outputs at padding."""
    source, _ = inputs(name)
    kept = source != PAD if logits.shape[:2] == source.shape else np.ones(len(source), bool)
    return logits[kept]


def opened(folder):
    """transformers' model of a folder, every tensor of which it used and none of which it drew."""
    kind = getattr(hf, hf.AutoConfig.from_pretrained(folder).architectures[0])
    model, told = kind.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    return model.eval()


def differences(name, folder):
    """The largest logit, and how far off ours are: of a folder that we wrote, and of one that transformers wrote."""
    params = drawn(name)
    models.save(MODELS[name], params, folder / "ours")
    other = opened(folder / "ours")
    wanted = real(name, theirs(other, name))
    there = np.abs(real(name, ours(MODELS[name], params, name)) - wanted).max()
    other.save_pretrained(folder / "theirs")
    model, back = models.load(folder / "theirs")
    jax.tree.map(np.testing.assert_array_equal, params, back)
    return np.abs(wanted).max(), there, np.abs(real(name, ours(model, back, name)) - wanted).max()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", MODELS)
def test_the_same_logits_in_both_directions(name, tmp_path):
    largest, there, back = differences(name, tmp_path)
    assert largest > 0.5
    assert there <= 1e-5 * largest
    assert back <= 1e-5 * largest


if __name__ == "__main__":
    import pathlib
    import tempfile

    print(f"transformers {hf.__version__}, torch {torch.__version__}, jax {jax.__version__}")
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            largest, there, back = differences(name, pathlib.Path(folder))
        print(f"| {name} | {largest:.3g} | {there:.2g} | {back:.2g} |")
