"""Folders of other people's weights against what transformers computes with them (tests/fixtures/weights)."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import models, tree
from jaxnn.models.weights import tensors

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "weights"
LATER = ["bert_classify", "bert_tokens"]  # their parts are in the others too
NAMES = [
    "bert_hidden",
    "bert_mlm",
    "roberta_classify",
    "roberta_mlm",
    "gpt2",
    *(pytest.param(n, marks=pytest.mark.slow) for n in LATER),
]


def expected(name):
    with np.load(FIXTURES / name / "expected.npz") as arrays:
        return dict(arrays)


def stored(folder):
    return {name: np.array(tensor.read()) for name, tensor in tensors.read_folder(Path(folder)).items()}


def run(model, params, wanted):
    given = {"types": wanted["types"]} if getattr(model.config, "types", 0) else {}
    return jax.jit(model.apply)({"params": params}, wanted["ids"].astype(np.int32), **given)


def changed(model, **changes):
    return type(model)(dataclasses.replace(model.config, **changes))


def copy(name, tmp_path, **config):
    """A fixture's folder to spoil, its config.json changed."""
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def rewrite(folder, change):
    """The folder's tensors after `change(dict)`."""
    arrays = stored(folder)
    change(arrays)
    planned = [tensors.Planned(n, a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()]
    tensors.write_safetensors(folder / "model.safetensors", planned)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_the_references(name, tmp_path):
    wanted = expected(name)
    model, params = models.load(FIXTURES / name)
    output = "logits" if "logits" in wanted else "hidden"
    real = (wanted["mask"] if wanted[output].ndim == 3 else np.ones(3))[..., None]

    def objective(params):
        out = run(model, params, wanted)
        return jnp.sum(out * wanted["cotangent"]), out

    (_, out), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    np.testing.assert_allclose(out * real, wanted[output] * real, atol=1e-4)
    if name != "gpt2":
        assert real.ndim == 2 or not real.all()  # something was padded
    # Gradients by the reference's names: what `save` makes of them.
    models.save(model, grads, tmp_path)
    ours = stored(tmp_path)
    references = {k.removeprefix("grad:"): v for k, v in wanted.items() if k.startswith("grad:")}
    assert references.keys() <= ours.keys()
    for path, gradient in references.items():
        np.testing.assert_allclose(ours[path], gradient, atol=1e-4 * max(1, np.abs(gradient).max()), err_msg=path)


def test_pooled_and_embedded_sentences_are_the_references():
    wanted = expected("bert_hidden")
    for head in ("pooled", "embed"):
        model, params = models.load(FIXTURES / "bert_hidden", head=head)
        np.testing.assert_allclose(run(model, params, wanted), wanted[head], atol=1e-5)
    longer = run(changed(model, normalize=False), params, wanted)
    lengths = np.linalg.norm(longer, axis=-1, keepdims=True)
    np.testing.assert_allclose(longer / lengths, wanted["embed"], atol=1e-5)
    assert np.abs(lengths - 1).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_round_trip_changes_no_bit(name, tmp_path):
    model, params = models.load(FIXTURES / name)
    models.save(model, params, tmp_path)
    before, after = stored(FIXTURES / name), stored(tmp_path)
    assert after.keys() <= before.keys()
    assert set(before) - set(after) <= {"cls.predictions.decoder.weight", "lm_head.decoder.weight", "lm_head.weight"}
    for path, array in after.items():
        np.testing.assert_array_equal(array, before[path], err_msg=path)
    again, same = models.load(tmp_path)
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, params, same)


def test_several_files_and_pytorchs_own_hold_the_same():
    _, one = models.load(FIXTURES / "gpt2")
    for form in ("gpt2_sharded", "gpt2_pickled"):
        _, other = models.load(FIXTURES / form)
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_saving_in_several_files(tmp_path):
    model, params = models.load(FIXTURES / "gpt2")
    models.save(model, params, tmp_path, shard_bytes=10_000)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    jax.tree.map(np.testing.assert_array_equal, params, models.load(tmp_path)[1])
    models.save(model, params, tmp_path)  # and one again, which is then the one that is read
    assert not (tmp_path / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_narrow_weights_load(dtype, tmp_path):
    model, params = models.load(FIXTURES / "bert_mlm")
    models.save(model, params, tmp_path, dtype=dtype)
    assert {t.dtype for t in tensors.read_folder(tmp_path).values()} == {np.dtype(dtype)}
    _, wide = models.load(tmp_path)
    _, kept = models.load(tmp_path, dtype=None)
    assert {x.dtype for x in jax.tree.leaves(wide)} == {np.dtype(np.float32)}
    assert {x.dtype for x in jax.tree.leaves(kept)} == {np.dtype(dtype)}
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x, dtype), y), params, kept)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, np.asarray(y, np.float32)), wide, kept)


