"""Folders of weights: `load` gives a model and its parameters, `save` writes a folder that others open."""

import functools
import importlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import tree
from jaxnn.models.weights import claims, given, images, tensors
from jaxnn.models.weights.table import Architecture, Entry
from jaxnn.models.weights.tensors import Planned, Stored
from jaxnn.typing import Array, HostArray, Params, PyTree

KINDS = (
    "bert",
    "roberta",
    "gpt2",
    "llama",
    "mistral",
    "qwen2",
    "t5",
    "marian",
)  # each a module beside this one, with its ARCHITECTURE
Place = Callable[[str, HostArray], Any]


class Leaf(NamedTuple):
    """A parameter, its shape, and a layer after another the tensors it comes from (one "layer" where it has none)."""

    path: str
    shape: tuple[int, ...]
    dtype: Any
    entry: Entry
    theirs: list[tuple[str, ...]]
    stacked: bool

    def parts(self) -> list[tuple[int, ...]]:
        """The shapes of each layer's tensors."""
        inner = self.shape[1:] if self.stacked else self.shape
        # An array without memory of its own: only its shape matters.
        return [np.shape(part) for part in self.entry.transform.split(np.broadcast_to(np.float32(0), inner))]


def architecture(kind: str) -> Architecture:
    """The family of `model_type` in config.json."""
    return importlib.import_module(f"jaxnn.models.weights.{kind}").ARCHITECTURE


def shapes(module: nn.Module) -> Params:
    """The shapes of a module's parameters, by `eval_shape`."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
    return jax.eval_shape(lambda k, t: module.init({"params": k}, t), key, tokens)["params"]


def leaves(found: Architecture, module: nn.Module, like: Params) -> Iterator[Leaf]:
    """Every parameter of a module with its tensors.

    Raises:
        ValueError: If the table and the module disagree.
    """
    count, stacked = found.layers(module)
    wanted = dict(tree.leaves_by_path(like))
    for entry in found.entries(module):
        repeated = "{i}" in entry.ours
        if repeated and stacked:
            places = [(entry.ours.replace("blocks_{i}", "blocks"), range(count))]
        else:
            places = [(entry.ours.format(i=i), range(i, i + 1)) for i in range(count if repeated else 1)]
        for path, layers in places:
            leaf = wanted.pop(path, None)
            if leaf is None:
                raise ValueError(f"models.load: the table of {found.kind} has {path!r}, the module has not.")
            theirs = [tuple(name.format(i=i) for name in entry.theirs) for i in layers]
            yield Leaf(path, tuple(leaf.shape), leaf.dtype, entry, theirs, repeated and stacked)
    if wanted:
        raise ValueError(f"models.load: the table of {found.kind} has nothing for {sorted(wanted)}.")


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"models.load: {str(folder)!r} has no config.json. Tried: a folder as Hugging Face writes it. Give one "
            f"that has config.json and model.safetensors."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config, dict):
            return config
    except (ValueError, RecursionError):
        pass
    raise ValueError(f"models.load: {str(path)!r} is no JSON object. Tried: reading it. Write it again.")


def _today(found: Architecture, module: nn.Module, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors under the table's names: without noise, older endings renamed, the prefix there."""
    names = {name for leaf in found.entries(module) for name in leaf.theirs}
    names |= found.twins(module).keys() | found.other(module)
    prefixed = any(name.startswith(found.prefix) for name in stored)
    result = {}
    for name, tensor in stored.items():
        if name.endswith(found.noise):
            continue
        for old, new in found.renamed.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        if not prefixed and name not in names:
            name = found.prefix + name
        result[name] = tensor
    return result


def _check_twins(twins: Mapping[str, str], stored: Mapping[str, Stored]) -> None:
    """Refuses tensors that should be there twice and are two."""
    for name, of in twins.items():
        one, other = stored[name], stored[of]  # NaN is refused where it is read, under its own name
        if one.shape != other.shape or not np.array_equal(one.read(), other.read(), equal_nan=True):
            raise ValueError(
                f"models.load: tensor {name!r} differs from {of!r}. Tried: one array, as config.json says "
                f"(tie_word_embeddings). Correct config.json, if the model is not tied."
            )


