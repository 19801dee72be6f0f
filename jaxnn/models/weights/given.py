"""Checks of what `load` and `save` are told beside a folder: a dtype, a key, fields of a config, parameters."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import tree


def floating(where: str, dtype: Any, known: Mapping[str, np.dtype[Any]] | None = None) -> np.dtype[Any] | None:
    """The dtype that parameters are to have; None stays None.

    Args:
        where: The function.
        dtype: Anything that NumPy or JAX takes for one.
        known: The dtypes that a file can hold, by name; None for no file.

    Raises:
        ValueError: If it is none of floats, or none of the known.
    """
    if dtype is None:
        return None
    shown = repr(dtype)
    try:
        found = jnp.dtype(dtype)
        shown = str(found)
        if jnp.issubdtype(found, jnp.floating) and (known is None or found in known.values()):
            return found
    except TypeError:
        pass
    floats = [str(d) for d in (known or {}).values() if jnp.issubdtype(d, jnp.floating)]
    raise ValueError(
        f"{where}: dtype={shown}. Tried: {', '.join(floats) or 'floats'}. Write jnp.bfloat16, say, or None to keep "
        "each parameter's own."
    )


def check_key(where: str, key: Any) -> None:
    """Refuses what is no single typed key.

    Raises:
        TypeError: Naming it.
    """
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or np.shape(key):
        raise TypeError(f"{where}: init is {tree.describe(key)}. Tried: a typed key. Write jax.random.key(0).")


def changed(where: str, module: Any, changes: Mapping[str, Any]) -> Any:
    """The module with some fields of its config changed.

    Raises:
        TypeError: If the config has no such field.
    """
    if not changes:
        return module
    fields = [field.name for field in dataclasses.fields(module.config)]
    if odd := [name for name in changes if name not in fields]:
        raise TypeError(
            f"{where}: {odd[0]}={changes[odd[0]]!r:.80}. Tried: the fields of {type(module.config).__name__}: "
            f"{', '.join(fields)}. Write one of them."
        )
    return type(module)(dataclasses.replace(module.config, **changes))


def check_arrays(where: str, params: Any) -> None:
    """Refuses parameters that a file cannot hold as what they are: integers, shapes without values.

    Raises:
        ValueError: Naming the first.
    """
    for path, leaf in tree.leaves_by_path(params).items():
        if not isinstance(leaf, (jax.Array, np.ndarray)):
            raise ValueError(
                f"{where}: parameter {path!r} is {tree.describe(leaf)}, no array. Tried: writing it. Give the "
                "parameters of this model."
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{where}: parameter {path!r} is {tree.describe(leaf)}. Tried: floats, which are all that `load` "
                "takes. Give the parameters of this model."
            )


def check_whole(where: str, left: Mapping[str, Any]) -> None:
    """Refuses parameters that no tensor would hold.

    Raises:
        ValueError: Naming the first.
    """
    if left:
        path = min(left)
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise ValueError(
            f"{where}: there is {path!r} {tree.describe(left[path])}, which the model has not{more}. Tried: writing "
            "all. Give the parameters of this model; merge adapters (merge_lora) before."
        )


def check_written(where: str, folder: Any, shard_bytes: Any) -> Path:
    """The folder to write to; it is not made yet.

    Raises:
        TypeError: If it is no path.
        ValueError: If a file's largest size is no positive integer.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"{where}: folder is {tree.describe(folder)}. Tried: a path. Give a folder.")
    if not isinstance(shard_bytes, int) or shard_bytes < 1:
        raise ValueError(
            f"{where}: shard_bytes={shard_bytes!r}. Tried: a file's largest size. Write 5_000_000_000, say."
        )
    return Path(folder).expanduser()


def make_folder(where: str, folder: Path) -> None:
    """Makes the folder and those above.

    Raises:
        ValueError: If there is a file in its place, or it may not be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{where}: {str(folder)!r} is no folder ({error.strerror}). Tried: making it. Give one that can be "
            "written to."
        ) from error


def check_module(where: str, module: Any) -> None:
    """Refuses what is no module: a class, a name.

    Raises:
        TypeError: Naming it.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"{where}: model is {tree.describe(module)}. Tried: a module. Write models.GPT(models.GPTConfig(...)), "
            "or what models.load gave first."
        )
