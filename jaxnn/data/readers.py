"""Texts as people keep them on disk: a file a text in folders, JSON lines, a column of a CSV, two files with a line a
pair.

A reader gives `Texts`: strings, with whatever else a line says of them; `Texts.source` makes examples of them with a
tokenizer. A file that is not what it should be is refused with its line, before anything is trained on its remains.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxnn.data import order
from jaxnn.data.arrays import Arrays
from jaxnn.data.delimited import CSVFormat, read_cells
from jaxnn.data.given import check_path
from jaxnn.data.image_files import is_part
from jaxnn.data.tokenizers import Sentences, Tokenizer
from jaxnn.data.translations import translations
from jaxnn.typing import HostArray

Place = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts that were read.

    Attributes:
        texts: One a example.
        pairs: The second texts of pairs, or None.
        arrays: Further arrays [n], by name: "y" is the label.
        classes: Names of the labels, by number; () where labels are numbers already, or there are none.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None = None
    arrays: Mapping[str, HostArray] = dataclasses.field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        more = "".join([" with partners" if self.pairs is not None else "", *(f", {name}" for name in self.arrays)])
        return f"Texts({len(self)}{more}{f': {list(self.classes)}' if self.classes else ''})"

    def source(self, tokenizer: Tokenizer, *, length: int, buckets: Sequence[int] = ()) -> Sentences:
        """Examples for `fit`; see `Sentences`."""
        return Sentences(tokenizer, self.texts, self.pairs, length=length, buckets=buckets, **self.arrays)

    def translations(self, tokenizer: Tokenizer, *, length: int | None = None, start: int | None = None) -> Arrays:
        """Pairs as a translator learns from them: {"x", "y", "weights"} for `models.SideBySide(net, length)`.

        x int32 [B, 2 length] is the text and, side by side, what the decoder is given: the start token and the partner
        without its last token. y int32 [B, length] is the partner with its end; weights are 0 where it is padding. A
        new text is read as `Sentences` gives it.

        Args:
            tokenizer: Puts a token behind each text, as `Tokenizer.train(..., ends=True)` and those of T5 and Marian.
            length: Tokens of a text and of its partner at most; pairs with more are left out. None for the longest's.
            start: What the decoder begins with; None for [CLS]. The model's `config.start`, `end` and `pad` are to be
                the tokenizer's.

        Raises:
            ValueError: If there are no partners, the tokenizer ends no text, there is no such start, or no pair stays.
            TypeError: If the tokenizer is none.
        """
        if self.pairs is None:
            raise ValueError(
                f"data.Texts.translations: {len(self)} texts without partners. Tried: pairs. Read them by "
                "data.read_parallel, or with pair=."
            )
        return translations(tokenizer, self.texts, self.pairs, length, start)

    def split(self, fraction: float, seed: int = 0) -> tuple["Texts", "Texts"]:
        """Two disjoint parts that together hold every text, drawn at random; each in the order of the file.

        Args:
            fraction: Share of the texts in the first part, in (0, 1).
            seed: The split is a function of it and of the number of texts.

        Raises:
            ValueError: If a part would be empty.
        """
        first, second = order.split("data.Texts.split", "texts", len(self), fraction, seed)
        return self._rows(first), self._rows(second)

    def _rows(self, rows: HostArray) -> "Texts":
        chosen = [None if side is None else [side[i] for i in rows] for side in (self.texts, self.pairs)]
        return Texts(chosen[0] or [], chosen[1], {name: x[rows] for name, x in self.arrays.items()}, self.classes)


def _text(where: str, path: Path) -> str:
    """A file's text, line ends as they are.

    Raises:
        ValueError: If it cannot be read, is empty, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{where}: {str(path)!r} cannot be read ({error.strerror}). Tried: opening it. Give a file that is there."
        ) from error
    if not content.strip():
        raise ValueError(f"{where}: {str(path)!r} is empty ({len(content)} bytes). Tried: reading it. Leave it out.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{where}: line {line} of {str(path)!r} is not UTF-8: byte {content[error.start]:#04x} at {error.start}. "
            "Tried: decoding it. Convert it: iconv -f LATIN1 -t UTF-8 does so for Latin-1."
        ) from error


def _lines(where: str, path: Path) -> list[str]:
    """Lines without their ends, parted at newlines alone: a text may hold other separators of Unicode."""
    lines = [line.removesuffix("\r") for line in _text(where, path).split("\n")]
    return lines[:-1] if not lines[-1] else lines


