"""What `tests/models/weights` does not compare with the reference: masks, dropout, roles, layouts, bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import core, data, losses, models, rng, train, tree

TINY = models.BERTConfig(vocab=40, length=12, layers=2, heads=2, width=16, mlp_width=24)
TOKENS = np.array([[3, 7, 9, 11, 5, 0, 0], [4, 8, 6, 12, 13, 14, 15]], np.int32)


def make(seed=0, **changes):
    module = models.BERT(dataclasses.replace(TINY, **changes))
    return module, jax.jit(module.init)(jax.random.key(seed), TOKENS)["params"]


@pytest.mark.parametrize("offset", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_padding_changes_nothing(offset):
    for head in ("hidden", "embed"):
        module, params = make(head=head, position_offset=offset)
        apply = jax.jit(lambda x, m=module, p=params: m.apply({"params": p}, x))
        long, short = apply(TOKENS[:1]), apply(TOKENS[:1, :5])
        np.testing.assert_allclose(long[:, :5] if head == "hidden" else long, short, atol=1e-6)
        with_mask = jax.jit(module.apply)({"params": params}, TOKENS, segment=(TOKENS != 0).astype(np.int32))
        np.testing.assert_allclose(apply(TOKENS), with_mask, atol=1e-6)


def test_a_roberta_reads_the_same_where_padding_stands_before():
    module, params = make(head="embed", position_offset=2)
    left = np.concatenate([TOKENS[:1, 5:], TOKENS[:1, :5]], axis=1)
    outputs = [jax.jit(module.apply)({"params": params}, x) for x in (TOKENS[:1], left)]
    np.testing.assert_allclose(*outputs, atol=1e-6)


def test_a_mean_over_nothing_is_nothing():
    mean = models.bert.masked_mean(jnp.ones((2, 3, 4)), jnp.array([[1, 0, 2], [0, 0, 0]]))
    np.testing.assert_array_equal(mean, [[1] * 4, [0] * 4])


def test_dropout_is_by_example_and_only_while_training():
    module, params = make(head="classify", dropout=0.5)

    @jax.jit
    def apply(x, index):
        with rng.examples(index):
            return module.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(1)})

    both = apply(TOKENS, np.array([5, 9]))
    swapped = apply(TOKENS[::-1], np.array([9, 5]))
    np.testing.assert_allclose(both, swapped[::-1], atol=1e-6)
    assert np.abs(both - jax.jit(module.apply)({"params": params}, TOKENS)).max() > 1e-4


def test_roles_and_stacked_layers():
    for scan in (False, True):
        module, _ = make(head="classify", scan=scan)
        task = train.supervised(module, losses.cross_entropy)
        batch = {"x": TOKENS, "y": np.zeros(2, np.int32), "mask": np.ones(2), "index": np.arange(2)}
        roles = core.init.roles(task, batch)
        stacked = 1 if scan else 0
        block = "blocks" if scan else "blocks_1"
        assert roles[f"{block}/qkv/kernel"] == tree.Role("matrix", stacked)
        assert roles[f"{block}/norm_mlp/scale"] == tree.Role("vector", stacked)
        assert roles["head/kernel"] == tree.Role("head")
        assert {roles[p] for p in ("embed/embedding", "position_embed", "type_embed")} == {tree.Role("embedding")}


@pytest.mark.slow
def test_a_loop_and_a_scan_are_the_same_function():
    loop, params = make(head="mlm")
    scan, _ = make(head="mlm", scan=True)
    stacked = models.stack_layers(params)
    ours, theirs = (jax.jit(m.apply)({"params": p}, TOKENS) for m, p in ((loop, params), (scan, stacked)))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_bf16_products_are_near():
    module, params = make(head="embed")
    narrow = models.BERT(dataclasses.replace(module.config, matmul_dtype=jnp.bfloat16))
    exact, near = (jax.jit(m.apply)({"params": params}, TOKENS) for m in (module, narrow))
    assert 0 < np.abs(exact - near).max() < 0.02


@pytest.mark.slow
def test_it_learns_and_token_types_reach_it():
    """Which of two types the first token has is all that the label depends on."""
    x = np.random.default_rng(0).integers(1, 40, (64, 6)).astype(np.int32)
    types = np.zeros_like(x)
    types[:32, 0] = 1
    source = data.Arrays(x, types[:, 0].copy(), types=types)
    module, _ = make(head="classify", dropout=0.0)
    task = train.supervised(module, losses.cross_entropy)
    run = train.fit(task, optax.adam(3e-3), source, batch_size=32, steps=40, log=train.Log(progress=False))
    assert train.evaluate(run.task, run.state, source)["loss"] < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads=3 do not divide width=16"),
        ({"layers": 0}, "layers=0"),
        ({"types": -1}, "types=-1"),
        ({"pad": 40}, "pad=40 is not one of 40 tokens"),
        ({"dropout": 1.0}, r"dropout=1\.0"),
        ({"head": "span"}, "head='span'"),
        ({"activation": "silu"}, "activation='silu'"),
        ({"head": "pooled", "pooler": False}, "without a pooler"),
    ],
)
def test_bad_configs(changes, message):
    with pytest.raises(ValueError, match=f"models.BERTConfig: .*{message}"):
        dataclasses.replace(TINY, **changes)


def test_bad_tokens():
    module, params = make()

    def call(x, **keywords):
        return jax.jit(module.apply)({"params": params}, x, **keywords)

    with pytest.raises(ValueError, match=r"tokens are int32\[7\]"):
        call(TOKENS[0])
    with pytest.raises(ValueError, match="13 tokens for 12 positions"):
        call(np.ones((1, 13), np.int32))
    with pytest.raises(TypeError, match="integer ids"):
        call(TOKENS.astype(np.float32))
    untyped, bare = make(types=0)
    with pytest.raises(ValueError, match="types for a model without any"):
        jax.jit(untyped.apply)({"params": bare}, TOKENS, types=TOKENS)
    for wrong in (99, -1):  # out of the vocabulary: not silently another token, whether or not values are known
        ids = np.full((1, 3), wrong, np.int32)
        assert np.isnan(call(ids)).all()
        with pytest.raises(ValueError, match=rf"tokens int32\[1, 3\] are {wrong} to {wrong}.* ids in \[0, 40\)"):
            module.apply({"params": params}, ids)
    with pytest.raises(ValueError, match=r"types int32\[2, 7\] are 2 to 2"):
        module.apply({"params": params}, TOKENS, types=np.full_like(TOKENS, 2))
    with pytest.raises(ValueError, match=r"positions int32\[2, 7\] are 12 to 12"):
        module.apply({"params": params}, TOKENS, position=np.full_like(TOKENS, 12))
    with pytest.raises(ValueError, match=r"tokens are int32\[2, 0\]"):
        call(TOKENS[:, :0])
    with pytest.raises(ValueError, match="places for head='hidden'"):
        call(TOKENS, places=TOKENS[:, :1])


def test_places_are_those_of_all_logits():
    module, params = make(head="mlm")
    places = np.array([[4, 0, 2], [6, 6, 1]], np.int32)
    some, every = (jax.jit(module.apply)({"params": params}, TOKENS, places=p) for p in (places, None))
    np.testing.assert_allclose(some, np.take_along_axis(every, places[..., None], axis=1), atol=1e-5)
    for wrong in (-1, 7):  # a place that is not there: never the last token's, nor another
        ids = np.full((2, 3), wrong, np.int32)
        assert np.isnan(jax.jit(module.apply)({"params": params}, TOKENS, places=ids)).all()
        with pytest.raises(ValueError, match=rf"places int32\[2, 3\] are {wrong} to {wrong}. Tried: ids in \[0, 7\)"):
            module.apply({"params": params}, TOKENS, places=ids)
    with pytest.raises(ValueError, match=r"places are int32\[3\] for tokens int32\[2, 7\]. Tried: \[B, N\]"):
        module.apply({"params": params}, TOKENS, places=ids[0])


def test_ids_out_of_range_are_refused_before_a_run():
    module, _ = make(head="classify")
    task = train.supervised(module, losses.cross_entropy)

    def fit(x):
        source = data.Arrays(x, np.zeros(2, np.int32))
        return train.fit(task, optax.sgd(0.1), source, batch_size=2, steps=1, log=train.Log(progress=False))

    for wrong in (40, -1):
        where = rf"'x' int32\[2, 7\] of the first batch has {wrong} in example \d, place \d\. Tried: layers\.Embed"
        with pytest.raises(ValueError, match=where):
            fit(np.where(TOKENS == 0, wrong, TOKENS).astype(np.int32))
