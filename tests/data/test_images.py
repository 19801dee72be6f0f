import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxnn.data import ImageFolder


def save(path, array, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **kwargs)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    save(tmp_path / "dog" / "b.png", rng.integers(0, 255, (6, 4, 3), dtype=np.uint8))
    save(tmp_path / "dog" / "a.png", rng.integers(0, 255, (12, 8, 3), dtype=np.uint8))
    save(tmp_path / "cat" / "c.PNG", rng.integers(0, 255, (6, 4), dtype=np.uint8))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "README").write_text("no class")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_classes_and_pixels(root):
    source = ImageFolder(root, (6, 4))
    assert source.classes == ["cat", "dog"]
    assert [f.name for f in source.files] == ["c.PNG", "a.png", "b.png"]
    assert len(source) == 3
    batch = source.take(np.array([2, 0, 1]))
    assert batch["y"].tolist() == [1, 0, 1]
    assert batch["y"].dtype == np.int32
    assert batch["x"].shape == (3, 6, 4, 3)
    assert batch["x"].dtype == np.float32
    # An image of the right size keeps its pixels; a grey one has them in every channel.
    np.testing.assert_allclose(batch["x"][0], np.asarray(Image.open(root / "dog" / "b.png")) / 255, rtol=1e-6)
    grey = np.asarray(Image.open(root / "cat" / "c.PNG")) / 255
    np.testing.assert_allclose(batch["x"][1], np.repeat(grey[..., None], 3, -1), rtol=1e-6)
    assert np.array_equal(batch["x"], source.take(np.array([2, 0, 1]))["x"])
    assert source.resident() is None
    assert "3 images of 2 classes" in repr(source)


@pytest.mark.parametrize("channels", [1, 4])
def test_channels(root, channels):
    assert ImageFolder(root, (6, 4), channels).take(np.array([1]))["x"].shape == (1, 6, 4, channels)


def test_resizing_crops_the_centre(tmp_path):
    image = np.zeros((8, 24, 3), np.uint8)
    image[:, 8:16] = 255
    save(tmp_path / "a" / "x.png", image)
    x = ImageFolder(tmp_path, (4, 4)).take(np.array([0]))["x"][0]
    # The filter reaches a little past the crop; without one the outer columns would be black.
    assert (x[:, 1:3] == 1).all()
    assert x.min() > 0.8


def test_the_camera_s_orientation_is_followed(tmp_path):
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    save(tmp_path / "a" / "x.png", image, exif=exif)
    x = ImageFolder(tmp_path, (8, 4)).take(np.array([0]))["x"][0]
    assert (x[:4] == 1).all()
    assert (x[4:] == 0).all()


def test_bad_folders(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    with pytest.raises(ValueError, match="nowhere' is no folder"):
        ImageFolder(root / "nowhere", (4, 4))
    with pytest.raises(ValueError, match=r"has no class folders. Tried: .*/CLASS/IMAGE"):
        ImageFolder(other, (4, 4))
    with pytest.raises(ValueError, match=r"size is \(0, 4\)"):
        ImageFolder(root, (0, 4))
    with pytest.raises(ValueError, match="2 channels"):
        ImageFolder(root, (4, 4), channels=2)
    (root / "eel").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*eel' has no images"):
        ImageFolder(root, (4, 4))
    (root / "eel" / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"eel/broken.jpg' cannot be read as an image"):
        ImageFolder(root, (4, 4))


def test_an_image_cut_short_is_named_when_it_is_taken(root):
    file = root / "dog" / "a.png"
    file.write_bytes(file.read_bytes()[:-120])
    source = ImageFolder(root, (4, 4))
    with pytest.raises(ValueError, match=r"dog/a.png' cannot be read as an image"):
        source.take(np.array([1]))


def test_pillow_loads_only_when_it_is_needed():
    code = "import sys, jaxnn.data; print('PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