@pytest.mark.slow
def test_layers_under_a_scan_are_stacked_and_saved_apart(tmp_path):
    for name in ("gpt2", "roberta_classify"):
        wanted = expected(name)
        model, params = models.load(FIXTURES / name, scan=True)
        assert params["blocks"]["qkv"]["kernel"].shape == (2, 16, 48)
        np.testing.assert_allclose(run(model, params, wanted), wanted["logits"], atol=1e-4)
        models.save(model, params, tmp_path / name)
        jax.tree.map(np.testing.assert_array_equal, models.load(FIXTURES / name)[1], models.load(tmp_path / name)[1])


def test_parameters_go_where_they_are_told_one_by_one(devices8):
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    model, params = models.load(FIXTURES / "bert_mlm", place=replicated)
    assert {leaf.sharding for leaf in jax.tree.leaves(params)} == {replicated}
    where = tree.map_by_path(lambda path, x: split if path.endswith("qkv/kernel") else replicated, params)
    _, parts = models.load(FIXTURES / "bert_mlm", place=where)
    assert parts["blocks_0"]["qkv"]["kernel"].sharding == split
    jax.tree.map(np.testing.assert_array_equal, params, parts)
    seen = []
    models.load(FIXTURES / "bert_mlm", place=lambda path, array: seen.append((path, type(array))))
    assert [kind for _, kind in seen] == [np.ndarray] * len(jax.tree.leaves(params))
    assert {path for path, _ in seen} == set(tree.leaves_by_path(params))
    with pytest.raises(ValueError, match="place has nothing for 'embed/embedding'"):
        models.load(FIXTURES / "bert_mlm", place={"mlm_bias": replicated})
    del model


def test_a_new_head_is_drawn_only_if_asked(tmp_path):
    with pytest.raises(ValueError, match=r"lacks tensors 'classifier.bias', 'classifier.weight'.*init=KEY"):
        models.load(FIXTURES / "bert_hidden", head="classify")
    key = jax.random.key(3)
    model, params = models.load(FIXTURES / "bert_hidden", head="classify", classes=4, init=key)
    assert params["head"]["kernel"].shape == (16, 4)
    assert 0.01 < np.std(params["head"]["kernel"]) < 0.03
    assert not np.any(params["head"]["bias"])
    np.testing.assert_array_equal(
        params["pooler"]["kernel"], models.load(FIXTURES / "bert_hidden")[1]["pooler"]["kernel"]
    )
    models.save(model, params, tmp_path)
    assert models.load(tmp_path)[0].config == model.config
    # The other way: the head that the file has is left out.
    assert "head" not in models.load(FIXTURES / "roberta_classify", head="hidden", pooler=False)[1]
    with pytest.raises(ValueError, match="which are of 0 such layers"):  # nothing fits: a wrong folder, not a new head
        models.load(rewrite(copy("bert_hidden", tmp_path), dict.clear), init=key)


def test_a_parameter_of_tensors_of_several_dtypes_has_the_widest(tmp_path):
    query = "encoder.layer.1.attention.self.query.weight"
    halved = lambda arrays: arrays.update({query: arrays[query].astype(np.float16)})  # noqa: E731
    folder = rewrite(copy("bert_hidden", tmp_path), halved)
    _, params = models.load(folder, dtype=None)
    whole = models.load(FIXTURES / "bert_hidden")[1]["blocks_1"]["qkv"]["kernel"]
    kernel = params["blocks_1"]["qkv"]["kernel"]
    assert kernel.dtype == np.float32
    assert 0 < np.sum(kernel != whole) <= whole.size // 3  # of the queries alone


