import json
from pathlib import Path

import numpy as np
import pytest

from jaxnn import data

pytest.importorskip("tokenizers")
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "weights"
MINILM = Path(__file__).resolve().parents[2] / ".cache" / "minilm"
TEXTS = ["The cat sat on the mat.", "A dog barked; the cat ran.", "naïve café\n\tüber 東京 🙂", "", "cat cat cat dog"]


def test_byte_pairs_lose_nothing(tmp_path):
    tokenizer = data.Tokenizer.train(TEXTS, vocab=300)
    encoded = tokenizer.encode(TEXTS)
    assert [tokenizer.decode(encoded[i]) for i in range(len(encoded))] == TEXTS
    assert len(encoded[0]) < len(TEXTS[0])
    assert tokenizer.pad == 0
    assert tokenizer.mask == 4
    tokenizer.save(tmp_path)
    again = data.Tokenizer.load(tmp_path)
    np.testing.assert_array_equal(again.encode(TEXTS).ids, encoded.ids)
    assert again.special == tokenizer.special == (0, 1, 2, 3, 4)


def test_training_depends_on_the_texts_alone():
    for kind in ("bpe", "wordpiece"):
        one, two, three = (data.Tokenizer.train(iter(TEXTS * 3), vocab=320, kind=kind) for _ in range(3))
        assert one.inner.get_vocab() == two.inner.get_vocab() == three.inner.get_vocab()


