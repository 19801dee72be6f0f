"""Text files of rows and columns, read into cells with the line of each.

Only what a file's form decides is decided here: its encoding, what parts the cells, whether the first line holds names.
What the cells mean is for `jaxnn.data.columns`. All problems of one kind are told at once, with their lines.
"""

import csv
import dataclasses
import difflib
import functools
import gzip
import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HOLES = ("", "na", "n/a", "nan", "null", "?")
DELIMITERS = (",", ";", "\t", "|")
SHOWN = 3  # examples of a kind of problem
_SNIFFED = 50  # lines that tell what parts the cells
_BINARY = {b"PK\x03\x04": "an Excel or ZIP file", b"\xd0\xcf\x11\xe0": "an old Excel file", b"PAR1": "a Parquet file"}
_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CSVFormat:
    """How a CSV file writes things down; the defaults read most files.

    Attributes:
        delimiter: What parts the cells; None for whichever of comma, semicolon, tab and bar gives the most lines the
            same number of cells, else for spaces where they give it every line.
        header: Whether the first line holds the columns' names; None for yes unless a number is among them. Without
            names the columns are "column_1", "column_2", ...
        decimal: The decimal mark, "." or ",".
        thousands: What parts thousands in numbers ("," in 1,234.5); "" for nothing.
        encoding: The file's text encoding, as Python calls it; a byte order mark is passed over.
        holes: What stands for a missing value, in any case of letters.
    """

    delimiter: str | None = None
    header: bool | None = None
    decimal: str = "."
    thousands: str = ""
    encoding: str = "utf-8"
    holes: tuple[str, ...] = HOLES

    def __post_init__(self) -> None:
        for name in ("delimiter", "decimal", "thousands"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or len(value) > 1 or value in ('"', "\n", "\r")):
                raise ValueError(f"data.CSVFormat: {name} is {value!r}. Tried: one character. Give one, as ';'.")
        if self.decimal not in (".", ",") or self.decimal in (self.thousands, self.delimiter) or self.delimiter == "":
            raise ValueError(
                f"data.CSVFormat: decimal {self.decimal!r}, thousands {self.thousands!r}, delimiter "
                f"{self.delimiter!r}. Tried: telling them apart. Give three that differ, the decimal mark '.' or ','."
            )
        if isinstance(self.holes, str):
            raise TypeError(f"data.CSVFormat: holes is the text {self.holes!r}. Give a tuple: ({self.holes!r},).")

    @functools.cached_property
    def _number(self) -> Any:
        digits = rf"\d{{1,3}}(?:{re.escape(self.thousands)}\d{{3}})+|\d+" if self.thousands else r"\d+"
        mark = re.escape(self.decimal)
        pattern = rf"[+-]?(?:(?:{digits})(?:{mark}\d*)?|{mark}\d+)(?:[eE][+-]?\d+)?"
        return re.compile(pattern, re.ASCII).fullmatch

    @functools.cached_property
    def _missing(self) -> frozenset[str]:
        return frozenset(hole.strip().lower() for hole in self.holes)

    def is_hole(self, cell: str) -> bool:
        """Whether a cell holds nothing."""
        return not cell or cell.lower() in self._missing

    def number(self, cell: str) -> float | None:
        """What number a cell holds, None where it holds none; infinite where it is too large."""
        if self._number(cell) is None:
            return None
        plain = cell.replace(self.thousands, "") if self.thousands else cell
        return float(plain.replace(",", ".") if self.decimal == "," else plain)

    def all_numbers(self, column: Sequence[str]) -> list[float] | None:
        """The numbers of a column that holds plain finite numbers only, at once; None for any other."""
        if self.decimal != "." or self.thousands or any(self.number(hole) is not None for hole in self._missing):
            return None
        text = "".join(column)
        if "_" in text or not text.isascii():  # Python reads 1_000 and digits of any script
            return None
        try:
            values = [float(cell) for cell in column]
        except ValueError:
            return None
        return values if all(map(math.isfinite, values)) else None


class Cells(NamedTuple):
    """A file's cells.

    Attributes:
        path: Where it lies.
        names: Of the columns; "column_3" for the third where it has none.
        nameless: Those of them that the first line should name and does not.
        named: Whether the file itself names them.
        lines: The line in the file on which each row begins, counted from 1.
        columns: Cells by column, then by row, without spaces around them.
    """

    path: Path
    names: list[str]
    nameless: list[str]
    named: bool
    lines: list[int]
    columns: list[list[str]]


def listed(found: Sequence[str]) -> str:
    """The first few of a kind of problem, and how many more there are."""
    rest = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + rest


def counted(number: int, one: str, many: str) -> str:
    """ "1 row has", "2 rows have"."""
    return f"{number} {one if number == 1 else many}"


def shown(text: str) -> str:
    """A cell in a message: quoted, and not longer than a line."""
    return repr(text) if len(text) <= 40 else f"{text[:37] + '...'!r}"


def closest(name: str, names: Iterable[str]) -> str:
    """ "Did you mean ...? " where a name is like another, else nothing."""
    lower = {n.lower(): n for n in names}
    near = difflib.get_close_matches(str(name).lower(), lower, 1)
    return f"Did you mean {lower[near[0]]!r}? " if near else ""


