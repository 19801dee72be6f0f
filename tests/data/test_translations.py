"""Pairs of texts as a translator learns from them: what it reads, what it is given, what it is to write."""

import jax
import numpy as np
import pytest

from jaxnn import data, models

pytest.importorskip("tokenizers")
READ = data.Texts(["one two", "three", "two two one"], ["uno dos", "tres", "dos dos uno"])
ENDS = data.Tokenizer.train([*READ.texts, *READ.pairs], vocab=300, ends=True)


def test_what_stands_where():
    source = READ.translations(ENDS, length=12)
    batch = source.take(np.arange(3))
    assert {name: x.shape for name, x in batch.items()} == {"x": (3, 24), "y": (3, 12), "weights": (3, 12)}
    start, end = ENDS.token_id("[CLS]"), ENDS.token_id("[SEP]")
    for i, (text, partner) in enumerate(zip(READ.texts, READ.pairs)):
        read, given, wanted = batch["x"][i, :12], batch["x"][i, 12:], batch["y"][i]
        assert (ENDS.decode(read), ENDS.decode(given), ENDS.decode(wanted)) == (text, partner, partner)
        n = int(batch["weights"][i].sum())
        assert (given[0], wanted[n - 1]) == (start, end)
        np.testing.assert_array_equal(given[1:n], wanted[: n - 1])
        assert (given[n:] == ENDS.pad).all()
        assert not batch["weights"][i, n:].any()
    # A new text is read as `Sentences` gives it.
    np.testing.assert_array_equal(data.Sentences(ENDS, READ.texts, length=12).take([0])["x"][0], batch["x"][0, :12])


def test_longer_pairs_are_left_out_and_length_is_the_longest_by_default():
    whole = READ.translations(ENDS)
    longest = whole.arrays["y"].shape[1]
    assert max(int(w.sum()) for w in whole.arrays["weights"]) <= longest
    shorter = READ.translations(ENDS, length=longest - 1)
    assert 0 < len(shorter) < len(whole) == 3


def test_a_start_of_its_own_and_a_model():
    # As T5's and Marian's: they end a text, and begin to write from the token that pads.
    inner = data.Tokenizer.train([*READ.texts, *READ.pairs], vocab=300, ends=True)
    import tokenizers

    inner.inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A [SEP]", special_tokens=[("[SEP]", inner.token_id("[SEP]"))]
    )
    batch = READ.translations(inner, length=12, start=inner.pad).take([0])
    assert batch["x"][0, 12] == inner.pad
    assert inner.decode(batch["y"][0]) == "uno dos"
    net = models.Transformer(models.TransformerConfig(vocab=ENDS.vocab, width=8, heads=2, hidden=8, layers=1))
    batch = READ.translations(ENDS, length=12).take([0, 1])
    shape = jax.eval_shape(models.SideBySide(net, 12).init, jax.random.key(0), batch["x"])
    assert "net" in shape["params"]


def test_what_cannot_be_translated_is_told():
    bare = data.Tokenizer.train(READ.texts, vocab=300)
    for call, words in (
        (lambda: data.Texts(["a"]).translations(ENDS), "3? ?texts without partners. Tried: pairs. Read them"),
        (lambda: READ.translations(bare), r"puts no token behind a text.*ends=True"),
        (lambda: READ.translations(ENDS, length=2), r"none of 3 pairs has 2 tokens.*Write length="),
        (lambda: READ.translations(ENDS, length="x"), "length='x'. Tried: an integer of at least 2"),
        (lambda: READ.translations(ENDS, start=10**6), "start=1000000 for .* tokens"),
        (lambda: READ.translations(None), "tokenizer is NoneType"),
    ):
        with pytest.raises((ValueError, TypeError), match=rf"^data\.Texts\.translations: .*{words}"):
            call()


def test_byte_pairs_with_ends_and_words_without():
    assert ENDS.decode(ENDS.encode(["one"]).ids) == "one"
    assert ENDS.encode(["one"]).ids[[0, -1]].tolist() == [ENDS.token_id("[CLS]"), ENDS.token_id("[SEP]")]
    bare = data.Tokenizer.train(READ.texts, vocab=300, kind="wordpiece", ends=False)
    assert not set(bare.encode(["one"]).ids.tolist()) & set(bare.special)