def _compare(
    where: Path, wanted: list[Leaf], stored: Mapping[str, Stored], fresh: bool, known: Collection[str], new_head: bool
) -> set[str]:
    """Refuses what is missing, left over or misshapen; gives the paths that are to be drawn."""
    names = {name for leaf in wanted for theirs in leaf.theirs for name in theirs}
    if fresh and new_head:
        old = {name for leaf in wanted if leaf.path.startswith("head/") for theirs in leaf.theirs for name in theirs}
        stored = {name: tensor for name, tensor in stored.items() if name not in old}
    drawn = {leaf.path for leaf in wanted if any(n not in stored for theirs in leaf.theirs for n in theirs)}
    missing = sorted(names - stored.keys())
    extra = sorted(stored.keys() - names - set(known))
    if missing and (not fresh or len(drawn) == len(wanted)):
        raise ValueError(
            f"models.load: {str(where)!r} lacks {_few(missing)}. Tried: the {len(names)} tensors of the model that "
            f"config.json describes. Give the right folder, or init=KEY to draw what is missing."
        )
    for leaf in wanted:
        found = [name in stored for theirs in leaf.theirs for name in theirs]
        if any(found) and not all(found):  # drawn anew, it would lose what is there
            lost = next(name for theirs in leaf.theirs for name in theirs if name not in stored)
            raise ValueError(
                f"models.load: {str(where)!r} lacks tensor {lost!r} and has others of parameter {leaf.path!r}. Tried: "
                f"whole parameters, drawn by init=KEY or loaded. Give a folder that has all of its tensors, or none."
            )
    if extra:
        raise ValueError(
            f"models.load: {str(where)!r} has {_few(extra)}, which the model that config.json describes has not. "
            f"Tried: its {len(names)} tensors. Correct config.json, or take them out of the file; those of another "
            f"head are left out where you name the head that you want: head=..."
        )
    for leaf in wanted:
        if leaf.path in drawn:
            continue
        for theirs in leaf.theirs:
            for name, shape in zip(theirs, leaf.parts(), strict=True):
                if stored[name].shape != shape:
                    raise ValueError(
                        f"models.load: tensor {name!r} is {list(stored[name].shape)}. Tried: {list(shape)}, for "
                        f"{leaf.path!r} by config.json. Correct config.json, or give the weights that belong to it; a "
                        f"head of other classes needs init=KEY."
                    )
                if not jnp.issubdtype(stored[name].dtype, jnp.floating):
                    raise ValueError(
                        f"models.load: tensor {name!r} is {stored[name].dtype}. Tried: floats. Give weights that are "
                        f"not quantized."
                    )
    return drawn


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ("tensors " if len(names) > 1 else "tensor ") + ", ".join(map(repr, names[:3])) + more


def _placer(place: Place | PyTree | None) -> Place:
    if place is None:
        return lambda path, array: jnp.asarray(array)
    if isinstance(place, (jax.sharding.Sharding, jax.Device)):
        return lambda path, array: jax.device_put(array, place)
    if callable(place):
        return place
    where = tree.leaves_by_path(place)

    def put(path: str, array: HostArray) -> Any:
        if path not in where:
            raise ValueError(
                f"models.load: place has nothing for {path!r}. Tried: a tree of shardings like the parameters. Give "
                f"one for every parameter, or one sharding for all."
            )
        return jax.device_put(array, where[path])

    return put


def _value(leaf: Leaf, stored: Mapping[str, Stored], dtype: Any) -> HostArray:
    """The parameter, in memory of its own: the file may change later."""
    made = np.empty(leaf.shape, dtype)
    for i, theirs in enumerate(leaf.theirs):
        read = [tensors.numbers("models.load", name, stored[name].read()) for name in theirs]
        part = leaf.entry.transform.join(read)
        made[(i,) if leaf.stacked else ...] = part
    return made


