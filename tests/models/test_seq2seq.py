"""Additive attention against NumPy, as a pooling of an RNN's and a CNN's positions, and inside a translator."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import data, losses, metrics, models, train, tree
from jaxnn.models import RNN, AdditiveAttention, GRUCell, LSTMCell, Seq2Seq, Seq2SeqConfig

DRAW = np.random.default_rng(0)
SMALL = {"vocab": 11, "embed": 6, "width": 8, "attention": 7}


def test_contexts_and_weights_are_those_of_the_formula():
    layer = AdditiveAttention(5)
    query, keys, values = (DRAW.normal(size=s).astype(np.float32) for s in ((2, 3), (2, 4, 6), (2, 4, 2)))
    valid = np.array([[1, 1, 1, 1], [1, 0, 1, 0]], bool)
    variables = jax.jit(layer.init)(jax.random.key(0), query, keys, values)
    p = {k: np.asarray(v, np.float64) for k, v in tree.leaves_by_path(variables["params"]).items()}
    apply = jax.jit(layer.apply)
    context, weights = apply(variables, query, keys, values, valid)
    for b in range(2):
        e = [p["score/kernel"][:, 0] @ np.tanh(query[b] @ p["query/kernel"] + k @ p["key/kernel"]) for k in keys[b]]
        w = np.exp(e) * valid[b]
        w /= w.sum()
        np.testing.assert_allclose(weights[b], w, atol=1e-6)
        np.testing.assert_allclose(context[b], w @ values[b], atol=1e-6)
    many, maps = apply(variables, np.stack([query, 2 * query], axis=1), keys, values, valid)
    np.testing.assert_allclose(many[:, 0], context, atol=1e-6)
    assert maps.shape == (2, 2, 4)
    nothing, none = apply(variables, query, keys, values, np.zeros_like(valid))
    assert not np.any(nothing) and not np.any(none)  # noqa: PT018


class Reader(nn.Module):
    """Classifies sequences by what an RNN read, or images by what a convolution saw."""

    images: bool = False

    @nn.compact
    def __call__(self, x):
        if self.images:
            y = nn.relu(models.layers.Conv(8)(x))
            y = y.reshape(len(y), -1, 8)
            valid = None
        else:
            valid = x != 0
            y, _ = RNN(GRUCell(8), bidirectional=True)(models.layers.Embed(5, 4)(x), valid=valid)
        context, _ = AdditiveAttention(8, name="attention")(None, y, valid=valid)
        return models.layers.Dense(2, role="head")(context)


@pytest.mark.parametrize("images", [False, True])
def test_it_pools_for_classifiers_over_sequences_and_over_images(images):
    if images:  # is there a bright spot anywhere?
        x = 0.1 * DRAW.normal(size=(64, 6, 6, 1)).astype(np.float32)
        y = np.arange(64) % 2
        x[np.arange(64), DRAW.integers(6, size=64), DRAW.integers(6, size=64), 0] += 3.0 * y
    else:  # does token 4 occur before the padding?
        x = DRAW.integers(1, 4, size=(64, 7)).astype(np.int32)
        y = np.arange(64) % 2
        x[np.arange(64), DRAW.integers(4, size=64)] = np.where(y, 4, 3)
        x[:, 5:] = 0
    task = train.supervised(Reader(images), losses.cross_entropy, {"accuracy": metrics.accuracy})
    settings = {"batch_size": 32, "log": train.Log(progress=False)}
    run = train.fit(task, optax.adam(0.02), data.Arrays(x, y.astype(np.int32)), steps=80, **settings)
    assert train.evaluate(run.task, run.state, data.Arrays(x, y.astype(np.int32)))["accuracy"] > 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"layers": 2, "cell": LSTMCell}, pytest.param({"tied": False}, marks=pytest.mark.slow)]
)
def test_logits_step_by_step_are_those_of_teacher_forcing(settings):
    model = Seq2Seq(Seq2SeqConfig(**SMALL, **settings))
    source, target = (DRAW.integers(3, 11, size=(3, n)) for n in (5, 4))
    source[1, 3:] = 0
    variables = jax.jit(model.init)(jax.random.key(0), source, target)
    logits, maps = jax.jit(lambda s, t: model.apply(variables, s, t, attention=True))(source, target)
    np.testing.assert_allclose(np.sum(maps, axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(maps[1, :, 3:], 0)
    cache = jax.jit(lambda s: model.apply(variables, s, 4, method="begin"))(source)
    step = jax.jit(lambda t, cache: model.apply(variables, t, cache, 0, method="step"))
    for i in range(4):
        got, cache = step(target[:, i], cache)
        np.testing.assert_allclose(got, logits[:, i], atol=1e-5)
    longer = np.concatenate([source, np.zeros((3, 2), int)], axis=1)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, longer, target), logits, atol=1e-5)


@pytest.mark.slow
def test_it_learns_to_reverse_and_looks_where_it_reads():
    source = DRAW.integers(3, 11, size=(512, 6)).astype(np.int32)
    target = source[:, ::-1]
    given = np.concatenate([np.ones((512, 1), np.int32), target[:, :-1]], axis=1)
    model = Seq2Seq(Seq2SeqConfig(vocab=11, embed=16, width=32, attention=16))
    params = model.init(jax.random.key(0), source[:2], given[:2])["params"]
    tx = optax.adam(5e-3)

    @jax.jit
    def step(carry, i):
        params, state = carry
        rows = jax.random.randint(jax.random.key(i), (64,), 0, 448)

        def loss(params):
            logits = model.apply({"params": params}, jnp.asarray(source)[rows], jnp.asarray(given)[rows])
            return losses.cross_entropy(logits, jnp.asarray(target)[rows]).mean()

        updates, state = tx.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    carry = (params, tx.init(params))
    for i in range(800):
        carry, _ = step(carry, i)
    written = models.translate(model, carry[0], source[448:], length=6, beams=3)
    assert np.mean(written == target[448:]) > 0.95
    _, maps = model.apply({"params": carry[0]}, source[448:], given[448:], attention=True)
    # An encoder state knows its neighbours, so that the map's ridge may lie a token beside the diagonal.
    assert np.mean(np.abs(np.argmax(maps, axis=-1) - np.arange(5, -1, -1)) <= 1) > 0.8


def test_refusals():
    layer = AdditiveAttention(4)
    with pytest.raises(ValueError, match="feature"):
        layer.init(jax.random.key(0), None, np.zeros((2, 3, 3, 1), np.float32))
    for settings, words in (({"width": 0}, "width=0"), ({"end": 11}, "end=11"), ({"dropout": 1.0}, "dropout")):
        with pytest.raises(ValueError, match=words):
            Seq2SeqConfig(**{**SMALL, **settings})
    model = Seq2Seq(Seq2SeqConfig(**SMALL))
    params = {}
    with pytest.raises(ValueError, match="ids 3 to 11"):
        models.translate(model, params, np.array([[3, 11]]), length=2)
    with pytest.raises(TypeError, match="token ids"):
        models.translate(model, params, np.array([[3.0]]), length=2)
    with pytest.raises(ValueError, match=r"\[B, S\]"):
        models.translate(model, params, np.array([3]), length=2)
    with pytest.raises(ValueError, match=r"row 1 is padding only \(0\)"):
        models.translate(model, params, np.array([[3, 0], [0, 0]]), length=2)
