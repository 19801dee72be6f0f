"""Arrays that are spread over the processes of a job: each process writes the blocks that it holds.

    checkpoints/00000100/parts-1/   what process 1 wrote, taken in by process 0 before it seals the checkpoint
        blocks                      their elements in C order, one block after another
        index                       JSON: path -> shape, dtype, and of each block where in the array and in the file it
                                    lies, and its crc32
        seal                        every file above with its size and crc32

No process ever holds more of such an array than its devices do, and nothing is sent between them to save it. Until all
are there, each lies beside the checkpoints under a temporary name, complete by one rename; the file system, which all
processes share, is what they meet on: a collective in a background thread would come in another order everywhere.
orbax is not asked, because NumPy arrays are written by a job's process 0 alone there.
"""

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.runs import stored
from jaxnn.runs.durable import write_atomic

PATIENCE_S = 600.0  # for the slowest process's blocks, after process 0 has written its own
BLOCKS, INDEX, HIDDEN, FAILED = "blocks", "index", "-hidden", "-failed"


class Block(NamedTuple):
    """A part of an array.

    Attributes:
        at: [start, stop) of each axis.
        values: What is there.
    """

    at: tuple[tuple[int, int], ...]
    values: np.ndarray


class Spread(NamedTuple):
    """An array of which this process holds some blocks.

    Attributes:
        shape: Of the whole.
        dtype: Its elements.
        blocks: Those that this process is to write: of each block, one process.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    blocks: list[Block]


def is_spread(leaf: Any) -> bool:
    """Whether no single process holds all of this array."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated


def copied(leaf: jax.Array) -> Spread:
    """Copies on the host of the blocks of `leaf` that this process is to write."""
    mine = [shard for shard in leaf.addressable_shards if shard.replica_id == 0 and shard.data.size]
    for shard in mine:
        shard.data.copy_to_host_async()
    blocks = [
        Block(
            tuple(part.indices(size)[:2] for part, size in zip(shard.index, leaf.shape, strict=True)),
            np.array(shard.data, copy=True, order="C"),
        )
        for shard in mine
    ]
    return Spread(leaf.shape, np.dtype(leaf.dtype), blocks)


def write(target: Path, arrays: Mapping[str, Spread]) -> None:
    """Writes this process's blocks into the folder `target`, which appears complete.

    Where that fails, a file beside it says why, so that process 0 need not wait.
    """
    hidden = target.with_name(target.name + HIDDEN)
    try:
        hidden.mkdir()
        index = {}
        with open(hidden / BLOCKS, "wb") as file:
            for path, array in arrays.items():
                entries = []
                for at, values in array.blocks:
                    entries.append({"at": at, "offset": file.tell(), "crc32": stored.checksum(values)})
                    file.write(values.reshape(-1).view(np.uint8).data)
                index[path] = {"shape": array.shape, "dtype": str(array.dtype), "blocks": entries}
        (hidden / INDEX).write_text(json.dumps(index))
        stored.write_seal(hidden)
        hidden.rename(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            write_atomic(target.with_name(target.name + FAILED), f"{type(error).__name__}: {error}".encode())
        raise


def take_in(parts: Mapping[int, Path], checkpoint: Path) -> None:
    """Moves what each process wrote into `checkpoint`, once it is there; on process 0.

    Raises:
        RuntimeError: If a process could not write, or has not within `PATIENCE_S`.
    """
    until = time.monotonic() + PATIENCE_S
    for process, path in parts.items():
        failure = path.with_name(path.name + FAILED)
        while not path.exists():
            if failure.exists():
                raise RuntimeError(f"process {process} could not write its part: {failure.read_text()}")
            if time.monotonic() > until:
                raise RuntimeError(
                    f"process {process} has not written its part within {PATIENCE_S:.0f} s; {path.parent} has to be a "
                    "folder that all processes see"
                )
            time.sleep(0.02)
        path.rename(checkpoint / f"{stored.PARTS}{process}")


class Stored:
    """An array of a checkpoint, read from its blocks where and when it is indexed or made a NumPy array.

    Attributes:
        path: Its path in the state.
        shape: Of the whole.
        dtype: Its elements.
        blocks: Of each: where in the array, the file, the offset there, its crc32.
    """

    def __init__(self, path: str, shape: Sequence[int], dtype: str):
        self.path, self.shape, self.dtype = path, tuple(shape), np.dtype(dtype)
        self.blocks: list[tuple[tuple[tuple[int, int], ...], Path, int, str]] = []

    @property
    def ndim(self) -> int:
        """Axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Elements of the whole."""
        return math.prod(self.shape)

    def missing(self) -> int:
        """Elements that are in no block."""
        return self.size - sum(math.prod(b - a for a, b in at) for at, *_ in self.blocks)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # it always is one
        return self[(slice(None),) * self.ndim].astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """The part at `index`, one slice of step 1 for each axis; reads the blocks that it meets.

        Raises:
            RuntimeError: If a block is not what was written.
        """
        wanted = [part.indices(size)[:2] for part, size in zip(index, self.shape, strict=True)]
        out = np.zeros([stop - start for start, stop in wanted], self.dtype)
        for at, file, offset, crc in self.blocks:
            both = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(at, wanted, strict=True)]
            if all(start < stop for start, stop in both):
                there = tuple(slice(x - a, y - a) for (x, y), (a, _) in zip(both, wanted, strict=True))
                here = tuple(slice(x - a, y - a) for (x, y), (a, _) in zip(both, at, strict=True))
                out[there] = self._read(at, file, offset, crc)[here]
        return out

    def _read(self, at: tuple[tuple[int, int], ...], file: Path, offset: int, crc: str) -> np.ndarray:
        values = np.empty([stop - start for start, stop in at], self.dtype)
        with open(file, "rb") as opened:
            opened.seek(offset)
            opened.readinto(values.reshape(-1).view(np.uint8).data)
        if (found := stored.checksum(values)) != crc:
            raise RuntimeError(f"array {self.path} in {file.parent.name}: crc32 {found}, {crc} was written")
        return values


def index(checkpoint: Path) -> dict[str, Stored]:
    """The spread arrays of a checkpoint by path, not read yet."""
    arrays: dict[str, Stored] = {}
    for folder in sorted(checkpoint.glob(stored.PARTS + "*")):
        for path, entry in json.loads((folder / INDEX).read_text()).items():
            array = arrays.setdefault(path, Stored(path, entry["shape"], entry["dtype"]))
            for block in entry["blocks"]:
                at = tuple((start, stop) for start, stop in block["at"])
                array.blocks.append((at, folder / BLOCKS, block["offset"], block["crc32"]))
    return arrays
