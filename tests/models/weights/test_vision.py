"""Image models whose head is another's: the classes that one fine-tunes to, over the weights that one has."""

import functools
import json

import jax
import numpy as np
import pytest

from jaxnn import models, tree
from jaxnn.models.weights import vision

KEY = jax.random.key(7)
MODULES = {
    "fc": models.ResNet(models.ResNetConfig(stages=(1,), widths=(4,), classes=3)),
    "classifier.6": models.VGG(models.VGGConfig((1,) * 5, (2,) * 5, head="imagenet", dense=4, classes=3)),
    "heads.head": models.ViT(models.ViTConfig(image=8, patch=4, layers=1, heads=2, width=8, classes=3)),
}


@functools.cache
def variables_of(module):
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in vision._shapes(module).items()}
    like = jax.eval_shape(
        lambda: module.init(
            {"params": KEY, "dropout": KEY},
            np.zeros((1, 8, 8, 3) if isinstance(module, models.ViT) else (1, 64, 64, 3), np.float32),
        )
    )
    return tree.map_by_path(lambda path, _: flat[path], like)


@pytest.mark.parametrize("name", ["fc", "heads.head", pytest.param("classifier.6", marks=pytest.mark.slow)])
def test_a_head_of_other_classes_is_drawn_where_a_key_is_given(name, tmp_path):
    module = MODULES[name]
    variables = variables_of(module)
    models.save(module, variables, tmp_path)
    with pytest.raises(ValueError, match=rf"tensor '{name}.weight' is .*init=KEY"):
        models.load(tmp_path, classes=10)
    ten, found = models.load(tmp_path, classes=10, init=KEY)
    assert ten.config.classes == 10
    ours, theirs = tree.leaves_by_path(found), tree.leaves_by_path(variables)
    assert {path for path in ours if not np.array_equal(ours[path], theirs[path])} == {
        "params/head/kernel",
        "params/head/bias",
    }
    assert ours["params/head/kernel"].shape == (theirs["params/head/kernel"].shape[0], 10)
    assert np.any(ours["params/head/kernel"]) == (name != "heads.head")  # a ViT's begins at zero
    assert not np.any(ours["params/head/bias"])
    # The same from a file without a config, and where there is no head at all.
    _, given = models.load(tmp_path / "model.safetensors", model=ten, init=KEY)
    np.testing.assert_array_equal(given["params"]["head"]["kernel"], ours["params/head/kernel"])
    tensors = vision.to_torchvision(module, variables)
    bare = {n: x for n, x in tensors.items() if not n.startswith(name)}
    np.testing.assert_array_equal(
        vision.from_torchvision(module, bare, init=KEY)["params"]["head"]["kernel"].shape[1], 3
    )
    with pytest.raises(ValueError, match=f"lacks '{name}.bias'"):
        vision.from_torchvision(module, bare)
    half = {n: x for n, x in tensors.items() if n != f"{name}.bias"}
    with pytest.raises(ValueError, match=f"lacks '{name}.bias'"):  # the kernel is there, and not to be lost
        vision.from_torchvision(module, half, init=KEY)
    # A key draws heads and nothing else, and none where the head fits.
    same, again = models.load(tmp_path, init=KEY)
    assert same == module
    np.testing.assert_array_equal(again["params"]["head"]["kernel"], theirs["params/head/kernel"])
    wider = {n: np.zeros((3, 99), np.float32) if n == f"{name}.weight" else x for n, x in tensors.items()}
    with pytest.raises(ValueError, match=rf"'{name}.weight' is float32\[3, 99\]"):
        vision.from_torchvision(module, wider, init=KEY)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("fc", {"stages": [10**6]}, "has 1000000 layers. Tried: the 17 tensors"),
        ("fc", {"widths": [2**31]}, "has widths=2147483648. Tried: the tensors, whose longest axis is"),
        ("fc", {"classes": 2**40}, "has classes=1099511627776"),
        ("fc", {"matmul_dtype": "float7"}, "has matmul_dtype='float7'"),
        ("classifier.6", {"dropout": "half"}, "has dropout='half'"),
        ("heads.head", {"layers": [1]}, r"has layers=\[1\]. Tried: the likes of 12"),
        ("fc", {"stages": [True]}, r"has stages=\[True\]"),
        ("classifier.6", {"dense": 2**40}, "has dense=1099511627776"),
        ("heads.head", {"layers": 10**9}, "has 1000000000 layers"),
        ("heads.head", {"image": 2**40}, r"has \(image / patch\)\*\*2="),
    ],
)
def test_a_config_that_lies_is_refused_before_it_is_traced(name, change, message, tmp_path):
    models.save(MODULES[name], variables_of(MODULES[name]), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        models.load(tmp_path)
