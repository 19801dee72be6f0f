"""The files themselves: safetensors against its own package's writer, and files that lie."""

import json
import struct
import tracemalloc

import numpy as np
import pytest

from jaxnn.models.weights import tensors


def write(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def about(shape, span, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": span}


def test_reads_what_the_reference_writes_and_the_other_way_round(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "b": rng.normal(size=(4,)).astype(np.float16),
        "n": np.arange(6).reshape(2, 3),
        "scalar": np.array(2.5, np.float32),
        "none": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
    }
    numpy.save_file(arrays, tmp_path / "theirs.safetensors")
    ours = tensors.read_safetensors(tmp_path / "theirs.safetensors")
    assert ours.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(ours[name].read(), array)
        assert ours[name].dtype == array.dtype
    planned = [tensors.Planned(n, a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()]
    tensors.write_safetensors(tmp_path / "ours.safetensors", planned)
    for name, array in numpy.load_file(tmp_path / "ours.safetensors").items():
        np.testing.assert_array_equal(array, arrays[name])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{not json", "no JSON"),
        (b"[1, 2]", "no JSON object"),
        (b"[" * 100_000, "no JSON"),
        ({"x": about([2], [0, 16])}, r"'x' float32\[2\] needs 8 bytes and has \[0, 16\] of 16"),
        ({"x": about([4], [8, 24])}, "needs 16 bytes"),
        ({"x": about([2**40], [0, 16])}, "needs 4398046511104 bytes"),
        ({"x": about([2**62] * 100_000, [0, 16])}, "is described by"),
        ({"x": about([2**62] * 30, [0, 16])}, r"beyond 2\*\*63 bytes"),
        ({"x": about([0, 2**62, 2**62], [0, 0])}, r"beyond 2\*\*63 bytes"),
        (b'{"x":{"dtype":"F32","shape":[' + b"1" * 6000 + b'],"data_offsets":[0,16]}}', "no JSON"),
        ({"x": about([10**30], [0, 16])}, "is described by"),
        ({"x": about([4], [0, 16]), "y": about([2], [8, 16])}, r"'y' at \[8, 16\] shares bytes with another"),
        ({"x": about([4], [0, 16]), "y": about([4], [0, 16])}, "'y' at .* shares bytes"),
        ({"x": about([1], [12, 16])}, r"'x' at \[12, 16\] leaves bytes before it"),
        ({"x": about([1], [0, 4]), "y": about([1], [8, 12])}, "'y' at .* leaves bytes"),
        ({"x": about([2], [0, 8])}, "end at byte 8 of 16"),
        ({}, "end at byte 0 of 16"),
        (b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"x":{}}', "its header has 'x' twice"),
        (b'{"x":{"dtype":"F32","shape":[9],"shape":[4],"data_offsets":[0,16]}}', "its header has 'shape' twice"),
        ({"x": about([-4], [0, 16])}, "is described by"),
        ({"x": about([4], [0, 16], "F7")}, "'x' has dtype 'F7'"),
        ({"x": about([4], [16, 0])}, "needs 16 bytes"),
        ({"x": {"dtype": "F32"}}, "is described by"),
        ({"x": 3}, "is described by"),
    ],
)
def test_a_header_that_lies_is_refused(header, message, tmp_path):
    path = write(tmp_path / "model.safetensors", header, bytes(16))
    with pytest.raises(ValueError, match=message) as error:
        tensors.read_folder(tmp_path)
    assert "model.safetensors" in str(error.value)
    assert path.is_file()


def test_a_header_of_a_size_that_is_not_there_allocates_nothing(tmp_path):
    path = tmp_path / "model.safetensors"
    tracemalloc.start()
    for start in (b"", b"1234", struct.pack("<Q", 2**60), struct.pack("<Q", 9) + b"{}"):
        path.write_bytes(start)
        with pytest.raises(ValueError, match=r"too few|claims"):
            tensors.read_safetensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_an_index_names_files_beside_it_only(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    outside = write(tmp_path / "outside.safetensors", {"x": about([1], [0, 4])}, bytes(4))
    folder = tmp_path / "folder"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    for text, message in (
        (json.dumps({"weight_map": {"x": f"../{outside.name}"}}), "no file beside it"),
        (json.dumps({"weight_map": {"x": "absent.safetensors"}}), "no file beside it"),
        ("{}", "no weight_map"),
        ("nonsense", "no weight_map"),
        ('{"weight_map":' + "[" * 100_000, "no weight_map"),
        (json.dumps({"weight_map": {"x": ["a"]}}), "no file beside it"),
    ):
        index.write_text(text)
        with pytest.raises(ValueError, match=message):
            tensors.read_folder(folder)
    with pytest.raises(ValueError, match="has no weights"):
        tensors.read_folder(tmp_path / "nowhere")


def test_an_index_is_believed_and_checked(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.safetensors", {name: about([1], [0, 4])}, bytes(4))
    index = tmp_path / "model.safetensors.index.json"
    true = {"a": "a.safetensors", "b": "b.safetensors"}
    index.write_text(json.dumps({"weight_map": true}))
    assert set(tensors.read_folder(tmp_path)) == {"a", "b"}
    for lie, message in (
        (true | {"c": "a.safetensors"}, "says that 'c' is in 'a.safetensors'"),
        ({"a": "b.safetensors", "b": "a.safetensors"}, "'a' .*'a.safetensors'"),
        ({"b": "b.safetensors", "c": "a.safetensors"}, "has no 'a' of 'a.safetensors'"),
    ):
        index.write_text(json.dumps({"weight_map": lie}))
        with pytest.raises(ValueError, match=message):
            tensors.read_folder(tmp_path)


def test_a_file_has_the_permissions_of_any_other_and_asks_nobody(tmp_path, monkeypatch):
    """`os.umask` tells by setting: files that other threads make meanwhile would be anyone's to write."""
    (tmp_path / "any").write_bytes(b"")
    monkeypatch.setattr(tensors.os, "umask", None)
    tensors.atomically(tmp_path / "model.safetensors", [b"1", b"2"])
    assert (tmp_path / "model.safetensors").read_bytes() == b"12"
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode

    def breaks():
        yield b"3"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tensors.atomically(tmp_path / "model.safetensors", breaks())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["any", "model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == b"12"
