"""Every form of attention, under every restriction, against float64 NumPy: values and gradients; and its memory."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import cost
from jaxnn.models.attention import alibi_slopes, attention, cached_attention, linear

BATCH, QUERIES, HEADS, WIDTH = 2, 37, 4, 8
FORMS = ("plain", "narrow", "linear", "xla")


def oracle(
    q, k, v, g, *, causal, segment=None, key_segment=None, mask=None, window=None, alibi=None, bias=None, relative=None
):
    """The output and the cotangents of q, k, v, bias and relative for the output's cotangent `g`, in float64."""
    q, k, v, g = (np.asarray(x, np.float64) for x in (q, k, v, g))
    groups = q.shape[2] // k.shape[2]
    k, v = (np.repeat(x, groups, axis=2) for x in (k, v))
    t, s = np.arange(q.shape[1])[:, None], np.arange(k.shape[1])[None]
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    if alibi is not None:
        scores = scores - np.asarray(alibi)[:, None, None] * np.abs(t - s)
    if bias is not None:
        scores = scores + bias
    if relative is not None:
        reach = relative.shape[1] // 2
        offsets = np.clip(s - t, -reach, reach) + reach
        scores = scores + np.asarray(relative, np.float64)[:, offsets]
    ok = np.ones(scores.shape, bool)
    if causal:
        ok &= t >= s
    if window is not None:
        ok &= np.abs(t - s) < window
    if segment is not None:
        ok &= (segment[:, :, None] == (segment if key_segment is None else key_segment)[:, None])[:, None]
    if mask is not None:
        ok &= (mask != 0)[:, None, None]
    e = np.where(ok, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    p = e / np.maximum(e.sum(-1, keepdims=True), 1e-300)
    dp = np.einsum("bthd,bshd->bhts", g, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))
    dk, dv = np.einsum("bhts,bthd->bshd", ds, q) / np.sqrt(q.shape[-1]), np.einsum("bhts,bthd->bshd", p, g)
    dk, dv = (x.reshape(*x.shape[:2], -1, groups, x.shape[-1]).sum(3) for x in (dk, dv))
    grads = [np.einsum("bhts,bshd->bthd", ds, k) / np.sqrt(q.shape[-1]), dk, dv]
    if bias is not None:
        shared = tuple(i for i in (0, 1) if bias.shape[i] == 1)
        grads.append(ds.sum(shared, keepdims=True))
    if relative is not None:
        by_offset = [(ds * (offsets == i)).sum((0, 2, 3)) for i in range(relative.shape[1])]
        grads.append(np.stack(by_offset, axis=1))
    return np.einsum("bhts,bshd->bthd", p, v), grads