def test_wordpiece_pairs_and_truncation(tmp_path):
    tokenizer = data.Tokenizer.train(TEXTS * 3, vocab=200, kind="wordpiece")
    cls, sep = tokenizer.token_id("[CLS]"), tokenizer.token_id("[SEP]")
    pair = tokenizer.encode(["the cat"], ["a dog ran"])
    ids, types = pair[0], pair.types
    assert ids[0] == cls
    assert ids[-1] == sep
    assert (ids == sep).sum() == 2
    np.testing.assert_array_equal(types, np.arange(len(ids)) > np.flatnonzero(ids == sep)[0])
    short = tokenizer.encode(["the cat sat on the mat", "cat"], length=5)
    assert [len(short[i]) for i in range(2)] == [5, 3]
    np.testing.assert_array_equal(short[0][:4], tokenizer.encode(["the cat sat on the mat"])[0][:4])
    assert short[0][-1] == sep
    assert len(tokenizer.encode(["the cat sat on the mat"])[0]) > 5  # truncation is not kept
    # The same from BERT's vocab.txt.
    words = sorted(tokenizer.inner.get_vocab(), key=tokenizer.inner.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    plain = data.Tokenizer.load(tmp_path)
    np.testing.assert_array_equal(plain.encode(TEXTS, TEXTS[::-1]).ids, tokenizer.encode(TEXTS, TEXTS[::-1]).ids)


def test_sentences_are_as_long_as_their_batch_needs():
    tokenizer = data.Tokenizer.train(TEXTS * 3, vocab=200, kind="wordpiece")
    texts = ["cat", "the cat sat", "the cat sat on the mat and the dog ran and the cat ran and barked", "dog"]
    labels = np.arange(4)
    source = data.Sentences(tokenizer, texts, length=16, buckets=(4, 8), y=labels)
    encoded = tokenizer.encode(texts, length=16)
    for ids, longest in (([0, 3], 4), ([1, 0], 8), ([2, 0, 1], 16)):
        batch = source.take(np.array(ids))
        assert batch["x"].shape == (len(ids), longest)
        np.testing.assert_array_equal(batch["y"], labels[ids])
        for row, i in zip(batch["x"], ids):
            np.testing.assert_array_equal(row[: len(encoded[i])], encoded[i])
            assert (row[len(encoded[i]) :] == tokenizer.pad).all()
    assert source.resident() is None
    alike = data.Sentences(tokenizer, texts, texts, length=16, y=labels)
    resident = alike.resident()
    for name, rows in alike.take(np.array([1, 3])).items():
        np.testing.assert_array_equal(rows, resident.take(resident.arrays, np.array([1, 3]))[name])
    assert alike.take(np.array([1]))["types"].max() == 1


def test_tokenizers_without_a_token_that_pads(tmp_path):
    """Llama's and Mistral's: texts go in and out; what pads is asked for only where something is padded."""
    inner = data.Tokenizer.train(TEXTS, vocab=300).inner
    said = json.loads(inner.to_str())
    for token in said["added_tokens"]:
        token["content"] = f"<{token['id']}>"
    ids = said["model"]["vocab"]
    said["model"]["vocab"] = {f"<{i}>" if i < 5 else token: i for token, i in ids.items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    llama = data.Tokenizer.load(tmp_path)
    assert llama.decode(llama.encode(["the cat"]).ids) == "the cat"
    with pytest.raises(ValueError, match=r"none to pad with. Tried: \[PAD\], .*Tokenizer.load\(path, pad="):
        data.Sentences(llama, ["the cat"], length=8)
    told = data.Tokenizer.load(tmp_path, pad="<2>")
    assert told.pad == 2
    assert data.Sentences(told, ["the"], length=30).take(np.array([0]))["x"][0, -1] == 2
    with pytest.raises(ValueError, match=r"none to pad with\. Tried: </s>"):
        data.Tokenizer.load(tmp_path, pad="</s>")


@pytest.mark.parametrize(
    ("special", "names"),
    [
        (["<|endoftext|>"], ("vocab.json", "merges.txt")),
        (["<s>", "<pad>", "</s>", "<unk>", "<mask>"], ("encoder.json", "vocab.bpe")),
    ],
)
def test_gpt2s_and_robertas_plain_files(special, names, tmp_path):
    inner = data.Tokenizer.train(TEXTS, vocab=300).inner
    inner.model.save(str(tmp_path))
    tokens = json.loads((tmp_path / "vocab.json").read_text())
    for old, new in zip(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), special):
        tokens[new] = tokens.pop(old)
    merges = (tmp_path / "merges.txt").read_text()
    for file in tmp_path.iterdir():
        file.unlink()
    vocab = tmp_path / names[0]
    vocab.write_text(json.dumps(tokens))
    with pytest.raises(ValueError, match=f"holds no tokenizer. Tried: .*{names[0]} with {names[1]}"):
        data.Tokenizer.load(tmp_path)
    (tmp_path / names[1]).write_text(merges)
    for path in (tmp_path, vocab):
        tokenizer = data.Tokenizer.load(path)
        encoded, plain = tokenizer.encode(TEXTS), data.Tokenizer(inner).encode(TEXTS)
        added = (tokens["<s>"], tokens["</s>"]) if "<s>" in special else ()
        for i, text in enumerate(TEXTS):
            assert tokenizer.decode(encoded[i]) == text
            np.testing.assert_array_equal(encoded[i], [*added[:1], *plain[i], *added[1:]])
    assert tokenizer.pad == tokens[special[0] if len(special) == 1 else "<pad>"]
    assert set(tokenizer.special) == {tokens[token] for token in special}
    if added:
        assert tokenizer.mask == tokens["<mask>"]
        pair = tokenizer.encode(["cat <mask>"], ["dog"])[0]
        assert (pair == added[1]).sum() == 3
        assert tokens["<mask>"] in pair
    vocab.write_text(json.dumps({token: i for token, i in tokens.items() if token not in special}))
    with pytest.raises(ValueError, match=r"has neither '<\|endoftext\|>' nor"):
        data.Tokenizer.load(tmp_path)
    vocab.write_text(json.dumps(tokens | {"a</w>": len(tokens)}))  # as CLIP's, whose merges mean something else
    with pytest.raises(ValueError, match=r"has 'a</w>'. Tried: GPT-2's and RoBERTa's"):
        data.Tokenizer.load(tmp_path)
    (tmp_path / names[1]).write_text("one\n")
    with pytest.raises(ValueError, match="is no tokenizer"):
        data.Tokenizer.load(tmp_path)


def plain_files(folder, special):
    """vocab.json and merges.txt, whose first tokens are `special`; the tokens, and the tokenizer they are of."""
    inner = data.Tokenizer.train(TEXTS, vocab=300).inner
    inner.model.save(str(folder))
    tokens = json.loads((folder / "vocab.json").read_text())
    for old, new in zip(("[PAD]", "[UNK]", "[CLS]", "[SEP]"), special):
        tokens[new] = tokens.pop(old)
    (folder / "vocab.json").write_text(json.dumps(tokens))
    return tokens, data.Tokenizer(inner)


def test_opts_plain_files_look_like_robertas_and_are_not(tmp_path):
    """What transformers' GPT2Tokenizer makes of them: `add_bos_token` puts one </s> before each text, none after."""
    tokens, plain = plain_files(tmp_path, ("<s>", "<pad>", "</s>", "<unk>"))
    config = tmp_path / "tokenizer_config.json"
    token = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "rstrip": False}
    said = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "pad_token": "<pad>"}
    said |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), token)
    config.write_text(json.dumps(said))
    opt, end = data.Tokenizer.load(tmp_path), tokens["</s>"]
    encoded, wanted = opt.encode(TEXTS), plain.encode(TEXTS)
    for i, text in enumerate(TEXTS):
        np.testing.assert_array_equal(encoded[i], [end, *wanted[i]])
        assert opt.decode(encoded[i]) == text
    pair = opt.encode(TEXTS[:1], TEXTS[1:2])
    np.testing.assert_array_equal(pair[0], [end, *wanted[0], end, *wanted[1]])
    np.testing.assert_array_equal(pair.types, [0] * (1 + len(wanted[0])) + [1] * (1 + len(wanted[1])))
    assert set(opt.special) == {end, tokens["<pad>"]}  # "<s>" and "<unk>" in a text are text
    assert opt.pad == tokens["<pad>"]
    # Without `add_bos_token` nothing is put there; a class of RoBERTa's kind surrounds as RoBERTa does.
    for changes, first, last in (
        ({"add_bos_token": False}, [], []),
        ({"tokenizer_class": "BartTokenizerFast", "bos_token": "<s>"}, [tokens["<s>"]], [end]),
    ):
        config.write_text(json.dumps(said | changes))
        np.testing.assert_array_equal(data.Tokenizer.load(tmp_path).encode(TEXTS)[0], [*first, *wanted[0], *last])
    config.write_text(json.dumps(said | {"add_prefix_space": True}))
    blank = plain.encode([" " + TEXTS[0]])[0]
    np.testing.assert_array_equal(data.Tokenizer.load(tmp_path).encode(TEXTS)[0], [end, *blank])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"tokenizer_config": {"tokenizer_class": "BlenderbotTokenizer"}},
            r"is a BlenderbotTokenizer's, by tok.*Tried",
        ),
        ({"config": {"model_type": "opt"}}, r"is that of model_type='opt' without its tokenizer_config\.json"),
        ({"tokenizer_config": {"add_bos_token": True, "bos_token": 3}}, r"has bos_token=3\. Tried: a token as text"),
        (
            {"tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}},
            r"has not '<\|endoftext\|>'",
        ),
        ({"tokenizer_config": [1]}, r"holds \[1\]\. Tried: an object"),
    ],
)
def test_other_families_plain_files_are_refused(files, message, tmp_path):
    plain_files(tmp_path, ("<s>", "<pad>", "</s>", "<unk>"))
    data.Tokenizer.load(tmp_path)
    for name, said in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=rf"data\.Tokenizer\.load: .*{message}"):
        data.Tokenizer.load(tmp_path)