def _labels(where: str, values: list[Any]) -> tuple[dict[str, HostArray], tuple[str, ...]]:
    """Labels as an array: classes of text numbered in the order of their names, numbers as they are."""
    if all(isinstance(v, str) for v in values):
        classes = tuple(sorted(set(values)))
        number = {name: i for i, name in enumerate(classes)}
        return {"y": np.array([number[v] for v in values], np.int32)}, classes
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(
                f"{where}: label {value!r:.60} of example {i} is {type(value).__name__}. Tried: all text, or all "
                "numbers. Give labels of one kind."
            )
    whole = all(isinstance(v, int) for v in values)
    limit, form = (2**31, "an int32") if whole else (float(np.finfo(np.float32).max), "a float32")
    for i, value in enumerate(values):
        if not abs(value) < limit:  # not a number, either
            raise ValueError(f"{where}: label {value!r:.60} of example {i}. Tried: {form}, finite. Mend it.")
    return {"y": np.array(values, np.int32 if whole else np.float32)}, ()


def read_jsonl(path: Place, text: str = "text", *, pair: str | None = None, label: str | None = None) -> Texts:
    """A JSON object a line. Empty lines are left out.

    Args:
        path: The file, UTF-8.
        text: The field with the text.
        pair: The field with the second text.
        label: The field with the label: text (a class's name) or a number.

    Raises:
        ValueError: If a line is no JSON object, or a field is missing, empty or no text, with the line's number; if a
            label is no finite number of 32 bits; if the file is empty, missing or not UTF-8.
    """
    where = "data.read_jsonl"
    check_path(where, path)
    file = Path(path).expanduser()
    fields = [name for name in (text, pair) if name is not None]
    found: dict[str, list[Any]] = {name: [] for name in (*fields, *([label] if label is not None else []))}
    for number, line in enumerate(_lines(where, file), 1):
        if not line.strip():
            continue
        at = f"{where}: line {number} of {str(file)!r}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{at} is no JSON ({error}): {line!r:.80}. Tried: an object a line. Mend it.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{at} is {type(row).__name__}: {line!r:.80}. Tried: an object a line. Write {{...}}.")
        for name, values in found.items():
            if name not in row:
                raise ValueError(
                    f"{at} has no {name!r}; it has {sorted(row)}. Tried: that field. Name one that all have."
                )
            if name in fields and not isinstance(row[name], str):
                raise ValueError(
                    f"{at} has {name}={row[name]!r:.60}, {type(row[name]).__name__}. Tried: a text. Write a string."
                )
            if name in fields and not row[name].strip():
                raise ValueError(f"{at} has an empty {name!r}. Tried: a text. Leave the line out.")
            values.append(row[name])
    arrays, classes = _labels(where, found[label]) if label is not None else ({}, ())
    return Texts(found[text], None if pair is None else found[pair], arrays, classes)


def read_csv(
    path: Place,
    text: str = "text",
    *,
    pair: str | None = None,
    label: str | None = None,
    format: CSVFormat | None = None,
) -> Texts:
    """Texts in a column of a CSV file, a row each. `data.CSV` is for numbers and categories.

    Args:
        path: The file, plain or compressed by gzip.
        text: The column with the text.
        pair: The column with the second text.
        label: The column with the label: numbers, where all are, else names of classes.
        format: How the file is written; by default whichever delimiter fits, names in the first line, UTF-8.

    Raises:
        ValueError: If the file cannot be read as rows and columns, has no such column, or a cell of these is empty,
            with the line.
    """
    where, form = "data.read_csv", CSVFormat() if format is None else format
    check_path(where, path)
    cells = read_cells(path, form, where)
    found: dict[str, list[str]] = {}
    for name, what in ((text, "text"), (pair, "text"), (label, "label")):
        if name is None:
            continue
        if name not in cells.names:
            raise ValueError(
                f"{where}: {str(path)!r} has no column {name!r}; it has {list(cells.names)}. Tried: that column. Name "
                "one of them."
            )
        found[name] = cells.columns[cells.names.index(name)]
        empty = [line for line, cell in zip(cells.lines, found[name]) if not cell]
        if empty:
            more = f", and {len(empty) - 1} more" if len(empty) > 1 else ""
            raise ValueError(
                f"{where}: line {empty[0]} of {str(path)!r} has an empty {name!r}{more}. Tried: a {what}. Leave the "
                "line out."
            )
    arrays, classes = _labels(where, _numbers(form, found[label])) if label is not None else ({}, ())
    return Texts(found[text], None if pair is None else found[pair], arrays, classes)


