import gzip
import struct

import numpy as np
import pytest

from jaxnn.data import mnist, read_idx

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def idx(array):
    """The format by its definition: zeros, type, rank, big-endian lengths, big-endian values in row-major order."""
    head = bytes([0, 0, CODES[array.dtype.name], array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    return head + b"".join(struct.pack(">" + array.dtype.char, v) for v in array.reshape(-1).tolist())


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("compressed", [False, True])
def test_reads_every_type(tmp_path, dtype, compressed):
    array = np.array([[[1, -2, 3], [4, 5, 100]]], "int8").astype(dtype)
    content = idx(array)
    (tmp_path / "a").write_bytes(gzip.compress(content, mtime=0) if compressed else content)
    read = read_idx(tmp_path / "a")
    assert read.dtype == array.dtype
    assert read.dtype.isnative
    assert np.array_equal(read, array)


DIGITS = np.arange(3 * 28 * 28).reshape(3, 28, 28).astype(np.uint8)
LABELS = np.array([7, 0, 9], np.uint8)


def test_mnist_folder(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(DIGITS), mtime=0))
    (tmp_path / "train-labels.idx1-ubyte").write_bytes(idx(LABELS))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(DIGITS[:1]))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS[:1]))
    train, test = mnist(tmp_path), mnist(tmp_path, "test")
    assert (len(train), len(test)) == (3, 1)
    taken = train.take(np.array([2, 0]))
    assert taken["x"].shape == (2, 28, 28, 1)
    assert taken["x"].dtype == np.float32
    np.testing.assert_allclose(taken["x"][..., 0], DIGITS[[2, 0]] / 255, rtol=1e-6)
    assert taken["x"].max() == 1
    assert taken["y"].tolist() == [9, 7]
    assert taken["y"].dtype == np.int32


GOOD = idx(LABELS)
ZIPPED = bytearray(gzip.compress(GOOD, mtime=0))
ZIPPED[-6] ^= 1  # in the checksum


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (GOOD[:-1], r"has 10 bytes where its header, uint8\[3\], asks for 11"),
        (GOOD + b"x", "has 12 bytes where its header"),
        (GOOD[:6], "ends inside its header: 6 bytes of 8"),
        (b"", "is no IDX file: it begins with nothing"),
        (b"\x89PNG....", "is no IDX file: it begins with 89 50 4e 47"),
        (b"\0\0\x0a\1" + GOOD[4:], "is no IDX file: it begins with 00 00 0a 01"),
        (gzip.compress(GOOD, mtime=0)[:-4], "is damaged"),
        (bytes(ZIPPED), "is damaged"),
        (b"\0\0\x0e\3" + b"\xff" * 12, "has 16 bytes where its header.* asks for"),
        (None, "cannot be read .No such file"),
    ],
)
def test_bad_files_are_named(tmp_path, content, text):
    if content is not None:
        (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ValueError, match=f"data.read_idx: '.*bad' {text}"):
        read_idx(tmp_path / "bad")


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match=r"data.mnist: split is 'validation'"):
        mnist(tmp_path, "validation")
    with pytest.raises(ValueError, match=r"has no train-images file. Tried: train-images-idx3-ubyte, "):
        mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(DIGITS))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:2]))
    with pytest.raises(ValueError, match=r"images uint8\[3, 28, 28\] and labels uint8\[2\]"):
        mnist(tmp_path)
