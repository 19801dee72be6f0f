import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import data, losses, models, train


def documents(seed=0, count=40, longest=30):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 50, rng.integers(0, longest)) for _ in range(count)]


def all_rows(source):
    return source.take(np.arange(len(source)))


def test_every_token_but_a_documents_first_is_a_target_once():
    docs = documents()
    source = data.Packed(docs, length=16)
    rows = all_rows(source)
    found = []
    for x, y, w in zip(rows["x"], rows["y"], rows["weights"]):
        found += [(a, b) for a, b, weight in zip(x.tolist(), y.tolist(), w) if weight]
    wanted = list(itertools.chain.from_iterable(zip(d[:-1].tolist(), d[1:].tolist()) for d in docs))
    assert sorted(found) == sorted(wanted)
    assert {x.dtype for name, x in rows.items() if name != "weights"} == {np.dtype(np.int32)}


def test_documents_lie_in_one_piece_and_positions_begin_anew():
    docs = [np.arange(1, n + 1) for n in (5, 9, 3, 2, 8, 1, 4)]
    rows = all_rows(data.Packed(docs, length=11))
    for x, segment, position, weights in zip(rows["x"], rows["segment"], rows["position"], rows["weights"]):
        for number in range(1, segment.max() + 1):
            at = np.flatnonzero(segment == number)
            assert (np.diff(at) == 1).all()
            np.testing.assert_array_equal(position[at], np.arange(len(at)))
            np.testing.assert_array_equal(x[at], np.arange(1, len(at) + 1))
            assert weights[at][:-1].all()
        assert not weights[segment == 0].any()
        assert not x[segment == 0].any()
    assert rows["segment"].max() > 1
    # 32 tokens in rows of 12 (11 and a last target): no packing does with fewer than three.
    assert len(rows["x"]) == 3


def test_a_document_longer_than_a_row_is_cut_with_one_token_shared():
    rows = all_rows(data.Packed([np.arange(1, 24)], length=10))
    np.testing.assert_array_equal(rows["y"][rows["weights"] > 0], np.arange(2, 24))
    np.testing.assert_array_equal(rows["x"][:, 0], [1, 11, 21])
    assert (rows["position"][:, 0] == 0).all()


@pytest.mark.parametrize("length", [2, 7, 64])
def test_take_is_pure_and_resident_rows_are_the_same(length):
    source, again = (data.Packed(documents(), length=length) for _ in range(2))
    ids = np.array([len(source) - 1, 0, len(source) // 2, 0])
    taken = source.take(ids)
    resident = source.resident()
    on_device = jax.jit(resident.take)(resident.arrays, ids)
    for name, rows in taken.items():
        np.testing.assert_array_equal(rows, again.take(ids)[name])
        np.testing.assert_array_equal(rows, on_device[name])
        np.testing.assert_array_equal(rows[1], rows[3])
        assert rows.dtype == on_device[name].dtype


def test_rows_are_nearly_full():
    source = data.Packed(documents(count=2000), length=64)
    assert np.mean(all_rows(source)["segment"] != 0) > 0.97


MODELS = {
    "gpt rotary": (models.GPT, models.GPTConfig.preset("tiny", vocab=64, tied=False)),
    "gpt learned": (models.GPT, models.GPTConfig.preset("tiny", vocab=64, tied=False, positions="learned")),
    "bert": (
        models.BERT,
        models.BERTConfig(vocab=64, length=16, layers=2, heads=2, width=16, mlp_width=32, head="tokens", classes=64),
    ),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "bert" else ()) for n in MODELS])
def test_documents_of_a_row_have_no_influence_on_each_other(name):
    make, config = MODELS[name]
    module = make(config)
    first, second = np.arange(1, 8), np.arange(40, 46)
    rows = all_rows(data.Packed([first, second], length=16))
    assert len(rows["x"]) == 1
    of_second = rows["segment"] == 2
    assert of_second.sum() == 6
    keywords = {"segment": rows["segment"], "position": rows["position"]}
    params = jax.jit(module.init)(jax.random.key(0), rows["x"])["params"]

    @jax.jit
    def logits(params, x):
        return module.apply({"params": params}, x, **keywords)

    changed = np.where(rows["segment"] == 1, (rows["x"] * 7 + 3) % 30 + 1, rows["x"])
    np.testing.assert_array_equal(logits(params, rows["x"])[of_second], logits(params, changed)[of_second])
    # Alone in its row it gives the same, up to the order of sums.
    alone = jax.jit(module.apply)({"params": params}, second[None].astype(np.int32))
    np.testing.assert_allclose(logits(params, rows["x"])[of_second], alone[0], atol=1e-5)

    def loss_of_second(params):
        values = losses.cross_entropy(logits(params, rows["x"]), rows["y"])
        return jnp.sum(values * rows["weights"] * of_second)

    table = jax.jit(jax.grad(loss_of_second))(params)["embed"]["embedding"]
    assert not np.any(table[1:8])  # exactly: the first document's tokens
    assert np.abs(table[40:45]).max() > 1e-4


