"""The way of a state to the disk: checked, copied to the host, written by orbax, synced and sealed."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxnn import tree
from jaxnn.runs import stored
from jaxnn.runs.spread import Spread, copied, is_spread, take_in
from jaxnn.typing import PyTree


def snapshot(state: PyTree, whole: bool = True) -> dict[str, np.ndarray | Spread]:
    """Real copies on the host of what this process is to write, by path.

    Args:
        state: Pytree of arrays.
        whole: Whether that includes the arrays that a single process holds whole: process 0 writes them.
    """
    leaves = tree.leaves_by_path(state)
    if len(leaves) != len(jax.tree.leaves(state)):
        raise ValueError(
            "runs.Checkpoints.save: two leaves of the state have the same path. Give every leaf a name of its own."
        )
    for path, leaf in leaves.items():
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or jax.dtypes.issubdtype(dtype, jax.dtypes.extended) or np.dtype(dtype).hasobject:
            raise TypeError(
                f"runs.Checkpoints.save: leaf {path!r} is {tree.describe(leaf)}, not a numeric array. "
                "Keep keys as raw data (jax.random.key_data) and numbers as arrays in the state."
            )
    mine = {path: leaf for path, leaf in leaves.items() if whole or is_spread(leaf)}
    for leaf in mine.values():
        if isinstance(leaf, jax.Array) and not is_spread(leaf):
            leaf.copy_to_host_async()
    return {path: copied(leaf) if is_spread(leaf) else _copied(leaf) for path, leaf in mine.items()}


def _copied(x: Any) -> np.ndarray:
    # The first shard of a replicated array is a temporary view: nothing keeps its buffer from being donated.
    replicated = isinstance(x, jax.Array) and x.is_fully_replicated
    return np.array(x.addressable_data(0) if replicated else x, copy=True, order="C")


def json_text(extra: Mapping[str, Any]) -> str:
    """`extra` as JSON text; what would not come back as it was is refused."""

    def check(value: Any, at: str) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise TypeError(
                        f"runs.Checkpoints.save: {at} has the key {key!r}; JSON would make it text. Use strings."
                    )
                check(item, f"{at}[{key!r}]")
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                check(item, f"{at}[{number}]")
        elif value is not None and type(value) not in (str, int, float, bool):
            raise TypeError(
                f"runs.Checkpoints.save: {at} is {type(value).__name__} {value!r:.60}, not JSON. "
                "Use .item() or .tolist()."
            )

    check(extra, "extra")
    return json.dumps(extra)


def write(
    temporary: Path,
    step: int,
    arrays: Mapping[str, np.ndarray | Spread],
    extra: str,
    metric: float | None,
    parts: Mapping[int, Path],
) -> None:
    """Everything of a checkpoint under a temporary name, sealed and on the disk.

    Args:
        temporary: A folder that is not there yet.
        step: The checkpoint's.
        arrays: What `snapshot` gave.
        extra: JSON text.
        metric: As given to `save`.
        parts: Where each process, this one included, writes what it holds of spread arrays.
    """
    import orbax.checkpoint as ocp

    manifest = {
        "format": stored.FORMAT,
        "step": step,
        "metric": metric,
        "time": time.time(),
        "arrays": {path: _described(x) for path, x in arrays.items()},
    }
    items: dict[str, Any] = {"manifest": ocp.args.JsonSave(manifest), "extra": ocp.args.JsonSave(json.loads(extra))}
    if full := {name: a for name, a in arrays.items() if isinstance(a, np.ndarray) and a.size}:
        items["arrays"] = ocp.args.PyTreeSave(full)
    with stored.checkpointer() as checkpointer:
        checkpointer.save(temporary, args=ocp.args.Composite(**items))
    if any(isinstance(x, Spread) for x in arrays.values()):
        take_in(parts, temporary)
    stored.write_seal(temporary)


def _described(x: np.ndarray | Spread) -> dict[str, Any]:
    """The manifest's entry for an array; of a spread one the index of each part has the checksums."""
    values = {"crc32": stored.checksum(x)} if isinstance(x, np.ndarray) else {}
    return {"shape": list(x.shape), "dtype": str(x.dtype)} | values
