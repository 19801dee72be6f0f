import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageFile

from jaxnn.data import ImageFiles, ImageFolder, image_files


def save(path, array, mode=None, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **kwargs)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    save(tmp_path / "dog" / "b.png", rng.integers(0, 255, (6, 4, 3), dtype=np.uint8))
    save(tmp_path / "dog" / "a.png", rng.integers(0, 255, (12, 8, 3), dtype=np.uint8))
    save(tmp_path / "cat" / "c.PNG", rng.integers(0, 255, (6, 4), dtype=np.uint8))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "._c.png").write_text("what another system keeps beside a file")
    (tmp_path / "dog" / ".thumbs").mkdir()
    (tmp_path / "dog" / ".thumbs" / "a.png").write_text("hidden")
    (tmp_path / "README").write_text("no class")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_classes_and_pixels(root):
    source = ImageFolder(root, (6, 4))
    assert source.classes == ["cat", "dog"]
    assert [f.name for f in source.files] == ["c.PNG", "a.png", "b.png"]
    assert [f.name for f in source.skipped] == ["README", "notes.txt"]  # one beside the class folders, one in one
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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_camera_s_orientation_is_followed(tmp_path, dtype):
    image = np.zeros((4, 8, 3) if dtype == np.uint8 else (4, 8), dtype)
    image[:, :4] = np.iinfo(dtype).max
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to see it upright
    save(tmp_path / "a" / "x.png", image, exif=exif)
    x = ImageFolder(tmp_path, (8, 4)).take(np.array([0]))["x"][0]
    assert (x[:4] == 1).all()
    assert (x[4:] == 0).all()


def test_a_broken_orientation_is_none(tmp_path):
    image = noise(6, 4, 3)
    save(tmp_path / "a" / "x.png", image, exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    np.testing.assert_allclose(ImageFolder(tmp_path, (6, 4)).take(np.array([0]))["x"][0] * 255, image, atol=1e-3)


# Kinds of images


def only(tmp_path, array, name="x.png", mode=None, channels=3, **kwargs):
    save(tmp_path / "a" / name, array, mode, **kwargs)
    return ImageFolder(tmp_path, array.shape[:2], channels).take(np.array([0]))["x"][0]


def test_16_bit_grey_is_scaled_and_not_cut_off(tmp_path):
    wide = np.linspace(0, 65535, 24).astype(np.uint16).reshape(6, 4)
    x = only(tmp_path, wide, channels=1)
    np.testing.assert_allclose(x[..., 0], wide / 65535, atol=0.51 / 255)


def test_transparency_lies_on_white_or_is_a_channel(tmp_path):
    image = noise(6, 4, 4)
    image[..., 3] = np.arange(24).reshape(6, 4) * 11
    alpha = image[..., 3:] / 255
    x = only(tmp_path, image)
    np.testing.assert_allclose(x, image[..., :3] / 255 * alpha + (1 - alpha), atol=1.01 / 255)
    x = ImageFolder(tmp_path, (6, 4), 4).take(np.array([0]))["x"][0]
    np.testing.assert_allclose(x, image / 255, atol=1e-6)


def test_grey_with_alpha_and_a_palette_with_a_transparent_entry(tmp_path):
    image = np.stack([np.full((6, 4), 100, np.uint8), np.full((6, 4), 0, np.uint8)], -1)
    assert (only(tmp_path / "la", image) == 1).all()
    flat = np.zeros((6, 4, 3), np.uint8)
    flat[:3] = (200, 0, 0)
    palette = Image.fromarray(flat).convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    index = palette.getpixel((0, 5))
    (tmp_path / "p" / "a").mkdir(parents=True)
    palette.save(tmp_path / "p" / "a" / "x.png", transparency=index)
    x = ImageFolder(tmp_path / "p", (6, 4)).take(np.array([0]))["x"][0]
    np.testing.assert_allclose(x[:3] * 255, flat[:3], atol=1e-3)
    assert (x[3:] == 1).all()


@pytest.mark.parametrize(
    ("mode", "name", "tolerance"),
    [("P", "x.png", 60), ("CMYK", "x.tiff", 1), ("1", "x.png", 0), ("L", "x.jpg", 8), ("YCbCr", "x.tiff", 3)],
)
def test_every_usual_mode_becomes_colour(tmp_path, mode, name, tolerance):
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 255 if mode in ("1", "L") else (200, 100, 50)
    x = only(tmp_path, image, name, mode)
    assert x.shape == (8, 8, 3)
    np.testing.assert_allclose(x * 255, image, atol=tolerance + 1e-3)


def test_a_cmyk_jpeg_and_the_first_picture_of_an_animation(tmp_path):
    image = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    x = only(tmp_path / "c", image, "x.jpg", "CMYK", quality=95)
    np.testing.assert_allclose(x * 255, image, atol=6)
    frames = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (0, 255)]
    (tmp_path / "g" / "a").mkdir(parents=True)
    frames[0].save(tmp_path / "g" / "a" / "x.gif", save_all=True, append_images=frames[1:])
    assert (ImageFolder(tmp_path / "g", (8, 8)).take(np.array([0]))["x"] == 0).all()