def case(names: frozenset[str]) -> tuple[list[np.ndarray], dict]:
    """Operands and keywords under the restrictions named."""
    rng = np.random.default_rng(0)
    keys = 45 if "cross" in names else QUERIES
    key_heads = 2 if "grouped" in names else HEADS
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    arrays = [draw(BATCH, QUERIES, HEADS, WIDTH), *(draw(BATCH, keys, key_heads, WIDTH) for _ in range(2))]
    settings: dict = {"causal": "causal" in names}
    if "segment" in names:
        settings["segment"] = np.stack([np.arange(QUERIES) * n // QUERIES for n in (3, 2)])
        if "cross" in names:
            settings["key_segment"] = np.stack([np.arange(keys) * n // keys for n in (2, 2)])
    if "mask" in names:
        # The second example begins with padding, so that its first causal queries read nothing.
        settings["mask"] = np.stack([np.arange(keys) < 30, np.arange(keys) >= 5]).astype(np.float32)
    if "window" in names:
        settings["window"] = 7
    if "alibi" in names:
        settings["alibi"] = alibi_slopes(HEADS)
    if "bias" in names:
        settings["bias"] = draw(1, HEADS, QUERIES, keys)
    if "relative" in names:
        settings["relative"] = draw(HEADS, 2 * 12 + 1)  # farther keys are all alike
    if "bias_of_example" in names:
        settings["bias"] = draw(BATCH, 1, QUERIES, keys)
    return arrays, settings


def check(names: frozenset[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every form against the oracle, in one program."""
    monkeypatch.setattr(linear, "TILE", 16)
    (q, k, v), settings = case(names)
    g = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
    added = {name: settings.pop(name) for name in ("bias", "relative") if name in settings}
    learned = [q, k, v, *added.values()]

    @jax.jit
    def run(learned):
        out = {}
        for form in FORMS:

            def f(q, k, v, *more, form=form):
                narrow = {"matmul_dtype": jnp.float32, "form": "plain"} if form == "narrow" else {"form": form}
                return attention(q, k, v, **dict(zip(added, more)), **settings, **narrow)

            y, back = jax.vjp(f, *learned)
            out[form] = (y, back(g))
        return out

    want, want_grads = oracle(q, k, v, g, **added, **settings)
    for form, (y, grads) in run(learned).items():
        np.testing.assert_allclose(y, want, atol=1e-5, err_msg=form)
        for name, a, b in zip(("q", "k", "v", *added), grads, want_grads, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()), err_msg=f"{form} {name}")


@pytest.mark.parametrize(
    "names",
    [
        "causal segment window grouped relative",
        "causal mask alibi bias",
        "cross mask segment grouped bias_of_example relative",
        "window",
    ],
)
def test_forms_agree_with_numpy_in_values_and_gradients(names, monkeypatch):
    check(frozenset(names.split()), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["causal", "self", "cross"])
@pytest.mark.parametrize("heads", ["grouped", "whole"])
@pytest.mark.parametrize("packed", ["segment", "unpacked"])
def test_every_combination_agrees_with_numpy(base, heads, packed, monkeypatch):
    rest = ("mask", "window", "alibi", "bias", "relative")
    for count in range(len(rest) + 1):
        for names in itertools.combinations(rest, count):
            check(frozenset({base, heads, packed, *names}), monkeypatch)


def test_narrow_operands_come_near(monkeypatch):
    monkeypatch.setattr(linear, "TILE", 16)
    (q, k, v), settings = case(frozenset({"causal", "mask", "grouped"}))
    g = np.ones_like(q)
    want, want_grads = oracle(q, k, v, g, **settings)
    for form in ("plain", "linear"):
        f = jax.jit(
            lambda q, k, v, form=form: jax.vjp(
                lambda *x: attention(*x, matmul_dtype=jnp.bfloat16, form=form, **settings), q, k, v
            )[0]
        )
        y = f(q, k, v)
        assert y.dtype == jnp.float32
        np.testing.assert_allclose(y, want, atol=5e-2)
        back = jax.jit(
            lambda q, k, v, form=form: jax.vjp(
                lambda *x: attention(*x, matmul_dtype=jnp.bfloat16, form=form, **settings), q, k, v
            )[1](g)
        )
        for a, b in zip(back(q, k, v), want_grads):
            np.testing.assert_allclose(a, b, atol=5e-2 * np.abs(b).max())


@pytest.mark.parametrize("window", [None, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("relative", [pytest.param(False, marks=pytest.mark.slow), True])
def test_memory_of_the_linear_form_grows_with_the_length(window, relative, monkeypatch):
    """Temporaries of forward and backward, compiled: at 2 T twice those at T, where the plain form's grow fourfold."""
    monkeypatch.setattr(linear, "TILE", 64)

    def temporaries(length: int, form: str) -> int:
        x, table = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, length, 2, 8), (2, 257)))

        def f(q, k, v, table):
            y = attention(q, k, v, causal=True, window=window, form=form, relative=table if relative else None)
            return jnp.sum(jnp.square(y))

        return cost.memory(jax.jit(jax.grad(f, (0, 1, 2, 3))).lower(x, x, x, table).compile()).temporaries

    short, middle, long = (temporaries(n, "linear") for n in (256, 512, 1024))
    assert middle < 2.3 * short
    assert long < 2.3 * middle
    if window is None:
        assert temporaries(256, "plain") > 2.8 * temporaries(128, "plain")


def test_tiles_that_nobody_reads_are_left_out():
    assert len(linear.tiles(1024, 1024, True, None)[0]) == 10
    assert len(linear.tiles(1024, 1024, True, 256)[0]) == 7
    assert len(linear.tiles(1024, 1024, False, 1)[0]) == 4
    assert len(linear.tiles(1000, 300, False, None)[0]) == 8


def test_a_cache_read_slot_by_slot_gives_what_the_whole_text_gives():
    q, k, v = case(frozenset({"causal", "grouped"}))[0]
    slopes = alibi_slopes(HEADS)
    start = np.array([0, 5])
    mask = (np.arange(QUERIES)[None] >= start[:, None]).astype(np.float32)
    want = attention(q, k, v, causal=True, mask=mask, window=9, alibi=slopes)
    keys, values = (np.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, 3), (0, 0))) for x in (k, v))
    slots = np.arange(keys.shape[2])[:, None]

    @jax.jit
    def step(q, k, v, filled):
        # What lies in slots that are not filled yet does not matter.
        cache = (jnp.where(slots < filled, x, 9) for x in (keys, values))
        return cached_attention(q, k, v, *cache, filled=filled, start=start, window=9, alibi=slopes)

    # The first tokens at once, the others one by one.
    bounds = [0, 8, *range(9, QUERIES + 1)]
    got = [step(*(x[:, a:b] for x in (q, k, v)), a) for a, b in itertools.pairwise(bounds)]
    got = np.concatenate(got, axis=1)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="cuDNN may be there")
def test_cudnn_says_in_our_words_that_it_is_not_there():
    q = jnp.ones((1, 8, 2, 16), jnp.bfloat16)
    with pytest.raises(ValueError, match=r"form='cudnn', operands bfloat16: .*\. Tried: cuDNN's kernel, which wants"):
        attention(q, q, q, causal=True, form="cudnn")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"causal": True, "keys": 3}, "as many queries as keys"),
        ({"mask": jnp.ones((2, 4))}, r"mask float32\[2, 4\]. Tried: \[2, 5\]"),
        ({"alibi": jnp.ones(3)}, r"alibi float32\[3\]"),
        ({"bias": jnp.ones((1, 2, 5, 5))}, r"bias float32\[1, 2, 5, 5\]"),
        ({"relative": jnp.ones((4, 6))}, r"relative float32\[4, 6\]. Tried: \[4, 2 R \+ 1\]"),
        ({"key_segment": jnp.ones((2, 5), int)}, "key_segment without segment"),
        ({"window": 0}, "window=0"),
        ({"form": "flash"}, "form='flash'"),
        ({"key_heads": 3}, "K dividing H"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    q = jnp.ones((2, 5, 4, 8))
    k = jnp.ones((2, change.pop("keys", 5), change.pop("key_heads", 4), 8))
    with pytest.raises(ValueError, match=message):
        attention(q, k, k, **{"causal": False, **change})
