"""What a run's folder says, read for people: as much of it as can be read, and a note of what cannot.

A run is looked at while it goes on, after it was killed, or with files that somebody moved: so nothing here refuses a
folder because a part of it is missing or torn. What is left out is told, by file and line.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxnn.runs import stored
from jaxnn.runs.folder import CHECKPOINTS, CONFIG, ENVIRONMENT
from jaxnn.runs.logs import decode_row

METRICS, TIMING, JOURNAL = "metrics.jsonl", "timing.jsonl", "journal.jsonl"
SPEEDS = ("tokens_per_s", "examples_per_s", "steps_per_s")  # the first that a run has is its speed
LINES_NAMED = 5

Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Record:
    """The files of a run.

    Attributes:
        path: Its folder.
        config: What it was started with; {} where that cannot be read.
        environment: What it ran on; {} where that cannot be read.
        rows: Reported values, by step.
        timing: What the clock said, by step.
        events: The journal.
        troubles: What could not be read, a sentence each.
    """

    path: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    rows: Rows
    timing: Rows
    events: Rows
    troubles: list[str]

    @property
    def step(self) -> int:
        """The last step that any file names."""
        return max((row["step"] for row in [*self.rows, *self.timing, *self.events]), default=0)

    @property
    def outcome(self) -> tuple[str, str]:
        """How the run ended, in a word and in a sentence ("" where the word says it all)."""
        for event in reversed(self.events):
            if event.get("event") == "end":
                reason = event.get("stopped")
                return ("stopped", f"Stopped at step {event['step']}: {reason}.") if reason else ("finished", "")
            if event.get("event") == "interrupted":
                by = event.get("signal")
                return "interrupted", f"Interrupted at step {event['step']} by {by}; it can be resumed."
            if event.get("event") in ("start", "resume"):
                break
        return "unfinished", "The journal has no end: the run is going on, or was killed; then it can be resumed."

    @property
    def wall_s(self) -> float | None:
        """Seconds from start or resume to the last event, added over the processes that worked on the run."""
        return self.spent("time")

    def spent(self, clock: str, *, training: bool = False) -> float | None:
        """Seconds by one of the journal's clocks, added over the processes that worked on the run.

        Args:
            clock: "time", or "cpu_s", which counts from the beginning of each process.
            training: To the end of training, not to the last event: scoring and pictures are left out.

        Returns:
            The seconds; None where a process did not record this clock, or nothing was started.
        """
        total, began, last, over = 0.0, None, 0.0, False
        for event in self.events:
            name, now = event.get("event"), event.get(clock)
            if name in ("start", "resume"):
                if not isinstance(now, int | float):
                    return None
                total += last - began if began is not None else 0.0
                began, last, over = now, now, False
            # A checkpoint is set aside by the process that goes on, before it says so.
            elif isinstance(now, int | float) and name != "set_aside" and not over:
                last, over = now, training and name == "end"
        return None if began is None else total + last - began

    @property
    def fit(self) -> Mapping[str, Any]:
        """What `train.fit` recorded of its arguments."""
        found = self.config.get("fit")
        return found if isinstance(found, Mapping) else {}

    @property
    def planned(self) -> int | None:
        """Data steps that the run was to take; None where its config does not say."""
        fit = self.fit
        if fit.get("steps"):
            return int(fit["steps"])
        if fit.get("epochs") and fit.get("examples") and fit.get("batch_size"):
            return int(fit["epochs"]) * -(-int(fit["examples"]) // int(fit["batch_size"]))
        return None

    @property
    def device(self) -> str | None:
        """The devices that it used, by kind: "8 x TPU v5e"."""
        devices = self.environment.get("devices", {})
        if not (kinds := ", ".join(map(str, devices.get("kinds", [])))):
            return None
        used = self.fit.get("devices") or devices.get("number", 1)
        return kinds if used == 1 else f"{used} x {kinds}"

    @property
    def steps_text(self) -> str | int:
        """Steps done, "12 of 40" where it was to take more."""
        planned = self.planned
        return f"{self.step:,} of {planned:,}" if planned and planned != self.step else self.step


def read_record(path: Path) -> Record:
    """Reads what there is.

    Raises:
        ValueError: If `path` is no run's folder.
    """
    if not path.is_dir():
        what = "is a file; give the folder that it is in" if path.exists() else "does not exist"
        raise ValueError(f"runs.read_record: {path} {what}. Give a run's folder, the out= of train.fit.")
    if not any((path / name).exists() for name in (CONFIG, METRICS, JOURNAL)):
        below = sorted(child.name for child in path.iterdir() if (child / CONFIG).exists())
        hint = f"It holds runs: {', '.join(below[:4])}{', ...' * (len(below) > 4)}; give those." if below else ""
        raise ValueError(
            f"runs.read_record: {path} holds no run (no {CONFIG}, {METRICS} or {JOURNAL}). "
            f"{hint or 'Give a run folder, the out= of train.fit.'}"
        )
    troubles: list[str] = []
    config, environment = (_json(path / name, troubles) for name in (CONFIG, ENVIRONMENT))
    rows, timing, events = (list(_lines(path / name, troubles)) for name in (METRICS, TIMING, JOURNAL))
    return Record(path, config, environment, rows, timing, events, troubles)


def stored_params(path: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a run's parameters by path, from its newest checkpoint; {} where none can be read."""
    folder = path / CHECKPOINTS
    for step in reversed(stored.steps(folder)):
        try:
            arrays = stored.read_json(stored.step_folder(folder, step), "manifest")["arrays"]
            return {
                name.removeprefix("params/"): jax.ShapeDtypeStruct(tuple(entry["shape"]), np.dtype(entry["dtype"]))
                for name, entry in arrays.items()
                if name.startswith("params/")
            }
        except (OSError, ValueError, KeyError, TypeError):  # damaged, or being removed: an older one says the same
            continue
    return {}


def duration(seconds: float | None) -> str | None:
    """A span of time for people: "3.2 s", "4 min 05 s", "2 h 03 min"; None stays None."""
    if seconds is None:
        return None
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60) if seconds >= 3600 else int(seconds // 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if seconds >= 3600 else f"{minutes} min {seconds % 60:02.0f} s"


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, text) of every value in nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        elif key == "command" and isinstance(value, list):
            yield f"{prefix}{key}", " ".join(map(str, value))
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def _json(path: Path, troubles: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        troubles.append(f"{path.name} could not be read: it is missing.")
        return {}
    except (OSError, ValueError) as error:
        troubles.append(f"{path.name} could not be read: {error}.")
        return {}
    if not isinstance(value, dict):
        troubles.append(f"{path.name} could not be read: it holds no JSON object.")
        return {}
    return value


def _lines(path: Path, troubles: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file that have a step; what else is there is told."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return  # a run that was killed early has none
    except OSError as error:
        troubles.append(f"{path.name} could not be read: {error}.")
        return
    bad: list[int] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or type(row.get("step")) is not int:
                raise ValueError(line)
            row = decode_row(row)
        except (ValueError, TypeError, AttributeError):
            if number == len(lines) and not line.endswith(b"\n"):
                troubles.append(
                    f"The last line of {path.name} is cut short and left out: the run is writing it, or was killed."
                )
            else:
                bad.append(number)
            continue
        yield row
    if bad:
        shown = ", ".join(map(str, bad[:LINES_NAMED])) + ", ..." * (len(bad) > LINES_NAMED)
        lost = f"line {shown}" if len(bad) == 1 else f"{len(bad)} lines ({shown})"
        troubles.append(f"{path.name}: {lost} of {len(lines)} could not be read: left out here, untouched there.")
