"""The encoder-decoder against transformers' T5 and Marian (frozen fixtures); the cache; relative positions."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import models, tree
from jaxnn.models import Transformer, TransformerConfig
from jaxnn.models.attention import call, linear
from jaxnn.models.transformer import relative_buckets, sinusoids
from jaxnn.models.weights import marian, t5

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "translation"
TABLES = {"t5": t5.ARCHITECTURE, "t5_gated": t5.ARCHITECTURE, "marian": marian.ARCHITECTURE}
SMALL = {"vocab": 11, "width": 8, "heads": 2, "hidden": 12, "layers": 2}


def reference(name):
    """The fixture, the module that its config describes, and weights and gradients as our trees."""
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        f = {key: arrays[key] for key in arrays}
    table = TABLES[name]
    module = table.read(json.loads(str(f["config"])), frozenset())

    def params(kind):
        flat = {
            e.ours: e.transform.join([f[f"{kind}/{n}"] for n in e.theirs])
            for e in table.entries(module)
            if f"{kind}/{e.theirs[0]}" in f
        }
        nested = {}
        for path, value in flat.items():
            *parents, last = path.split("/")
            at = nested
            for part in parents:
                at = at.setdefault(part, {})
            at[last] = value
        return nested

    return f, module, params("w"), params("g")


@pytest.mark.parametrize("name", TABLES)
def test_logits_and_gradients_are_the_references(name):
    f, module, params, wanted = reference(name)

    def loss(params):
        logits = module.apply({"params": params}, f["in/source"], f["in/target"])
        return jnp.sum(logits * f["in/cotangent"]), logits

    (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, f["out/logits"], atol=1e-4)
    got, wanted = tree.leaves_by_path(grads), tree.leaves_by_path(wanted)
    assert got.keys() - wanted.keys() <= {"logits_bias"}  # a buffer there
    for path, want in wanted.items():
        scale = max(1.0, float(np.abs(want).max()))
        np.testing.assert_allclose(got[path], want, atol=1e-4 * scale, err_msg=path)


GATED = {"gated": True, "activation": "gelu"}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [GATED, pytest.param({"layout": "marian", "tied": False}, marks=pytest.mark.slow)])
def test_logits_from_the_cache_are_those_of_teacher_forcing(settings):
    model = Transformer(TransformerConfig(**SMALL, **settings))
    generator = np.random.default_rng(0)
    source, target = (generator.integers(3, 11, size=(3, n)) for n in (5, 4))
    source[1, 3:] = 0
    variables = jax.jit(model.init)(jax.random.key(0), source, target)
    logits, maps = jax.jit(lambda s, t: model.apply(variables, s, t, attention=True))(source, target)
    assert maps.shape == (3, 2, 2, 4, 5)
    np.testing.assert_allclose(np.sum(maps, axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(maps[1, ..., 3:], 0)
    cache = jax.jit(lambda s: model.apply(variables, s, 4, method="begin"))(source)
    step = jax.jit(lambda t, cache, i: model.apply(variables, t, cache, i, method="step"))
    for i in range(4):
        got, cache = step(target[:, i], cache, i)
        np.testing.assert_allclose(got, logits[:, i], atol=2e-5)
    # The future is not read, nor what stands beyond the padding.
    other = target.copy()
    other[:, 2:] = 3
    longer = np.concatenate([source, np.zeros((3, 2), int)], axis=1)
    again = jax.jit(model.apply)(variables, longer, other)
    np.testing.assert_allclose(again[:, :2], logits[:, :2], atol=1e-5)


@pytest.mark.parametrize("layout", ["t5", pytest.param("marian", marks=pytest.mark.slow)])
def test_a_long_text_is_read_in_the_form_that_keeps_no_weights(layout, monkeypatch):
    model = Transformer(TransformerConfig(**SMALL, layout=layout, distance=17))
    generator = np.random.default_rng(0)
    source, target = (generator.integers(3, 11, size=(2, n)) for n in (21, 18))
    source[1, 13:] = 0
    params = jax.jit(model.init)(jax.random.key(0), source, target)["params"]

    def run(params):
        return jnp.sum(jnp.sin(model.apply({"params": params}, source, target)))

    want = jax.jit(jax.value_and_grad(run))(params)
    monkeypatch.setattr(call, "LINEAR_FROM", 2)
    monkeypatch.setattr(linear, "TILE", 8)
    traced = jax.jit(lambda params: jax.value_and_grad(run)(params)).trace(params)
    assert "[2,2,18,21]" not in str(traced.jaxpr)  # the weights of the look at the source
    got = traced.lower().compile()(params)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, float(np.abs(b).max())))


def test_buckets_of_relative_positions():
    # The closed form, from the paper: one bucket a distance up to half of them, then logarithmic, the last from 128 on.
    far = -np.arange(0, 300)
    causal = np.asarray(relative_buckets(far, 32, 128, causal=True))
    np.testing.assert_array_equal(causal[:16], np.arange(16))
    assert causal[127] == causal[299] == 31
    assert np.all(np.diff(causal) >= 0)
    both = np.asarray(relative_buckets(np.array([-20, -3, 0, 3, 20, 500]), 32, 128, causal=False))
    assert both.tolist() == [10, 3, 0, 19, 26, 31]
    assert np.asarray(relative_buckets(np.array([5]), 32, 128, causal=True)).tolist() == [0]


def test_sinusoids_are_sines_then_cosines():
    table = np.asarray(sinusoids(np.arange(3), 4))
    np.testing.assert_allclose(table[2], [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)], atol=1e-6)


@pytest.mark.parametrize("kind", ["t5", "marian"])
def test_saved_folders_are_read_again(kind, tmp_path):
    model = Transformer(TransformerConfig(**SMALL, layout=kind, decoder_layers=1))
    params = jax.jit(model.init)(jax.random.key(0), np.ones((1, 2), int))["params"]
    models.save(model, params, tmp_path)
    again, loaded = models.load(tmp_path)
    assert type(again) is Transformer
    assert again.config.inner == model.config.inner
    for path, leaf in tree.leaves_by_path(params).items():
        np.testing.assert_array_equal(tree.leaves_by_path(loaded)[path], leaf)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"heads": 3}, "do not divide"),
        ({"layers": 0}, "layers=0"),
        ({"layout": "bart"}, "layout='bart'"),
        ({"buckets": 6}, "buckets=6"),
        ({"dropout": 1.0}, "dropout"),
        ({"pad": 11}, "pad=11"),
        ({"layout": "marian", "width": 9, "heads": 3}, "even width"),
    ],
)
def test_settings_that_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        TransformerConfig(**{**SMALL, **settings})


def test_batches_that_are_refused():
    model = Transformer(TransformerConfig(**SMALL))
    ids = np.ones((2, 3), int)
    with pytest.raises(ValueError, match="source"):
        model.init(jax.random.key(0), ids, ids[:1])
    with pytest.raises(TypeError, match="target is float"):
        model.init(jax.random.key(0), ids, ids.astype(np.float32))
