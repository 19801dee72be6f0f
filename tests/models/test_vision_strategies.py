"""BatchNorm of the image families, whose blocks are gathered or rematerialised one by one, under every strategy."""

import functools

import jax
import numpy as np
import optax
import pytest

from jaxnn import losses, models, parallel, train, tree

DEVICES = 4
STRATEGIES = {
    "single": lambda family: parallel.single(),
    "pmap": lambda family: parallel.pmap(DEVICES),
    "replicate": lambda family: parallel.replicate(DEVICES),
    "zero1": lambda family: parallel.zero(1, DEVICES, min_size=1),
    "zero3": lambda family: parallel.zero(3, DEVICES, min_size=1),
    "fsdp": lambda family: parallel.fsdp(DEVICES, min_size=1),
    "tensor": lambda family: parallel.tensor(family.RULES, DEVICES, model=2, min_size=1),
}
SMALL = {"channels": 1, "classes": 3}
FAMILIES = {
    "resnet": (models.resnet, models.ResNet(models.ResNetConfig(stages=(1, 1), widths=(4, 8), **SMALL)), 8),
    "vgg": (models.vgg, models.VGG(models.VGGConfig(stages=(1, 1), widths=(4, 8), **SMALL)), 8),
    "inception": (
        models.inception,
        models.Inception(models.InceptionConfig(aux=False, dropout=0.0, **SMALL)),
        75,
    ),
}


@functools.cache
def trained(name: str, strategy: str):
    """Parameters before, then parameters and statistics after 3 steps on 8 images, two of which are padding."""
    family, model, side = FAMILIES[name]
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(8, side, side, 1)).astype(np.float32), "y": rng.integers(0, 3, 8).astype(np.int32)}
    batch["mask"] = np.array([1, 1, 1, 0, 1, 1, 1, 0], np.float32)
    task, tx = train.supervised(model, losses.cross_entropy), optax.sgd(0.05, momentum=0.9)
    chosen = STRATEGIES[strategy](family)
    state = train.init_state(task, tx, batch, seed=0, strategy=chosen)
    first = tree.leaves_by_path(jax.device_get(parallel.fetch(state.params)))
    step = train.make_train_step(task, tx, strategy=chosen)
    for _ in range(3):
        state, _ = step(state, batch)
    return first, tree.leaves_by_path(jax.device_get(parallel.fetch((state.params, state.model_state))))


@pytest.mark.slow
@pytest.mark.timeout(900)  # Inception's 94 convolutions compile for minutes where other work shares the cores
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "single"])
@pytest.mark.parametrize("name", FAMILIES)
def test_batch_norm_of_image_families_is_that_of_one_device(name, strategy):
    (first, one), (_, other) = trained(name, "single"), trained(name, strategy)
    kernels = {path: leaf for path, leaf in first.items() if path.endswith("kernel")}
    assert min(float(np.abs(one[f"0/{path}"] - leaf).max()) for path, leaf in kernels.items()) > 1e-5  # all moved
    assert any(path.endswith("mean") and np.abs(leaf).max() > 1e-3 for path, leaf in one.items())
    for path, leaf in one.items():
        np.testing.assert_allclose(other[path], leaf, atol=1e-5, rtol=1e-4, err_msg=path)
