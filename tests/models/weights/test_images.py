"""Image models through the doors of all others: files of torchvision's tensors, and folders that we write."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import models, tree
from jaxnn.models.weights import tensors, vision

MODULES = {
    "resnet": models.ResNet(models.ResNetConfig(stages=(1, 1), widths=(4, 8), classes=3, matmul_dtype=jnp.bfloat16)),
    "vgg": models.VGG(models.VGGConfig((1, 1, 1, 1, 1), (2, 2, 2, 2, 2), head="imagenet", dense=4, classes=3)),
    "vit": models.ViT(models.ViTConfig(image=8, patch=4, layers=1, heads=2, width=8, classes=3)),
}


def drawn(module):
    """Variables of which no two arrays are alike."""
    rng = np.random.default_rng(0)
    variables = {}
    for path, leaf in vision._shapes(module).items():
        *above, last = path.split("/")
        at = functools.reduce(lambda at, key: at.setdefault(key, {}), above, variables)
        at[last] = rng.normal(size=leaf.shape).astype(np.float32)
    return variables


def same(ours, theirs):
    ours, theirs = tree.leaves_by_path(ours), tree.leaves_by_path(theirs)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


@pytest.mark.parametrize("name", MODULES)
def test_a_folder_says_what_it_holds(name, tmp_path):
    module, variables = MODULES[name], drawn(MODULES[name])
    models.save(module, variables, tmp_path)
    found, read = models.load(tmp_path)
    assert found == module
    same(read, variables)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(read))
    # The tensors lie under torchvision's names.
    stored = {n: t.read() for n, t in tensors.read_folder(tmp_path).items()}
    same(vision.from_torchvision(module, stored), variables)


def test_a_file_is_read_for_the_module_that_is_given(tmp_path):
    module, variables = MODULES["resnet"], drawn(MODULES["resnet"])
    models.save(module, variables, tmp_path / "folder")
    file = (tmp_path / "folder" / "model.safetensors").rename(tmp_path / "weights.safetensors")
    found, read = models.load(file, model=module, place=jax.devices()[1])
    assert found is module
    same(read, variables)
    assert {leaf.device for leaf in jax.tree.leaves(read)} == {jax.devices()[1]}
    with pytest.raises(ValueError, match=r"tensor 'fc\.weight' is float32\[3, 8\].*floats \[5, 8\]"):
        models.load(file, model=module, classes=5)
    with pytest.raises(ValueError, match="from_torchvision: MLP"):
        models.load(file, model=models.MLP((3, 4)))


@pytest.mark.parametrize("dtype", [None, jnp.float32])
def test_variables_are_no_views_of_the_file(tmp_path, dtype):
    module, variables = MODULES["resnet"], drawn(MODULES["resnet"])
    models.save(module, variables, tmp_path)
    _, read = models.load(tmp_path, dtype=dtype, place=lambda path, array: array)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        file.write(bytes(4 * sum(x.size for x in jax.tree.leaves(variables))))
    same(read, variables)


def test_what_is_refused(tmp_path):
    module = MODULES["vit"]
    with pytest.raises(ValueError, match=r"'.*absent.pth' is no file of tensors. Tried: .safetensors, .pth"):
        models.load(tmp_path / "absent.pth", model=module)
    torchs = Path(__file__).resolve().parents[2] / "fixtures" / "weights" / "gpt2_pickled" / "pytorch_model.bin"
    with pytest.raises(ValueError, match="the state dict lacks 'class_token'"):  # read as tensors, which are others
        models.load(torchs, model=module)
    with pytest.raises(ValueError, match=r"'params/patch_embed/kernel' is missing"):
        models.save(module, {"params": {}}, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "jaxnn-vit", "colour": 3}))
    with pytest.raises(ValueError, match=r"config.json of jaxnn-vit has 'colour'"):
        models.load(tmp_path)


def test_a_file_of_torch_gives_torchs_logits():
    """`torch.save(model.state_dict(), ...)` of a ResNet under torchvision's names, and two images' logits."""
    path = Path(__file__).resolve().parents[2] / "fixtures" / "pth" / "resnet.pth"
    config = models.ResNetConfig.preset("resnet18", stages=(1, 2), widths=(4, 8), classes=3, form="lax")
    module, variables = models.load(path, model=models.ResNet(config))
    with np.load(path.with_suffix(".npz")) as f:
        logits = jax.jit(module.apply)(variables, f["images"])
        np.testing.assert_allclose(logits, f["logits"], atol=1e-5 * np.abs(f["logits"]).max())


@pytest.mark.slow
@pytest.mark.parametrize("aux", [False, True])
def test_inception_comes_back_as_it_was(aux, tmp_path):
    module = models.Inception(models.InceptionConfig(classes=3, aux=aux, form="lax"))
    variables = drawn(module)
    # As large as trained ones are, or ninety layers of random numbers overflow; variances are positive.
    shrunk = tree.map_by_path(lambda at, x: np.abs(x) if at.endswith("var") else 0.05 * x, variables)
    models.save(module, shrunk, tmp_path)
    found, read = models.load(tmp_path)
    assert found == module
    same(read, shrunk)
    x = np.random.default_rng(1).normal(size=(1, 75, 75, 3)).astype(np.float32)
    logits = jax.jit(module.apply)(shrunk, x)
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(jax.jit(found.apply)(read, x), logits)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    module, variables = MODULES["resnet"], drawn(MODULES["resnet"])
    variables["batch_stats"]["stem_norm"]["var"][1] = np.nan
    models.save(module, variables, tmp_path)
    with pytest.raises(ValueError, match=r"from_torchvision: tensor 'bn1.running_var' float32\[4\] has nan at \[1\]"):
        models.load(tmp_path)
