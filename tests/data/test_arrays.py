import jax
import numpy as np
import pytest

from jaxnn.data import Arrays


def test_names_and_lengths():
    x, y, w = np.arange(12.0).reshape(6, 2), np.arange(6), np.ones(6)
    source = Arrays(x, y, weights=w)
    assert len(source) == 6
    assert list(source.take(np.array([0]))) == ["x", "y", "weights"]
    assert list(Arrays({"tokens": x}).arrays) == ["tokens"]
    assert list(Arrays([[1.0], [2.0]]).arrays) == ["x"]
    assert source.nbytes == 6 * (2 + 1 + 1) * 4
    assert "6 examples" in repr(source)
    assert "x=float32[6, 2]" in repr(source)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("float64", "float32"), ("int64", "int32"), ("uint64", "uint32"), ("complex128", "complex64")]
    + [(d, d) for d in ("uint8", "int8", "bool", "float16", "float32", "int32", "bfloat16")],
)
def test_dtypes_are_the_device_s(given, kept):
    array = np.array([[0], [1], [1]]).astype(given if given != "bfloat16" else jax.numpy.bfloat16)
    source = Arrays(array)
    assert source.arrays["x"].dtype.name == kept
    assert np.array_equal(source.arrays["x"].astype(np.complex128), array.astype(np.complex128))
    assert jax.device_put(source.arrays["x"]).dtype.name == kept


def test_float64_stays_where_x64_is_enabled():
    with jax.enable_x64(True):
        assert Arrays(np.ones((2, 1))).arrays["x"].dtype == np.float64


def test_take_is_fresh_and_in_order():
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    source = Arrays(x, np.arange(10))
    taken = source.take(np.array([7, 0, 7]))
    assert taken["y"].tolist() == [7, 0, 7]
    assert np.array_equal(taken["x"], x[[7, 0, 7]])
    taken["x"][:] = -1
    assert x.min() == 0


def test_resident_gives_the_same_examples():
    rng = np.random.default_rng(0)
    source = Arrays(
        rng.normal(size=(50, 3)), rng.integers(0, 9, 50), image=rng.integers(0, 255, (50, 2, 2), dtype=np.uint8)
    )
    index = rng.integers(0, 50, 16)
    resident = source.resident()
    device = jax.jit(resident.take)(resident.arrays, index.astype(np.int32))
    for name, array in source.take(index).items():
        assert device[name].dtype == array.dtype
        assert np.array_equal(device[name], array), name


def test_a_memory_mapped_array_stays_on_disk(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(40, dtype=np.float32).reshape(20, 2))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    source = Arrays(mapped)
    assert np.shares_memory(source.arrays["x"], mapped)
    assert source.take(np.array([3]))["x"].tolist() == [[6, 7]]


def test_split_and_slices_partition_the_examples():
    source = Arrays(np.arange(100), np.arange(100) * 2)
    first, second = source.split(0.8, seed=1)
    assert (len(first), len(second)) == (80, 20)
    assert sorted([*first.arrays["x"], *second.arrays["x"]]) == list(range(100))
    assert np.array_equal(first.arrays["y"], first.arrays["x"] * 2)
    assert np.array_equal(second.arrays["x"], source.split(0.8, seed=1)[1].arrays["x"])
    assert not np.array_equal(second.arrays["x"], source.split(0.8, seed=2)[1].arrays["x"])
    assert second.arrays["x"].max() > 30  # drawn, not cut off at the end
    assert second.arrays["x"].min() < 70
    assert len(source.split(np.float32(0.25))[0]) == 25  # a number as NumPy has it
    assert source[10:13].take(np.array([1]))["x"].tolist() == [11]
    assert len(source[-5:]) == 5


