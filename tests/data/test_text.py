import os

import jax
import numpy as np
import pytest

from jaxnn.data import TextFiles, scoring_windows

DOCUMENTS = [b"hello", b"", b"a longer document with more bytes in it", b"\x00zero inside\x00", b"end"]
STREAM = b"\0" + b"\0".join(DOCUMENTS) + b"\0"


@pytest.fixture
def paths(tmp_path):
    files = [tmp_path / f"{i}.txt" for i in range(len(DOCUMENTS))]
    for file, content in zip(files, DOCUMENTS, strict=True):
        file.write_bytes(content)
    return files


@pytest.mark.parametrize("stride", [None, 1, 3])
@pytest.mark.parametrize("cached", [True, False])
def test_windows_are_slices_of_the_stream(paths, tmp_path, stride, cached):
    source = TextFiles(paths, length=8, stride=stride, cache=tmp_path / "cache" if cached else None)
    assert source.stream.tobytes() == STREAM
    assert source.nbytes == len(STREAM)
    assert isinstance(source.stream, np.memmap) == cached
    batch = source.take(np.arange(len(source)))
    step = stride or 8
    seen = np.zeros(len(STREAM), int)
    for i in range(len(source)):
        real = STREAM[i * step + 1 : i * step + 9]
        seen[i * step + 1 : i * step + 9] += 1
        assert batch["weights"][i].tolist() == [1.0] * len(real) + [0.0] * (8 - len(real))
        assert bytes(batch["y"][i].astype(np.uint8)) == real.ljust(8, b"\0")
        assert bytes(batch["x"][i].astype(np.uint8)) == STREAM[i * step : i * step + 8].ljust(8, b"\0")
    assert (seen[1:] >= 1).all()  # every byte is a target
    assert batch["weights"][-1].any()  # no window holds only padding
    assert {k: v.dtype.name for k, v in batch.items()} == {"x": "int32", "y": "int32", "weights": "float32"}


def test_a_text_shorter_than_a_window_is_one_window(paths):
    source = TextFiles(paths[:1], length=100, cache=None)
    batch = source.take(np.array([0]))
    assert len(source) == 1
    assert batch["weights"].sum() == len(DOCUMENTS[0]) + 1  # its bytes and the separator that ends it


@pytest.mark.parametrize("stride", [None, 5])
def test_resident_gives_the_same_windows(paths, stride):
    source = TextFiles(paths, length=9, stride=stride, segments=True, cache=None)
    resident = source.resident()
    index = np.arange(len(source))
    host = source.take(index)
    device = jax.jit(resident.take)(resident.arrays, index.astype(np.int32))
    assert resident.arrays["stream"].dtype == np.uint8
    assert device.keys() == host.keys() == {"x", "y", "weights", "segment", "position"}
    for name, array in host.items():
        assert device[name].dtype == array.dtype
        assert np.array_equal(device[name], array), name


def test_segments_and_positions_restart_at_each_document(paths):
    source = TextFiles(paths[:3], length=20, segments=True, cache=None)
    batch = source.take(np.array([0, 1]))
    assert bytes(batch["x"][0].astype(np.uint8)) == b"\0hello\0\0a longer doc"
    assert batch["segment"][0].tolist() == [1] * 6 + [2] + [3] * 13
    assert batch["position"][0].tolist() == [*range(6), 0, *range(13)]
    assert batch["segment"][1].tolist() == [0] * 20  # goes on in a document that began before
    assert batch["position"][1].tolist() == list(range(20))


def test_the_cache_is_written_once_and_follows_the_files(paths, tmp_path):
    cache = tmp_path / "cache"
    first = TextFiles(paths, length=4, cache=cache)
    (file,) = cache.iterdir()
    written = file.stat().st_mtime_ns
    assert TextFiles(paths, length=7, cache=cache).stream.tobytes() == STREAM
    assert file.stat().st_mtime_ns == written
    assert list(cache.iterdir()) == [file]
    # A cache file that was cut short is written again.
    del first
    file.write_bytes(STREAM[:-3])
    assert TextFiles(paths, length=4, cache=cache).stream.tobytes() == STREAM
    # Another text of the same length under the same name is another stream.
    paths[0].write_bytes(b"HELLO")
    os.utime(paths[0], ns=(1, 1))
    assert TextFiles(paths, length=4, cache=cache).stream.tobytes() == STREAM.replace(b"hello", b"HELLO")
    assert TextFiles(paths[::-1], length=4, cache=cache).stream.tobytes()[1:4] == b"end"
    assert len(list(cache.iterdir())) == 3


