"""Tensors in files: safetensors read and written here, one tensor at a time; `pickled` reads PyTorch's own files.

Read here and not by the `safetensors` package, whose NumPy form knows no bfloat16: a header is checked against the
file before anything is allocated, and a tensor is a view of the memory-mapped file until somebody copies it.
"""

import json
import math
import os
import secrets
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnn.typing import HostArray

WHERE = "models.load"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_HEADER_BYTES = 100_000_000  # as the format's reference implementation
AXES = 32  # more than any array here or in PyTorch's users' hands; a product over more is somebody's trap
DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


class Stored(NamedTuple):
    """A tensor in a file.

    Attributes:
        shape: Its axes.
        dtype: Of its elements.
        read: Gives it, as a read-only view of the file where it lies there in one piece.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], HostArray]


def damaged(path: Path, what: str) -> ValueError:
    """The error for a file that is not what it should be."""
    return ValueError(
        f"{WHERE}: {str(path)!r}: {what}. Tried: reading {path.stat().st_size} bytes. Fetch or write the file again."
    )


def numbers(where: str, name: str, x: HostArray) -> HostArray:
    """`x`, a parameter's tensor, if it is all numbers: nothing that a model computes with others has a meaning.

    -inf passes in a bias, where it rules a token or a class out and leaves the rest as it was.

    Raises:
        ValueError: Naming the tensor, and the first place in it.
    """
    bad = ~np.isfinite(x)
    if name.endswith("bias"):
        bad &= x != -np.inf
    if bad.any():
        place = tuple(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
        raise ValueError(
            f"{where}: tensor {name!r} {x.dtype}{list(x.shape)} has {x[place]} at {list(place)}, and {bad.sum()} such "
            f"in all. Tried: numbers. Give weights that were saved before training diverged."
        )
    return x


class _Twice(Exception):
    """A name that an object of JSON has a second time."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names: set[str] = set()
        for name, _ in pairs:
            if name in names:
                raise _Twice(name)
            names.add(name)
    return found


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise damaged(path, f"{size} bytes are too few for a safetensors file")
        length = struct.unpack("<Q", start)[0]
        if length > min(size - 8, _HEADER_BYTES):
            raise damaged(path, f"its header claims {length} bytes of {size}")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_once)
    except _Twice as twice:
        raise damaged(path, f"its header has {twice.args[0]!r:.80} twice") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits too
        raise damaged(path, f"its header is no JSON ({type(error).__name__})") from error
    if not isinstance(header, dict):
        raise damaged(path, "its header is no JSON object")
    return header, 8 + length


