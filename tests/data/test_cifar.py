"""CIFAR's binary files: what a record holds, and files that are not what they should be."""

import numpy as np
import pytest

from jaxnn import data


def record(label, seed=0):
    """A label's bytes and an image [3, 32, 32], as a file has them."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 32, 32), np.uint8)
    return bytes(label) + pixels.tobytes(), pixels


def write(folder, classes=10, count=2):
    """A folder of the published names."""
    kept = {}
    train, test = [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]
    for i, name in enumerate([*train, *test] if classes == 10 else ["train.bin", "test.bin"]):
        made = [record([(i + j) % 10] if classes == 10 else [9, 90 + i + j], 10 * i + j) for j in range(count)]
        (folder / name).write_bytes(b"".join(content for content, _ in made))
        kept[name] = [pixels for _, pixels in made]
    return kept


def test_pixels_and_labels(tmp_path):
    kept = write(tmp_path)
    assert data.is_cifar(tmp_path)
    train, test = data.cifar(tmp_path), data.cifar(tmp_path, "test")
    assert train.arrays["x"].shape == (10, 32, 32, 3)
    assert train.arrays["y"].tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert test.arrays["y"].tolist() == [5, 6]
    red, green, _ = kept["data_batch_2.bin"][1]
    np.testing.assert_array_equal(train.arrays["x"][3, :, :, 0], red / np.float32(255))
    np.testing.assert_array_equal(train.arrays["x"][3, :, :, 1], green / np.float32(255))


def test_a_hundred_classes_have_two_label_bytes(tmp_path):
    write(tmp_path, classes=100)
    (tmp_path / "fine_label_names.txt").write_text("apple\naquarium_fish\n")
    assert data.cifar(tmp_path).arrays["y"].tolist() == [90, 91]
    assert data.cifar_names(tmp_path) == ["apple", "aquarium_fish"]


def test_bad_files_are_told(tmp_path):
    write(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        ValueError, match=r"data_batch_3\.bin' has 6145 bytes: 1 records of 3073 and 3072 more.*truncated"
    ):
        data.cifar(tmp_path)
    path.write_bytes(b"\x0b" + whole[1:])
    with pytest.raises(ValueError, match=r"label 11 in record 0.*CIFAR-100"):
        data.cifar(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="has 0 bytes"):
        data.cifar(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"has no data_batch_3\.bin"):
        data.cifar(tmp_path)
    with pytest.raises(ValueError, match=r"no test_batch\.bin and no test\.bin.*Unpack"):
        data.cifar(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="split is 'valid'"):
        data.cifar(tmp_path, "valid")
    assert not data.is_cifar(tmp_path / "nowhere")