def test_a_failed_write_leaves_nothing_behind(paths, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ValueError, match=r"cache folder .* cannot be used \(No space left on device\).*cache=None"):
        TextFiles(paths, length=4, cache=cache)
    assert list(cache.iterdir()) == []


def test_one_path_is_one_file(paths):
    assert TextFiles(str(paths[0]), length=4, cache=None).stream.tobytes() == b"\0hello\0"


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 12, 13, 100])
@pytest.mark.parametrize(("length", "stride"), [(8, None), (8, 1), (8, 8), (8, 3), (1, 1)])
def test_scoring_windows_score_every_byte_once(n, length, stride):
    document = np.random.default_rng(n).integers(0, 256, n, dtype=np.uint8)
    windows = scoring_windows(document, length, stride)
    step = stride or length // 2
    assert windows["weights"].sum() == n
    assert windows["x"].shape == windows["y"].shape == windows["weights"].shape
    stream = np.concatenate([[0], document])
    scored = np.zeros(n + 1, int)
    for w in range(len(windows["x"])):
        for t in np.flatnonzero(windows["weights"][w]):
            target = w * step + t + 1
            scored[target] += 1
            assert windows["y"][w, t] == stream[target]
            # The context of a target is the window up to it: long enough, or everything there is.
            assert np.array_equal(windows["x"][w, : t + 1], stream[target - t - 1 : target])
            assert t + 1 >= min(length - step + 1, target)
    assert scored[1:].tolist() == [1] * n
    assert windows["weights"].any(axis=1).all()


def test_scoring_takes_bytes():
    assert scoring_windows(b"abc", 2)["y"].tolist() == [[97, 98], [98, 99]]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda p: TextFiles([], length=4), ValueError, "no files"),
        (lambda p: TextFiles([p / "gone.txt"], length=4), ValueError, "gone.txt' is not there"),
        (lambda p: TextFiles([p], length=4), ValueError, "is a folder"),
        (lambda p: TextFiles([p / "0.txt"], length=0), ValueError, "data.TextFiles: length is 0"),
        (lambda p: TextFiles([p / "0.txt"], length=4, stride=5), ValueError, "stride is 5 bytes for windows of 4"),
        (lambda p: TextFiles([p / "0.txt"], length=4, stride=0), ValueError, "stride is 0"),
        (lambda p: TextFiles([p / "1.txt"], length=4), ValueError, "1 files hold no bytes"),
        (lambda p: TextFiles([p / "0.txt"], length=4, cache=p / "2.txt"), ValueError, "cache folder .* cannot be used"),
        (lambda p: scoring_windows(b"abc", 0), ValueError, "data.scoring_windows: length is 0"),
        (lambda p: scoring_windows(b"abc", 4, 5), ValueError, "data.scoring_windows: stride is 5"),
        (lambda p: scoring_windows("abc", 4), TypeError, "document of type str"),
    ],
)
def test_bad_input(paths, tmp_path, call, error, text):
    with pytest.raises(error, match=text):
        call(tmp_path)


def test_files_that_vanish_or_grow_while_they_are_read(paths, monkeypatch):
    read = type(paths[0]).read_bytes
    monkeypatch.setattr(type(paths[0]), "read_bytes", lambda f: read(f) + b"more")
    with pytest.raises(ValueError, match=r"0.txt' changed from 5 to 9 bytes"):
        TextFiles(paths, length=4, cache=None)
    monkeypatch.setattr(type(paths[0]), "read_bytes", lambda f: (f.unlink(), read(f)))
    with pytest.raises(ValueError, match=r"0.txt' cannot be read \(No such file"):
        TextFiles(paths, length=4, cache=None)