def _ints(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= AXES and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _covered(path: Path, spans: list[tuple[int, int, str]], room: int) -> None:
    """Refuses tensors that share bytes and bytes that are no tensor's, as the format's reference does."""
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            what = "shares bytes with another" if begin < at else "leaves bytes before it that are no tensor's"
            raise damaged(path, f"tensor {name!r} at {[begin, end]} {what}")
        at = end
    if at != room:
        raise damaged(path, f"its tensors end at byte {at} of {room}")


def read_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name; nothing but the header is read.

    Raises:
        ValueError: If the header is damaged or says of a tensor what cannot be: an unknown dtype, bytes outside the
            file, more or fewer than its shape needs, another tensor's; or if bytes are no tensor's.
    """
    header, begin = _header(path)
    room = path.stat().st_size - begin
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", offset=begin) if room else np.zeros(0, np.uint8)
    found = {}
    for name, about in header.items():
        if not isinstance(about, dict) or not _ints(about.get("shape")) or not _ints(about.get("data_offsets")):
            raise damaged(path, f"tensor {name!r} is described by {about!r:.80}")
        dtype, shape, span = DTYPES.get(str(about.get("dtype"))), tuple(about["shape"]), about["data_offsets"]
        if dtype is None:
            raise ValueError(
                f"{WHERE}: {str(path)!r}: tensor {name!r} has dtype {about.get('dtype')!r}. Tried: {', '.join(DTYPES)}."
                f" Convert it to one of them."
            )
        needed = math.prod(shape) * dtype.itemsize
        if math.prod(n for n in shape if n) * dtype.itemsize >= 2**63:
            raise damaged(path, f"tensor {name!r} {dtype}{list(shape)} is beyond 2**63 bytes")
        if len(span) != 2 or not span[0] <= span[1] <= room or span[1] - span[0] != needed:
            raise damaged(path, f"tensor {name!r} {dtype}{list(shape)} needs {needed} bytes and has {span} of {room}")

        def read(span: list[int] = span, dtype: Any = dtype, shape: Any = shape) -> HostArray:
            return data[span[0] : span[1]].view(dtype).reshape(shape)

        found[name] = Stored(shape, dtype, read)
    _covered(path, [(*about["data_offsets"], name) for name, about in header.items()], room)
    return found


def _index(path: Path) -> dict[Path, set[str]]:
    """The files that an index names, which lie beside it, and of each the tensors that it says are there."""
    try:
        places = json.loads(path.read_text())["weight_map"]
        files: dict[str, set[str]] = {}
        for name, file in places.items():
            files.setdefault(str(file), set()).add(name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, f"no weight_map of tensors to files ({type(error).__name__})") from error
    for name in files:
        if Path(name).name != name or not (path.parent / name).is_file():
            raise damaged(path, f"it names {name!r:.80}, which is no file beside it")
    return {path.parent / name: files[name] for name in sorted(files)}


def read_folder(folder: Path) -> dict[str, Stored]:
    """The tensors of a folder by name, from its safetensors files, else from PyTorch's.

    Raises:
        ValueError: If there is no such file, or several loose ones of which none is named as the model's; if one is
            damaged, two of them hold a tensor of one name, or they hold others than their index says.
    """
    from jaxnn.models.weights.pickled import read_pickled

    loose = [path for ending in ("*.pth", "*.pt") for path in sorted(folder.glob(ending))]
    candidates: list[tuple[Path, Callable[[Path], dict[str, Stored]]]] = [
        (folder / SINGLE, read_safetensors),
        (folder / INDEX, read_safetensors),
        (folder / PICKLED, read_pickled),
        (folder / PICKLED_INDEX, read_pickled),
        *((path, read_pickled) for path in loose),
    ]
    there = [(path, read) for path, read in candidates if path.is_file()]
    if not there:
        raise ValueError(
            f"{WHERE}: {str(folder)!r} has no weights. Tried: {SINGLE}, {INDEX}, {PICKLED}, {PICKLED_INDEX}, *.pth. "
            f"Give a folder that has one of them."
        )
    path, read = there[0]
    if path in loose and len(loose) > 1:
        raise ValueError(
            f"{WHERE}: {str(folder)!r} has {', '.join(repr(p.name) for p in loose[:3])}{', ...' * (len(loose) > 3)}. "
            f"Tried: one file of tensors. Take the others out of the folder, or give an image model's file itself."
        )
    found: dict[str, Stored] = {}
    files: Mapping[Path, set[str] | None] = _index(path) if path.suffix == ".json" else {path: None}
    for file, said in files.items():
        held = read(file)
        if said is not None and said != held.keys():
            name = min(said ^ held.keys())
            what = f"says that {name!r} is in {file.name!r}" if name in said else f"has no {name!r} of {file.name!r}"
            raise damaged(path, f"its weight_map {what}: it is not so")
        for name, stored in held.items():
            if name in found:
                raise damaged(file, f"tensor {name!r} is in another file too")
            found[name] = stored
    return found


class Planned(NamedTuple):
    """A tensor that is to be written; `make` is called once, when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    make: Callable[[], HostArray]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def atomically(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Writes a file so that it is whole or not there; what is mapped from an older one stays what it was."""
    part = path.with_name(f"{path.stem}-{secrets.token_hex(4)}.part")
    out = part.open("xb")  # with the permissions of any new file; asking for them would lift them from other threads'
    try:
        with out:
            for block in parts:
                out.write(block)
        os.replace(part, path)
    except BaseException:
        part.unlink()
        raise


def write_safetensors(path: Path, tensors: list[Planned]) -> None:
    """Writes tensors, in this order, one at a time in memory."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        about = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        header[tensor.name] = about
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def parts() -> Iterable[bytes | memoryview]:
        yield struct.pack("<Q", len(text)) + text
        for tensor in tensors:
            array = np.ascontiguousarray(tensor.make().astype(tensor.dtype, copy=False))
            yield array.reshape(-1).view(np.uint8).data

    atomically(path, parts())


def write_folder(folder: Path, tensors: list[Planned], shard_bytes: int) -> None:
    """Writes tensors as one safetensors file, or as several of at most `shard_bytes` with an index."""
    shards: list[list[Planned]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        write_safetensors(folder / SINGLE, tensors)
        (folder / INDEX).unlink(missing_ok=True)
        return
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(folder / name, shard)
    where = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors)}, "weight_map": where}
    atomically(folder / INDEX, [json.dumps(index, indent=2).encode()])
    (folder / SINGLE).unlink(missing_ok=True)