def spoilt(name, value, at=-1):
    def change(arrays):
        arrays[name] = arrays[name].copy()
        arrays[name].reshape(-1)[at] = value

    return change


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    kernel = "bert.encoder.layer.1.output.dense.weight"
    words = r"tensor '{}' float32\[{}\] has {} at \[{}\], and 1 such in all. Tried: numbers"
    for value in (np.nan, np.inf, -np.inf):
        folder = rewrite(copy("bert_mlm", tmp_path / str(value)), spoilt(kernel, value))
        with pytest.raises(ValueError, match=words.format(kernel, "16, 24", value, "15, 23")):
            models.load(folder)
    # A tensor that is there twice is not told to differ from itself.
    table = "transformer.wte.weight"
    twice = lambda a: (spoilt(table, np.nan)(a), a.update({"lm_head.weight": a[table]}))  # noqa: E731
    with pytest.raises(ValueError, match=f"tensor '{table}' .* has nan"):
        models.load(rewrite(copy("gpt2", tmp_path / "twice"), twice))
    # In a bias -inf rules a token out; others there are no numbers either.
    bias = "cls.predictions.bias"
    _, params = models.load(rewrite(copy("bert_mlm", tmp_path / "bias"), spoilt(bias, -np.inf)))
    assert params["mlm_bias"][-1] == -np.inf
    with pytest.raises(ValueError, match=f"tensor '{bias}' .* has inf at"):
        models.load(rewrite(copy("bert_mlm", tmp_path / "above"), spoilt(bias, np.inf)))


def test_a_parameter_of_which_the_file_has_a_part_is_not_drawn(tmp_path):
    """Queries, keys and values are one parameter: drawing it would lose two tensors that are there."""
    folder = rewrite(copy("bert_hidden", tmp_path), lambda a: a.pop("encoder.layer.1.attention.self.key.weight"))
    words = r"lacks tensor 'bert.encoder.layer.1.attention.self.key.weight' and has others of parameter 'blocks_1/qkv/k"
    with pytest.raises(ValueError, match=words):
        models.load(folder, init=jax.random.key(0))


def test_files_of_the_bare_gpt2_and_of_old_berts_load(tmp_path):
    def bare(arrays):
        for name in list(arrays):
            arrays[name.removeprefix("transformer.")] = arrays.pop(name)
        arrays["h.0.attn.bias"] = np.ones((1, 1, 20, 20), np.float32)

    def old(arrays):
        for name in list(arrays):
            new = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            arrays[new] = arrays.pop(name)
        arrays["bert.embeddings.position_ids"] = np.arange(20)[None]
        arrays["cls.predictions.decoder.weight"] = arrays["bert.embeddings.word_embeddings.weight"]

    for name, change in (("gpt2", bare), ("bert_mlm", old)):
        _, params = models.load(rewrite(copy(name, tmp_path), change))
        jax.tree.map(np.testing.assert_array_equal, params, models.load(FIXTURES / name)[1])


def test_another_head_is_left_out_only_by_those_who_name_theirs(tmp_path):
    extra = lambda arrays: arrays.update({"cls.seq_relationship.weight": np.zeros((2, 16), np.float32)})  # noqa: E731
    folder = rewrite(copy("bert_mlm", tmp_path), extra)
    with pytest.raises(ValueError, match=r"has tensor 'cls.seq_relationship.weight', which .* head=\.\.\."):
        models.load(folder)
    _, params = models.load(folder, head="mlm")
    jax.tree.map(np.testing.assert_array_equal, params, models.load(FIXTURES / "bert_mlm")[1])