def _text(where: str, path: Path, encoding: str) -> str:
    name = f"{where}: {str(path)!r}"
    if path.is_dir():
        raise ValueError(f"{name} is a folder. Tried: reading it as a file. Give one CSV file.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{name} cannot be read ({error.strerror or error}). Tried: opening it. Give the path of a CSV file that "
            "you may read."
        ) from error
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, ValueError) as error:
            raise ValueError(f"{name} is damaged ({error}). Tried: gzip. Fetch the file again.") from error
    for start, kind in _BINARY.items():
        if content.startswith(start):
            raise ValueError(f"{name} is {kind}, not text. Tried: its first bytes. Save it as CSV.")
    for start, other in _MARKS.items():
        if content.startswith(start) and encoding.lower().replace("_", "-") == "utf-8":
            raise ValueError(
                f"{name} is not UTF-8: it begins with the mark of UTF-16. Tried: encoding='utf-8'. "
                f"Write format=data.CSVFormat(encoding={other!r})."
            )
    try:
        text = content.decode(encoding)
    except LookupError as error:
        raise ValueError(f"{name}: {error}. Tried: {encoding!r}. Give an encoding that Python knows.") from error
    except UnicodeError as error:
        at = getattr(error, "start", 0)
        line = content.count(b"\n", 0, at) + 1
        raise ValueError(
            f"{name} is not {encoding}: line {line} has the byte 0x{content[at]:02x} where none such can be. "
            f"Tried: encoding={encoding!r}. Write format=data.CSVFormat(encoding='cp1252') if it comes from Windows "
            "or Excel, or save it as UTF-8."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(
            f"{name} is no text: line {line} has a zero byte. Tried: encoding={encoding!r}. Give a CSV file, or its "
            "encoding: format=data.CSVFormat(encoding='utf-16')."
        )
    return text.removeprefix("\ufeff")


def _delimiter(text: str, form: CSVFormat) -> str:
    """The delimiter that gives the most lines the same number of cells, two or more."""
    if form.delimiter is not None:
        return form.delimiter
    start = text[: 2**16]
    lines = [line for line in start.splitlines() if line.strip()][:_SNIFFED]
    scores: dict[str, tuple[float, int]] = {}
    for delimiter in DELIMITERS:
        if delimiter == form.decimal:
            continue
        counts = Counter(len(row) for row in csv.reader(lines, delimiter=delimiter) if row)
        width, times = max(counts.items(), key=lambda item: (item[0] > 1, item[1]), default=(1, 0))
        if width > 1:
            scores[delimiter] = (times / len(lines), width)
    if scores:
        return max(scores, key=lambda d: scores[d])
    widths = {len(line.split()) for line in lines}
    return " " if len(widths) == 1 and widths != {1} else ","


def _records(where: str, path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """(line on which it begins, cells) of every record that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    records: list[tuple[int, list[str]]] = []
    began = 1
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if len(cells) > 1 or (cells and cells[0]):
                records.append((began, cells))
            began = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{where}: {str(path)!r} cannot be parted into cells: the row that begins on line {began} has a quote that "
            f"is not closed or not doubled ({error}). Tried: {delimiter!r} between cells, '\"' around them. Write a "
            'quote inside a quoted cell twice: "5"" pipe".'
        ) from error
    return records


def read_cells(path: str | os.PathLike[str], form: CSVFormat, where: str = "data.CSV") -> Cells:
    """The cells of a CSV file, plain or compressed by gzip; blank lines are passed over.

    Args:
        path: The file.
        form: How it is written.
        where: Begins the messages.

    Raises:
        ValueError: If the file cannot be read, is no text in its encoding, is empty, has no row below its names, rows
            differ in length, or a name is there twice.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(
            f"{where}: the path is {type(path).__name__}. Tried: opening it. Give the path of a CSV file; arrays that "
            "are in memory are a source by data.Arrays(x, y)."
        )
    path = Path(path).expanduser()
    text = _text(where, path, form.encoding)
    name = f"{where}: {str(path)!r}"
    delimiter = _delimiter(text, form)
    records = _records(where, path, text, delimiter)
    if not records:
        raise ValueError(f"{name} is empty. Tried: reading {len(text)} characters. Give a file with rows.")
    line, first = records[0]
    header = form.header
    if header is None:
        header = not any(form.number(cell) is not None for cell in first)
    rows = records[1:] if header else records
    names = first if header else [f"column_{i + 1}" for i in range(len(first))]
    if not rows:
        raise ValueError(
            f"{name} has no rows: line {line} is all there is, taken for the names of columns. Tried: "
            f"header={form.header}. Give a file with rows, or format=data.CSVFormat(header=False)."
        )
    if ragged := [f"line {at} has {len(cells)}" for at, cells in rows if len(cells) != len(names)]:
        alike = len({len(cells) for _, cells in rows}) == 1
        advice = f"If line {line} is a title or a comment, take it out; else fill" if alike else "Fill"
        raise ValueError(
            f"{name}: {counted(len(ragged), 'row has', 'rows have')} another number of cells than line {line}, which "
            f"has {len(names)}: {listed(ragged)}. Tried: {delimiter!r} between cells. {advice} the rows up, put cells "
            f"that hold {delimiter!r} in quotes, or give format=data.CSVFormat(delimiter=...)."
        )
    nameless = [f"column_{i + 1}" for i, n in enumerate(names) if not n]
    names = [n or f"column_{i + 1}" for i, n in enumerate(names)]
    if twice := [f"{n!r} {k} times" for n, k in Counter(names).items() if k > 1]:
        raise ValueError(
            f"{name}: line {line} names columns twice: {listed(twice)}. Tried: names from that line. Give each column "
            "a name of its own, or format=data.CSVFormat(header=False) where that line is none of names."
        )
    columns = [list(c) for c in zip(*(cells for _, cells in rows))]
    return Cells(path, names, nameless, header, [at for at, _ in rows], columns)