@pytest.mark.slow
def test_a_run_of_packed_rows_resumes_to_the_byte(tmp_path):
    source = data.Packed(documents(count=60), length=16)
    task = train.supervised(
        models.GPT(models.GPTConfig(vocab=50, layers=1, heads=2, width=16, length=16)), losses.cross_entropy
    )
    import optax

    options = {"batch_size": 4, "seed": 1, "log": train.Log(progress=False)}
    whole = train.fit(task, optax.adam(1e-3), source, steps=7, **options)
    train.fit(task, optax.adam(1e-3), source, steps=3, out=tmp_path / "run", **options)
    resumed = train.fit(task, optax.adam(1e-3), source, steps=7, out=tmp_path / "run", resume=True, **options)
    jax.tree.map(np.testing.assert_array_equal, whole.state.params, resumed.state.params)


def test_bad_input():
    with pytest.raises(ValueError, match="length=1"):
        data.Packed([np.arange(3)], length=1)
    with pytest.raises(ValueError, match="no tokens"):
        data.Packed([np.zeros(0, int)], length=4)
    with pytest.raises(TypeError, match=r"document 1 is float64\[2\]"):
        data.Packed([np.arange(3), np.zeros(2)], length=4)
    for ids in ([2**40, 1], [3, -5], [2**31]):
        with pytest.raises(ValueError, match=rf"document 0 int64\[{len(ids)}\] has ids {min(ids)} to {max(ids)}"):
            data.Packed([np.array(ids, np.int64)], length=4)
    assert data.Packed([np.array([2**31 - 1, 0], np.uint64)], length=4).take(np.array([0]))["x"][0, 0] == 2**31 - 1
    with pytest.raises(ValueError, match="vocab=0, mask=1"):
        data.masked_tokens(0, 1)
    with pytest.raises(ValueError, match="rate=1"):
        data.masked_tokens(10, 1, rate=1)
    with pytest.raises(ValueError, match="most=0"):
        data.masked_tokens(10, 1, most=0)


def test_hidden_tokens():
    x = np.random.default_rng(0).integers(5, 1000, (200, 50)).astype(np.int32)
    x[:, :2] = 0
    source = data.mapped(data.Arrays(x), data.masked_tokens(1000, 4, special=(0, 1, 2, 3)), random=True, seed=3)
    ids = np.arange(200)
    out = source.take(ids, step=5)
    chosen = out["weights"] > 0
    assert chosen[:, 2:].mean() == pytest.approx(0.15, abs=0.015)
    assert not chosen[:, :2].any()
    np.testing.assert_array_equal(out["y"], x)
    np.testing.assert_array_equal(out["x"][~chosen], x[~chosen])
    hidden = out["x"][chosen]
    assert (hidden == 4).mean() == pytest.approx(0.8, abs=0.04)
    assert (hidden == x[chosen]).mean() == pytest.approx(0.1, abs=0.03)
    assert len(np.unique(hidden[(hidden != 4) & (hidden != x[chosen])])) > 80
    # By example and step, not by place in the batch.
    np.testing.assert_array_equal(source.take(ids[::-1], step=5)["x"][::-1], out["x"])
    assert (source.take(ids, step=6)["weights"] != out["weights"]).any()


def test_at_most_so_many_hidden_tokens_with_their_places():
    x = np.random.default_rng(0).integers(5, 1000, (50, 40)).astype(np.int32)
    every, some = (
        data.mapped(data.Arrays(x), data.masked_tokens(1000, 4, most=most), random=True, seed=3).take(
            np.arange(50), step=2
        )
        for most in (None, 6)
    )
    counts = every["weights"].sum(axis=1)
    assert counts.min() < 6 < counts.max()
    assert {k: v.shape for k, v in some.items()} == {"x": (50, 40)} | dict.fromkeys(("y", "weights", "places"), (50, 6))
    np.testing.assert_array_equal(some["weights"].sum(axis=1), np.minimum(counts, 6))
    for i in range(50):
        at = some["places"][i][some["weights"][i] > 0]
        np.testing.assert_array_equal(at, np.flatnonzero(every["weights"][i])[:6])  # the first ones
        np.testing.assert_array_equal(some["y"][i][: len(at)], x[i, at])
        rest = np.setdiff1d(np.arange(40), at)
        np.testing.assert_array_equal(some["x"][i, rest], x[i, rest])  # nothing else is hidden