def test_images_of_any_size_make_one_batch(tmp_path):
    for i, shape in enumerate([(1, 1), (3, 50), (50, 3), (64, 64)]):
        save(tmp_path / "a" / f"{i}.png", noise(*shape, 3))
    assert ImageFolder(tmp_path, (8, 6)).take(np.arange(4))["x"].shape == (4, 8, 6, 3)


# What is refused


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
    with pytest.raises(ValueError, match=r"class folder .*eel' \(empty\) has no images"):
        ImageFolder(root, (4, 4))
    (root / "eel" / "a.heic").write_bytes(b"")
    (root / "eel" / "a.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"class folder .*eel' \(only \.heic, \.txt\) has no images"):
        ImageFolder(root, (4, 4))
    (root / "eel" / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"eel/broken.jpg' \(no image, whatever its name says\)\. Tried: Pillow"):
        ImageFolder(root, (4, 4))


def test_all_bad_files_are_told_at_once(root):
    whole = (root / "dog" / "a.png").read_bytes()
    (root / "cat" / "a.jpg").write_bytes(b"")
    (root / "cat" / "b.png").write_bytes(whole[:-40])
    (root / "cat" / "d.png").write_bytes(b"<html>not found</html>")
    (root / "cat" / "e.png").symlink_to("nowhere")
    save(root / "cat" / "f.jpg", noise(64, 64, 3))
    (root / "cat" / "f.jpg").write_bytes((root / "cat" / "f.jpg").read_bytes()[:-400])
    Image.fromarray(np.zeros((2, 2), np.float32)).save(root / "cat" / "g.tif")
    said = r"6 files of 9 cannot be read as an image: .*cat/a\.jpg' \(empty\), .*cat/b\.png' \(.*truncated.*\), "
    with pytest.raises(ValueError, match=said + r".*cat/d\.png' \(no image, .*\) and 3 more\. Tried: Pillow"):
        ImageFolder(root, (4, 4))
    assert image_files.trouble(root / "cat" / "e.png") == "a link to nowhere"
    assert "truncated" in image_files.trouble(root / "cat" / "f.jpg")
    assert image_files.trouble(root / "cat" / "g.tif") == "pixels of mode F, of no known range"


def test_what_a_camera_puts_after_an_image_is_no_damage(tmp_path):
    save(tmp_path / "a" / "x.jpg", noise(16, 16, 3))
    with open(tmp_path / "a" / "x.jpg", "ab") as file:
        file.write(bytes(2**17))  # as long as the tail that is looked at, and longer
    assert len(ImageFolder(tmp_path, (4, 4))) == 1


def test_whole_files_are_not_decoded_before_they_are_taken(root, monkeypatch):
    save(root / "cat" / "x.jpg", noise(16, 16, 3))
    decoded, load = [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: [decoded.append(self.filename), load(self)][1])
    source = ImageFolder(root, (4, 4))
    assert decoded == []
    source.take(np.array([1]))
    assert str(root / "cat" / "x.jpg") in decoded


def test_a_file_without_permission_is_told(root, monkeypatch):
    real = Image.open

    def refused(path, *args, **kwargs):
        if str(path).endswith("b.png"):
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Image, "open", refused)
    with pytest.raises(ValueError, match=r"1 file of 3 .*dog/b\.png' \(no permission to read it\)"):
        ImageFolder(root, (4, 4))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_told(root):
    (root / "dog").chmod(0)
    try:
        with pytest.raises(ValueError, match=r"dog' cannot be listed \(Permission denied\)"):
            ImageFolder(root, (4, 4))
    finally:
        (root / "dog").chmod(0o755)