def _numbers(form: CSVFormat, cells: list[str]) -> list[Any]:
    """Cells as numbers, whole ones as integers, where all are some; else as they are."""
    values = [form.number(cell) for cell in cells]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return cells
    whole = all(abs(value) < 2**53 and value == int(value) for value in known)
    return [int(value) for value in known] if whole else known


def read_parallel(source: Place, target: Place) -> Texts:
    """Two files, in which equal line numbers belong together: `train.en` and `train.es`.

    Raises:
        ValueError: If the numbers of lines differ, a line is empty on one side only, or a file is empty, missing or
            not UTF-8.
    """
    where = "data.read_parallel"
    for path in (source, target):
        check_path(where, path)
    files = [Path(p).expanduser() for p in (source, target)]
    left, right = (_lines(where, file) for file in files)
    if len(left) != len(right):
        raise ValueError(
            f"{where}: {str(files[0])!r} has {len(left)} lines and {str(files[1])!r} has {len(right)}. Tried: a line a "
            "pair. Align them: what follows a missing line would be paired wrongly."
        )
    for number, (a, b) in enumerate(zip(left, right), 1):
        if bool(a.strip()) != bool(b.strip()):
            raise ValueError(
                f"{where}: line {number} is empty in {str(files[bool(a.strip())])!r} only: {a or b!r:.80}. Tried: a "
                "line a pair. Delete it in both, or fill it."
            )
    kept = [(a, b) for a, b in zip(left, right) if a.strip()]
    return Texts([a for a, _ in kept], [b for _, b in kept])


def read_text_folder(folder: Place, *, classes: Sequence[str] | None = None) -> Texts:
    """A folder of classes, each with text files: the label is the folder's name. Sorted by class, then by file name.

    Args:
        folder: With a folder a class; files are `*.txt`, at any depth below.
        classes: Which folders to read, in the order of their numbers; all, by name, where None.

    Raises:
        ValueError: If a class is missing or has no texts, or a file is empty or not UTF-8.
    """
    where, root = "data.read_text_folder", Path(folder).expanduser()
    if not root.is_dir():
        raise ValueError(f"{where}: {str(root)!r} is no folder. Tried: listing it. Give a folder with one a class.")
    names = tuple(sorted(p.name for p in root.iterdir() if p.is_dir()) if classes is None else classes)
    if classes is None and names and all(is_part(name) for name in names):
        raise ValueError(
            f"{where}: {str(root)!r} holds parts of a data set ({', '.join(names)}), not classes. Tried: one class a "
            f"folder. Read each part by itself: '{root / names[-1]}'; aclImdb by data.read_imdb."
        )
    if not names:
        raise ValueError(
            f"{where}: {str(root)!r} has no folders in it. Tried: one a class. Put the texts into folders."
        )
    texts: list[str] = []
    labels: list[int] = []
    for number, name in enumerate(names):
        files = sorted((root / name).rglob("*.txt"))
        if not files:
            raise ValueError(f"{where}: {str(root / name)!r} has no *.txt. Tried: a file a text. Name other classes.")
        texts += [_text(where, file) for file in files]
        labels += [number] * len(files)
    return Texts(texts, None, {"y": np.array(labels, np.int32)}, names)


def read_imdb(folder: Place, split: str = "train") -> Texts:
    """The film reviews of `aclImdb` as it is unpacked: 0 is "neg" and 1 "pos", line breaks are spaces.

    Args:
        folder: `aclImdb`, with `train` and `test` in it.
        split: "train" or "test"; the reviews without a label ("unsup") are left out.

    Raises:
        ValueError: If the split is another, or the folder is not laid out so.

    Source:
        Maas et al. 2011, "Learning word vectors for sentiment analysis".
    """
    if split not in ("train", "test"):
        raise ValueError(f"data.read_imdb: split={split!r}. Tried: train, test. Write one of them.")
    check_path("data.read_imdb", folder)
    part = Path(folder).expanduser() / split
    if not part.is_dir():
        raise ValueError(
            f"data.read_imdb: {str(folder)!r} has no folder {split!r}. Tried: train/neg, train/pos, test/neg, test/pos "
            "below it. Give aclImdb as it is unpacked."
        )
    read = read_text_folder(part, classes=("neg", "pos"))
    return dataclasses.replace(read, texts=[text.replace("<br />", " ") for text in read.texts])
