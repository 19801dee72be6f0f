"""The image classifier: a few steps on a few real digits with a first pass over halves, other data, other networks."""

import numpy as np
import pytest
from PIL import Image

from experiments import image_classifier
from jaxnn import data


def few(source, size):
    """Some real digits of every class."""
    parts = [
        data.Arrays(data.digits(part).take(np.linspace(0, n - 1, 40).astype(int)))
        for part, n in (("train", 4000), ("test", 1000))
    ]
    return (*parts, [str(i) for i in range(10)])


def test_a_few_steps_over_halves_then_wholes(monkeypatch, tmp_path):
    monkeypatch.setattr(image_classifier, "images", few)
    network = lambda name, shape, classes, side: image_classifier.models.ResNet(  # noqa: E731
        image_classifier.models.ResNetConfig(stages=(1,), widths=(4,), channels=1, form="lax")
    )
    monkeypatch.setattr(image_classifier, "network", network)
    cfg = image_classifier.Config(epochs=1, half_epochs=1, batch=20, mix=0.2, out=str(tmp_path / "run"))
    result = image_classifier.main(cfg)
    assert 0 <= result["accuracy"] <= 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{round(40 * (1 - result['accuracy']))} of 40 are wrong" in page
    assert "Confusion" in page
    card = (tmp_path / "run" / "card.md").read_text()
    assert "| begun from | run-half, 2 steps, " in card
    assert ", cropped, random), normalized), alpha=0.2) |" in card
    assert "lambda" not in card
    assert all(name in card for name in ("(card_held_out_images.png)", "(card_confusion.png)"))


def test_halves_are_half_the_size_and_targets_soft_where_mixed(monkeypatch):
    monkeypatch.setattr(image_classifier, "images", few)
    cfg = image_classifier.Config(mix=0.2, half_epochs=1)
    learned, held_out, shape = image_classifier.changed(cfg, half=True)
    assert shape == (14, 14, 1)
    made = learned.take(np.arange(3), step=0)
    assert made["x"].shape == (3, 14, 14, 1)
    assert made["y"].shape == held_out.take(np.arange(3))["y"].shape == (3, 10)


def test_folders_of_images_are_read_in_the_order_of_the_training_classes(tmp_path):
    for part in ("train", "val"):
        for name, value in (("dark", 10), ("light", 200)):
            (tmp_path / part / name).mkdir(parents=True)
            Image.fromarray(np.full((9, 12, 3), value, np.uint8)).save(tmp_path / part / name / "0.png")
    examples, held_out, names = image_classifier.images(str(tmp_path), 8)
    assert names == ["dark", "light"]
    assert examples.take(np.array([0, 1]))["x"].shape == (2, 8, 8, 3)
    assert held_out.take(np.array([1]))["y"].tolist() == [1]


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "vgg13_bn", "inception", "vit_mini", "vit_tiny"])
def test_networks_take_small_grey_images(name):
    import jax

    model = image_classifier.network(name, (28, 28, 1), 10, 28)
    x = jax.ShapeDtypeStruct((1, 28, 28, 1), np.float32)
    out = jax.eval_shape(lambda k, x: model.init_with_output(k, x)[0], jax.random.key(0), x)
    assert out.shape == (1, 10)


def test_inceptions_stem_goes_by_the_size_of_whole_images(monkeypatch):
    stem = lambda side, whole: image_classifier.network("inception", (side, side, 1), 10, whole).config.stem  # noqa: E731
    assert [stem(28, 28), stem(74, 74), stem(75, 75), stem(40, 80)] == ["small", "small", "imagenet", "imagenet"]
    sides = []
    monkeypatch.setattr(image_classifier, "images", few)
    monkeypatch.setattr(image_classifier, "network", lambda name, shape, classes, side: sides.append((shape, side)))
    monkeypatch.setattr(image_classifier.train, "supervised", lambda *args: None)
    image_classifier.build(image_classifier.Config(model="inception", half_epochs=1), half=True)
    assert sides == [((14, 14, 1), 28)]


def test_fewer_images_than_a_batch_make_a_step(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / part / name / "0.png")
    setup = image_classifier.build(image_classifier.Config(data=str(tmp_path), size=8, epochs=1))
    assert (len(setup.data), len(setup.validation)) == (2, 2)


def test_missing_data_is_told_in_a_line():
    with pytest.raises(ValueError, match=r"^data\.images: .*MNIST.*data_batch_1\.bin.*train/CLASS.*make data"):
        image_classifier.build(image_classifier.Config(data="no/such/folder"))
