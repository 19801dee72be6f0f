"""A run's folder: made once, never mistaken for another, resumed only by the run that made it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxnn.runs import stored
from jaxnn.runs.checkpoint import Checkpoints
from jaxnn.runs.durable import write_json
from jaxnn.runs.environment import fingerprint
from jaxnn.runs.journal import Journal
from jaxnn.runs.lock import LOCK, FolderLock
from jaxnn.runs.logs import MetricFile

CONFIG, ENVIRONMENT, CHECKPOINTS = "config.json", "environment.json", "checkpoints"
MAKING = {LOCK, ENVIRONMENT, ENVIRONMENT + ".tmp", CONFIG, CONFIG + ".tmp"}  # what a folder holds while it is made
WRITTEN = (CHECKPOINTS, "metrics.jsonl", "timing.jsonl", "journal.jsonl")


class RunFolder:
    """The files of one run. Use `create` or `open`; whoever writes a run holds it until `release`.

    Attributes:
        path: The folder.
        config: What the run was started with, as JSON.
        metrics: `metrics.jsonl`, deterministic values only.
        timing: `timing.jsonl`, what the clock says.
        journal: `journal.jsonl`, events.
        report: Path of `report.html`.
        writes: Whether this process writes it; the others of its job follow (`Follower`).
    """

    writes = True

    def __init__(self, path: Path, config: dict[str, Any], lock: FolderLock | None = None):
        self.path, self.config, self._lock = path, config, lock
        self.metrics = MetricFile(path / "metrics.jsonl")
        self.timing = MetricFile(path / "timing.jsonl")
        self.journal = Journal(path / "journal.jsonl")
        self.report = path / "report.html"

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        config: Mapping[str, Any],
        *,
        environment: Mapping[str, Any] | None = None,
        hold: bool = False,
    ) -> "RunFolder":
        """Makes a new run folder; an empty folder that exists will do.

        Args:
            path: Where; parents are made.
            config: JSON (tuples become lists).
            environment: By default `fingerprint()`.
            hold: Keep other writers out until `release`, or until this process ends.

        Raises:
            TypeError: If `config` is not JSON.
            ValueError: If `path` is a file, cannot be written, holds a run already, or holds something else; with
                `hold`, if another process is writing there.
        """
        path = Path(path).absolute()
        plain = plain_config(config)
        _refuse_file(path)
        _refuse_run(path)
        lock = None
        try:
            path.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(path)
            lock = FolderLock(path) if hold else None
            _refuse_run(path)  # another process may have made one meanwhile
            write_json(path / ENVIRONMENT, dict(fingerprint() if environment is None else environment))
            write_json(path / CONFIG, plain)
        except BaseException as error:
            if lock is not None:
                lock.release()
            if not isinstance(error, OSError):
                raise
            raise ValueError(
                f"runs.RunFolder.create: cannot write to {path}: {error.strerror or error}. "
                "Give out= a folder that you may write to."
            ) from error
        return cls(path, plain, lock)

    @classmethod
    def open(cls, path: str | os.PathLike, *, hold: bool = False) -> "RunFolder":
        """Opens the run that `path` holds.

        Args:
            path: Where it is.
            hold: Keep other writers out until `release`, or until this process ends; readers need not.

        Raises:
            ValueError: If there is no run there (nothing to resume from), its config is missing or cannot be read, or,
                with `hold`, another process is writing it.
        """
        path = Path(path).absolute()
        _refuse_file(path)
        if not (path / CONFIG).exists():
            found = f"it holds no {CONFIG}" if path.exists() else "the folder does not exist"
            if written := [name for name in WRITTEN if (path / name).exists()]:
                raise ValueError(
                    f"runs.RunFolder.open: {path} holds {', '.join(written)} of a run and no {CONFIG}. Tried: reading "
                    f"it. Put {CONFIG} back (a report.html shows what it held); the other files are left as they are."
                )
            raise ValueError(
                f"runs.RunFolder.open: nothing to resume from in {path}: {found}. Start the run without resume=True."
            )
        lock = _locked(path) if hold else None
        try:
            config = _read_object(path / CONFIG)
            if not all(isinstance(config.get(part, {}), dict) for part in ("fit", "config")):
                raise ValueError("its 'fit' and 'config' must be objects")
        except (OSError, ValueError) as error:
            if lock is not None:
                lock.release()
            raise ValueError(
                f"runs.RunFolder.open: {path / CONFIG} cannot be read: {error}. Restore it, or start a new run."
            ) from error
        return cls(path, config, lock)

    @staticmethod
    def is_half_made(path: str | os.PathLike) -> bool:
        """Whether a process died while it made a run there: a folder with the first of its files and no other."""
        path = Path(path).absolute()
        try:
            names = {p.name for p in path.iterdir()}
        except OSError:
            return False
        return CONFIG not in names and bool(names) and names <= MAKING

    def release(self) -> None:
        """Lets others write the run, where this holds it; may be called twice."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def environment(self) -> dict[str, Any]:
        """What `create` recorded about the machine.

        Raises:
            OSError: If the file is not there.
            ValueError: If it is damaged.
        """
        return _read_object(self.path / ENVIRONMENT)

    def good_step(self) -> int | None:
        """The step of the newest good checkpoint, without opening the checkpoints for writing; None for none."""
        folder = self.path / CHECKPOINTS
        good = [step for step in stored.steps(folder) if stored.is_good(stored.step_folder(folder, step))]
        return max(good, default=None)

    def checkpoints(self, **options: Any) -> Checkpoints:
        """The run's `Checkpoints`, with their options."""
        return Checkpoints(self.path / CHECKPOINTS, **options)

    def check_config(self, new: Mapping[str, Any], free: Sequence[str] = ()) -> list[str]:
        """Compares the run's config with the one it is to be resumed with.

        Args:
            new: The config now.
            free: Names of fields that may change; a dotted name ("model.width") is a nested field, and a name covers
                everything below it.

        Returns:
            What changed among the free fields, one "field: old -> new" each.

        Raises:
            ValueError: If another field changed, naming each.
        """
        changes = config_changes(self.config, plain_config(new))
        is_free = {field: any(field == f or field.startswith(f + ".") for f in free) for field in changes}
        if fixed := [line for field, line in changes.items() if not is_free[field]]:
            raise ValueError(
                f"runs.RunFolder.check_config: the run in {self.path} was started with another config: "
                f"{'; '.join(fixed)}. "
                f"Resume with the old values, or give another out=. What may change: {', '.join(free) or 'nothing'}."
            )
        return list(changes.values())

    def update_config(self, new: Mapping[str, Any]) -> None:
        """Records the config that the run goes on with."""
        self.config = plain_config(new)
        write_json(self.path / CONFIG, self.config)


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as it will come back from JSON.

    Raises:
        TypeError: If it is not JSON; names the field.
    """
    for field, value in _fields(config).items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            shown = " ".join(repr(value).split())  # on one line
            raise TypeError(
                f"runs.plain_config: field {field!r} is {type(value).__name__} {shown:.60}, not JSON ({error}). "
                "Give numbers, text, lists and dicts."
            ) from error
    return json.loads(json.dumps(dict(config)))


def config_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Field (dotted where nested) -> "field: old -> new" for each that differs; "absent" where one side lacks it."""
    a, b = _fields(old), _fields(new)
    names = [*a, *(k for k in b if k not in a)]

    def text(side: dict[str, Any], k: str) -> str:
        return json.dumps(side[k]) if k in side else "absent"

    return {k: f"{k}: {text(a, k)} -> {text(b, k)}" for k in names if text(a, k) != text(b, k)}


def _fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            out |= _fields(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no JSON, or something else than an object.
    """
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds {type(value).__name__}, not an object")
    return value


def _refuse_file(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"runs.RunFolder: {path} is a file. Give out= a folder.")


def _refuse_run(path: Path) -> None:
    if (path / CONFIG).exists():
        raise ValueError(
            f"runs.RunFolder.create: {path} already holds a run. Give resume=True to go on, or another out=."
        )


def _refuse_foreign(path: Path) -> None:
    # A kill between the two files of a new run leaves the first alone: that folder is still ours to fill.
    foreign = sorted(p.name for p in path.iterdir() if p.name not in MAKING)
    if foreign:
        shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise ValueError(
            f"runs.RunFolder.create: {path} is not empty and holds no run (no {CONFIG}); found {shown}. "
            "Give out= a new or empty folder."
        )


def _locked(path: Path) -> FolderLock:
    try:
        return FolderLock(path)
    except OSError as error:
        raise ValueError(
            f"runs.RunFolder.open: cannot write to {path}: {error.strerror or error}. "
            "Make the run's folder writable to go on with it."
        ) from error
