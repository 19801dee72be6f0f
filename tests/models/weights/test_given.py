"""What `load` and `save` are told beside a folder: refused in words where it would spoil weights, or cannot be."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import models

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "weights" / "gpt2"
KEY = jax.random.key(0)
IMAGE = models.ViT(models.ViTConfig(image=8, patch=4, layers=1, heads=2, width=8, classes=2))


@pytest.fixture(scope="module")
def gpt():
    return models.load(FOLDER)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A saved ViT's folder and its variables."""
    variables = jax.jit(IMAGE.init)(KEY, jnp.zeros((1, 8, 8, 3)))
    folder = tmp_path_factory.mktemp("vit")
    models.save(IMAGE, variables, folder)
    return folder, variables


LOADS = {
    "weights as integers": ({"dtype": jnp.int8}, r"models.load: dtype=int8. Tried: floats"),
    "weights as truths": ({"dtype": bool}, r"models.load: dtype=bool. Tried: floats"),
    "complex weights": ({"dtype": np.complex64}, r"models.load: dtype=complex64. Tried: floats"),
    "no dtype": ({"dtype": "float7"}, r"models.load: dtype='float7'. Tried: floats"),
    "an unknown setting": ({"foo": 1}, r"models.load: foo=1. Tried: the fields of \w+: \w+, "),
    "a number for a key": ({"init": 0}, r"models.load: init is int 0. Tried: a typed key. Write jax.random.key\(0\)"),
    "a raw key": ({"init": np.zeros(2, np.uint32)}, r"models.load: init is uint32\[2\]. Tried: a typed key"),
    "several keys": ({"init": jax.random.split(KEY, 2)}, r"models.load: init is key<fry>\[2\]. Tried: a typed key"),
}


@pytest.mark.parametrize("name", LOADS)
@pytest.mark.parametrize("kind", ["text", "image"])
def test_what_load_cannot_use_is_refused(kind, name, image):
    told, words = LOADS[name]
    with pytest.raises((ValueError, TypeError), match=words):
        models.load(FOLDER if kind == "text" else image[0], **told)


SAVES = {
    "tensors as integers": ({"dtype": jnp.int8}, r"models.save: dtype=int8. Tried: "),
    "a dtype that files have not": ({"dtype": jnp.float8_e4m3fn}, r"models.save: dtype=float8_e4m3fn. Tried: "),
    "no dtype": ({"dtype": "float7"}, r"models.save: dtype='float7'. Tried: "),
    "files of nothing": ({"shard_bytes": 0}, r"models.save: shard_bytes=0. Tried: a file's largest size. Write 5_000"),
    "files of a text": ({"shard_bytes": "5GB"}, r"models.save: shard_bytes='5GB'. Tried: "),
    "half a byte": ({"shard_bytes": 1e9}, r"models.save: shard_bytes=1000000000.0. Tried: "),
}


@pytest.mark.parametrize("name", SAVES)
@pytest.mark.parametrize("kind", ["text", "image"])
def test_what_save_cannot_use_is_refused_and_nothing_written(kind, name, gpt, image, tmp_path):
    told, words = SAVES[name]
    model, params = gpt if kind == "text" else (IMAGE, image[1])
    with pytest.raises(ValueError, match=words):
        models.save(model, params, tmp_path / "out", **told)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_folder_that_is_a_file_is_told(kind, gpt, image, tmp_path):
    model, params = gpt if kind == "text" else (IMAGE, image[1])
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"models.save: '.*file(/below)?' is no folder .*Tried: making it"):
            models.save(model, params, folder)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(TypeError, match=r"models.save: folder is int 3\. Tried: a path"):
        models.save(model, params, 3)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_what_is_written_is_all_of_the_parameters_and_of_numbers(kind, gpt, image, tmp_path):
    model, params = gpt if kind == "text" else (IMAGE, image[1])
    others = {"left over": {**params, "adapter": jnp.zeros(3)}, "counts": jax.tree.map(lambda x: x.astype(int), params)}
    others["shapes"] = jax.eval_shape(lambda: params)
    wanted = {"left over": "'adapter' float32.3., which", "counts": "int32.*Tried: ", "shapes": ".*no array"}
    for name, given in others.items():
        with pytest.raises(ValueError, match=rf"models.(save|to_torchvision): .*{wanted[name]}"):
            models.save(model, given, tmp_path / "out")
    assert not (tmp_path / "out").exists()
