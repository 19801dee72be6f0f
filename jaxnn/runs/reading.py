"""The arrays of a checkpoint, read back and compared with what was written."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxnn.runs import spread, stored


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """All arrays of a checkpoint by path, in the manifest's order, and what is wrong with their values.

    Call `stored.verify` first: here an exception of orbax means that this version cannot read the format.
    """
    described = stored.read_json(path, "manifest")["arrays"]
    here = {name for name, entry in described.items() if 0 not in entry["shape"] and "crc32" in entry}
    found: dict[str, Any] = {}
    if here:
        import orbax.checkpoint as ocp

        with stored.checkpointer() as reader:
            found = reader.restore(path.absolute(), args=ocp.args.Composite(arrays=ocp.args.PyTreeRestore()))["arrays"]
    blocks, problems = spread.read(path) if any("crc32" not in entry for entry in described.values()) else ({}, [])
    arrays = {}
    for name, entry in described.items():
        shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
        # orbax refuses arrays without elements; the manifest says all there is to say about them.
        array = np.zeros(shape, dtype) if 0 in shape else found.get(name) if name in here else blocks.get(name)
        if array is None:
            problems.append(f"array {name}: missing")
        elif (array.shape, array.dtype) != (shape, dtype):
            problems.append(f"array {name}: {array.dtype}{list(array.shape)}, {dtype}{list(shape)} was written")
        elif name in here and (crc := stored.checksum(array)) != entry["crc32"]:
            problems.append(f"array {name}: crc32 {crc}, {entry['crc32']} was written")
        else:
            arrays[name] = array
    return arrays, problems
