"""Text as bytes: windows of one flat stream of documents, and windows that score a document exactly.

The stream is `0 document 0 document 0 ... document 0`: a zero byte begins every document and the last one closes the
stream, so that a model learns how a document begins (after a zero) and that it ends (at the next). A document that
contains zero bytes is read as it is; only the optional segment ids take each zero as the start of a document.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.data.given import example_numbers, is_whole
from jaxnn.typing import HostArray, Resident

SEPARATOR = 0
USER_CACHE = "~/.cache/jaxnn"
_INT32 = 2**31


def _files(paths: Any) -> list[Path]:
    """The files, absolute and checked to be there."""
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    files = [Path(p).expanduser().absolute() for p in paths]
    if not files:
        raise ValueError("data.TextFiles: no files. Tried: an empty list of paths. Give at least one file.")
    for file in files:
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "is not there"
            raise ValueError(
                f"data.TextFiles: {str(file)!r} {what}. Tried: opening {len(files)} files. "
                f'Give files: sorted(Path(folder).rglob("*.txt")) lists those of a folder.'
            )
    return files


def _read(file: Path, size: int) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(
            f"data.TextFiles: {str(file)!r} cannot be read ({error.strerror}). Tried: reading it after listing it. "
            f"Leave it out, or put it back."
        ) from error
    if len(content) != size:
        raise ValueError(
            f"data.TextFiles: {str(file)!r} changed from {size} to {len(content)} bytes while it was read. "
            f"Tried: reading it once. Use files that nobody writes."
        )
    return content


def _flat(files: Sequence[Path], sizes: Sequence[int]) -> Iterable[bytes]:
    for file, size in zip(files, sizes, strict=True):
        yield bytes([SEPARATOR])
        yield _read(file, size)
    yield bytes([SEPARATOR])


def _cached(files: list[Path], sizes: list[int], mtimes_ns: list[int], cache: str | os.PathLike[str]) -> HostArray:
    """The stream as a read-only memory map of a file in `cache`, which is written once, atomically."""
    folder = Path(cache).expanduser()
    identity = repr([(str(f), s, m) for f, s, m in zip(files, sizes, mtimes_ns, strict=True)])
    path = folder / f"text-{hashlib.sha256(identity.encode()).hexdigest()[:32]}.bin"
    total = sum(sizes) + len(sizes) + 1
    try:
        if not path.is_file() or path.stat().st_size != total:
            folder.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=folder, prefix=path.stem, suffix=".part")
            try:
                with os.fdopen(handle, "wb") as out:
                    out.writelines(_flat(files, sizes))
                    out.flush()
                    os.fsync(out.fileno())
                os.replace(part, path)
            except BaseException:
                os.unlink(part)
                raise
        return np.memmap(path, np.uint8, "r")
    except OSError as error:
        raise ValueError(
            f"data.TextFiles: the cache folder {str(folder)!r} cannot be used ({error.strerror}). Tried: writing "
            f"{total} bytes to it. Give cache=FOLDER, or cache=None to hold the text in memory."
        ) from error


def _segments(x: Any, xp: Any) -> tuple[Any, Any]:
    """Segment ids and positions of windows `x` [B, T]: both int32 [B, T], the same integers in NumPy and in JAX."""
    starts = x == SEPARATOR
    time = xp.arange(x.shape[1], dtype=xp.int32)
    begin = xp.where(starts, time, xp.zeros((), xp.int32))
    latest = np.maximum.accumulate(begin, axis=1) if xp is np else jax.lax.cummax(begin, axis=1)
    return xp.cumsum(starts, axis=1, dtype=xp.int32), time - latest


class TextFiles:
    """Windows of `length` + 1 bytes over the text of files, as inputs and next-byte targets.

    Example i starts at byte i * stride of the stream. Examples are {"x": int32 [B, T], "y": int32 [B, T], "weights":
    float32 [B, T]} with T = `length`: y is x one byte later, weights are 1 for bytes of the stream and 0 where the last
    window runs past its end. With `segments` also "segment" and "position", int32 [B, T]: a number for each document in
    the window and the place in it (counted from the window's start where the document began earlier), so that attention
    need not look across documents.

    The stream lies in a memory-mapped file under `cache`, named by the files' paths, sizes and times of change, written
    once.
    """

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
        *,
        length: int,
        stride: int | None = None,
        segments: bool = False,
        cache: str | os.PathLike[str] | None = USER_CACHE,
    ):
        """Reads the files, or maps what an earlier call read.

        Args:
            paths: Files, one document each, in this order.
            length: Bytes a window predicts, T.
            stride: Bytes from one window to the next, at most `length`; None for `length`.
            segments: Add "segment" and "position".
            cache: Folder of the memory-mapped stream; None holds the text in memory.

        Raises:
            ValueError: If there is no file or no text, a file is missing or changes while it is read, the length or
                stride is out of range, or the cache cannot be written.
        """
        self.length, self.stride = _window("TextFiles", length, length if stride is None else stride)
        self.segments = segments
        files = _files(paths)
        stats = [f.stat() for f in files]
        self.sizes = [s.st_size for s in stats]
        if not sum(self.sizes):
            raise ValueError(
                f"data.TextFiles: {len(files)} files hold no bytes, {str(files[0])!r} first. Tried: their sizes. Give "
                "files with text."
            )
        if cache is None:
            self.stream: HostArray = np.frombuffer(b"".join(_flat(files, self.sizes)), np.uint8)
        else:
            self.stream = _cached(files, self.sizes, [s.st_mtime_ns for s in stats], cache)

    def __len__(self) -> int:
        return max(0, -(-(len(self.stream) - 1 - self.length) // self.stride)) + 1

    def __repr__(self) -> str:
        return (
            f"TextFiles({len(self.sizes)} files, {sum(self.sizes) / 1e6:.3g} MB: {len(self)} windows of {self.length} "
            f"bytes, stride {self.stride})"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the stream, separators included."""
        return len(self.stream)

    def _example(self, window: Any, start: Any, xp: Any) -> dict[str, Any]:
        """Windows [B, T + 1] of bytes that begin at `start` [B], as examples."""
        window = window.astype(xp.int32)
        inside = start[:, None] + xp.arange(1, self.length + 1, dtype=start.dtype) < len(self.stream)
        out = {"x": window[:, :-1], "y": window[:, 1:], "weights": inside.astype(xp.float32)}
        if self.segments:
            out["segment"], out["position"] = _segments(out["x"], xp)
        return out

    def take(self, index: HostArray) -> dict[str, HostArray]:
        """The windows `index` [B]."""
        index = example_numbers("data.TextFiles", index, len(self))
        start = index.astype(np.int64) * self.stride
        at = start[:, None] + np.arange(self.length + 1)
        # Past the end stands the closing separator, again and again.
        window = np.asarray(self.stream[np.minimum(at, len(self.stream) - 1)])
        return self._example(window, start, np)

    def resident(self) -> Resident | None:
        """The stream as uint8; None from 2 GiB on, where int32 indices end."""
        padded = (len(self) - 1) * self.stride + self.length + 1
        if padded >= _INT32:
            return None
        stream = np.concatenate([self.stream, np.full(max(0, padded - len(self.stream)), SEPARATOR, np.uint8)])

        def take(arrays: Any, index: Any) -> dict[str, Any]:
            start = index.astype(jnp.int32) * self.stride
            window = jax.vmap(lambda s: jax.lax.dynamic_slice(arrays["stream"], (s,), (self.length + 1,)))(start)
            return self._example(window, start, jnp)

        return Resident({"stream": stream}, take)


def _window(name: str, length: int, stride: int) -> tuple[int, int]:
    if not is_whole(length, 1):
        raise ValueError(f"data.{name}: length is {length!r} bytes. Tried: windows of so many bytes. Give at least 1.")
    if not is_whole(stride, 1) or stride > length:
        raise ValueError(
            f"data.{name}: stride is {stride} bytes for windows of {length}. Tried: one window every stride bytes. "
            f"Give 1 to {length}; a longer stride would skip bytes."
        )
    return length, stride


def scoring_windows(document: bytes | HostArray, length: int, stride: int | None = None) -> dict[str, HostArray]:
    """Windows in which every byte of a document is a target with weight 1 exactly once.

    A separator precedes the first byte. The first window scores all its targets, every later one those the window
    before did
    not reach: a byte is predicted from at least `length` - `stride` + 1 bytes before it, or from all there are.

    Args:
        document: Bytes, or uint8 [n].
        length: Bytes a window predicts, T.
        stride: Bytes from one window to the next; None for max(1, length // 2).

    Returns:
        {"x": int32 [W, T], "y": int32 [W, T], "weights": float32 [W, T]}; the sum of the weights is n, and W is 0 for
        an empty document.

    Raises:
        ValueError: If the length or stride is out of range.
        TypeError: If the document is not bytes.
    """
    length, stride = _window("scoring_windows", length, max(1, length // 2) if stride is None else stride)
    text = (
        np.frombuffer(document, np.uint8)
        if isinstance(document, (bytes, bytearray, memoryview))
        else np.asarray(document)
    )
    if text.dtype != np.uint8 or text.ndim != 1:
        raise TypeError(
            f"data.scoring_windows: document of type {type(document).__name__}, {text.dtype}{list(text.shape)}. "
            f'Tried: reading it as bytes. Give bytes, uint8 [n] or text.encode("utf-8").'
        )
    n = len(text)
    count = max(0, -(-(n - length) // stride)) + 1 if n else 0
    start = np.arange(count) * stride
    stream = np.full(max(n + 1, (count - 1) * stride + length + 1), SEPARATOR, np.uint8)
    stream[1 : n + 1] = text
    target = start[:, None] + np.arange(1, length + 1)
    scored = (start - stride + length)[:, None]  # last target of the window before
    scored[:1] = 0
    return {
        "x": stream[target - 1].astype(np.int32),
        "y": stream[target].astype(np.int32),
        "weights": ((target > scored) & (target <= n)).astype(np.float32),
    }
