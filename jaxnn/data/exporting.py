"""Predictions back to a file, beside the rows that they are of."""

import contextlib
import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxnn.tree import describe


def _texts(name: str, values: Any, rows: int | None) -> list[tuple[str, list[str]]]:
    """One array as named columns of text."""
    array = np.asarray(values)
    if array.ndim not in (1, 2):
        raise ValueError(
            f"data.write_csv: {name!r} {describe(array)}. Tried: one value or one row of values an example. Give "
            "arrays [N] or [N, K]: outputs.reshape(len(outputs), -1)."
        )
    if rows is not None and len(array) != rows:
        raise ValueError(
            f"data.write_csv: {name!r} {describe(array)} has {len(array)} rows; there are {rows} beside it. Tried: one "
            "row an example, in order. Write predictions of exactly these examples."
        )
    if array.dtype.kind not in "biufUO":
        array = array.astype(np.float32)  # bfloat16 and the like
    columns = [array] if array.ndim == 1 else list(array.T)
    names = [name] if len(columns) == 1 else [f"{name}_{i + 1}" for i in range(len(columns))]
    # str of a NumPy scalar is the shortest text that reads back as the same number.
    return [(n, [str(value) for value in column]) for n, column in zip(names, columns)]


def write_csv(
    path: str | os.PathLike[str],
    predictions: Any,
    *,
    beside: Any = None,
    delimiter: str = ",",
) -> Path:
    """Writes predictions as a CSV file with a line of names, atomically; a file that is there is replaced.

    Args:
        path: Where; its folder is made.
        predictions: What `train.predict` gave, [N] or [N, K] (columns "prediction", or "prediction_1", ...), or a
            mapping of names to such arrays or lists, text too: what `CSV.decode` gives.
        beside: A `data.CSV` whose columns come first, as they are in its file, row by row; None for none.
        delimiter: What parts the cells.

    Returns:
        The path.

    Raises:
        ValueError: If numbers of rows differ, two columns have one name, the file is the one that `beside` came from,
            or it cannot be written.
    """
    path = Path(path).expanduser()
    names: list[str] = []
    columns: list[list[str]] = []
    if beside is not None:
        if not hasattr(beside, "cells"):
            raise TypeError(
                f"data.write_csv: beside is {type(beside).__name__}. Tried: its rows. Give a data.CSV, or put the "
                "columns into the mapping: {'file': names, 'prediction': outputs}."
            )
        if path.resolve() == beside.path.resolve():
            raise ValueError(
                f"data.write_csv: {str(path)!r} is the file that the examples came from. Tried: writing predictions "
                "over it. Give another path."
            )
        names, columns = beside.cells()
    given = predictions if isinstance(predictions, Mapping) else {"prediction": predictions}
    for name, values in given.items():
        for title, texts in _texts(str(name), values, len(columns[0]) if columns else None):
            if title in names:
                raise ValueError(
                    f"data.write_csv: two columns are called {title!r}. Tried: {names} and then the predictions. Give "
                    f"this one another name: {{'new_{title}': values}}."
                )
            names.append(title)
            columns.append(texts)
    if not columns:
        raise ValueError("data.write_csv: no columns. Tried: an empty mapping. Give at least one array [N].")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
            writer.writerow(names)
            writer.writerows(zip(*columns))
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ValueError(
            f"data.write_csv: {str(path)!r} cannot be written ({error.strerror or error}). Tried: a file beside it, "
            "renamed. Give a path that you may write to."
        ) from error
    return path