def _draw(module: nn.Module, key: Array, paths: set[str]) -> dict[str, Array]:
    """Some parameters of a module, from their initialisers; the others are not computed."""

    def some(key: Array) -> dict[str, Array]:
        params = module.init({"params": key}, jnp.zeros((1, 1), jnp.int32))["params"]
        return {path: leaf for path, leaf in tree.leaves_by_path(params).items() if path in paths}

    return jax.jit(some)(key)


def load(
    folder: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    place: Place | PyTree | None = None,
    dtype: Any = jnp.float32,
    init: Array | None = None,
    **changes: Any,
) -> tuple[Any, Params]:
    """A model and its parameters from a folder as Hugging Face writes it: `model, params = models.load("folder")`.

    Image models come from torchvision's files, which do not say what they hold, so that the module is given:
    `model, variables = models.load("resnet50.pth", model=models.ResNet(...))`; or from a folder that `models.save`
    wrote of one. They have running statistics too: variables are {"params": ..., "batch_stats": ...}.

    Read are config.json and model.safetensors, or the files of model.safetensors.index.json, or pytorch_model.bin, or a
    .pth file; these last two without unpickling (`weights.pickled`). Tensors go to their devices one by one: on the
    host there is never more than one parameter besides the mapped file (of an image model there are all). Where
    `changes` name the head that is wanted, tensors of other heads are left out; every other difference is an error.

    Args:
        folder: With config.json, of a `model_type` in `KINDS`, or that `save` wrote; with `model` a file of tensors.
        model: The `ResNet`, `VGG`, `Inception` or `ViT` whose tensors these are, in torchvision's layout.
        place: Where parameters go: a sharding or a device for all, a tree of them like the parameters, or a function
            `(path, host array) -> array`. None for the default device.
        dtype: Of the parameters; None keeps each as it is in the file, the widest of its tensors' (an image model's
            float32).
        init: Typed key: parameters of which the file has nothing are drawn from their initialisers, and so is a head
            of another number of classes than are wanted: `models.load("resnet18.pth", model=..., classes=10,
            init=key)`. None refuses.
        changes: Fields of the model's config to be others than the file's: `head="classify", classes=3`.

    Returns:
        The module, and its parameters as a plain dict; an image model's variables.

    Raises:
        ValueError: If a tensor is missing, left over, misshapen, not of floats or not of numbers (NaN, infinities; -inf
            may stand in a bias), named; if a file is damaged, or refused; if the model is of a family, or has a
            setting, that is not known here; if dtype is none of floats.
        TypeError: If a change names no field of the config; if init is no typed key.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"models.load: folder is {tree.describe(folder)}. Tried: a path. Give a folder.")
    folder = Path(folder).expanduser()
    dtype = given.floating("models.load", dtype)
    if init is not None:
        given.check_key("models.load", init)
    config = {} if model is not None else _config(folder)
    said = config.get("model_type")
    kind = said if isinstance(said, str) else None
    if model is not None or kind in images.FAMILIES:
        claimed = images.described(config) if model is None else None
        pictured: Any = model if claimed is None else claimed
        if images.kind_of(pictured) is not None:  # others are refused by name
            pictured = given.changed("models.load", pictured, changes)
        return pictured, images.load(folder, pictured, _placer(place), dtype, init, claimed)
    if kind not in KINDS:
        raise ValueError(
            f"models.load: config.json has model_type={said!r:.80}. Tried: {', '.join((*KINDS, *images.FAMILIES))}. "
            f"Use a model of one of these families."
        )
    found = architecture(kind)
    stored = tensors.read_folder(folder)
    as_saved: Any = found.read(config, frozenset(stored))
    claims.check(folder, found.claims(as_saved), stored)
    module = given.changed("models.load", as_saved, changes)
    stored = _today(found, as_saved, stored)
    twins = {name: of for name, of in found.twins(as_saved).items() if name in stored and of in stored}
    like = shapes(module)
    wanted = list(leaves(found, module, like))
    # Whoever says which head is wanted leaves the others out knowingly.
    known = found.other(as_saved) | found.other(module) if changes else frozenset()
    classes = [getattr(m.config, "classes", None) for m in (as_saved, module)]
    drawn = _compare(folder, wanted, stored, init is not None, known | twins.keys(), classes[0] != classes[1])
    _check_twins(twins, stored)
    put = _placer(place)
    values: dict[str, Any] = {}
    if drawn and init is not None:
        values = {path: put(path, np.asarray(value)) for path, value in _draw(module, init, drawn).items()}
    for leaf in wanted:
        if leaf.path not in drawn:
            own = (stored[name].dtype for theirs in leaf.theirs for name in theirs)
            kept = functools.reduce(jnp.promote_types, own) if dtype is None else dtype
            values[leaf.path] = put(leaf.path, _value(leaf, stored, kept))
    return module, tree.map_by_path(lambda path, _: values[path], like)


def save(
    model: nn.Module,
    params: Params,
    folder: str | os.PathLike[str],
    *,
    kind: str | None = None,
    dtype: Any = None,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a folder that `transformers` opens, and `load`: config.json and model.safetensors.

    Of an image model the tensors have torchvision's names, for `load_state_dict(..., strict=False)`, and config.json is
    ours.

    Parameters are fetched from their devices one by one. Files are replaced whole; others in the folder stay.

    Args:
        model: The module.
        params: Its parameters; an image model's variables.
        folder: Made if it is not there.
        kind: The family, where the module could be of several; by default the first that it fits.
        dtype: Of the tensors; None for each parameter's own.
        shard_bytes: Where the tensors have more, they go into several files and an index.

    Raises:
        ValueError: If the module is of no family that the files know, or the parameters are not the module's, all of
            them floats; if dtype is none that a file holds, or shard_bytes no size; if the folder cannot be made.
        TypeError: If model is no module, or folder no path.
    """
    where = "models.save"
    given.check_module(where, model)
    folder, dtype = given.check_written(where, folder, shard_bytes), given.floating(where, dtype, tensors.DTYPES)
    if kind is not None and kind not in KINDS:
        raise ValueError(f"models.save: kind={kind!r}. Tried: {', '.join(KINDS)}. Write one of them.")
    if kind is None and images.kind_of(model) is not None:
        return images.save(model, params, folder, dtype, shard_bytes)
    families = [architecture(name) for name in ([kind] if kind else KINDS)]
    found = next((a for a in families if type(model) is a.module and a.fits(model)), None)
    if found is None:
        raise ValueError(
            f"models.save: {type(model).__name__} as it is set is none of {', '.join(a.kind for a in families)}. "
            f"Tried: the settings that their files can say. Save a model of such a family, or keep checkpoints."
        )
    config = found.write(model)
    like = shapes(model)
    values, wanted_leaves = tree.leaves_by_path(params), tree.leaves_by_path(like)
    for path, leaf in wanted_leaves.items():
        if path not in values or tuple(np.shape(values[path])) != tuple(leaf.shape):
            raise ValueError(
                f"models.save: parameter {path!r} is {tree.describe(values.get(path))}. Tried: {tree.describe(leaf)}, "
                f"as the model has it. Give the parameters of this model."
            )
    given.check_whole(where, {path: leaf for path, leaf in values.items() if path not in wanted_leaves})
    given.check_arrays(where, params)
    planned = []
    for leaf in leaves(found, model, like):
        kept = np.dtype(values[leaf.path].dtype if dtype is None else dtype)
        for i, theirs in enumerate(leaf.theirs):
            for j, (name, shape) in enumerate(zip(theirs, leaf.parts(), strict=True)):
                name = name.removeprefix(found.prefix) if found.bare(model) else name
                make = lambda leaf=leaf, i=i, j=j: _tensor(leaf, values[leaf.path], i, j)  # noqa: E731
                planned.append(Planned(name, shape, kept, make))
    config["dtype"] = config["torch_dtype"] = str(np.dtype(dtype or planned[0].dtype))
    given.make_folder(where, folder)
    tensors.write_folder(folder, planned, shard_bytes)
    tensors.atomically(folder / "config.json", [json.dumps(config, indent=2).encode() + b"\n"])


def _tensor(leaf: Leaf, value: Any, layer: int, part: int) -> HostArray:
    array = np.asarray(value[layer] if leaf.stacked else value)
    return leaf.entry.transform.split(array)[part]
