"""Searches against every sequence there is: a tiny Markov chain whose best sequences can be listed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn.models import beam_search, greedy_search

V, END, LENGTH = 4, 3, 3
# Log-probabilities that differ with the last token, the example and the time, so that a wrong cache would show.
TABLE = np.log(np.random.default_rng(5).dirichlet(np.ones(V) * 0.5, size=(2, LENGTH, V)) + 1e-3)
TABLE -= np.log(np.exp(TABLE).sum(-1, keepdims=True))


def step(tokens, cache, i):
    """The cache counts calls and remembers whose row it is, as keys and values would."""
    logits = jnp.asarray(TABLE, jnp.float32)[cache["example"], cache["calls"], tokens] + 3.0  # not normalised
    return logits, {**cache, "calls": cache["calls"] + 1, "last": tokens}


def cache():
    return {"example": jnp.arange(2), "calls": jnp.zeros(2, jnp.int32), "last": jnp.zeros(2, jnp.int32)}


def every(example, penalty):
    """All sequences that end within LENGTH tokens or are cut there, best first: (score, tokens padded by 0)."""
    found = []
    for n in range(1, LENGTH + 1):
        for tokens in itertools.product(*[[0, 1, 2]] * (n - 1), range(V) if n == LENGTH else [END]):
            last, total = 0, 0.0
            for t, token in enumerate(tokens):
                total += TABLE[example, t, last, token]
                last = token
            found.append((total / n**penalty, tokens + (0,) * (LENGTH - n)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all_sequences(penalty):
    run = jax.jit(
        lambda c: beam_search(step, c, batch=2, start=0, end=END, length=LENGTH, beams=9, length_penalty=penalty)
    )
    tokens, scores = run(cache())
    for example in range(2):
        wanted = every(example, penalty)
        np.testing.assert_allclose(scores[example, :3], [s for s, _ in wanted[:3]], atol=1e-5)
        assert [tuple(row) for row in tokens[example, :3].tolist()] == [t for _, t in wanted[:3]]


def test_greedy_takes_the_likeliest_token_each_time_and_stops():
    run = jax.jit(lambda c: greedy_search(step, c, batch=2, start=0, end=END, length=LENGTH))
    tokens, scores = run(cache())
    for example in range(2):
        wanted, last, total = [], 0, 0.0
        for t in range(LENGTH):
            if wanted and wanted[-1] == END:
                break
            row = TABLE[example, t, last]
            last = int(row.argmax())
            wanted.append(last)
            total += row.max()
        assert tokens[example].tolist() == wanted + [0] * (LENGTH - len(wanted))
        assert float(scores[example]) == pytest.approx(total, abs=1e-5)


def test_without_an_end_the_beam_is_given_as_it_stands():
    run = jax.jit(lambda c: beam_search(step, c, batch=2, start=0, end=V, length=2, beams=2))
    tokens, scores = run(cache())
    for example in range(2):
        pairs = itertools.product(range(V), repeat=2)
        totals = {(a, b): TABLE[example, 0, 0, a] + TABLE[example, 1, a, b] for a, b in pairs}
        kept = sorted(range(V), key=lambda a: -TABLE[example, 0, 0, a])[:2]  # what a beam of two goes on with
        best = sorted((t for t in totals if t[0] in kept), key=lambda t: -totals[t])[:2]
        assert [tuple(row) for row in tokens[example].tolist()] == best
        np.testing.assert_allclose(scores[example], [totals[t] / 2 for t in best], atol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="example axis first"):
        beam_search(step, {"k": jnp.zeros((3, 2))}, batch=2, start=0, end=END, length=2)
    with pytest.raises(ValueError, match="length=0"):
        greedy_search(step, cache(), batch=2, start=0, end=END, length=0)
