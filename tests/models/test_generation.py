"""generate: with and without a cache, drawn and searched, against plain loops; what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import tree
from jaxnn.models import GPT, GPTConfig, generate, stack_layers
from jaxnn.models.gpt import init_cache

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def model():
    model = GPT(GPTConfig(vocab=13, length=8, layers=1, heads=2, width=8))
    shapes = jax.eval_shape(model.init, KEY, jnp.zeros((1, 2), int))["params"]
    generator = np.random.default_rng(0)
    return model, jax.tree.map(lambda s: generator.normal(size=s.shape).astype(np.float32), shapes)


def test_greedy_tokens_are_those_of_a_plain_loop_past_the_window(model):
    gpt, params = model
    apply = jax.jit(lambda tokens: gpt.apply({"params": params}, tokens))
    ids = [3, 1, 4]
    for _ in range(9):
        ids.append(int(jnp.argmax(apply(np.array([ids[-8:]]))[0, -1])))
    got = generate(gpt, params, np.array([3, 1, 4]), steps=9, temperature=0, key=KEY)
    assert got.dtype == np.int32
    assert got.tolist() == ids[3:]


SMALL = {"vocab": 13, "length": 40, "layers": 2, "heads": 4, "width": 16}
ROTARY = {**SMALL, "kv_heads": 2, "activation": "swiglu", "window": 6}
LEARNED = {**SMALL, "positions": "learned", "norm": "layer", "bias": True}


def make(**settings) -> tuple[GPT, dict]:
    gpt = GPT(GPTConfig(**settings))
    shapes = jax.eval_shape(GPT(GPTConfig(**{**settings, "scan": False})).init, KEY, jnp.zeros((1, 2), int))["params"]
    generator = np.random.default_rng(0)
    params = tree.map_by_path(lambda _, s: (0.5 * generator.normal(size=s.shape)).astype(np.float32), shapes)
    return gpt, stack_layers(params) if settings.get("scan") else params


@pytest.mark.parametrize(
    "settings",
    [
        ROTARY,
        pytest.param({**ROTARY, "scan": True}, marks=pytest.mark.slow),
        pytest.param(LEARNED, marks=pytest.mark.slow),
        pytest.param({**SMALL, "positions": "alibi", "kv_heads": 1}, marks=pytest.mark.slow),
    ],
)
def test_logits_from_a_cache_are_those_of_the_whole_text(settings):
    gpt, params = make(**settings)
    tokens = np.random.default_rng(1).integers(0, 13, size=(2, 20))
    start = np.array([0, 3])
    # The second text is three tokens shorter, padded on its left.
    whole = jax.jit(lambda tokens: gpt.apply({"params": params}, tokens))
    want = [np.asarray(whole(tokens[i : i + 1, s:]))[0] for i, s in enumerate(start)]

    @jax.jit
    def run(tokens):
        cache = init_cache(gpt.config, 2, 24, start)
        parts = []
        for a, b in ((0, 9), (9, 10), (10, 14), (14, 15), (15, 20)):
            logits, cache = gpt.apply({"params": params}, tokens[:, a:b], cache=cache)
            parts.append(logits)
        return jnp.concatenate(parts, axis=1)

    got = np.asarray(run(tokens))
    for i, s in enumerate(start):
        np.testing.assert_allclose(got[i, s:], want[i], atol=1e-5 * np.abs(want[i]).max())


def test_a_full_cache_is_refused_or_reads_nan_and_overwrites_no_slot(model):
    gpt, params = model
    tokens = np.arange(8, dtype=np.int32)[None]
    step = lambda cache, ids: gpt.apply({"params": params}, ids, cache=cache)  # noqa: E731
    _, cache = step(init_cache(gpt.config, 1, 6), tokens[:, :4])
    with pytest.raises(ValueError, match="4 more positions for 6 slots, 4 of which are filled"):
        step(cache, tokens[:, 4:])
    with pytest.raises(ValueError, match="8 more positions for 6 slots"):
        jax.jit(step)(cache, tokens)
    traced = jax.jit(step)
    _, cache = traced(cache, tokens[:, 4:6])
    _, full = traced(cache, tokens[:, 6:])
    assert np.isfinite(cache.keys[0]).all()
    assert np.isnan(traced(full, tokens[:, :1])[0]).all()


@pytest.mark.parametrize("settings", [pytest.param(ROTARY, marks=pytest.mark.slow), LEARNED])
def test_prompts_of_any_lengths_give_what_each_gives_alone_and_what_no_cache_gives(settings):
    gpt, params = make(**settings)
    prompts = [np.array([1, 2, 3, 4, 5]), np.array([7]), bytes([3, 1])]
    settings = {"steps": 12, "top_k": 9, "top_p": 0.9, "temperature": 1.3}
    whole = generate(gpt, params, prompts, key=KEY, **settings)
    without = generate(gpt, params, prompts, key=KEY, cache=False, **settings)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(3))
    rest = generate(gpt, params, prompts[::-1], key=keys[::-1], **settings)[::-1]
    for a, b, c in zip(whole, without, rest, strict=True):
        assert a.shape == (12,)
        assert a.tolist() == b.tolist() == c.tolist()
    alone = generate(gpt, params, prompts[1:2], key=keys[1:2], **settings)
    assert alone[0].tolist() == whole[1].tolist()


def test_a_text_ends_with_its_stop_token():
    gpt, params = make(**ROTARY)
    free = generate(gpt, params, [b"\x01", b"\x02\x03"], steps=20, key=KEY)
    stop = int(free[0][4])
    for cache in (True, False):
        ended = generate(gpt, params, [b"\x01", b"\x02\x03"], steps=20, key=KEY, stop=stop, cache=cache)
        for a, b in zip(ended, free, strict=True):
            first = b.tolist().index(stop) + 1 if stop in b else 20
            assert a.tolist() == b.tolist()[:first]


@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_beams_find_the_likeliest_text(scan):
    """With as many beams as there are texts of two tokens, the best of all of three."""
    gpt, params = make(**{**LEARNED, "vocab": 4, "scan": scan})
    texts = np.array(np.meshgrid(*[range(4)] * 3, indexing="ij")).reshape(3, -1).T
    prompts = [np.array([1, 2]), np.array([3])]
    got = generate(gpt, params, prompts, steps=3, beams=16)
    for prompt, found in zip(prompts, got, strict=True):
        whole = np.concatenate([np.repeat(prompt[None], len(texts), 0), texts], axis=1)
        logs = jax.jit(lambda x: jax.nn.log_softmax(gpt.apply({"params": params}, x)))(whole[:, :-1])
        scores = np.take_along_axis(np.asarray(logs), whole[:, 1:, None], -1)[:, prompt.size - 1 :, 0].sum(1)
        assert found.tolist() == texts[scores.argmax()].tolist()


def test_the_same_key_gives_the_same_tokens_and_one_program_serves_all(model, count_compiles):
    gpt, params = model
    first = generate(gpt, params, bytes([1, 2]), steps=20, key=KEY)
    other = jax.random.key(1)
    with count_compiles() as seen:
        assert generate(gpt, params, bytes([1, 2]), steps=20, key=KEY).tolist() == first.tolist()
        assert generate(gpt, params, bytes(range(12)), steps=20, temperature=0.5, key=other).tolist() != first.tolist()
    assert seen.compiles == []


def test_top_k_draws_from_the_k_likeliest(model):
    gpt, params = model
    logits = gpt.apply({"params": params}, np.array([[5]]))[0, 0]
    likeliest = set(np.argsort(logits)[-3:].tolist())
    drawn = {
        int(generate(gpt, params, bytes([5]), steps=1, temperature=10.0, top_k=3, key=jax.random.key(i))[0])
        for i in range(40)
    }
    assert drawn == likeliest


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        (b"", {}, r"shape \(0,\)"),
        (np.zeros((1, 2), int), {}, r"shape \(1, 2\)"),
        (np.array([13]), {}, "ids 13 to 13 for a vocabulary of 13"),
        (b"\x01", {"steps": 0}, "steps=0"),
        (b"\x01", {"temperature": -1.0}, r"temperature=-1\.0"),
        (b"\x01", {"temperature": float("nan")}, r"temperature=nan.*Tried: .*finite"),
        (b"\x01", {"steps": 2.5}, r"steps=2\.5.*Tried: whole steps"),
        (b"\x01", {"top_k": 2.5}, r"top_k=2\.5.*Tried: whole"),
        (b"\x01", {"key": jax.random.PRNGKey(1)}, r"key uint32\[2\]\. Tried: a typed key"),
        (b"\x01", {"beams": 2, "length_penalty": float("nan")}, "length_penalty=nan"),
        (b"\x01", {"beams": 2, "length_penalty": -1.0}, r"length_penalty=-1\.0"),
        (b"\x01", {"top_k": 14}, "top_k=14"),
        (b"\x01", {"top_p": 0.0}, r"top_p=0\.0"),
        (b"\x01", {"stop": 13}, "stop=13"),
        (b"\x01", {"beams": 2, "top_k": 3}, "beams=2"),
        (b"\x01", {"steps": 8, "cache": True}, "1 tokens and 8 more for length=8"),
        (b"\x01", {"key": None}, "no key"),
        ([b"\x01"], {"key": jax.random.split(KEY, 2)}, r"keys \[2\] for 1 prompts"),
        ([b"\x01", b""], {}, r"shape \(0,\)"),
    ],
)
def test_what_cannot_be_sampled_is_refused(model, prompt, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(*model, prompt, **{"steps": 1, "key": KEY, **settings})