def test_untied_gpt2(tmp_path):
    head = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    folder = rewrite(copy("gpt2", tmp_path), lambda arrays: arrays.update({"lm_head.weight": head}))
    with pytest.raises(ValueError, match=r"'lm_head.weight' differs from 'transformer.wte.weight'"):
        models.load(folder)
    folder = rewrite(
        copy("gpt2", tmp_path / "untied", tie_word_embeddings=False),
        lambda a: a.update(dict(a, **{"lm_head.weight": head})),
    )
    model, params = models.load(folder)
    np.testing.assert_array_equal(params["head"]["kernel"], head.T)
    models.save(model, params, tmp_path / "out")
    np.testing.assert_array_equal(stored(tmp_path / "out")["lm_head.weight"], head)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("bert.encoder.layer.1.output.dense.bias"), r"lacks tensor 'bert.encoder.layer.1.output.den"),
        (lambda a: a.update(surplus=np.zeros(3, np.float32)), r"has tensor 'bert.surplus'|has tensor 'surplus'"),
        (
            lambda a: a.update({"bert.encoder.layer.2.output.dense.bias": np.zeros(16, np.float32)}),
            r"has tensor 'bert.encoder.layer.2.output.dense.bias'",
        ),
        (
            lambda a: a.update({"bert.encoder.layer.0.attention.self.key.weight": np.zeros((16, 8), np.float32)}),
            r"tensor 'bert.encoder.layer.0.attention.self.key.weight' is \[16, 8\]. Tried: \[16, 16\], for 'blocks_0",
        ),
        (
            lambda a: a.update({"bert.embeddings.LayerNorm.bias": np.zeros(16, np.int32)}),
            r"'bert.embeddings.LayerNorm.bias' is int32. Tried: floats",
        ),
    ],
)
def test_a_missing_extra_or_misshapen_tensor_is_named(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        models.load(rewrite(copy("bert_mlm", tmp_path), change))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("bert_mlm", {"model_type": "t4"}, "model_type='t4'. Tried: bert, roberta, gpt2"),
        ("bert_mlm", {"hidden_act": "silu"}, "hidden_act='silu'"),
        ("bert_mlm", {"is_decoder": True}, "is_decoder=True"),
        ("bert_mlm", {"vocab_size": "many"}, "vocab_size='many'"),
        ("bert_mlm", {"vocab_size": 40}, r"'bert.embeddings.word_embeddings.weight' is \[50, 16\]"),
        ("bert_mlm", {"architectures": ["BertForQuestionAnswering"]}, "BertForQuestionAnswering"),
        ("bert_mlm", {"num_attention_heads": 3}, "heads=3 do not divide width=16"),
        ("gpt2", {"activation_function": "relu"}, "activation_function='relu'"),
        ("gpt2", {"n_inner": 40}, "n_inner=40"),
    ],
)
def test_a_config_that_we_cannot_compute_is_refused(name, config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        models.load(copy(name, tmp_path, **config))


def test_what_the_files_cannot_say_is_not_saved(tmp_path):
    def params_of(model):
        return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]

    gpt = models.GPT(models.GPTConfig.preset("tiny"))
    with pytest.raises(ValueError, match=r"models.save: GPT as it is set is none of"):
        models.save(gpt, params_of(gpt), tmp_path, kind="gpt2")
    bert, params = models.load(FIXTURES / "bert_classify")
    with pytest.raises(ValueError, match="pooling='mean'"):
        models.save(changed(bert, pooling="mean"), params, tmp_path)
    with pytest.raises(ValueError, match=r"parameter 'head/bias' is float32\[3\]. Tried: float32\[7\]"):
        models.save(changed(bert, classes=7), params, tmp_path)
    with pytest.raises(ValueError, match="kind='bart'"):
        models.save(bert, params, tmp_path, kind="bart")
    with pytest.raises(TypeError, match="heds"):
        models.load(FIXTURES / "bert_classify", heds=2)
    assert not list(tmp_path.iterdir())


MINILM = Path(__file__).resolve().parents[3] / ".cache" / "minilm"


@pytest.mark.skipif(not (MINILM / "model.safetensors").is_file(), reason="no .cache/minilm: run `make data`")
def test_minilms_real_weights_give_its_reference_embeddings():
    wanted = np.load(FIXTURES / "minilm.npz")
    model, params = models.load(MINILM, head="embed")
    ours = jax.jit(lambda p, t: model.apply({"params": p}, t))(params, wanted["ids"].astype(np.int32))
    np.testing.assert_allclose(ours, wanted["embeddings"], atol=1e-5)


def test_a_head_of_other_classes_is_drawn_where_a_key_is_given():
    with pytest.raises(ValueError, match=r"'classifier.weight' is \[3, 16\]. Tried: \[4, 16\].*init=KEY"):
        models.load(FIXTURES / "bert_classify", classes=4)
    model, params = models.load(FIXTURES / "bert_classify", classes=4, init=jax.random.key(3))
    assert model.config.classes == 4
    assert params["head"]["kernel"].shape == (16, 4)
    same = models.load(FIXTURES / "bert_classify")[1]
    jax.tree.map(np.testing.assert_array_equal, params["blocks_0"], same["blocks_0"])
    np.testing.assert_array_equal(params["pooler"]["kernel"], same["pooler"]["kernel"])


def test_of_several_loose_files_none_is_chosen(tmp_path):
    folder = copy("gpt2_pickled", tmp_path)
    (folder / "pytorch_model.bin").rename(folder / "step_1.pth")
    models.load(folder)
    shutil.copy(folder / "step_1.pth", folder / "step_2.pth")
    with pytest.raises(ValueError, match=r"has 'step_1.pth', 'step_2.pth'. Tried: one file of tensors"):
        models.load(folder)
