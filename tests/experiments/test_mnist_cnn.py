"""The convolutional network: a few steps on a few real digits, what it shows of them, and data that is missing."""

import gzip

import numpy as np
import pytest

from experiments import mnist_cnn
from jaxnn import data


def few(count):
    """Some real digits of every class."""
    return lambda source: tuple(
        data.Arrays(data.digits(part).take(np.linspace(0, n - 1, count).astype(int)))
        for part, n in (("train", 4000), ("test", 1000))
    )


def test_a_few_steps(monkeypatch, tmp_path):
    monkeypatch.setattr(mnist_cnn, "images", few(100))
    result = mnist_cnn.main(mnist_cnn.Config(epochs=4, batch=20, out=str(tmp_path / "run")))
    assert 0.2 < result["accuracy"] < 1
    page = (tmp_path / "run" / "report.html").read_text()
    wrong = round(100 * (1 - result["accuracy"]))
    assert f"{wrong} of 100 are wrong" in page
    assert page.count(", not ") == min(16, wrong)


def test_idx_files_are_read(tmp_path):
    for stem, array in (("images-idx3", np.arange(2 * 784) % 256), ("labels-idx1", np.array([3, 4]))):
        shape = [2, 28, 28] if "images" in stem else [2]
        header = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
        for part in ("train", "t10k"):
            content = gzip.compress(header + array.astype(np.uint8).tobytes())
            (tmp_path / f"{part}-{stem}-ubyte.gz").write_bytes(content)
    setup = mnist_cnn.build(mnist_cnn.Config(data=str(tmp_path)))
    assert setup.data.arrays["y"].tolist() == [3, 4]
    assert setup.validation.arrays["x"][0, 9, 4, 0] == np.float32((9 * 28 + 4) % 256 / 255)


def test_missing_data_is_told_in_a_line():
    with pytest.raises(ValueError, match=r"^data\.mnist: .*no train-images file.*make data"):
        mnist_cnn.build(mnist_cnn.Config(data="no/such/folder"))
