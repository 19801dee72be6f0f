"""The way of a state to the disk: checked, copied to the host, written by orbax, synced and sealed."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxnn import tree
from jaxnn.runs import stored
from jaxnn.typing import PyTree


def snapshot(state: PyTree) -> dict[str, np.ndarray]:
    """Real copies on the host of all leaves, by path."""
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
        if isinstance(leaf, jax.Array):
            if not leaf.is_fully_addressable and not leaf.is_fully_replicated:
                raise ValueError(
                    f"runs.Checkpoints.save: leaf {path!r} {tree.describe(leaf)} is spread over several processes. "
                    "Gather it first (strategy.gather)."
                )
            leaf.copy_to_host_async()
    # The first shard of a replicated array is a temporary view: nothing keeps its buffer from being donated.
    return {
        path: np.array(
            x.addressable_data(0) if isinstance(x, jax.Array) and x.is_fully_replicated else x, copy=True, order="C"
        )
        for path, x in leaves.items()
    }


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


def write(temporary: Path, step: int, arrays: dict[str, np.ndarray], extra: str, metric: float | None) -> None:
    """Everything of a checkpoint under a temporary name, sealed and on the disk."""
    import orbax.checkpoint as ocp

    manifest = {
        "format": stored.FORMAT,
        "step": step,
        "metric": metric,
        "time": time.time(),
        "arrays": stored.describe_arrays(arrays),
    }
    items: dict[str, Any] = {"manifest": ocp.args.JsonSave(manifest), "extra": ocp.args.JsonSave(json.loads(extra))}
    if full := {name: a for name, a in arrays.items() if a.size}:
        items["arrays"] = ocp.args.PyTreeSave(full)
    with stored.checkpointer() as checkpointer:
        checkpointer.save(temporary, args=ocp.args.Composite(**items))
    for path in [p for p in temporary.rglob("*") if p.is_file()]:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    stored.write_seal(temporary)
