"""A run's folder as the other processes of a job see it: process 0 writes it; of
checkpoints each writes what it alone holds."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxnn.runs.checkpoint import Checkpoints
from jaxnn.runs.folder import CHECKPOINTS, CONFIG, RunFolder, plain_config
from jaxnn.runs.journal import Journal
from jaxnn.runs.logs import MetricFile
from jaxnn.runs.spread import Spread


class _Metrics(MetricFile):
    """Rows that another process writes."""

    def append(self, row: Mapping[str, Any]) -> None:
        pass

    def sync(self) -> None:
        pass

    def truncate(self, step: int) -> int:
        del step
        return 0

    def keep(self, count: int) -> None:
        pass


class _Journal(Journal):
    """Events that another process writes."""

    def append(self, event: str, step: int, **fields: Any) -> None:
        pass


class _Checkpoints(Checkpoints):
    """Checkpoints of which this process writes what it holds of spread arrays, and another the rest."""

    writes_whole = False

    def _clean(self) -> None:
        pass

    def _run(self, step: int, arrays: dict[str, np.ndarray | Spread], extra: str, metric: float | None) -> None:
        try:
            self._metrics[step] = metric
            self._write_part(step, arrays)
        except BaseException as error:  # whatever it is, it belongs to the caller's thread
            self._failure = (step, error)
        finally:
            self._saving = False

    def mark_good(self, step: int) -> None:
        pass

    def discard_after(self, step: int) -> list[int]:
        self._metrics = {s: m for s, m in self._metrics.items() if s <= step}
        return []

    def _set_aside(self, step: int, problems: list[str]) -> str:
        return f"Checkpoint {step} is damaged ({'; '.join(problems[:4])})."


class Follower(RunFolder):
    """The run in `path`, whose writer is another process of the same job.

    Its methods that write do nothing. It may be made before the folder is there.

    Args:
        path: The folder, on a file system that all processes see.
        config: What the run is started or resumed with.
    """

    writes = False

    def __init__(self, path: str | os.PathLike[str], config: Mapping[str, Any]):
        super().__init__(Path(path).absolute(), plain_config(config))
        self.metrics = _Metrics(self.metrics.path)
        self.timing = _Metrics(self.timing.path)
        self.journal = _Journal(self.journal.path)

    def is_visible(self) -> bool:
        """Whether what process 0 made can be seen here."""
        return (self.path / CONFIG).is_file()

    def checkpoints(self, **options: Any) -> Checkpoints:
        return _Checkpoints(self.path / CHECKPOINTS, **options)

    def update_config(self, new: Mapping[str, Any]) -> None:
        self.config = plain_config(new)
