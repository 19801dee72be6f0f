"""Image models' weights in torchvision's layout: state dicts of arrays, by name, in and out.

One table a family, as for the folders of `models.load`: each parameter or running statistic here, the tensor there, and
the transform between them. torchvision stores no config, so the module is given: the tensors must be exactly its own.
`vit` has a table for torchvision's names.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import tree
from jaxnn.models import inception
from jaxnn.models.resnet import ResNet
from jaxnn.models.vgg import VGG
from jaxnn.models.vit import ViT
from jaxnn.models.weights.given import check_whole
from jaxnn.models.weights.table import SAME, TRANSPOSED, Arrays, Entry, Transform
from jaxnn.models.weights.tensors import numbers
from jaxnn.typing import Array, HostArray

CONV = Transform(lambda xs: np.transpose(xs[0], (2, 3, 1, 0)), lambda x: [np.transpose(x, (3, 2, 0, 1))])
_LEADING_ONE = Transform(lambda xs: xs[0][0], lambda x: [x[None]])
# Counts of batches, which we do not keep, as torch's momentum does not read them.
_NOISE = ".num_batches_tracked"
_HEADS = ("params/head/", "params/fc/", "params/AuxLogits/fc/")


def _conv(ours: str, theirs: str, bias: bool = False) -> list[Entry]:
    found = [Entry(f"params/{ours}/kernel", (f"{theirs}.weight",), CONV)]
    return [*found, Entry(f"params/{ours}/bias", (f"{theirs}.bias",), SAME)] if bias else found


def _batch_norm(ours: str, theirs: str) -> list[Entry]:
    pairs = (
        ("params", "scale", "weight"),
        ("params", "bias", "bias"),
        ("batch_stats", "mean", "running_mean"),
        ("batch_stats", "var", "running_var"),
    )
    return [Entry(f"{kind}/{ours}/{here}", (f"{theirs}.{there}",), SAME) for kind, here, there in pairs]


def _linear(ours: str, theirs: str, transform: Transform = TRANSPOSED) -> list[Entry]:
    return [
        Entry(f"params/{ours}/kernel", (f"{theirs}.weight",), transform),
        Entry(f"params/{ours}/bias", (f"{theirs}.bias",), SAME),
    ]


def _layer_norm(ours: str, theirs: str) -> list[Entry]:
    return _batch_norm(ours, theirs)[:2]


def _resnet(module: ResNet) -> list[Entry]:
    entries = [*_conv("stem", "conv1"), *_batch_norm("stem_norm", "bn1"), *_linear("head", "fc")]
    for name, _, _, project in module.config.blocks():
        stage, i = name.split("_")
        for n in (1, 2, 3) if module.config.block == "bottleneck" else (1, 2):
            entries += _conv(f"{name}/conv{n}", f"{stage}.{i}.conv{n}")
            entries += _batch_norm(f"{name}/bn{n}", f"{stage}.{i}.bn{n}")
        if project:
            entries += _conv(f"{name}/downsample", f"{stage}.{i}.downsample.0")
            entries += _batch_norm(f"{name}/downsample_norm", f"{stage}.{i}.downsample.1")
    return entries


def _channels_last(side: int) -> Transform:
    """PyTorch flattens [C, H, W] and we [H, W, C]: a matrix over such features, its rows in our order."""

    def join(xs: Arrays) -> HostArray:
        (x,) = xs
        return x.reshape(x.shape[0], -1, side, side).transpose(2, 3, 1, 0).reshape(-1, x.shape[0])

    def split(x: HostArray) -> Arrays:
        return [x.reshape(side, side, -1, x.shape[-1]).transpose(3, 2, 0, 1).reshape(x.shape[-1], -1)]

    return Transform(join, split)


def _vgg(module: VGG) -> list[Entry]:
    c = module.config
    if c.head != "imagenet":
        raise ValueError("models.torchvision: VGG with head='small'. Tried: head='imagenet', the only one it has.")
    entries, at, n = [], 0, 0
    for count in c.stages:
        for _ in range(count):
            entries += _conv(f"conv_{n}", f"features.{at}", bias=True)
            if c.norm:
                entries += _batch_norm(f"norm_{n}", f"features.{at + 1}")
            at += 3 if c.norm else 2
            n += 1
        at += 1
    entries += _linear("dense_0", "classifier.0", _channels_last(7))
    return [*entries, *_linear("dense_1", "classifier.3"), *_linear("head", "classifier.6")]


def _inception(module: inception.Inception) -> list[Entry]:
    units = [unit.name for unit in (*inception.FIRST, *inception.SECOND)]
    for name, branches in inception.MIXED.items():
        units += [f"{name}/{unit.name}" for branch in branches for unit in (*branch.units, *branch.ends)]
    heads = ["fc"]
    if module.config.aux:
        units += [f"AuxLogits/{unit.name}" for unit in inception.AUX]
        heads.append("AuxLogits/fc")
    entries = []
    for unit in units:
        theirs = unit.replace("/", ".")
        entries += _conv(f"{unit}/conv", f"{theirs}.conv") + _batch_norm(f"{unit}/bn", f"{theirs}.bn")
    return entries + [entry for head in heads for entry in _linear(head, head.replace("/", "."))]


def _patches(patch: int) -> Transform:
    """A convolution [E, C, p, p] over patches side by side as a matrix [p p C, E]."""

    def join(xs: Arrays) -> HostArray:
        return np.transpose(xs[0], (2, 3, 1, 0)).reshape(-1, xs[0].shape[0])

    def split(x: HostArray) -> Arrays:
        return [x.reshape(patch, patch, -1, x.shape[-1]).transpose(3, 2, 0, 1)]

    return Transform(join, split)


def _heads_side_by_side(heads: int) -> Transform:
    """One tensor [3 E, in] (or [3 E]) of all queries, keys, values as our kernel [in, 3 E], a head's three together."""

    def join(xs: Arrays) -> HostArray:
        (x,) = xs
        return np.swapaxes(x.reshape(3, heads, -1, *x.shape[1:]), 0, 1).reshape(x.shape).T

    def split(x: HostArray) -> Arrays:
        return [np.swapaxes(x.T.reshape(heads, 3, -1, *x.shape[:-1]), 0, 1).reshape(x.T.shape)]

    return Transform(join, split)


