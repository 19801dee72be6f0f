"""What a newcomer gets wrong with tokenizers, readers and transforms: told what it was, and what would be right."""

import re

import numpy as np
import pytest

from jaxnn import data

pytest.importorskip("tokenizers")
TEXTS = ["the cat sat on the mat", "a dog ran"] * 4
IMAGES = np.zeros((4, 8, 8, 3), np.uint8)
SOURCE = data.Arrays(IMAGES, np.zeros(4, int))
WORDS = data.Tokenizer.train(TEXTS, vocab=300)


def sentences(texts=TEXTS, tokenizer=WORDS, **changes):
    return data.Sentences(tokenizer, texts, **{"length": 8} | changes)


CASES = {
    "train, one text": (
        lambda _: data.Tokenizer.train("a text", vocab=300),
        r"train: texts are str 'a text'.*\[text\]",
    ),
    "train, no texts": (lambda _: data.Tokenizer.train(None, vocab=300), "texts are NoneType None"),
    "train, numbers": (lambda _: data.Tokenizer.train([1, 2], vocab=300), "train: 1 is int. Tried: strings"),
    "train, bytes": (lambda _: data.Tokenizer.train([b"ab"], vocab=300, kind="wordpiece"), "is bytes. Tried: strings"),
    "train, half a pair": (lambda _: data.Tokenizer.train(["a\ud800"], vocab=300), "no character. Tried: UTF-8"),
    "train, a size as text": (lambda _: data.Tokenizer.train(TEXTS, vocab="300"), "vocab='?300"),
    "train, half a token": (lambda _: data.Tokenizer.train(TEXTS, vocab=300.5), r"vocab=300\.5"),
    "load, nothing": (lambda _: data.Tokenizer.load(None), "path is NoneType None. Tried: a file or folder"),
    "load, an id that pads": (lambda at: data.Tokenizer.load(at, pad=0), "pad=0. Tried: a token"),
    "save, nowhere": (
        lambda at: WORDS.save(at / "no" / "x.json"),
        "there is no folder '.*no'. Tried: writing 'x.json'",
    ),
    "encode, one text": (lambda _: WORDS.encode("a text"), r"encode: texts are str 'a text'"),
    "encode, one partner": (lambda _: WORDS.encode(["a"], "b"), r"encode: texts are str 'b'"),
    "encode, nothing": (lambda _: WORDS.encode(None), "encode: texts are NoneType"),
    "encode, half a pair": (lambda _: WORDS.encode(["a\udc00"]), "no character. Tried: UTF-8"),
    "encode, a length as text": (lambda _: WORDS.encode(TEXTS, length="3"), "length=3"),
    "decode, a text": (lambda _: WORDS.decode("abc"), r"decode: ids are .*Tried: integers \[n\]"),
    "decode, several": (lambda _: WORDS.decode([[1, 2]]), r"ids are int64\[1, 2\]"),
    "decode, half a token": (lambda _: WORDS.decode([1.5]), r"ids are float64\[1\]"),
    "decode, a negative one": (lambda _: WORDS.decode([-1, 5]), r"ids -1 to 5 for"),
    "decode, no token": (lambda _: WORDS.decode([99_999]), r"ids 99999 to 99999 for"),
    "token_id, an id": (lambda _: WORDS.token_id(3), "token_id: 3 is int"),
    "sentences, one text": (lambda _: sentences("a text"), "Sentences: texts are str 'a text'"),
    "sentences, no tokenizer": (lambda _: sentences(tokenizer=None), "Sentences: tokenizer is NoneType"),
    "sentences, half a length": (lambda _: sentences(length=8.5), r"Sentences: length=8\.5"),
    "sentences, one bucket": (lambda _: sentences(buckets=4), r"buckets=4. Tried: several lengths. Write \(4,\)"),
    "sentences, half a bucket": (lambda _: sentences(buckets=(4.5,)), r"bucket 4\.5"),
    "sentences, other tokens": (lambda _: sentences(x=np.zeros(8)), "an array 'x'. Tried: arrays beside the tokens"),
    "packed, one document": (lambda _: data.Packed(b"abc", length=8), "documents are bytes"),
    "packed, nothing": (lambda _: data.Packed(None, length=8), "documents are NoneType"),
    "packed, a length as text": (lambda _: data.Packed([np.arange(3)], length="8"), "length='8'"),
    "masked, a size as text": (lambda _: data.masked_tokens("300", 4, (0,)), "vocab=300"),
    "jsonl, nothing": (lambda _: data.read_jsonl(None), "read_jsonl: path is NoneType"),
    "parallel, one file": (lambda at: data.read_parallel(at / "a", None), "read_parallel: path is NoneType"),
    "imdb, nothing": (lambda _: data.read_imdb(None), "read_imdb: path is NoneType"),
    "idx, nothing": (lambda _: data.read_idx(None), "read_idx: path is NoneType"),
    "mnist, nothing": (lambda _: data.mnist(None), "mnist: path is NoneType"),
    "verses, nothing": (lambda _: data.read_verses(None), "read_verses: path is NoneType"),
    "images, one side": (lambda at: data.ImageFiles([at / "a.png"], size=8), r"size is 8. Tried: \(height, width\)"),
    "folder, half a pixel": (lambda at: data.ImageFolder(at, size=(8, 8.5)), r"size is \(8, 8\.5\). Tried"),
    "resize, one side": (lambda _: data.resize(4), r"resize: size is 4. Tried: \(height, width\)"),
    "crops, one side": (lambda _: data.random_resized_crop(4), "random_resized_crop: size is 4"),
    "shift, text": (lambda _: data.random_crop_flip("4"), "pad is '4' pixels"),
    "normalize, text": (lambda _: data.normalize("a", "b"), "mean a and std b"),
    "normalize, other channels": (
        lambda _: data.normalize((0, 0), (1, 1))({"x": IMAGES}),
        r"'x' uint8\[4, 8, 8, 3\] with mean float32\[2\] and std float32\[2\]. Tried: one number, or one a channel",
    ),
    "one_hot, text": (lambda _: data.one_hot("3"), "'3' classes"),
    "one_hot, halves": (lambda _: data.one_hot(3)({"y": np.array([0.5])}), r"'y' float64\[1\]. Tried: class ids"),
    "mixup, a rate as text": (lambda _: data.mixup(SOURCE, 3, alpha="x"), "alpha=x"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_told_with_what_would_be_right(case, tmp_path):
    call, message = CASES[case]
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        call(tmp_path)
    assert re.match(r"data\.\w[\w.]*: ", str(raised.value))
    assert "Tried: " in str(raised.value)


def test_a_vocabulary_without_the_token_for_all_others_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("the\ncat\n")
    with pytest.raises(ValueError, match=r"vocab\.txt' holds 2 tokens and no '\[UNK\]'"):
        data.Tokenizer.load(tmp_path)


def csv_source(at):
    (at / "a.csv").write_text("a,b\n" + "1,2\n3,4\n" * 4)
    return data.CSV(at / "a.csv", target="b")


def text_source(at):
    (at / "a.txt").write_text("0123456789" * 2)
    return data.TextFiles([at / "a.txt"], length=4)


def folder_source(at):
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (at / name).mkdir()
        for i in range(2):
            image.fromarray(IMAGES[0]).save(at / name / f"{i}.png")
    return data.ImageFolder(at, size=(8, 8))


SOURCES = {
    "Arrays": lambda _: SOURCE,
    "mapped": lambda _: data.mapped(SOURCE, data.normalize(0, 1)),
    "mapped at random": lambda _: data.mapped(SOURCE, data.random_crop_flip(), random=True),
    "mixup": lambda _: data.mixup(data.mapped(SOURCE, data.normalize(0, 1)), classes=2),
    "CSV": csv_source,
    "TextFiles": text_source,
    "ImageFolder": folder_source,
    "Packed": lambda _: data.Packed([np.arange(5), np.arange(3)], length=4),
    "Sentences": lambda _: sentences(),
    "Sentences of lengths": lambda _: sentences(buckets=(4,)),
    "bucketed": lambda _: data.bucketed(
        data.Arrays(np.ones((4, 6), np.int32)), np.array([1, 2, 3, 6]), (3,), arrays=("x",)
    ),
    "Indexed": lambda _: data.Indexed([{"x": 1.0}, {"x": 2.0}]),
}


@pytest.mark.parametrize("name", SOURCES)
def test_examples_that_are_not_there_are_told(name, tmp_path):
    source = SOURCES[name](tmp_path)
    n = len(source)
    assert len(source.take(np.arange(n))["x"]) == n
    assert len(source.take([0])["x"]) == 1
    for index in ([0, n], [-1], np.array([n], np.uint64)):
        with pytest.raises(ValueError, match=rf"take: examples .* of {n}\. Tried: numbers in \[0, {n}\)\. ") as raised:
            source.take(index)
        assert re.match(r"data\.\w+\.take: ", str(raised.value))
    for index in (0, np.ones(n, bool), [0.0], np.zeros((1, 1), int), "0", slice(2), None):
        with pytest.raises((ValueError, TypeError), match=r"data\.\w+\.take: index .*Tried: integers \[B\]\. "):
            source.take(index)
