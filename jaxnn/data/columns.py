"""What the cells of a table mean: numbers or categories, and the arrays that they become.

A column is decided once, from the file that a model is trained on; other files are read by the same columns. Numbers
stay float64 until they are scaled.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxnn.data.delimited import SHOWN, Cells, CSVFormat, closest, counted, listed, shown
from jaxnn.typing import HostArray

MISSING = ""  # the category of a hole, where holes are allowed
_LIMIT = float(np.finfo(np.float32).max)
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
_DRESSED = re.compile(r"[\s$€£¥%'’_,.]")
_GROUPED = re.compile(r"[+-]?\d{1,3}([ ,.'’\u00a0\u202f])\d{3}(?:\1\d{3})*(?:([.,])\d*)?", re.ASCII)
_DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}([ T].*)?", re.ASCII)
_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)


class Column(NamedTuple):
    """A column of the file that a model is trained on.

    Attributes:
        name: Its name.
        position: Where it stands in that file, from 0.
        vocabulary: The texts that it may hold, by code; None for numbers.
    """

    name: str
    position: int
    vocabulary: tuple[str, ...] | None = None


class Scale(NamedTuple):
    """Mean and standard deviation of a column's numbers, in its units; (0, 1) leaves them as they are."""

    mean: float
    std: float


@dataclasses.dataclass(frozen=True)
class Reading:
    """How columns are read, and what begins a message about them.

    Attributes:
        where: "data.CSV: 'houses.csv'".
        form: The file's form.
        text: Names of columns that are categories whatever they hold.
        holes: Whether missing values are allowed in inputs.
        most: Categories of a column at most.
    """

    where: str
    form: CSVFormat
    text: tuple[str, ...]
    holes: bool
    most: int


def find(where: str, what: str, given: str | int, names: Sequence[str], named: bool) -> str:
    """The name of a column that is given by name or, from 0 or backwards from -1, by position.

    Raises:
        ValueError: If there is no such column.
        TypeError: If it is neither.
    """
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise TypeError(f"{where}: {what} is {given!r}. Tried: a column's name or position. Give text or an integer.")
    if isinstance(given, int):
        if not -len(names) <= given < len(names):
            raise ValueError(
                f"{where}: {what}={given}, but there are {len(names)} columns. Tried: its position. Give 0 to "
                f"{len(names) - 1}, or -1 for the last."
            )
        return names[given]
    if given not in names:
        there = ", ".join(map(repr, names[:12])) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        unnamed = (
            "" if named else " The first line was taken for a row; format=data.CSVFormat(header=True) if it names."
        )
        raise ValueError(
            f"{where}: there is no column {given!r} for {what}. Tried: {there}. {closest(given, names)}Give one of "
            f"these.{unnamed}"
        )
    return given


def _at(cells: Cells, name: str, rows: Iterable[int]) -> list[str]:
    column = cells.columns[cells.names.index(name)]
    return [f"line {cells.lines[i]}, column {name!r}: {shown(column[i])}" for i in rows]


class _Survey(NamedTuple):
    """What one column's cells are: rows that hold numbers (with them), other texts, and neither."""

    column: Column
    category: bool | None
    numbers: dict[int, float]
    texts: list[int]

    @property
    def name(self) -> str:
        return self.column.name


