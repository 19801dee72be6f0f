"""Text on disk: what is read, and every kind of hole refused with its place."""

import json

import numpy as np
import pytest

from jaxnn import data


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_json_lines_with_labels_and_partners(tmp_path):
    rows = [{"a": "uno\u2028dos", "b": "x", "k": "pos"}, {"a": "tres", "b": "y", "k": "neg"}]
    path = write(tmp_path / "f.jsonl", "\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows) + "\r\n")
    read = data.read_jsonl(path, "a", pair="b", label="k")
    assert list(read.texts) == ["uno\u2028dos", "tres"]  # a separator of Unicode is no line end
    assert list(read.pairs) == ["x", "y"]
    assert read.classes == ("neg", "pos")
    assert read.arrays["y"].tolist() == [1, 0]
    numbers = write(tmp_path / "n.jsonl", '{"text": "a", "s": 1}\n{"text": "b", "s": 0.5}\n')
    assert data.read_jsonl(numbers, label="s").arrays["y"].dtype == np.float32
    large = write(tmp_path / "large.jsonl", '{"text": "a", "s": 3.5e9}\n{"text": "b", "s": 7}\n')
    np.testing.assert_array_equal(data.read_jsonl(large, label="s").arrays["y"], np.float32([3.5e9, 7]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a"}\n{"text": \n', "line 2 of .* is no JSON"),
        ('{"text": "a"}\n[1]\n', "line 2 of .* is list"),
        ('{"text": "a"}\n\n{"body": "b"}\n', r"line 3 of .* has no 'text'; it has \['body'\]"),
        ('{"text": 3}\n', "line 1 of .* has text=3, int"),
        ('{"text": "a"}\n{"text": " "}\n', "line 2 of .* has an empty 'text'"),
        ("[" * 100_000, "line 1 of .* is no JSON"),
        ('{"text": "a", "y": 99999999999999}\n', "label 99999999999999 of example 0"),
        ('{"text": "a", "y": 1e400}\n', "label inf of example 0"),
        ('{"text": "a", "y": 1}\n{"text": "b", "y": NaN}\n', "label nan of example 1"),
        ("\n \n", "is empty"),
        (b'{"text": "a"}\n{"text": "\xf1"}', "line 2 of .* is not UTF-8: byte 0xf1"),
        ('{"text": "a", "y": 1}\n{"text": "b", "y": null}\n', "label None of example 1"),
    ],
)
def test_holes_in_json_lines(tmp_path, content, words):
    path = write(tmp_path / "f.jsonl", content)
    with pytest.raises(ValueError, match=words):
        data.read_jsonl(path, label="y" if '"y"' in str(content) else None)


def test_parallel_files(tmp_path):
    source, target = write(tmp_path / "a.en", "one\n\ntwo\r\n"), write(tmp_path / "a.es", "uno\n\ndos")
    read = data.read_parallel(source, target)
    assert (list(read.texts), list(read.pairs)) == (["one", "two"], ["uno", "dos"])
    with pytest.raises(ValueError, match=r"has 3 lines and .* has 2"):
        data.read_parallel(source, write(tmp_path / "b.es", "uno\ndos\n"))
    with pytest.raises(ValueError, match=r"line 2 is empty in '.*a\.en' only"):
        data.read_parallel(source, write(tmp_path / "c.es", "uno\nx\ndos\n"))
    with pytest.raises(ValueError, match="cannot be read"):
        data.read_parallel(source, tmp_path / "none")


def test_folders_of_classes_and_aclimdb(tmp_path):
    root = tmp_path / "aclImdb"
    for split in ("train", "test"):
        for name, text in (("pos", "good<br />film"), ("neg", "bad"), ("unsup", "what?")):
            write(root / split / name / "0_9.txt", text)
    read = data.read_imdb(root)
    assert list(read.texts) == ["bad", "good film"]
    assert read.arrays["y"].tolist() == [0, 1]
    assert data.read_text_folder(root / "test").classes == ("neg", "pos", "unsup")
    with pytest.raises(ValueError, match="split='dev'"):
        data.read_imdb(root, "dev")
    with pytest.raises(ValueError, match="has no folder 'train'"):
        data.read_imdb(tmp_path / "elsewhere")
    write(root / "train" / "pos" / "1_9.txt", "")
    with pytest.raises(ValueError, match=r"1_9\.txt' is empty"):
        data.read_imdb(root)
    with pytest.raises(ValueError, match=r"has no \*\.txt"):
        data.read_text_folder(root / "test", classes=("dev",))


def test_texts_become_a_source(tmp_path):
    pytest.importorskip("tokenizers")
    path = write(tmp_path / "f.jsonl", '{"text": "a b c", "y": "u"}\n{"text": "a", "y": "v"}\n')
    read = data.read_jsonl(path, label="y")
    tokenizer = data.Tokenizer.train(read.texts, vocab=300)
    batch = read.source(tokenizer, length=8).take(np.array([1, 0]))
    assert batch["y"].tolist() == [1, 0]
    assert tokenizer.decode(batch["x"][1][batch["x"][1] != tokenizer.pad]).strip() == "a b c"


class Map:
    """As grain's map data sets are: a length and an index."""

    def __len__(self):
        return 5

    def __getitem__(self, i):
        return {"x": np.full(2, i, np.float32), "y": i % 2}


def test_what_can_be_indexed_is_a_source():
    source = data.Indexed(Map())
    batch = source.take(np.array([4, 1]))
    assert batch["x"].tolist() == [[4, 4], [1, 1]]
    assert batch["y"].tolist() == [0, 1]
    assert len(source) == 5
    assert data.Indexed([(np.zeros(3), 1)]).take(np.array([0]))["x"].shape == (1, 3)
    with pytest.raises(TypeError, match="no __len__ and no __getitem__"):
        data.Indexed(iter([1]))
    with pytest.raises(ValueError, match="no items"):
        data.Indexed([])
    with pytest.raises(TypeError, match="item 0 has 'x'"):
        data.Indexed(["text"])
    with pytest.raises(ValueError, match="item 1 is"):
        data.Indexed([np.zeros(2), np.zeros(3)]).take(np.array([0, 1]))


def test_a_map_data_set_of_grain_is_a_source():
    import grain  # half a second that only this test needs

    source = data.Indexed(grain.MapDataset.source([1, 2, 3]).map(lambda n: {"x": np.float32(n)}))
    assert source.take(np.array([2, 0]))["x"].tolist() == [3, 1]


def test_texts_in_a_csv(tmp_path):
    path = write(tmp_path / "a.csv", 'text,more,stars,kind\n"good, really",a,5,pos\n"bad\nfilm",b,1,neg\n')
    read = data.read_csv(path, label="kind")
    assert (list(read.texts), read.pairs, read.classes) == (["good, really", "bad\nfilm"], None, ("neg", "pos"))
    assert read.arrays["y"].tolist() == [1, 0]
    read = data.read_csv(path, "more", pair="text", label="stars")
    assert (read.texts, read.pairs[0]) == (["a", "b"], "good, really")
    assert (read.arrays["y"].dtype, read.arrays["y"].tolist(), read.classes) == (np.int32, [5, 1], ())
    tabs = write(tmp_path / "a.tsv", "0.5\tcosa\n-1\tcoso\n")
    read = data.read_csv(tabs, "column_2", label="column_1", format=data.CSVFormat(delimiter="\t", header=False))
    assert (read.texts, read.arrays["y"].dtype, read.arrays["y"].tolist()) == (
        ["cosa", "coso"],
        np.float32,
        [0.5, -1.0],
    )


@pytest.mark.parametrize(
    ("content", "told", "words"),
    [
        ("text,y\na,1\n,2\n", {}, r"line 3 of '.*a\.csv' has an empty 'text'. Tried: a text. Leave the line out"),
        ("text,y\na,1\nb,\n", {"label": "y"}, r"line 3 of '.*a\.csv' has an empty 'y'. Tried: a label"),
        ("words,y\na,1\n", {}, r"has no column 'text'; it has \['words', 'y'\]. Tried: that column. Name one"),
        ("text,y\na,1\n", {"label": "z"}, "has no column 'z'"),
        ("text,y\na,1\nb,1e99\n", {"label": "y"}, "label 1e\\+99 of example 1. Tried: a float32, finite"),
        ("", {}, "read_csv: .*is empty"),
        ("text\n", {}, "read_csv: .*has no rows"),
    ],
)
def test_holes_in_a_csv_of_texts(content, told, words, tmp_path):
    path = write(tmp_path / "a.csv", content)
    with pytest.raises(ValueError, match=rf"(?s)^data\.read_csv: .*{words}|^data\.{words}"):
        data.read_csv(path, **told)


def test_a_table_with_texts_says_how_they_are_read(tmp_path):
    lines = [f"text number {i},{i % 2}" for i in range(120)]
    path = write(tmp_path / "a.csv", "\n".join(["text,y", *lines]))
    with pytest.raises(ValueError, match=r"too many different texts.*read_csv\(path, 'text'\)"):
        data.CSV(path, target="y")
    assert len(data.read_csv(path, label="y")) == 120


def test_texts_are_split(tmp_path):
    read = data.Texts([f"t{i}" for i in range(10)], [f"p{i}" for i in range(10)], {"y": np.arange(10)}, ("a",))
    one, two = read.split(0.8, seed=3)
    assert (len(one), len(two), one.classes) == (8, 2, ("a",))
    assert sorted([*one.texts, *two.texts]) == sorted(read.texts)
    for part in (one, two):
        numbers = part.arrays["y"].tolist()
        assert numbers == sorted(numbers)
        assert part.texts == [f"t{i}" for i in numbers]
        assert part.pairs == [f"p{i}" for i in numbers]
    assert read.split(0.8, seed=3)[1].texts == two.texts != read.split(0.8, seed=4)[1].texts
    for bad in (0.0, 1.0, 0.01, "half", None):
        with pytest.raises((ValueError, TypeError), match=r"data\.Texts\.split: fraction.*Tried: "):
            read.split(bad)


def test_parts_of_a_data_set_are_no_classes(tmp_path):
    for part in ("train", "test"):
        for name in ("pos", "neg"):
            write(tmp_path / "aclImdb" / part / name / "0_9.txt", "a film")
    with pytest.raises(ValueError, match=r"parts of a data set \(test, train\), not classes.*'.*aclImdb/train'"):
        data.read_text_folder(tmp_path / "aclImdb")
    with pytest.raises(ValueError, match=r"^data\.read_imdb: '.*train' has no folder 'train'.*Give aclImdb"):
        data.read_imdb(tmp_path / "aclImdb" / "train")
    assert len(data.read_text_folder(tmp_path / "aclImdb", classes=("train", "test"))) == 4