def _vit(module: ViT) -> list[Entry]:
    c = module.config
    if c.pool != "class":
        raise ValueError("models.torchvision: ViT with pool='mean'. Tried: pool='class', the only one it has.")
    entries = [
        Entry("params/patch_embed/kernel", ("conv_proj.weight",), _patches(c.patch)),
        Entry("params/patch_embed/bias", ("conv_proj.bias",), SAME),
        Entry("params/class_token", ("class_token",), _LEADING_ONE),
        Entry("params/position_embed", ("encoder.pos_embedding",), _LEADING_ONE),
        *_layer_norm("norm_out", "encoder.ln"),
        *_linear("head", "heads.head"),
    ]
    qkv = _heads_side_by_side(c.heads)
    for i in range(c.layers):
        ours, theirs = f"blocks_{i}", f"encoder.layers.encoder_layer_{i}"
        entries += [
            Entry(f"params/{ours}/qkv/kernel", (f"{theirs}.self_attention.in_proj_weight",), qkv),
            Entry(f"params/{ours}/qkv/bias", (f"{theirs}.self_attention.in_proj_bias",), qkv),
            *_linear(f"{ours}/attention_out", f"{theirs}.self_attention.out_proj"),
            *_layer_norm(f"{ours}/norm_attention", f"{theirs}.ln_1"),
            *_layer_norm(f"{ours}/norm_mlp", f"{theirs}.ln_2"),
            *_linear(f"{ours}/mlp_in", f"{theirs}.mlp.0"),
            *_linear(f"{ours}/mlp_out", f"{theirs}.mlp.3"),
        ]
    return entries


_TABLES: Mapping[type[nn.Module], Callable[[Any], list[Entry]]] = {
    ResNet: _resnet,
    VGG: _vgg,
    inception.Inception: _inception,
    ViT: _vit,
}


def _init(module: Any, key: Array) -> dict[str, Array]:
    """A module's variables by path, "params/..." and "batch_stats/...", from their initialisers."""
    c = module.config
    side = c.image if isinstance(module, ViT) else 299 if isinstance(module, inception.Inception) else 64
    x = jnp.zeros((1, side, side, c.channels), jnp.float32)
    return tree.leaves_by_path(module.init({"params": key, "dropout": key}, x))