def test_a_damaged_tokenizer_config_is_named(tmp_path):
    plain_files(tmp_path, ("<s>", "<pad>", "</s>", "<unk>"))
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json' is no JSON"):
        data.Tokenizer.load(tmp_path)


@pytest.mark.skipif(not (MINILM / "tokenizer.json").is_file(), reason="no .cache/minilm: run `make data`")
def test_minilms_tokens_are_the_references():
    texts = json.loads((FIXTURES / "minilm.json").read_text(encoding="utf-8"))
    wanted = np.load(FIXTURES / "minilm.npz")["ids"]
    for file in ("tokenizer.json", "vocab.txt"):
        tokenizer = data.Tokenizer.load(MINILM / file)
        batch = data.Sentences(tokenizer, texts, length=wanted.shape[1]).take(np.arange(len(texts)))
        np.testing.assert_array_equal(batch["x"], wanted)


def test_bad_input(tmp_path):
    tokenizer = data.Tokenizer.train(TEXTS, vocab=300)
    cls = data.Tokenizer.train(TEXTS, vocab=200, kind="wordpiece")
    (tmp_path / "tokenizer.json").write_text("{}")
    for call, error, message in (
        (lambda: data.Tokenizer.load(tmp_path / "nowhere"), ValueError, "holds no tokenizer"),
        (lambda: data.Tokenizer.load(tmp_path), ValueError, "is no tokenizer"),
        (lambda: data.Tokenizer.train(TEXTS, vocab=100), ValueError, "vocab=100"),
        (lambda: data.Tokenizer.train(TEXTS, vocab=500, kind="unigram"), ValueError, "kind='unigram'"),
        (lambda: data.Tokenizer.train([" "], vocab=500, kind="wordpiece"), ValueError, "vocab=500 for 0 different"),
        (lambda: data.Tokenizer.train([], vocab=500), ValueError, "no texts"),
        (lambda: tokenizer.encode(["a", 3]), TypeError, "3 is int"),
        (lambda: tokenizer.encode(["a"], ["b", "c"]), ValueError, "1 texts and 2 partners"),
        (lambda: cls.encode(["a"], length=2), ValueError, "length=2 for 2 special"),
        (lambda: cls.token_id("[NONE]"), ValueError, "none to give"),
        (lambda: data.Sentences(cls, [], length=8), ValueError, "no texts"),
        (lambda: data.Sentences(tokenizer, ["a", ""], length=8), ValueError, "text 1 has no token"),
        (lambda: data.Sentences(cls, ["a"], length=8, buckets=(8,)), ValueError, "bucket 8"),
        (lambda: data.Sentences(cls, ["a"], length=8, y=[1, 2]), ValueError, "1 texts and arrays of 2"),
    ):
        with pytest.raises(error, match=message.replace("[", r"\[")):
            call()
