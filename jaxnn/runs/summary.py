"""The report of a run."""

from typing import Any

from jaxnn.runs.folder import RunFolder


def write_summary(folder: RunFolder, params: Any) -> None:
    return None