def decide(
    cells: Cells, read: Reading, columns: Sequence[tuple[Column, bool | None]]
) -> dict[str, tuple[Column, HostArray]]:
    """Whether columns hold numbers or categories, and their values.

    Args:
        cells: The file.
        read: How to read it.
        columns: Each with True for categories, False for numbers, None for what it looks like; vocabularies not known.

    Returns:
        By name: the column, and its values [N]: float64, NaN for a hole; or codes int32, the vocabulary sorted (by
        number where all are numbers), a hole being a category of its own, the last.

    Raises:
        ValueError: If one has no value, mixes numbers and texts, holds what is not finite, or too many categories; all
            problems of one kind in one message.
    """
    form, surveys = read.form, []
    for column, category in columns:
        numbers = dict(enumerate(form.all_numbers(cells.columns[column.position]) or ()))
        texts: list[int] = []
        for i, cell in enumerate(cells.columns[column.position] if not numbers else ()):
            if not form.is_hole(cell):
                value = form.number(cell)
                if value is None:
                    texts.append(i)
                else:
                    numbers[i] = value
        surveys.append(_Survey(column, True if column.name in read.text else category, numbers, texts))
    _refuse_empty(cells, read, [s.name for s in surveys if not s.numbers and not s.texts])
    _refuse_infinite(cells, read, [s for s in surveys if not s.category])
    _refuse_mixed(
        cells, read, [s for s in surveys if s.texts and (s.category is False or (s.numbers and not s.category))]
    )
    _refuse_disguised(cells, read, [s for s in surveys if s.texts and s.category is None])
    decided: dict[str, tuple[Column, HostArray]] = {}
    crowded: dict[str, str] = {}
    for survey in surveys:
        cell = cells.columns[survey.column.position]
        if not survey.texts and not survey.category:
            values = np.full(len(cell), np.nan)
            values[list(survey.numbers)] = list(survey.numbers.values())
            decided[survey.name] = survey.column, values
            continue
        rows = [*survey.numbers, *survey.texts]
        found = sorted({cell[i] for i in rows}, key=None if survey.texts else (lambda t: (form.number(t), t)))
        if len(found) > read.most:
            crowded[survey.name] = f"{survey.name!r} has {len(found)} ({shown(found[0])}, {shown(found[1])}, ...)"
        if len(rows) < len(cell):
            found.append(MISSING)
        code = {text: i for i, text in enumerate(found)}
        codes = [code[MISSING if form.is_hole(c) else c] for c in cell]
        decided[survey.name] = survey.column._replace(vocabulary=tuple(found)), np.asarray(codes, np.int32)
    if crowded:
        raise ValueError(
            f"{read.where}: {counted(len(crowded), 'column holds', 'columns hold')} too many different texts to be "
            f"categories: {listed(list(crowded.values()))}. Tried: at most {read.most} in {len(cells.lines)} rows. "
            "Leave them out: ignore=[...]; or allow them: most_categories=...; texts that are to be read are for "
            f"data.read_csv(path, {next(iter(crowded))!r})."
        )
    return decided


def _refuse_empty(cells: Cells, read: Reading, names: Sequence[str]) -> None:
    if names:
        raise ValueError(
            f"{read.where}: {counted(len(names), 'column has', 'columns have')} no value in any of {len(cells.lines)} "
            f"rows: {listed([repr(n) for n in names])}. Tried: holes={list(read.form.holes)}. Fill them, or leave them "
            f"out: ignore={list(names)}."
        )


def _refuse_infinite(cells: Cells, read: Reading, surveys: Sequence[_Survey]) -> None:
    """Refuses "inf" in columns of numbers, and numbers that float32 does not have."""
    found: list[str] = []
    for survey in surveys:
        cell = cells.columns[survey.column.position]
        rows = [i for i, value in survey.numbers.items() if abs(value) > _LIMIT]
        if survey.numbers:
            rows += [i for i in survey.texts if _INFINITE.fullmatch(cell[i])]
        found += _at(cells, survey.name, sorted(rows))
    if found:
        raise ValueError(
            f"{read.where}: {counted(len(found), 'value is', 'values are')} not finite or too large: {listed(found)}. "
            f"Tried: numbers of at most {_LIMIT:.3g} (float32). Repair them, or take their rows out."
        )


def _refuse_mixed(cells: Cells, read: Reading, surveys: Sequence[_Survey]) -> None:
    if not surveys:
        return
    found: list[str] = []
    for s in surveys:
        found += _at(cells, s.name, s.texts)
    many = ", ".join(
        f"{s.name!r} ({counted(len(s.numbers), 'number', 'numbers')}, {counted(len(s.texts), 'text', 'texts')})"
        for s in surveys[:SHOWN]
    )
    more = f" and {len(surveys) - SHOWN} more" if len(surveys) > SHOWN else ""
    first = surveys[0]
    advice = _advice([cells.columns[first.column.position][i] for i in first.texts], read.form) or "Repair the texts"
    names = [s.name for s in surveys]
    otherwise = f"or text={names} makes them categories, ignore={names} leaves them out"
    if first.category is False:
        otherwise = "for classes, leave classes=False out"
    raise ValueError(
        f"{read.where}: {counted(len(surveys), 'column mixes', 'columns mix')} numbers and texts: {many}{more}: "
        f"{listed(found)}. Tried: one kind a column. {advice}; if they mean 'missing', name them in "
        f"format=data.CSVFormat(holes=...); {otherwise}."
    )


def _refuse_disguised(cells: Cells, read: Reading, surveys: Sequence[_Survey]) -> None:
    """Refuses columns of texts that are numbers with a sign or a mark that was not expected."""
    found: list[str] = []
    advice: list[str] = []
    names: list[str] = []
    for survey in surveys:
        cell = cells.columns[survey.column.position]
        if said := _advice([cell[i] for i in survey.texts], read.form):
            found += _at(cells, survey.name, survey.texts)
            advice.append(said)
            names.append(survey.name)
    if found:
        raise ValueError(
            f"{read.where}: {counted(len(found), 'value is', 'values are')} no number as written: {listed(found)}. "
            f"Tried: decimal mark {read.form.decimal!r}, thousands {read.form.thousands!r}. {advice[0]}; or "
            f"text={names} makes them categories."
        )


