"""IDX files, the format of MNIST and its successors: a big-endian header, then one array."""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np

from jaxnn.data.arrays import Arrays
from jaxnn.data.given import check_path
from jaxnn.tree import describe
from jaxnn.typing import HostArray

# The third byte of the file names the type.
_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_PREFIX = {"train": "train", "test": "t10k"}


def read_idx(path: str | os.PathLike[str]) -> HostArray:
    """The array of an IDX file, plain or compressed by gzip (told by its first bytes, not by its name).

    Returns:
        The array in the file's shape, in native byte order: uint8, int8, int16, int32, float32 or float64.

    Raises:
        ValueError: If the file is missing, damaged, truncated, longer than its header says, or no IDX file.

    Source:
        "The IDX file format", Yann LeCun, on the page of the MNIST database.
    """
    check_path("data.read_idx", path)
    name = f"data.read_idx: {str(path)!r}"
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(
            f"{name} cannot be read ({error.strerror}). Tried: opening it. Give the path of an IDX file."
        ) from error
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{name} is damaged ({error}). Tried: gzip. Fetch the file again.") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES:
        raise ValueError(
            f"{name} is no IDX file: it begins with {content[:4].hex(' ') or 'nothing'}. Tried: 00 00, a type of "
            f"{', '.join(f'{t:02x}' for t in _DTYPES)}, a rank. Give an IDX file, plain or gzip."
        )
    dtype, rank = np.dtype(_DTYPES[content[2]]), content[3]
    header = 4 + 4 * rank
    if len(content) < header:
        raise ValueError(
            f"{name} ends inside its header: {len(content)} bytes of {header}. Tried: rank {rank}. Fetch the file "
            "again."
        )
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4))
    expected = header + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(
            f"{name} has {len(content)} bytes where its header, {dtype.name}{list(shape)}, asks for {expected}. "
            f"Tried: an exact count. The file is truncated or foreign; fetch it again."
        )
    return np.frombuffer(content, dtype, offset=header).reshape(shape).astype(dtype.newbyteorder("="))


def _find(folder: Path, stem: str, rank: int) -> Path:
    names = [f"{stem}{dot}idx{rank}-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(
        f"data.mnist: {str(folder)!r} has no {stem} file. Tried: {', '.join(names)}. Put one of "
        "them there; in jaxnn's checkout `make data` fetches Fashion-MNIST."
    )


def mnist(folder: str | os.PathLike[str], split: str = "train") -> Arrays:
    """MNIST, or a data set of its form (Fashion-MNIST, KMNIST), from a folder with the published files, plain or gzip.

    Args:
        folder: Where `train-images-idx3-ubyte` and so on are.
        split: "train" or "test".

    Returns:
        "x" float32 [N, 28, 28, 1] in [0, 1] and "y" int32 [N].

    Raises:
        ValueError: If a file is missing or damaged, or images and labels do not fit each other.
    """
    if split not in _PREFIX:
        raise ValueError(f"data.mnist: split is {split!r}. Tried: {list(_PREFIX)}. Give one of them.")
    check_path("data.mnist", folder)
    root = Path(folder).expanduser()
    images = read_idx(_find(root, f"{_PREFIX[split]}-images", 3))
    labels = read_idx(_find(root, f"{_PREFIX[split]}-labels", 1))
    if (
        images.shape[1:] != (28, 28)
        or images.dtype != np.uint8
        or labels.shape != images.shape[:1]
        or labels.dtype != np.uint8
    ):
        raise ValueError(
            f"data.mnist: images {describe(images)} and labels {describe(labels)} in {str(root)!r}. Tried: uint8[N, "
            "28, 28] and uint8[N]. Give files of one data set; read_idx reads any other."
        )
    return Arrays(images[..., None].astype(np.float32) / np.float32(255), labels.astype(np.int32))
