"""Resizing against Pillow, random crops against their definition, and what does not depend on the batch."""

import numpy as np
import pytest
from PIL import Image

from jaxnn import data
from jaxnn.data import order
from jaxnn.data.image_transforms import resize_matrix

FILTERS = {"box": Image.Resampling.BOX, "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.mark.parametrize("before_after", [((28, 28), (14, 14)), ((28, 31), (12, 9)), ((20, 17), (33, 40))])
@pytest.mark.parametrize("name", FILTERS)
def test_resize_is_pillows(name, before_after):
    (h, w), (height, width) = before_after
    x = np.random.default_rng(0).random((2, h, w, 1), np.float32)
    given = data.resize((height, width), name)({"x": x, "y": np.arange(2)})
    for picture, made in zip(x, given["x"], strict=True):
        kept = np.asarray(Image.fromarray(picture[..., 0]).resize((width, height), FILTERS[name]))
        np.testing.assert_allclose(made[..., 0], kept, atol=1e-6)
    assert given["y"].tolist() == [0, 1]


def test_bytes_stay_bytes_as_pillows():
    x = np.random.default_rng(0).integers(0, 256, (1, 40, 30, 3), np.uint8)
    made = data.resize((11, 13), "bicubic")({"x": x})["x"]
    kept = np.asarray(Image.fromarray(x[0]).resize((13, 11), FILTERS["bicubic"]))
    # Pillow rounds after each of the two directions.
    assert made.dtype == np.uint8
    assert np.abs(made[0].astype(int) - kept).max() <= 1


def test_a_part_is_pillows_box():
    x = np.random.default_rng(0).random((1, 24, 30, 1), np.float32)
    rows, columns = resize_matrix(3, 10, 24, 8), resize_matrix(5, 21, 30, 8)
    kept = np.asarray(Image.fromarray(x[0, ..., 0]).crop((5, 3, 26, 13)).resize((8, 8), FILTERS["bilinear"]))
    np.testing.assert_allclose(rows @ x[0, ..., 0] @ columns.T, kept, atol=1e-6)


def test_random_resized_crops_do_not_depend_on_the_batch_and_change_by_step():
    x = np.random.default_rng(0).random((8, 20, 24, 3), np.float32)
    source = data.mapped(data.Arrays(x), data.random_resized_crop((12, 10)), random=True, seed=3)
    whole = source.take(np.arange(8), step=5)["x"]
    assert whole.shape == (8, 12, 10, 3)
    np.testing.assert_array_equal(source.take(np.array([6, 1]), step=5)["x"], whole[[6, 1]])
    assert np.abs(source.take(np.arange(8), step=6)["x"] - whole).max() > 0.1
    assert whole.min() >= x.min()
    assert whole.max() <= x.max()


def test_random_resized_crops_have_the_areas_and_proportions_asked_for():
    # Images whose value is the row (the column): what a crop spans can be read from it.
    n, side = 2000, 64
    at = np.broadcast_to(np.arange(side, dtype=np.float32), (n, side, side))
    x = np.stack([np.swapaxes(at, 1, 2), at], axis=-1)
    crop = data.random_resized_crop((32, 32), area=(0.2, 0.6), filter="box")
    made = crop({"x": x}, order.words(0, 0, np.arange(n)))["x"]
    tall = (made[:, -1, 0, 0] - made[:, 0, 0, 0]) * 32 / 31
    broad = np.abs(made[:, 0, -1, 1] - made[:, 0, 0, 1]) * 32 / 31
    share = tall * broad / side**2
    assert share.min() > 0.17
    assert share.max() < 0.65
    assert abs(share.mean() - 0.4) < 0.02
    assert abs(np.log(broad / tall).mean()) < 0.02
    mirrored = (made[:, 0, -1, 1] < made[:, 0, 0, 1]).mean()
    assert 0.45 < mirrored < 0.55


def test_the_whole_image_in_its_own_size_is_itself():
    x = np.random.default_rng(0).random((3, 9, 9, 2), np.float32)
    same = data.random_resized_crop((9, 9), area=(1.0, 1.0), ratio=(1.0, 1.0), flip=False)
    np.testing.assert_allclose(same({"x": x}, order.words(0, 0, np.arange(3)))["x"], x, atol=1e-6)


def test_bad_settings_are_told():
    with pytest.raises(ValueError, match=r"data\.resize: size"):
        data.resize((0, 4))
    with pytest.raises(ValueError, match=r"filter='cubic'.*bicubic"):
        data.resize((4, 4), "cubic")
    with pytest.raises(ValueError, match=r"data\.random_resized_crop: area"):
        data.random_resized_crop((4, 4), area=(0.5, 0.2))
    with pytest.raises(ValueError, match=r"'x' float32\[3, 4, 4\].*one channel"):
        data.resize((2, 2))({"x": np.zeros((3, 4, 4), np.float32)})
