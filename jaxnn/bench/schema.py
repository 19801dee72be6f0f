"""Results on disk: JSON of the schema `jaxnn.bench/1`, with the environment and every raw sample.

A file is written whole or not at all. What is read is checked: a torn file, a foreign one, a newer schema and results
of another device each have their own message.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from jaxnn.bench.comparison import Comparison
from jaxnn.bench.guards import BenchError
from jaxnn.bench.measurement import Failure, Measurement
from jaxnn.bench.probes import Peaks, device_name
from jaxnn.bench.sweeping import Sweep

SCHEMA = "jaxnn.bench/1"
Result = Measurement | Comparison | Sweep | Peaks | Failure
_KINDS = {kind.__name__.lower(): kind for kind in (Measurement, Comparison, Sweep, Peaks, Failure)}


@dataclass(frozen=True)
class Results:
    """What a file holds.

    Attributes:
        environment: Where and when: versions, device, commit, load.
        results: In the order in which they were saved.
    """

    environment: Mapping[str, Any]
    results: tuple[Result, ...]

    def measurements(self) -> dict[str, Measurement]:
        """Every measurement by name, those inside comparisons and sweeps too."""
        found: dict[str, Measurement] = {}
        for result in self.results:
            if isinstance(result, Measurement):
                found[result.name] = result
            elif isinstance(result, Comparison):
                found |= result.measurements
            elif isinstance(result, Sweep):
                found |= {m.name: m for _, m in result.points}
        return found


def environment() -> dict[str, Any]:
    """What a measurement depends on besides the program."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    return {
        "device": device_name(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": _commit(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _commit() -> str | None:
    """The commit of the working folder, with "+" where files differ from it; None outside a repository."""
    try:
        done = [
            subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return done[0] + ("+" if done[1] else "")


def save(path: str | os.PathLike, results: Sequence[Result]) -> None:
    """Writes results to a JSON file, whole or not at all.

    Raises:
        TypeError: If one of them is no result of bench.
    """
    path = pathlib.Path(path)
    rows = []
    for result in results:
        kind = type(result).__name__.lower()
        if kind not in _KINDS:
            raise TypeError(f"bench.save: {type(result).__name__} is no result. Give a list of {sorted(_KINDS)}.")
        rows.append({"kind": kind, **_encode(result)})
    text = json.dumps({"schema": SCHEMA, "environment": environment(), "results": rows}, allow_nan=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(path: str | os.PathLike, other_device: bool = False) -> Results:
    """Reads a file that `save` wrote.

    Args:
        path: The file.
        other_device: Accept results of another kind or number of devices than this process has.

    Raises:
        BenchError: If the file is torn, foreign, of a newer schema, damaged, or of another device.
    """
    path = pathlib.Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BenchError(
            f"bench.load: {path.name} is no JSON, or it was cut short: {error}. Run the benchmark again."
        ) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, str) or not schema.startswith("jaxnn.bench/"):
        raise BenchError(
            f"bench.load: {path.name} is no file of jaxnn.bench: its schema is {schema!r}, not {SCHEMA!r}."
        )
    if schema != SCHEMA:
        raise BenchError(f"bench.load: {path.name} is of schema {schema!r}; this jaxnn reads {SCHEMA!r}. Update jaxnn.")
    try:
        where = content["environment"]
        results = tuple(_decode(_KINDS[row["kind"]], row, f"results[{i}]") for i, row in enumerate(content["results"]))
        device = where["device"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BenchError(f"bench.load: {path.name} is damaged: {type(error).__name__} {error}.") from error
    if device != device_name() and not other_device:
        raise BenchError(
            f"bench.load: {path.name} was measured on {device}, and this is {device_name()}: their times cannot be "
            "compared. Say other_device=True to read it all the same."
        )
    return Results(where, results)


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no infinity
    return value.item() if hasattr(value, "item") else value


def _decode(kind: Any, value: Any, path: str) -> Any:
    """`value` as the annotated type says; `path` is for messages."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, Union):
        if value is None:
            return None
        return _decode(next(k for k in inner if k is not type(None)), value, path)
    if origin is tuple:
        each = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_decode(k, v, f"{path}[{i}]") for i, (k, v) in enumerate(zip(each, value, strict=True)))
    if origin is Mapping or kind is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return {key: _decode(inner[1], item, f"{path}[{key!r}]") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        missing = [f.name for f in dataclasses.fields(kind) if f.name not in value]
        if missing:
            raise ValueError(f"{path} lacks {missing}")
        fields = [field.name for field in dataclasses.fields(kind)]
        return kind(**{name: _decode(hints[name], value[name], f"{path}.{name}") for name in fields})  # pyrefly: ignore
    return float(value) if kind is float else value
