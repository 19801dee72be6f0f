"""What a card says of its runs besides their values: command, data, size, machine, time and versions."""

import datetime
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxnn import tree
from jaxnn.report import format_value
from jaxnn.runs.record import SPEEDS, Record, duration, read_record, stored_params
from jaxnn.runs.result import Result

LEFT_OUT = ("--out",)  # of a command, with their value: where a run was written is nobody's business
VERSIONS = ("python", "jax", "jaxlib", "flax", "optax", "numpy", "jaxnn")
LONGEST = 400  # characters of a command


def labels(records: Sequence[Record]) -> list[str]:
    """What the runs are called on the card, "seed 3"."""
    return [f"seed {record.fit.get('seed', _config(record).get('seed', '?'))}" for record in records]


def experiment(record: Record) -> str:
    """The name of what was run: the module or the file of its command, else of its folder."""
    words = _words(record)
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1].rpartition(".")[2]
    script = next((word for word in words[1:] if word.endswith(".py")), "")
    return Path(script).stem or record.path.absolute().name


def commands(records: Sequence[Record]) -> list[str]:
    """The commands that started the runs, each once: the interpreter and paths as seen from the working folder."""
    return list(dict.fromkeys(_command(record) for record in records))


def known(records: Sequence[Record], results: Sequence[Result | None]) -> dict[str, list[str]]:
    """What is known, by what it is, a text a run; "" where a run's folder does not hold it."""
    told = [_facts(record, result) for record, result in zip(records, results)]
    return {what: texts for what in told[0] if any(texts := [each[what] for each in told])}


def _facts(record: Record, result: Result | None) -> dict[str, str]:
    return {
        "data": _data(record),
        "begun from": _before(record),
        "parameters": _parameters(record, result),
        "steps": _steps(record),
        "device": _device(record),
        "training": _spent(record, training=True),
        "with scoring and pictures": _spent(record) if _event(record, "result") else "",
        "load average": _load(record),
        "speed": _speed(record),
        "versions": _versions(record),
        "code": _code(record),
        "date": _date(record),
    }


def _config(record: Record) -> Mapping[str, Any]:
    """The experiment's own config."""
    held = record.config.get("config")
    return held if isinstance(held, Mapping) else {}


def _event(record: Record, name: str) -> Mapping[str, Any]:
    return next((event for event in record.events if event.get("event") == name), {})


def _data(record: Record) -> str:
    begun, examples = _event(record, "start"), record.fit.get("examples")
    named = _config(record).get("data")
    said = [f"{examples:,} examples to learn from" if isinstance(examples, int) else ""]
    if isinstance(count := begun.get("validation_examples"), int):
        said.append(f"{count:,} for validation")
    said.append(f"from {near(named)}" if isinstance(named, str) else "")
    said.append(str(begun.get("data", "")))
    return "; ".join(filter(None, said))


def _before(record: Record) -> str:
    """The run that gave the first parameters, with its steps and time where its folder is still there."""
    came = _event(record, "start").get("init_from")
    if not isinstance(came, str):
        return ""
    path = Path(os.path.normpath(record.path.absolute() / came))
    try:
        other = read_record(path)
    except ValueError:
        return path.name
    return ", ".join(filter(None, [path.name, f"{format_value(other.steps_text)} steps", _spent(other)]))


def _parameters(record: Record, result: Result | None) -> str:
    count = result.parameters if result is not None else tree.size(stored_params(record.path))
    return f"{count:,}" if count else ""


def _steps(record: Record) -> str:
    steps, size = record.steps_text, record.fit.get("batch_size")
    said = f"{format_value(steps)} of {size} examples" if size else format_value(steps)
    passes = [row["epoch"] for row in record.rows if isinstance(row.get("epoch"), int | float)]
    return f"{said}, {max(passes):.3g} passes over the data" if passes else said


def _device(record: Record) -> str:
    cpu, devices = record.environment.get("cpu", {}), record.environment.get("devices", {})
    if record.device is None:
        return ""
    used, processes = record.fit.get("devices") or 1, devices.get("processes", 1)
    plain = f"CPU as {used} devices" if used > 1 else "CPU"  # a core is no device: 8 may be forced on 2
    said = [plain if devices.get("backend") == "cpu" else record.device]
    if cpu.get("count"):
        said.append(f"{cpu['count']} cores of {cpu.get('model')}")
    return ", ".join([*said, *([f"{processes} processes"] if processes > 1 else [])])


def _spent(record: Record, *, training: bool = False) -> str:
    """The time of training, or to the last event, by the clock and by the processor's."""
    wall, cpu = (duration(record.spent(clock, training=training)) for clock in ("time", "cpu_s"))
    several = record.environment.get("devices", {}).get("processes", 1) > 1
    used = f"{cpu} of processor time{' in the first process' if several else ''}" if cpu else ""
    return ", ".join(filter(None, (wall, used)))


def _load(record: Record) -> str:
    ours = ("start", "resume", "save", "interrupted", "end", "result")
    held = [event.get("load") for event in record.events if event.get("event") in ours]
    loads = [load for load in held if isinstance(load, int | float)]
    if not loads:
        return ""
    return f"{min(loads):.1f}" if min(loads) == max(loads) else f"{min(loads):.1f} to {max(loads):.1f}"


def _speed(record: Record) -> str:
    name = next((name for name in SPEEDS if any(name in row for row in record.timing)), None)
    if name is None:
        return ""
    median = float(np.median([row[name] for row in record.timing if name in row]))
    return f"{format_value(median)} {name.replace('_per_s', '')} a second (median)"


def _versions(record: Record) -> str:
    held = record.environment.get("versions", {})
    return ", ".join(f"{name} {held[name]}" for name in VERSIONS if held.get(name))


def _code(record: Record) -> str:
    git = record.environment.get("git")
    if not isinstance(git, Mapping) or not git.get("commit"):
        return ""
    changed = {True: ", with changes that are not committed", False: "", None: ", perhaps changed"}[git.get("dirty")]
    return f"commit {str(git['commit'])[:10]} of jaxnn{changed}"


def _date(record: Record) -> str:
    times = [event["time"] for event in record.events if isinstance(event.get("time"), int | float)]
    if not times:
        return ""
    first, last = (datetime.datetime.fromtimestamp(t, datetime.UTC).date().isoformat() for t in (times[0], times[-1]))
    return first if first == last else f"{first} to {last}"


# ---- the command


def _words(record: Record) -> list[str]:
    held = record.environment.get("command")
    return [str(word) for word in held] if isinstance(held, list) else []


def _command(record: Record) -> str:
    given, words, skipped = _words(record), [], False
    for number, word in enumerate(given):
        if skipped or word == "--resume" or word.startswith("--out="):
            skipped = False
        elif word in LEFT_OUT:
            skipped = True
        else:
            words.append("python" if number == 0 else near(word))
    line = " ".join(shlex.quote(word) for word in words)
    return line if len(line) <= LONGEST else line[: LONGEST - 4] + " ..."


def near(word: str) -> str:
    """An absolute path as seen from the working folder where it lies in it, else its last part."""
    if not os.path.isabs(word):
        return word
    relative = os.path.relpath(word)
    return Path(word).name if relative.startswith(os.pardir) else relative
