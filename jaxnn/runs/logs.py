"""Metric files and TensorBoard: the same rows, for programs and for eyes.

`metrics.jsonl` is part of what a run computes: killed and resumed, it must end up byte for byte as if nothing
had happened. So a row holds deterministic values only, a number has one spelling, and rows past a restored step are
cut off.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from jaxnn.runs.durable import drop_torn_line, json_lines, write_atomic


def encode_row(row: Mapping[str, Any]) -> bytes:
    """A row as one line of strict JSON.

    Integers, booleans, text and None stay as they are; every other number (a NumPy or jax scalar too) is written as the
    shortest text that reads back as the same float64. NaN and infinities, which JSON lacks, are null, and the key
    "nonfinite" says what they were: `{"step": 3, "loss": null, "nonfinite": {"loss": "nan"}}`.

    Raises:
        ValueError: If there is no integer "step" >= 0.
        TypeError: If a value is neither a scalar nor text.
    """
    out: dict[str, Any] = {}
    nonfinite: dict[str, str] = {}
    for key, value in row.items():
        plain = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
        if plain is not None and not isinstance(plain, str | bool | int | float):
            raise TypeError(
                f"runs.MetricFile.append: {key!r} is {type(value).__name__} {value!r:.60}, not a scalar or text. "
                "Write one number a key."
            )
        if isinstance(plain, float) and not math.isfinite(plain):
            plain, nonfinite[key] = None, repr(plain)
        out[key] = plain
    if type(out.get("step")) is not int or out["step"] < 0:
        raise ValueError(f"runs.MetricFile.append: 'step' is {row.get('step')!r}. Give every row an integer step >= 0.")
    if nonfinite:
        out["nonfinite"] = nonfinite
    return (json.dumps(out, allow_nan=False) + "\n").encode()


def decode_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A parsed row with its non-finite numbers put back."""
    lost = row.get("nonfinite", {})
    return {k: float(lost[k]) if k in lost else v for k, v in row.items() if k != "nonfinite"}


class MetricFile:
    """A JSONL file of rows by step, handed to the operating system row by row: a killed process loses none.

    Args:
        path: The file; made at the first row. A torn last line is cut off then.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._healed = False

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row; see `encode_row` for what it may hold and what it raises."""
        line = encode_row(row)
        if not self._healed:
            drop_torn_line(self.path, "runs.MetricFile")
            self._healed = True
        with open(self.path, "ab") as file:
            file.write(line)

    def sync(self) -> None:
        """Returns when every row is on the disk, where a machine that loses its power leaves it."""
        if self.path.exists():
            with open(self.path, "ab") as file:
                os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All rows in order, non-finite numbers put back.

        Raises:
            ValueError: If a line before the last is not a JSON object.
        """
        return [decode_row(row) for _, row in json_lines(self.path, "runs.MetricFile")]

    def truncate(self, step: int) -> int:
        """Drops the rows after `step` and a torn last line, atomically; what stays keeps its bytes. Returns
        how many."""
        if not self.path.exists():
            return 0
        rows = list(json_lines(self.path, "runs.MetricFile"))
        kept = [line for line, row in rows if row.get("step", 0) <= step]
        write_atomic(self.path, b"".join(kept))
        return len(rows) - len(kept)

    def keep(self, count: int) -> None:
        """Keeps the first `count` rows and drops the others and a torn last line, atomically.

        Raises:
            ValueError: If there are fewer rows than that: the file was changed by somebody else.
        """
        lines = self._lines(count)
        if self.path.exists():
            write_atomic(self.path, b"".join(lines[:count]))

    def require(self, count: int) -> None:
        """Raises what `keep(count)` would, and changes nothing."""
        self._lines(count)

    def _lines(self, count: int) -> list[bytes]:
        lines = [line for line, _ in json_lines(self.path, "runs.MetricFile")] if self.path.exists() else []
        if len(lines) < count:
            raise ValueError(
                f"runs.MetricFile.keep: {self.path} has {len(lines)} rows; the checkpoint was written after {count}. "
                "Restore the file, or start a new run."
            )
        return lines


class TensorBoard:
    """Writes scalars where TensorBoard finds them; needs `tensorboardX`, which is loaded here and not before.

    Args:
        folder: The log folder; made at once.

    Raises:
        ImportError: If tensorboardX is not installed.
    """

    def __init__(self, folder: str | os.PathLike):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "runs.TensorBoard: tensorboardX is not installed. Install jaxnn-training[tensorboard]."
            ) from error
        self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, step: int, row: Mapping[str, Any]) -> None:
        """Writes the numbers of a row, NaN included; text, None and "step" are left out."""
        for key, value in row.items():
            if key != "step" and value is not None and not isinstance(value, str):
                self._writer.add_scalar(key, float(value), step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()
