"""The image families against torchvision (a frozen fixture in float64): outputs, gradients, one step of BatchNorm."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import tree
from jaxnn.models.inception import Inception, InceptionConfig, with_aux
from jaxnn.models.resnet import ResNet, ResNetConfig
from jaxnn.models.vgg import VGG, VGGConfig
from jaxnn.models.vit import ViT, ViTConfig
from jaxnn.models.weights import vision
from tests.models import vision_cases as cases

FIXTURE = Path(__file__).parents[1] / "fixtures" / "vision.npz"
FAST = (("resnet_small", "train"), ("vgg", "eval"), ("vit", "eval"))


def module(name):
    """Ours, in the fixture's sizes; the form of convolutions that compiles sooner."""
    resnet = functools.partial(ResNetConfig.preset, classes=5, form="lax")
    vgg = functools.partial(
        VGGConfig, (1, 1, 2, 2, 2), (8, 8, 16, 16, 16), head="imagenet", dense=32, dropout=0.0, classes=5, form="lax"
    )
    return {
        "resnet_basic": lambda: ResNet(resnet("resnet18", stages=(1, 2, 1, 1))),
        "resnet_bottleneck": lambda: ResNet(resnet("resnet50", stages=(1, 1, 1, 1))),
        "resnet_small": lambda: ResNet(resnet("resnet20", stages=(1, 1, 1))),
        "vgg": lambda: VGG(vgg(norm=False)),
        "vgg_bn": lambda: VGG(vgg()),
        "vit": lambda: ViT(ViTConfig(image=16, patch=4, layers=2, heads=2, width=16, mlp_ratio=3, classes=5)),
        "inception": lambda: Inception(InceptionConfig(classes=5, dropout=0.0, form="lax")),
    }[name]()


def state_dict(name):
    """The fixture's weights, drawn by name."""
    made = module(name)
    like = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), nested(vision._shapes(made)))
    return {n: cases.draw(n, x.shape) for n, x in vision.to_torchvision(made, like).items()}


def nested(paths):
    """A tree from its leaves by path."""
    result = {}
    for path, leaf in paths.items():
        *above, last = path.split("/")
        functools.reduce(lambda at, key: at.setdefault(key, {}), above, result)[last] = leaf
    return result


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(name, mode, marks=[] if (name, mode) in FAST else pytest.mark.slow)
        for name, modes in cases.MODES.items()
        for mode in modes
    ],
)
def test_outputs_gradients_and_statistics(name, mode):
    # Ninety layers of BatchNorm, the last of the second head over two numbers: float32 leaves gradients few digits.
    wide = (name, mode) == ("inception", "train")
    with jax.enable_x64(wide):
        check(name, mode, np.float64 if wide else np.float32)


def check(name, mode, dtype):
    """Holds a case against the fixture, computed in `dtype`."""
    file = np.load(FIXTURE)
    want = dict(zip(str(file[f"{name}/{mode}/names"]).split("\n"), file[f"{name}/{mode}/values"], strict=True))
    made = module(name)
    variables = jax.tree.map(lambda v: v.astype(dtype), vision.from_torchvision(made, state_dict(name)))
    params, stats = variables["params"], variables.get("batch_stats", {})
    x, probe = (a.astype(dtype) for a in cases.inputs(name, mode))
    train = mode == "train"

    @jax.jit
    def run(params, x):
        def loss(params, x):
            given = {"params": params, "batch_stats": stats}
            out, new = made.apply(given, x, train=train, mutable=["batch_stats"])
            out = with_aux(lambda logits, _: logits)(out, None)
            return jnp.sum(out * probe), (out, new)

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    (grads, dx), (out, new) = run(params, x)

    def near(key, value):
        """The norm and two projections, relative to the norm (a bias before BatchNorm has a gradient of 0)."""
        given, kept = cases.summary(value), want.pop(key)
        assert np.abs(given - kept).max() <= 1e-4 * max(kept[0], 0.3), (key, given, kept)

    kept = file[f"{name}/{mode}/out"]
    assert np.abs(out - kept).max() <= 1e-4 * np.abs(kept).max()
    near("x", dx)
    theirs = vision.to_torchvision(made, {"params": grads, "batch_stats": dict(new).get("batch_stats") or stats})
    for n, value in theirs.items():
        if n.endswith("running_var") and train:
            # torch corrects the variance that it keeps by n / (n - 1).
            before = cases.draw(n, value.shape)
            batch = (value - 0.9 * before) / 0.1
            count = counts(made, x.shape, variables)[n]
            value = 0.9 * before + 0.1 * batch * count / (count - 1)
        if n in want:
            near(n, value)
    assert not want


