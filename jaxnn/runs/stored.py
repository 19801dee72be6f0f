"""What a checkpoint is on disk, and how to tell whether it is whole; reads only, so it is safe beside a live run.

    checkpoints/00000100/          appears by one rename, complete
        arrays/                    orbax: every array of the state under its path, global logical values
        parts-P/                   of a job: what process P holds of the arrays that no single process holds (spread.py)
        manifest/metadata          JSON: step, metric, time, and path -> shape, dtype, crc32 of the values
        extra/metadata             JSON: what the caller put beside the arrays
        seal                       every file above with its size and crc32, and the crc32 of the seal itself
        good                       written later: the values through this step are known finite

orbax restores a flipped bit without a word, hence the checksums: of files, so that damage is found before anything is
decoded and is named by file; and of values, so that what comes out of orbax is what went in. CRC-32 finds every single
flipped bit, runs at 4-6 GB/s here (SHA-256: 1.9) and is meant against accidents, not adversaries.
"""

import json
import os
import uuid
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxnn import parallel
from jaxnn.runs.durable import write_atomic

FORMAT, SPREAD_FORMAT = 1, 2  # the second where processes wrote parts
SEAL, GOOD = "seal", "good"
WRITING, DELETING, DAMAGED = "writing-", "deleting-", "damaged-"
PARTS = "parts-"


class Stored(NamedTuple):
    """One committed checkpoint as a table shows it.

    Attributes:
        step: The step it was saved at.
        path: Its folder.
        good: Whether it is marked good.
        metric: The metric given to `save`, or None.
        nbytes: Bytes of all its files.
        time: When it was saved, seconds since the epoch; None where the manifest cannot be read.
    """

    step: int
    path: Path
    good: bool
    metric: float | None
    nbytes: int
    time: float | None


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lives."""
    return folder / f"{step:08d}"


def steps(folder: Path) -> list[int]:
    """Steps of the committed checkpoints, ascending; whole or damaged."""
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir()) if folder.is_dir() else []


def set_aside(folder: Path) -> list[Path]:
    """Checkpoints that were found damaged and renamed."""
    return sorted(folder.glob(DAMAGED + "*")) if folder.is_dir() else []


def listing(folder: Path) -> list[Stored]:
    """Every committed checkpoint, ascending by step."""
    rows = []
    for step in steps(folder):
        path = step_folder(folder, step)
        try:
            manifest = read_json(path, "manifest")
        except (OSError, ValueError):
            manifest = None
        manifest = manifest if isinstance(manifest, dict) else {}
        try:
            nbytes = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        except FileNotFoundError:  # a live run's retention removed it meanwhile
            continue
        rows.append(Stored(step, path, is_good(path), manifest.get("metric"), nbytes, manifest.get("time")))
    return rows


def checksum(array: np.ndarray) -> str:
    """CRC-32 of an array's values in C order, as 8 hexadecimal digits."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return f"{zlib.crc32(flat.view(np.uint8).data):08x}"


def file_checksum(path: Path) -> tuple[int, str]:
    """Size in bytes and CRC-32 of a file."""
    size, crc = 0, 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, f"{crc:08x}"


def write_seal(path: Path) -> None:
    """Puts every file under `path` on the disk and records it; the last thing before a checkpoint is committed.

    A part that another process wrote bears its own seal already and is not read again.
    """
    parts = sorted(path.glob(PARTS + "*"))
    files: dict[str, tuple[int, str]] = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name, within = str(file.relative_to(path)), [part for part in parts if part in file.parents]
        if not within or file.name == SEAL:
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
            files[name] = file_checksum(file)
    for part in parts:
        body, _, _ = (part / SEAL).read_bytes().rstrip(b"\n").rpartition(b"\n")
        files |= {f"{part.name}/{name}": found for name, found in json.loads(body)["files"].items()}
    body = json.dumps({"format": SPREAD_FORMAT if parts else FORMAT, "files": files}, indent=0).encode()
    write_atomic(path / SEAL, body + b"\n" + f"{zlib.crc32(body):08x}".encode() + b"\n")


def _good_mark(path: Path) -> bytes:
    return f"good {file_checksum(path / SEAL)[1]}\n".encode()


def write_good(path: Path) -> None:
    """Marks a committed checkpoint good, durably."""
    write_atomic(path / GOOD, _good_mark(path))


def is_good(path: Path) -> bool:
    """Whether a checkpoint bears a mark; `verify` tells whether the mark is intact."""
    return (path / GOOD).exists()


def read_json(path: Path, item: str) -> Any:
    """The JSON item `item` ("manifest" or "extra") of a checkpoint."""
    return json.loads((path / item / "metadata").read_bytes())


def verify(path: Path, parts: bool = True) -> list[str]:
    """What is wrong with a checkpoint's files, one readable line each; empty when every checksum holds.

    Args:
        path: Its folder.
        parts: Whether to read what the processes of a job wrote too; without it their blocks are checked when read.

    Raises:
        ValueError: If it is whole and of a format that this version does not know, which is no damage.
    """
    try:
        seal = (path / SEAL).read_bytes()
    except OSError as error:
        return [f"{SEAL}: cannot be read ({type(error).__name__})"]
    body, _, crc = seal.rstrip(b"\n").rpartition(b"\n")
    if seal != body + b"\n" + f"{zlib.crc32(body):08x}".encode() + b"\n":
        return [f"{SEAL}: its own checksum {crc[:16]!r} does not hold"]
    record = json.loads(body)
    if record["format"] not in (FORMAT, SPREAD_FORMAT):
        raise ValueError(
            f"runs.stored.verify: {path} is a checkpoint of format {record['format']}; this version of jaxnn reads "
            f"formats {FORMAT} and {SPREAD_FORMAT}. It is left as it is: use the version that wrote it, or a newer one."
        )
    problems = []
    for name, (size, crc) in record["files"].items():
        if not parts and name.startswith(PARTS):
            continue
        if not (path / name).is_file():
            problems.append(f"{name}: missing")
            continue
        found = file_checksum(path / name)
        if found[0] != size:
            problems.append(f"{name}: {found[0]} bytes, {size} were written")
        elif found[1] != crc:
            problems.append(f"{name}: crc32 {found[1]}, {crc} was written")
    if is_good(path) and (path / GOOD).read_bytes() != _good_mark(path):
        problems.append(f"{GOOD}: does not belong to this checkpoint")
    return problems


def checkpointer() -> Any:
    """Orbax's checkpointer for the items of a checkpoint, for this process alone.

    orbax takes for granted that all processes of a job save and restore together, and waits for them.
    """
    import orbax.checkpoint as ocp

    if parallel.process_count() == 1:
        return ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    index = parallel.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"jaxnn-{index}-{uuid.uuid4().hex}"
    )
    items: dict[str, Any] = {
        name: ocp.JsonCheckpointHandler(multiprocessing_options=alone) for name in ("manifest", "extra")
    }
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        arrays=ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
        **items,
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)
