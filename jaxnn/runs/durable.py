"""Writing files so that a kill at any instant leaves the old content or the new, never half of either."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def sync_folder(path: Path) -> None:
    """Makes renames and creations inside `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces `path` by `content`: a temporary file beside it, fsync, rename, fsync of the folder."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON; non-finite numbers are written as Python's json writes them."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n").encode())


def json_lines(path: Path, where: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The complete lines of a JSONL file, as (raw line with its newline, parsed object).

    A kill while a line is being written leaves the last line torn: without its newline, or not JSON. It is left out.

    Raises:
        ValueError: If a line before the last is not a JSON object; names the file and the line.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        last = number == len(lines)
        if last and not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            if last:
                return
            raise ValueError(
                f"{where}: line {number} of {path} is not a JSON object: {line[:60]!r}. "
                "Remove the line or restore the file."
            )
        yield line, row


def drop_torn_line(path: Path, where: str) -> None:
    """Cuts an incomplete last line off a JSONL file, so that what is appended next starts a line of its own."""
    if path.exists():
        complete = sum(len(line) for line, _ in json_lines(path, where))
        if complete != path.stat().st_size:
            os.truncate(path, complete)