def test_names_that_differ_in_case_and_parts_of_a_data_set(root, tmp_path_factory):
    save(root / "Dog" / "a.png", noise(4, 4, 3))
    if sorted(f.name for f in root.iterdir() if f.is_dir()).count("Dog"):  # where the file system tells them apart
        with pytest.raises(ValueError, match=r"differ only in case: 'Dog' and 'dog'\. Tried: one class a folder"):
            ImageFolder(root, (4, 4))
    parts = tmp_path_factory.mktemp("parts")
    for part in ("train", "val"):
        save(parts / part / "cat" / "a.png", noise(4, 4, 3))
    with pytest.raises(ValueError, match=r"holds parts of a data set \(train, val\), not classes.*parts.*/train', "):
        ImageFolder(parts, (4, 4))


def test_a_file_damaged_after_the_look_is_named_when_it_is_taken(root):
    source = ImageFolder(root, (4, 4))
    file = root / "dog" / "a.png"
    file.write_bytes(file.read_bytes()[:-120])
    with pytest.raises(ValueError, match=r"dog/a.png' cannot be read as an image \(.*\)\. Tried: decoding it, after"):
        source.take(np.array([1]))


# Parts, other folders, files without labels


@pytest.fixture
def many(tmp_path):
    for name, count in (("cat", 10), ("dog", 2), ("eel", 5)):
        for i in range(count):
            save(tmp_path / name / f"{i}.png", noise(4, 4, 3))
    return tmp_path


def test_a_split_parts_each_class_and_depends_on_the_seed_alone(many):
    source = ImageFolder(many, (4, 4))
    first, second = source.split(0.8)
    assert np.bincount(first.labels).tolist() == [8, 1, 4]
    assert np.bincount(second.labels).tolist() == [2, 1, 1]
    assert sorted([*first.files, *second.files]) == source.files
    assert first.files == sorted(first.files)
    assert [f.parent.name for f in second.files] == [source.classes[label] for label in second.labels]
    assert second.classes == source.classes
    assert second.take(np.array([0]))["y"].tolist() == [0]
    assert source.split(0.8)[0].files == first.files
    assert source.split(0.8, seed=1)[0].files != first.files


def test_a_class_of_one_image_loads_and_cannot_be_split(many):
    save(many / "ant" / "a.png", noise(4, 4, 3))
    source = ImageFolder(many, (4, 4))
    assert len(source) == 18
    with pytest.raises(ValueError, match=r"split: 'ant' of 4 classes has one image, which cannot be in both parts"):
        source.split(0.5)
    with pytest.raises(ValueError, match=r"split: fraction is 1\. Tried"):
        source.split(1)


def test_validation_data_is_numbered_as_the_training_data(many, tmp_path_factory):
    other = tmp_path_factory.mktemp("val")
    save(other / "eel" / "a.png", noise(4, 4, 3))
    save(other / "cat" / "a.png", noise(4, 4, 3))
    classes = ImageFolder(many, (4, 4)).classes
    with pytest.raises(ValueError, match=r"'dog' has no folder in .*Give the same classes to every part"):
        ImageFolder(other, (4, 4), classes=classes)
    save(other / "dog" / "a.png", noise(4, 4, 3))
    assert ImageFolder(other, (4, 4), classes=["eel", "dog", "cat"]).labels.tolist() == [0, 1, 2]
    save(other / "egl" / "a.png", noise(4, 4, 3))
    with pytest.raises(ValueError, match=r"'egl' is no class in .*Did you mean 'eel'\?"):
        ImageFolder(other, (4, 4), classes=classes)


def test_files_without_labels_keep_their_order(root):
    files = [root / "dog" / "b.png", root / "cat" / "c.PNG"]
    source = ImageFiles(files, (6, 4))
    batch = source.take(np.arange(2))
    assert list(batch) == ["x"]
    both = ImageFolder(root, (6, 4)).take(np.array([2, 0]))["x"]
    np.testing.assert_array_equal(batch["x"], both)
    assert [f.name for f in ImageFiles(root / "dog", (6, 4)).files] == ["a.png", "b.png"]
    assert repr(source) == "ImageFiles(2 images, (6, 4, 3))"
    with pytest.raises(ValueError, match=r"data\.ImageFiles: 1 file of 1 .*none\.png' \(not there\)"):
        ImageFiles([root / "none.png"], (4, 4))
    with pytest.raises(ValueError, match=r"data\.ImageFiles: no images in "):
        ImageFiles([], (4, 4))
    with pytest.raises(ValueError, match=r"data\.ImageFiles: .*none' is no folder"):
        ImageFiles(root / "none", (4, 4))


def test_pillow_loads_only_when_it_is_needed():
    code = "import sys, jaxnn.data; print('PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
