"""generate: greedy tokens against a plain loop, one program, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.models import GPT, GPTConfig, generate

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
        (b"\x01", {"top_k": 14}, "top_k=14"),
    ],
)
def test_what_cannot_be_sampled_is_refused(model, prompt, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(*model, prompt, **{"steps": 1, "key": KEY, **settings})
