"""CIFAR-10 and CIFAR-100 in their binary form: records of one or two label bytes and 3 x 32 x 32 bytes of pixels."""

import os
from pathlib import Path

import numpy as np

from jaxnn.data.arrays import Arrays
from jaxnn.typing import HostArray

_PIXELS = 3 * 32 * 32
_SPLITS = {
    10: {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]},
    100: {"train": ["train.bin"], "test": ["test.bin"]},
}
_NAMES = {10: "batches.meta.txt", 100: "fine_label_names.txt"}


def read_cifar(path: str | os.PathLike[str], classes: int = 10) -> tuple[HostArray, HostArray]:
    """The images and labels of one binary file.

    Args:
        path: A file of records, whole ones.
        classes: 10 (one label byte) or 100 (a coarse one, which is passed over, and a fine one).

    Returns:
        uint8 [N, 32, 32, 3] and int32 [N].

    Raises:
        ValueError: If the file is missing, empty, cut inside a record, or has a label that is no class.

    Source:
        Krizhevsky 2009, "Learning multiple layers of features from tiny images", and its page's "binary version".
    """
    where = f"data.read_cifar: {str(path)!r}"
    if classes not in _SPLITS:
        raise ValueError(f"{where}: classes={classes!r}. Tried: {list(_SPLITS)}. Write one of them.")
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ValueError(f"{where} cannot be read ({error.strerror}). Tried: opening it. Give a .bin file.") from error
    head = 1 if classes == 10 else 2
    record = head + _PIXELS
    if not len(content) or len(content) % record:
        raise ValueError(
            f"{where} has {len(content)} bytes: {len(content) // record} records of {record} and "
            f"{len(content) % record} more. Tried: CIFAR-{classes}'s binary version. It is truncated or another file; "
            f"fetch it again."
        )
    table = content.reshape(-1, record)
    labels = table[:, head - 1].astype(np.int32)
    if int(labels.max()) >= classes:
        at = int(np.argmax(labels >= classes))
        raise ValueError(
            f"{where} has label {labels[at]} in record {at}. Tried: classes below {classes}. The file is damaged, or "
            f"is CIFAR-{110 - classes}'s: fetch it again."
        )
    return table[:, head:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _classes(folder: Path) -> int | None:
    """Which of the two a folder holds; None for neither."""
    return next((n for n, splits in _SPLITS.items() if any((folder / f).is_file() for f in splits["test"])), None)


def is_cifar(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds binary files of CIFAR."""
    return _classes(Path(folder).expanduser()) is not None


def cifar(folder: str | os.PathLike[str], split: str = "train") -> Arrays:
    """CIFAR-10 or CIFAR-100 from a folder with the published binary files; which of them, their names tell.

    Args:
        folder: Where `data_batch_1.bin` to `_5.bin` and `test_batch.bin` are, or `train.bin` and `test.bin`.
        split: "train" (50,000) or "test" (10,000).

    Returns:
        "x" float32 [N, 32, 32, 3] in [0, 1] (600 MB for 50,000) and "y" int32 [N].

    Raises:
        ValueError: If a file is missing or damaged.
    """
    if split not in ("train", "test"):
        raise ValueError(f"data.cifar: split is {split!r}. Tried: ['train', 'test']. Give one of them.")
    root = Path(folder).expanduser()
    classes = _classes(root)
    if classes is None:
        raise ValueError(
            f"data.cifar: {str(root)!r} has no test_batch.bin and no test.bin. Tried: the binary version of CIFAR-10 "
            "and CIFAR-100. Unpack one of them there."
        )
    files = [root / name for name in _SPLITS[classes][split]]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(
            f"data.cifar: {str(root)!r} has no {', '.join(missing)}. Tried: the {split} files of CIFAR-{classes}'s "
            "binary version. Unpack all of them there."
        )
    parts = [read_cifar(file, classes) for file in files]
    x = np.empty((sum(len(y) for _, y in parts), 32, 32, 3), np.float32)
    np.divide(np.concatenate([part for part, _ in parts]), np.float32(255), out=x)
    return Arrays(x, np.concatenate([y for _, y in parts]))


def cifar_names(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the classes, from the file that lies beside the data; none where there is no such file."""
    root = Path(folder).expanduser()
    path = root / _NAMES.get(_classes(root) or 0, "")
    return path.read_text().split() if path.is_file() else []