def test_nonfinite_values_are_named_and_can_be_allowed():
    x = np.zeros((3000, 2), np.float32)
    x[2100, 1] = np.nan
    x[2200, 0] = np.inf
    with pytest.raises(ValueError, match=r"'x' float32\[3000, 2\] has nan in example 2100"):
        Arrays(x)
    assert np.isnan(Arrays(x, allow_nonfinite=True).arrays["x"]).sum() == 1
    assert np.isinf(Arrays(x.astype(np.float64), allow_nonfinite=True).arrays["x"]).sum() == 1


def test_the_first_bad_example_is_found_in_any_block(monkeypatch):
    monkeypatch.setattr("jaxnn.data.arrays._BLOCK_BYTES", 64)
    x = np.zeros((100, 4), np.float32)
    for bad in (0, 3, 4, 99):
        x[:] = 0
        x[bad:, 2] = np.nan
        with pytest.raises(ValueError, match=f"example {bad}\\."):
            Arrays(x)


RECORDS = np.zeros(3, [("a", "f4")])
BAD = [
    (lambda: Arrays(None), ValueError, "no arrays"),
    (lambda: Arrays({}), ValueError, "no arrays"),
    (lambda: Arrays(np.ones((4, 2)), np.ones(5)), ValueError, r"'x' has 4 examples .* and 'y' has 5 \(float32\[5\]\)"),
    (lambda: Arrays(np.ones((0, 3)), np.ones(0)), ValueError, r"'x' float32\[0, 3\] has no examples"),
    (lambda: Arrays(np.ones(3), np.array([1, None, 2])), TypeError, r"'y' object\[3\] holds Python objects"),
    (lambda: Arrays([[1], [2, 3]]), ValueError, "'x' of type list is no array.*Pad ragged"),
    (lambda: Arrays(np.ones(2), ["cat", "dog"]), TypeError, "'y' .* holds text.*return_inverse"),
    (lambda: Arrays(np.array(["2024-01-01"], "M8[D]")), TypeError, "a dtype that no device has"),
    (lambda: Arrays(RECORDS), TypeError, "a dtype that no device has"),
    (lambda: Arrays(np.ones(2), np.float32(3)), ValueError, "'y' .* is a scalar"),
    (lambda: Arrays(np.ones(2), mask=np.ones(2)), ValueError, "the name 'mask' is reserved"),
    (lambda: Arrays({"index": np.ones(2)}), ValueError, "the name 'index' is reserved"),
    (lambda: Arrays({"x": np.ones(2)}, np.ones(2)), ValueError, "a mapping with names .* and a second array"),
    (lambda: Arrays({"x": np.ones(2)}, x=np.ones(2)), ValueError, "'x' is given twice"),
    (lambda: Arrays({1: np.ones(2)}), TypeError, "the name 1 is not text"),
    (lambda: Arrays(np.ma.masked_array([1.0, 2.0], [0, 1])), TypeError, "a masked array"),
    (lambda: Arrays(np.array([0, 2**31])), ValueError, "has 2147483648 in example 1, out of the range of int32"),
    (lambda: Arrays(np.array([0, -(2**31) - 1])), ValueError, "-2147483649 in example 1"),
    (lambda: Arrays(np.array([0, 2**32], np.uint64)), ValueError, "out of the range of uint32"),
    (lambda: Arrays(np.array([1.0, -1e39])), ValueError, r"-1e\+39 in example 1, out of the range of float32"),
    (lambda: Arrays(np.arange(3))[1], TypeError, "index 1"),
    (lambda: Arrays(np.arange(3))[5:], ValueError, "selects none of 3 examples"),
    (lambda: Arrays(np.arange(3)).split(0.1), ValueError, "fraction 0.1 of 3 examples gives 0 and 3"),
    (lambda: Arrays(np.arange(3)).split(1.0), ValueError, "fraction 1.0 of 3 examples gives 3 and 0"),
]


@pytest.mark.parametrize(("call", "error", "text"), BAD, ids=[b[2][:30] for b in BAD])
def test_bad_input(call, error, text, count_compiles):
    with count_compiles() as seen, pytest.raises(error, match=text) as raised:
        call()
    assert str(raised.value).startswith("data.Arrays")
    assert seen.compiles == []