def _advice(texts: Sequence[str], form: CSVFormat) -> str:
    """What to write where texts are numbers in disguise; nothing where they are not."""
    grouped = [found for t in texts if (found := _GROUPED.fullmatch(t))]
    parts = {found[1] for found in grouped}
    marks = {found[2] for found in grouped if found[2]}
    if len(grouped) < len(texts) and all(_GROUPED.fullmatch(t) or _COMMA.fullmatch(t) for t in texts):
        marks.add(",")
    elif len(grouped) < len(texts):
        parts = set()
    if len(parts) == 1 and len(marks) <= 1 and not parts & marks:
        (part,) = parts
        comma = "decimal=',', " if marks == {","} or part == "." else ""
        return f"For thousands parted by {part!r}, write format=data.CSVFormat({comma}thousands={part!r})"
    if all(_COMMA.fullmatch(t) for t in texts) and form.decimal == ".":
        return "For a decimal comma, write format=data.CSVFormat(decimal=',')"
    if all(_DATE.fullmatch(t) for t in texts):
        return "They look like dates: write them as numbers (years, months, days since the first), or leave them out"
    if sum(_DRESSED.sub("", t).lstrip("+-").isdecimal() for t in texts) > len(texts) / 2:
        return "They look like numbers: take the signs out of the file"
    return ""


def apply(cells: Cells, read: Reading, column: Column, unseen: bool) -> HostArray:
    """The values of a column that was decided by another file, as in `decide`; -1 for a text that it does not know.

    Args:
        cells: The file; `column.position` is that of this file.
        read: How to read it.
        column: The column.
        unseen: Whether texts that the vocabulary lacks are allowed.

    Raises:
        ValueError: If a text stands where numbers were, or one is not in the vocabulary.
    """
    cell, form, name = cells.columns[column.position], read.form, column.name
    if column.vocabulary is None:
        values = np.full(len(cell), np.nan)
        bad: list[int] = []
        for i, text in enumerate(cell):
            if not form.is_hole(text):
                number = form.number(text)
                values[i] = np.inf if number is None else number
                if not abs(values[i]) <= _LIMIT:
                    bad.append(i)
        if bad:
            raise ValueError(
                f"{read.where}: {counted(len(bad), 'value is', 'values are')} no finite number: "
                f"{listed(_at(cells, name, bad))}. Tried: numbers, as in the file that was trained on. Repair them."
            )
        return values
    code = {text: i for i, text in enumerate(column.vocabulary)}
    codes = np.asarray([code.get(MISSING if form.is_hole(c) else c, -1) for c in cell], np.int32)
    new = np.flatnonzero(codes < 0).tolist()
    if new and not unseen:
        known = listed([shown(text) for text in column.vocabulary])
        raise ValueError(
            f"{read.where}: {counted(len(new), 'text is', 'texts are')} new: {listed(_at(cells, name, new))}. Tried: "
            f"the {len(column.vocabulary)} that the column held in training ({known}). Repair them, or pass "
            "unseen='zeros', which gives them no category."
        )
    return codes


def refuse_holes(cells: Cells, read: Reading, columns: Mapping[str, int], hint: str) -> None:
    """Refuses columns (name -> position) with missing values; tells all of them at once."""
    found: list[str] = []
    names: list[str] = []
    for name, position in columns.items():
        cell = cells.columns[position]
        rows = [i for i, text in enumerate(cell) if read.form.is_hole(text)]
        if rows:
            names.append(f"{name!r} {len(rows)}")
            found += _at(cells, name, rows)
    if found:
        inside = f" in {len(names)} columns ({listed(names)})" if len(names) > 1 else ""
        raise ValueError(
            f"{read.where}: {counted(len(found), 'value is', 'values are')} missing{inside}: {listed(found)}. Tried: a "
            f"value in every cell. {hint}"
        )


def scale_of(values: HostArray) -> Scale:
    """Mean and standard deviation of the numbers that are there; 1 for the deviation where all are the same."""
    there = values[~np.isnan(values)]
    if not there.size:
        return Scale(0.0, 1.0)
    mean, std = float(there.mean()), float(there.std())
    # Rounding leaves a constant column a tiny deviation, by which it would be blown up.
    return Scale(mean, std if std > 1e-12 * float(np.abs(there).max()) else 1.0)
