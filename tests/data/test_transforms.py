import jax
import numpy as np
import pytest

from jaxnn.data import Arrays, mapped, normalize, one_hot, random_crop_flip

RNG = np.random.default_rng(0)
IMAGES = Arrays(RNG.integers(1, 255, (30, 6, 5, 3), dtype=np.uint8), RNG.integers(0, 4, 30))
INDEX = np.array([3, 29, 3, 0])


def test_normalize_matches_float64():
    mean, std = [10.0, 100.0, 250.0], [3.0, 5.0, 70.0]
    source = mapped(IMAGES, normalize(mean, std))
    taken = source.take(INDEX)
    expected = (IMAGES.arrays["x"][INDEX].astype(np.float64) - mean) / std
    assert taken["x"].dtype == np.float32
    np.testing.assert_allclose(taken["x"], expected, rtol=1e-6, atol=1e-6)
    assert taken["y"].tolist() == IMAGES.arrays["y"][INDEX].tolist()
    assert len(source) == 30


def test_one_hot():
    taken = mapped(IMAGES, one_hot(4)).take(INDEX)
    assert taken["y"].dtype == np.float32
    assert np.array_equal(taken["y"], np.eye(4)[IMAGES.arrays["y"][INDEX]])


def test_a_pure_transform_can_be_resident(monkeypatch):
    monkeypatch.setattr("jaxnn.data.transforms._BLOCK", 7)
    source = mapped(mapped(IMAGES, normalize(1, 2)), one_hot(4))
    resident = source.resident()
    device = jax.jit(resident.take)(resident.arrays, INDEX.astype(np.int32))
    for name, array in source.take(INDEX).items():
        assert np.array_equal(device[name], array), name
    assert mapped(IMAGES, random_crop_flip(), random=True).resident() is None


def test_random_transforms_depend_on_seed_step_and_example_only():
    source = mapped(IMAGES, random_crop_flip(2), random=True)
    at_1 = source.take(INDEX, step=1)["x"]
    assert np.array_equal(at_1[::-1], source.take(INDEX[::-1], step=1)["x"])
    assert np.array_equal(at_1[0], at_1[2])  # the same example twice
    assert not np.array_equal(at_1, source.take(INDEX, step=2)["x"])
    assert not np.array_equal(at_1, mapped(IMAGES, random_crop_flip(2), random=True, seed=1).take(INDEX, step=1)["x"])
    over = mapped(source, normalize(0, 1))  # an outer transform hands the step on
    assert over.takes_step
    assert over.resident() is None
    assert np.array_equal(over.take(INDEX, step=1)["x"], at_1)


def test_crops_are_all_shifts_and_both_mirrors():
    pad = 1
    image = IMAGES.arrays["x"][0]
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    shifts = [padded[i : i + 6, j : j + 5] for i in range(3) for j in range(3)]
    variants = {v.tobytes(): 0 for s in shifts for v in (s, s[:, ::-1])}
    assert len(variants) == 18
    source = mapped(IMAGES[:1], random_crop_flip(pad), random=True)
    for step in range(900):
        variants[source.take(np.array([0]), step=step)["x"].tobytes()] += 1
    assert min(variants.values()) > 20
    assert max(variants.values()) < 90
    plain = mapped(IMAGES, random_crop_flip(0, flip=False), random=True)
    assert np.array_equal(plain.take(INDEX, step=3)["x"], IMAGES.arrays["x"][INDEX])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: mapped(IMAGES, 3), TypeError, "data.mapped: fn is 3"),
        (
            lambda: mapped(IMAGES, lambda e: e["x"]).take(INDEX),
            TypeError,
            r"the function gave ndarray for \['x', 'y'\]",
        ),
        (
            lambda: mapped(IMAGES, lambda e: {"x": e["x"][:2]}).take(INDEX),
            ValueError,
            "gave 'x' uint8.* for 4 examples",
        ),
        (lambda: normalize(0, 0), ValueError, "data.normalize: mean 0 and std 0"),
        (lambda: normalize(np.nan, 1), ValueError, "data.normalize: mean nan"),
        (lambda: one_hot(0), ValueError, "data.one_hot: 0 classes"),
        (lambda: mapped(IMAGES, one_hot(2)).take(np.arange(30)), ValueError, "data.one_hot: ids from 0 to 3 for 2"),
        (lambda: random_crop_flip(-1), ValueError, "data.random_crop_flip: pad is -1"),
        (
            lambda: mapped(Arrays(np.ones((3, 4))), random_crop_flip(), random=True).take(np.array([0])),
            ValueError,
            r"'x' float32\[1, 4\]",
        ),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text):
        call()