def counts(made, shape, variables):
    """How many values each BatchNorm's statistics are over: the sizes of what goes in."""
    seen = {}

    def watch(next_call, args, kwargs, context):
        if type(context.module).__name__ == "BatchNorm":
            seen["/".join(context.module.path)] = float(np.prod(args[0].shape[:-1]))
        return next_call(*args, **kwargs)

    import flax.linen as nn

    with nn.intercept_methods(watch):
        apply = lambda x: made.apply(variables, x, train=True, mutable=["batch_stats"])  # noqa: E731
        jax.eval_shape(apply, jax.ShapeDtypeStruct(shape, jnp.float32))
    entries = vision._TABLES[type(made)](made)
    return {
        e.theirs[0]: seen[e.ours.removeprefix("batch_stats/").removesuffix("/var")]
        for e in entries
        if e.ours.endswith("/var")
    }


@pytest.mark.parametrize("name", ["resnet_bottleneck", "vgg_bn", "vit"])
def test_the_round_trip_is_exact(name):
    made, given = module(name), state_dict(name)
    back = vision.to_torchvision(made, vision.from_torchvision(made, given))
    assert back.keys() == given.keys()
    for n, x in back.items():
        np.testing.assert_array_equal(x, given[n])


def test_what_does_not_fit_is_named():
    made, given = module("resnet_small"), state_dict("resnet_small")
    with pytest.raises(ValueError, match=r"lacks 'bn1\.weight'"):
        vision.from_torchvision(made, {n: x for n, x in given.items() if n != "bn1.weight"})
    with pytest.raises(ValueError, match=r"has, besides, 'fc\.more'"):
        vision.from_torchvision(made, {**given, "fc.more": given["fc.bias"]})
    with pytest.raises(ValueError, match=r"'fc\.bias' is float32\[4\].*\[5\].*params/head/bias"):
        vision.from_torchvision(made, {**given, "fc.bias": given["fc.bias"][:4]})
    with pytest.raises(ValueError, match=r"'fc\.bias' is int64"):
        vision.from_torchvision(made, {**given, "fc.bias": given["fc.bias"].astype(int)})
    vision.from_torchvision(made, {**given, "bn1.num_batches_tracked": np.array(3)})
    variables = vision.from_torchvision(made, given)
    del variables["params"]["head"]["bias"]
    with pytest.raises(ValueError, match=r"to_torchvision: 'params/head/bias' is missing"):
        vision.to_torchvision(made, variables)


@pytest.mark.slow
def test_every_table_covers_its_module():
    for name in ("resnet18", "resnet152", "resnet110"):
        vision._entries("test", ResNet(ResNetConfig.preset(name)))
    for name in ("vgg11", "vgg19_bn"):
        vision._entries("test", VGG(VGGConfig.preset(name)))
    vision._entries("test", Inception(InceptionConfig(aux=False)))
    entries, like = vision._entries("test", ViT(ViTConfig.preset("vit_base")))
    assert sum(np.prod(like[e.ours].shape) for e in entries) == 86_567_656
    assert tree.size(vision._shapes(ViT(ViTConfig.preset("vit_base")))) == 86_567_656
