"""The journal: what happened to a run and when, one JSON object a line, on the disk before the next step is taken."""

import json
import os
import time
from pathlib import Path
from typing import Any

from jaxnn.runs.durable import drop_torn_line, json_lines


class Journal:
    """An append-only file of events `{"event": ..., "step": ..., ..., "time": ...}`.

    Every event is synced to the disk. A last line torn by a kill is cut off when the file is next appended to, and left
    out when it is read.

    Args:
        path: The file; made at the first event.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._healed = False

    def append(self, event: str, step: int, **fields: Any) -> None:
        """Adds one event with the current time (seconds since the epoch).

        Raises:
            TypeError: If a field is not JSON; a NaN or infinity in a field raises ValueError.
        """
        row = {"event": event, "step": step, **fields, "time": round(time.time(), 3)}
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        if not self._healed:
            drop_torn_line(self.path, "runs.Journal")
            self._healed = True
        with open(self.path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def read(self, event: str | None = None) -> list[dict[str, Any]]:
        """All events in order, or those called `event`.

        Raises:
            ValueError: If a line before the last is not a JSON object.
        """
        return [row for _, row in json_lines(self.path, "runs.Journal") if event in (None, row.get("event"))]
