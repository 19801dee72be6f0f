"""A CSV file as a source: numbers scaled, categories encoded, targets as the losses want them, and the way back."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxnn.data import order
from jaxnn.data.arrays import take_rows
from jaxnn.data.columns import Column, Reading, Scale, apply, decide, find, refuse_holes, scale_of
from jaxnn.data.delimited import Cells, CSVFormat, closest, counted, listed, read_cells
from jaxnn.data.given import example_numbers
from jaxnn.tree import describe
from jaxnn.typing import HostArray, Resident


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is made of a file's columns, settled by the first file."""

    inputs: tuple[Column, ...]
    targets: tuple[Column, ...]
    width: int
    form: CSVFormat
    missing: str | float
    codes: bool
    standardize: bool
    standardize_target: bool
    most: int

    def reading(self, path: Path) -> Reading:
        return Reading(f"data.CSV: {str(path)!r}", self.form, (), self.missing != "error", self.most)


def _names(where: str, what: str, given: Any) -> list[str | int]:
    if given is None:
        return []
    return [given] if isinstance(given, str | int) else list(given)


class CSV:
    """The rows of a CSV file as examples, in the order of the file.

    A column whose every value is a number is one input; any other is a category and becomes an input for each of its
    texts ("town=Oslo"), 0 or 1. Numbers are scaled to mean 0 and standard deviation 1. One or several number columns
    may be the target: "y" is float32 [N, targets], for `losses.mse`. A target of texts is a class: "y" is int32 [N],
    for `losses.cross_entropy`. Nothing is guessed where a column is neither: all problems of one kind are told at once.

    `split` gives a part to train on and a part held out; means and deviations come from the first alone. `read` reads
    another file by the columns and statistics of this one. `decode` turns a model's outputs into the file's units or
    class names. The whole file is held in memory.

    Attributes:
        path: The file.
        lines: The line of each example in the file, int64 [N].
        inputs: Name of each column of "x".
        targets: Names of the target columns.
        classes: Class names by number; None where the target is no class.
        outputs: Outputs that a model needs: classes, or target columns.
        arrays: "x" float32 [N, inputs] and "y"; with `categories="codes"`, "codes" int32 [N, columns] beside "x".
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        target: str | int | Sequence[str | int] | None = None,
        *,
        ignore: Sequence[str | int] = (),
        text: Sequence[str] = (),
        classes: bool | None = None,
        missing: Literal["error", "mean"] | float = "error",
        categories: Literal["one_hot", "codes"] = "one_hot",
        standardize: bool = True,
        standardize_target: bool = False,
        most_categories: int = 100,
        format: CSVFormat | None = None,
    ):
        """Reads the file.

        Args:
            path: A CSV file, plain or compressed by gzip.
            target: What is predicted: a column by name or position (-1 is the last), or several; None for none.
            ignore: Columns that are left out: row numbers, names of people.
            text: Columns that are categories although they hold numbers (postal codes).
            classes: True makes the target a class although it holds numbers; False refuses a class.
            missing: What becomes of a missing input: "error" refuses it, "mean" puts the column's mean, a number
                that number (in the file's units); in a category column, a hole is then a category. A missing target is
                always refused.
            categories: "one_hot", or "codes": numbers of categories as an array "codes", for embeddings.
            standardize: Whether input numbers are scaled.
            standardize_target: Whether target numbers are scaled too: losses are then in deviations, not in units, and
                `decode` undoes it.
            most_categories: Texts that a column may hold; more are a name or a number, not a category.
            format: How the file is written; by default told from the file.

        Raises:
            ValueError: If the file cannot be read as a table, a named column is not there, a value is missing, is not
                finite or does not fit its column, or no input is left.
            TypeError: If a setting has the wrong type.
        """
        form = CSVFormat() if format is None else format
        if not isinstance(form, CSVFormat):
            raise TypeError(f"data.CSV: format is {format!r:.60}. Write format=data.CSVFormat(...).")
        _check_settings(missing, categories, most_categories, text)
        cells = read_cells(path, form)
        where = f"data.CSV: {str(cells.path)!r}"
        left_out = {find(where, "ignore", t, cells.names, cells.named) for t in _names(where, "ignore", ignore)}
        if nameless := [name for name in cells.nameless if name not in left_out]:
            raise ValueError(
                f"{where}: {counted(len(nameless), 'column has', 'columns have')} no name on the first line: "
                f"{listed([repr(n) for n in nameless])}. Tried: names from that line. Name them there, or leave them "
                f"out: ignore={nameless}. (A nameless first column is often a row number that another program added, a "
                "last one a delimiter at the end of each line.)"
            )
        wanted = [find(where, "target", t, cells.names, cells.named) for t in _names(where, "target", target)]
        texts = tuple(find(where, "text", t, cells.names, cells.named) for t in _names(where, "text", text))
        if both := sorted(left_out.intersection(wanted)):
            raise ValueError(f"{where}: column {both[0]!r} is the target and ignored. Take it out of one.")
        reading = Reading(where, form, texts, missing != "error", most_categories)
        places = {name: i for i, name in enumerate(cells.names) if name not in left_out}
        inputs = {name: i for name, i in places.items() if name not in wanted}
        if not inputs:
            raise ValueError(
                f"{where}: no column is left for the input. Tried: {cells.names} without target and ignored ones. "
                "Leave one."
            )
        decided = decide(
            cells, reading, [(Column(name, i), classes if name in wanted else None) for name, i in places.items()]
        )
        columns = {name: column for name, (column, _) in decided.items()}
        values = {name: array for name, (_, array) in decided.items()}
        refuse_holes(
            cells, reading, {n: places[n] for n in wanted}, "Take these rows out: a model cannot learn from them."
        )
        if not reading.holes:
            refuse_holes(
                cells,
                reading,
                inputs,
                "Fill them; or pass missing='mean', or a number; or leave columns out with ignore=[...].",
            )
        targets = tuple(columns[name] for name in wanted)
        _check_targets(where, targets)
        plan = _Plan(
            inputs=tuple(columns[name] for name in inputs),
            targets=targets,
            width=len(cells.names),
            form=dataclasses.replace(form, header=cells.named),
            missing=missing,
            codes=categories == "codes",
            standardize=standardize,
            standardize_target=standardize_target,
            most=most_categories,
        )
        self._set(cells.path, np.asarray(cells.lines, np.int64), plan, values, None)

    def _set(
        self,
        path: Path,
        lines: HostArray,
        plan: _Plan,
        values: dict[str, HostArray],
        scales: Mapping[str, Scale] | None,
    ) -> None:
        """Encodes; statistics are those of these rows where `scales` is None."""
        self.path, self.lines, self._plan, self._values = path, lines, plan, values
        numeric = [c.name for c in (*plan.inputs, *plan.targets) if c.vocabulary is None]
        self._scales = scales if scales is not None else {name: scale_of(values[name]) for name in numeric}
        self.targets = [c.name for c in plan.targets]
        vocabulary = plan.targets[0].vocabulary if plan.targets else None
        self.classes = None if vocabulary is None else list(vocabulary)
        self.outputs = len(self.targets) if vocabulary is None else len(vocabulary)
        self.inputs: list[str] = []
        parts: list[HostArray] = []
        codes: list[HostArray] = []
        for column in plan.inputs:
            given = values[column.name]
            if column.vocabulary is None:
                parts.append(self._scaled(column.name, given, plan.standardize)[:, None])
                self.inputs.append(column.name)
            elif plan.codes:
                codes.append(given)
            else:
                parts.append((given[:, None] == np.arange(len(column.vocabulary))).astype(np.float32))
                self.inputs += [f"{column.name}={text or '(missing)'}" for text in column.vocabulary]
        self.arrays: dict[str, HostArray] = {}
        if parts:
            self.arrays["x"] = np.concatenate(parts, axis=1)
        if codes:
            self.arrays["codes"] = np.stack(codes, axis=1)
        if self.targets and self.targets[0] in values:
            if self.classes is not None:
                self.arrays["y"] = values[self.targets[0]]
            else:
                each = [self._scaled(name, values[name], plan.standardize_target) for name in self.targets]
                self.arrays["y"] = np.stack(each, axis=1)

    def _scaled(self, name: str, values: HostArray, standardize: bool) -> HostArray:
        mean, std = self._scales[name]
        missing = self._plan.missing
        filled = np.where(np.isnan(values), mean if isinstance(missing, str) else missing, values)
        return ((filled - mean) / std if standardize else filled).astype(np.float32)

    def __len__(self) -> int:
        return len(self.lines)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={describe(a)}" for name, a in self.arrays.items())
        kind = f", {len(self.classes)} classes" if self.classes is not None else ""
        return f"CSV({self.path.name}: {len(self)} rows, target {', '.join(self.targets) or 'none'}{kind}: {shapes})"

    def take(self, index: HostArray) -> dict[str, HostArray]:
        """The examples `index` [B]: a fresh array [B, ...] for each name.

        Raises:
            TypeError: If they are no integers.
            ValueError: If one is not there.
        """
        index = example_numbers("data.CSV", index, len(self))
        return {name: array[index] for name, array in self.arrays.items()}

    def resident(self) -> Resident:
        """The arrays themselves, for the device."""
        return Resident(dict(self.arrays), take_rows)

    def _rows(self, rows: HostArray, scales: Mapping[str, Scale] | None) -> "CSV":
        part = object.__new__(CSV)
        part._set(self.path, self.lines[rows], self._plan, {n: v[rows] for n, v in self._values.items()}, scales)
        return part

    def split(self, fraction: float, seed: int = 0) -> tuple["CSV", "CSV"]:
        """Two disjoint parts that together hold every row, drawn at random; each is in the order of the file.

        Both are scaled by the statistics of the first part, which has no knowledge of the second. Which texts a
        category may hold is taken from both.

        Args:
            fraction: Share of the rows in the first part, in (0, 1).
            seed: The split is a function of it and of the number of rows.

        Raises:
            ValueError: If a part would be empty.
        """
        one, other = order.split("data.CSV.split", "rows", len(self), fraction, seed)
        first = self._rows(one, None)
        return first, self._rows(other, first._scales)

    def read(self, path: str | os.PathLike[str], *, unseen: Literal["error", "zeros"] = "error") -> "CSV":
        """Another file with the same columns, by name: encoded as this one, by this one's statistics.

        Further columns are left alone. The target may be absent or empty; then there is no "y".

        Args:
            path: The file.
            unseen: What becomes of texts that a category of this file did not hold: "zeros" sets none of its inputs.

        Raises:
            ValueError: If the file cannot be read, lacks a column, or a value does not fit what its column held.
        """
        plan = self._plan
        if unseen not in ("error", "zeros") or (unseen == "zeros" and plan.codes):
            raise ValueError(
                f"data.CSV.read: unseen is {unseen!r}. Tried: 'error' and, for one_hot categories, 'zeros'. Give one."
            )
        cells = read_cells(path, plan.form, "data.CSV")
        read = plan.reading(cells.path)
        inputs = _places(cells, plan, plan.inputs, read.where)
        targets = _places(cells, plan, plan.targets, None)
        given = {n: i for n, i in targets.items() if not all(map(plan.form.is_hole, cells.columns[i]))}
        values: dict[str, HostArray] = {}
        known = given if len(given) == len(plan.targets) else {}
        for column in (*plan.inputs, *(c for c in plan.targets if c.name in known)):
            at = inputs.get(column.name, known.get(column.name, 0))
            values[column.name] = apply(
                cells, read, column._replace(position=at), unseen == "zeros" and column.name in inputs
            )
        refuse_holes(cells, read, known, "Fill them, or leave the whole column empty where it is not known.")
        if not read.holes:
            refuse_holes(cells, read, inputs, "Fill them, or read the first file with missing='mean', or a number.")
        new = object.__new__(CSV)
        new._set(cells.path, np.asarray(cells.lines, np.int64), plan, values, self._scales)
        return new

    def decode(self, outputs: Any, *, probabilities: bool = False) -> dict[str, HostArray]:
        """What `train.predict` gave, as columns for `write_csv`: "predicted_NAME" for each target.

        Args:
            outputs: Numbers [N, targets] (or [N] for one), which are put back into the file's units; or logits
                [N, classes], of which the largest names the class; two classes may have one logit, of the second.
            probabilities: Add a column "p(CLASS)" for each class.

        Raises:
            ValueError: If the outputs have another shape, or there is no target.
        """
        given = np.asarray(outputs)
        single = given[:, None] if given.ndim == 1 else given
        widths = (1, 2) if self.outputs == 2 and self.classes is not None else (self.outputs,)
        if not self.targets or single.ndim != 2 or single.shape[1] not in widths:
            raise ValueError(
                f"data.CSV.decode: outputs {describe(given)} for {self.outputs} outputs (target "
                f"{', '.join(self.targets) or 'none'}). Tried: [N, {self.outputs}]. Give what train.predict gave for a "
                "model of that many outputs."
            )
        values = single.astype(np.float64)
        if self.classes is None:
            if self._plan.standardize_target:
                values = values * [self._scales[n].std for n in self.targets]
                values = values + [self._scales[n].mean for n in self.targets]
            return {f"predicted_{n}": values[:, i].astype(np.float32) for i, n in enumerate(self.targets)}
        if values.shape[1] < len(self.classes):
            values = np.concatenate([np.zeros_like(values), values], axis=1)
        columns = {f"predicted_{self.targets[0]}": np.asarray(self.classes)[values.argmax(axis=1)]}
        if probabilities:
            share = np.exp(values - values.max(axis=1, keepdims=True))
            share /= share.sum(axis=1, keepdims=True)
            columns |= {f"p({c})": share[:, i].astype(np.float32) for i, c in enumerate(self.classes)}
        return columns

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Names and texts of all columns of the file, for these rows: reads it again.

        Raises:
            ValueError: If the file has changed so that a row is not there.
        """
        cells = read_cells(self.path, self._plan.form)
        places = {line: i for i, line in enumerate(cells.lines)}
        if gone := [f"line {line}" for line in self.lines.tolist() if line not in places]:
            raise ValueError(
                f"data.CSV: {str(self.path)!r} has changed since it was read: "
                f"{counted(len(gone), 'row is', 'rows are')} gone: {listed(gone)}. Tried: reading it again. Put it "
                "back, or read it anew."
            )
        rows = [places[line] for line in self.lines.tolist()]
        return list(cells.names), [[column[i] for i in rows] for column in cells.columns]


def _check_settings(missing: Any, categories: Any, most: Any, text: Any) -> None:
    number = isinstance(missing, int | float) and not isinstance(missing, bool) and math.isfinite(missing)
    if not number and missing not in ("error", "mean"):
        raise ValueError(f"data.CSV: missing is {missing!r}. Tried: 'error', 'mean' or a finite number. Give one.")
    if categories not in ("one_hot", "codes"):
        raise ValueError(f"data.CSV: categories is {categories!r}. Tried: 'one_hot' and 'codes'. Give one.")
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise ValueError(f"data.CSV: most_categories is {most!r}. Tried: a count. Give an integer of at least 1.")
    if text is True or text is False:
        raise TypeError(f"data.CSV: text is {text}. Tried: names of columns. Give a list: text=['zip'].")


def _check_targets(where: str, targets: Sequence[Column]) -> None:
    kinds = {c.name: c.vocabulary for c in targets if c.vocabulary is not None}
    if kinds and len(targets) > 1:
        raise ValueError(
            f"{where}: of {len(targets)} targets, {list(kinds)} are classes. Tried: one class, or several numbers. "
            "Give one target, and leave out or train apart the others."
        )
    for name, vocabulary in kinds.items():
        if len(vocabulary) < 2:
            raise ValueError(
                f"{where}: target {name!r} is {vocabulary[0]!r} in every row. Tried: classes. Give rows of at least "
                "two classes."
            )


def _places(cells: Cells, plan: _Plan, columns: Sequence[Column], where: str | None) -> dict[str, int]:
    """Where columns stand in another file; `where` begins the message for those that are not there, None for none."""
    targets = [c.position for c in plan.targets]
    if plan.form.header:
        found = {c.name: cells.names.index(c.name) for c in columns if c.name in cells.names}
    elif len(cells.names) == plan.width:
        found = {c.name: c.position for c in columns}
    elif len(cells.names) == plan.width - len(targets):  # without the targets
        found = {c.name: c.position - sum(t < c.position for t in targets) for c in columns if c in plan.inputs}
    else:
        found = {}
    if where is not None and (absent := [c.name for c in columns if c.name not in found]):
        near = closest(absent[0], cells.names) if plan.form.header else ""
        raise ValueError(
            f"{where}: {counted(len(absent), 'input column is', 'input columns are')} not there: "
            f"{listed([repr(n) for n in absent])}. Tried: the {len(cells.names)} columns "
            f"{listed([repr(n) for n in cells.names])}. {near}Give a file with the columns that were trained on."
        )
    return found