def _shapes(module: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a module's variables by path."""
    key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
    return jax.eval_shape(lambda k: _init(module, k), key)


def _entries(where: str, module: nn.Module) -> tuple[list[Entry], dict[str, jax.ShapeDtypeStruct]]:
    table = _TABLES.get(type(module))
    if table is None:
        raise ValueError(
            f"models.{where}: {type(module).__name__}. Tried: {', '.join(m.__name__ for m in _TABLES)}. Give a module "
            "of one of these families."
        )
    entries, like = table(module), _shapes(module)
    if {e.ours for e in entries} != like.keys():
        odd = sorted({e.ours for e in entries} ^ like.keys())
        raise ValueError(f"models.{where}: the table of {type(module).__name__} and the module differ in {odd[:3]}.")
    return entries, like


def _other_classes(entry: Entry, given: Mapping[str, Any], like: Mapping[str, jax.ShapeDtypeStruct]) -> bool:
    """Whether the tensor of a head, [classes, in] or [classes], is absent or of another number of classes."""
    if not entry.ours.startswith(_HEADS):
        return False
    if (name := entry.theirs[0]) not in given:
        return True
    shape = np.shape(given[name])
    return len(shape) > 0 and shape[0] != like[entry.ours].shape[-1] and shape[1:] == like[entry.ours].shape[:-1]


def from_torchvision(module: nn.Module, state_dict: Mapping[str, Any], *, init: Array | None = None) -> dict[str, Any]:
    """A module's variables from torchvision's tensors.

    Args:
        module: A `ResNet`, `VGG`, `Inception` or `ViT` of the same architecture; ResNets for small images have the
            names that torchvision's would, and an Inception has the same with either stem.
        state_dict: Tensors by name, as anything that NumPy reads: `weights.pickled` reads a .pth file so.
        init: Typed key: a head that is not there, or is of another number of classes than the module's, is drawn from
            its initialisers. None refuses.

    Returns:
        {"params": ..., "batch_stats": ...} for `module.apply`, float32, on the host; copies.

    Raises:
        ValueError: If the module is of another family, or a tensor is missing, left over, misshapen, not of floats or
            not of numbers (NaN, infinities; -inf may stand in a bias).
    """
    entries, like = _entries("from_torchvision", module)
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"models.from_torchvision: state_dict is {tree.describe(state_dict)}. Tried: tensors by name. Give "
            f"model.state_dict()."
        )
    names = {name for entry in entries for name in entry.theirs}
    given = {name: x for name, x in state_dict.items() if not name.endswith(_NOISE)}
    if isinstance(module, inception.Inception) and not module.config.aux:
        given = {name: x for name, x in given.items() if not name.startswith("AuxLogits.")}
    drawn: dict[str, Array] = {}
    paths = {e.ours for e in entries if init is not None and _other_classes(e, given, like)}
    # A layer of which a part fits is no other head: what it lacks is told.
    fitting = {e.ours.rpartition("/")[0] for e in entries if e.ours not in paths}
    if new := [e for e in entries if e.ours.rpartition("/")[0] not in fitting]:
        keep = [e.ours for e in new]
        drawn = jax.jit(lambda key: {path: x for path, x in _init(module, key).items() if path in keep})(init)
        gone = {name for e in new for name in e.theirs}
        names, given = names - gone, {name: x for name, x in given.items() if name not in gone}
        entries = [e for e in entries if e.ours not in drawn]
    for what, odd in (("lacks", names - given.keys()), ("has, besides,", given.keys() - names)):
        if odd:
            shown, more = ", ".join(map(repr, sorted(odd)[:3])), f" and {len(odd) - 3} more" if len(odd) > 3 else ""
            raise ValueError(
                f"models.from_torchvision: the state dict {what} {shown}{more}. Tried: the {len(names)} tensors of "
                f"{module}. Give the module that the weights belong to."
            )
    found: dict[str, HostArray] = {path: np.asarray(x) for path, x in drawn.items()}
    for entry in entries:
        shape = tuple(like[entry.ours].shape)
        parts = [np.asarray(given[name]) for name in entry.theirs]
        wanted = [np.shape(x) for x in entry.transform.split(np.broadcast_to(np.float32(0), shape))]
        for name, part, want in zip(entry.theirs, parts, wanted, strict=True):
            if part.shape != want or not jnp.issubdtype(part.dtype, jnp.floating):
                raise ValueError(
                    f"models.from_torchvision: tensor {name!r} is {tree.describe(part)}. Tried: floats {list(want)}, "
                    f"for {entry.ours!r}. Set the config to what the weights belong to (classes, channels, ...), or "
                    f"give init=KEY where it is a head that a new one shall replace."
                )
        parts = [numbers("models.from_torchvision", name, x) for name, x in zip(entry.theirs, parts, strict=True)]
        # A copy: what the tensors lie in, a file or another library's model, may change.
        found[entry.ours] = np.array(entry.transform.join(parts), np.float32, order="C")
    variables: dict[str, Any] = {}
    for path, value in found.items():
        *above, last = path.split("/")
        at = variables
        for name in above:
            at = at.setdefault(name, {})
        at[last] = value
    return variables


def to_torchvision(module: nn.Module, variables: Mapping[str, Any]) -> dict[str, HostArray]:
    """The inverse of `from_torchvision`: arrays under torchvision's names, for `load_state_dict(..., strict=False)`
    (BatchNorm's counts of batches are left out).

    Raises:
        ValueError: If the module is of another family, or the variables are not its own.
    """
    entries, like = _entries("to_torchvision", module)
    given = tree.leaves_by_path(dict(variables))
    result: dict[str, HostArray] = {}
    for entry in entries:
        value, shape = given.get(entry.ours), tuple(like[entry.ours].shape)
        if value is None or np.shape(value) != shape:
            raise ValueError(
                f"models.to_torchvision: {entry.ours!r} is {'missing' if value is None else tree.describe(value)}. "
                f"Tried: {list(shape)}. Give the variables of this module, params and batch_stats."
            )
        for name, part in zip(entry.theirs, entry.transform.split(np.asarray(value)), strict=True):
            result[name] = np.ascontiguousarray(part)
    ours = {entry.ours for entry in entries}
    check_whole("models.to_torchvision", {path: leaf for path, leaf in given.items() if path not in ours})
    return result
