"""Image models in files: torchvision's tensors under the doors `models.load` and `models.save`.

torchvision's own files hold tensors and say nothing of the model, so that whoever reads one gives the module; a folder
that we write has the module's config beside the tensors, and needs nothing more.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxnn import tree
from jaxnn.models.inception import Inception, InceptionConfig
from jaxnn.models.resnet import ResNet, ResNetConfig
from jaxnn.models.vgg import VGG, VGGConfig
from jaxnn.models.vit import ViT, ViTConfig
from jaxnn.models.weights import claims, given, tensors
from jaxnn.models.weights.pickled import read_pickled
from jaxnn.models.weights.tensors import Stored
from jaxnn.models.weights.vision import from_torchvision, to_torchvision
from jaxnn.typing import Array

# `model_type` in our config.json, to the module and its config.
FAMILIES: Mapping[str, tuple[type[nn.Module], type[Any]]] = {
    "jaxnn-resnet": (ResNet, ResNetConfig),
    "jaxnn-vgg": (VGG, VGGConfig),
    "jaxnn-inception": (Inception, InceptionConfig),
    "jaxnn-vit": (ViT, ViTConfig),
}
_READERS = {".safetensors": tensors.read_safetensors, ".pth": read_pickled, ".pt": read_pickled, ".bin": read_pickled}


def kind_of(module: Any) -> str | None:
    """The `model_type` of an image model, or None for any other."""
    return next((kind for kind, (family, _) in FAMILIES.items() if type(module) is family), None)


def _alike(value: Any, default: Any) -> bool:
    """Whether a value of JSON is of the kind that a field with this default holds; of None's, a word or nothing."""
    if default is None:
        return value is None or isinstance(value, str)
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(type(n) is int for n in value)
    return type(value) is type(default) or (type(value) is int and type(default) is float)


def described(config: Mapping[str, Any]) -> nn.Module:
    """The module that our config.json describes.

    Raises:
        ValueError: If a field is none of the config's, or its value is refused.
    """
    module, make = FAMILIES[config["model_type"]]
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in config.items() if name != "model_type"}
    odd = sorted(fields.keys() - {field.name for field in dataclasses.fields(make)})
    if odd:
        raise ValueError(
            f"models.load: config.json of {config['model_type']} has {odd[0]!r}. Tried: the fields of {make.__name__}. "
            f"Take it out."
        )
    for field in dataclasses.fields(make):
        if field.name in fields and not _alike(fields[field.name], field.default):
            raise ValueError(
                f"models.load: config.json of {config['model_type']} has {field.name}={config[field.name]!r:.80}. "
                f"Tried: the likes of {field.default!r}. Write config.json again."
            )
    if fields.get("matmul_dtype") is not None:
        try:
            fields["matmul_dtype"] = jnp.dtype(fields["matmul_dtype"])
        except TypeError as error:
            raise ValueError(
                f"models.load: config.json of {config['model_type']} has matmul_dtype={fields['matmul_dtype']!r:.80}. "
                f"Tried: a dtype's name. Write 'bfloat16', say."
            ) from error
    family: Any = module
    return family(make(**fields))


def _check_claims(path: Path, module: Any, stored: Mapping[str, Stored]) -> None:
    """Holds a config.json against the tensors before a module of its size is traced; see `claims`."""
    c = module.config
    blocks = sum(c.stages) if isinstance(module, (ResNet, VGG)) else c.layers if isinstance(module, ViT) else 1
    if blocks > len(stored):
        raise ValueError(
            f"models.load: config.json in {str(path)!r} has {blocks} layers. Tried: the {len(stored)} tensors, which "
            f"are of fewer. Correct config.json, or give the weights that belong to it."
        )
    sizes = {"classes": c.classes, "channels": c.channels}
    if isinstance(module, (ResNet, VGG)):
        sizes["widths"] = max(c.widths)
    if isinstance(module, VGG) and c.head == "imagenet":
        sizes["dense"] = c.dense
    if isinstance(module, ViT):
        sizes |= {"mlp_ratio * width": c.mlp_ratio * c.width, "patch": c.patch, "(image / patch)**2": c.tokens}
    claims.check_sizes(path, sizes, stored)


def load(
    path: Path,
    module: nn.Module,
    put: Callable[[str, Any], Any],
    dtype: Any,
    init: Array | None = None,
    claimed: nn.Module | None = None,
) -> dict[str, Any]:
    """The module's variables, {"params": ..., "batch_stats": ...}, from a file in torchvision's layout or a folder.

    Args:
        path: A .pth, .pt, .bin or .safetensors file, or a folder that has one of those that `models.load` reads.
        module: Whose they are.
        put: `(path, host array) -> array` for each variable, "params/stem/kernel", say.
        dtype: Of the variables; None keeps float32.
        init: Typed key: draws a head that is not there or has another number of classes; see `from_torchvision`.
        claimed: The module that the folder's own config.json describes, to be held against the tensors first.

    Raises:
        ValueError: If there is no such file, it is damaged, or its tensors are not the module's.
    """
    if path.is_dir():
        stored = tensors.read_folder(path)
    elif path.suffix not in _READERS or not path.is_file():
        raise ValueError(
            f"models.load: {str(path)!r} is no file of tensors. Tried: {', '.join(_READERS)}, or a folder with one. "
            f"Give the file that torch.save wrote of a state_dict."
        )
    else:
        stored = _READERS[path.suffix](path)
    if claimed is not None:
        _check_claims(path, claimed, stored)
    variables = from_torchvision(module, {name: tensor.read() for name, tensor in stored.items()}, init=init)
    return tree.map_by_path(lambda at, x: put(at, x if dtype is None else x.astype(dtype, copy=False)), variables)


def save(module: Any, variables: Mapping[str, Any], folder: Path, dtype: Any, shard_bytes: int) -> None:
    """Writes config.json and the tensors under torchvision's names.

    Raises:
        ValueError: If the variables are not the module's.
    """
    given.check_arrays("models.save", variables)
    arrays = to_torchvision(module, variables)
    config = {"model_type": kind_of(module), **dataclasses.asdict(module.config)}
    if config.get("matmul_dtype") is not None:
        config["matmul_dtype"] = str(jnp.dtype(config["matmul_dtype"]))
    planned = [
        tensors.Planned(name, x.shape, np.dtype(x.dtype if dtype is None else dtype), lambda x=x: x)
        for name, x in arrays.items()
    ]
    given.make_folder("models.save", folder)
    tensors.write_folder(folder, planned, shard_bytes)
    tensors.atomically(folder / "config.json", [json.dumps(config, indent=2).encode() + b"\n"])
