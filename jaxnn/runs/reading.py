"""The arrays of a checkpoint, read back and compared with what was written."""

from pathlib import Path
from typing import Any

import numpy as np

from jaxnn.runs import spread, stored


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """All arrays of a checkpoint by path, in the manifest's order, and what is wrong with their values.

    Call `stored.verify` first: here an exception of orbax means that this version cannot read the format.
    """
    arrays, problems = open_arrays(path)
    read = {}
    for name, array in arrays.items():
        try:
            read[name] = np.asarray(array)
        except RuntimeError as error:
            problems.append(str(error))
    return read, problems


def open_arrays(path: Path) -> tuple[dict[str, np.ndarray | spread.Stored], list[str]]:
    """The same, but arrays that processes wrote in parts are read where they are indexed."""
    described = stored.read_json(path, "manifest")["arrays"]
    in_parts = {name for name, entry in described.items() if "crc32" not in entry}
    # orbax refuses arrays without elements; the manifest says all there is to say about them.
    empty = {name for name, entry in described.items() if 0 in entry["shape"]}
    found: dict[str, Any] = dict(spread.index(path)) if in_parts else {}
    if described.keys() - in_parts - empty:
        import orbax.checkpoint as ocp

        with stored.checkpointer() as reader:
            found |= reader.restore(path.absolute(), args=ocp.args.Composite(arrays=ocp.args.PyTreeRestore()))["arrays"]
    arrays, problems = {}, []
    for name, entry in described.items():
        shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
        array = np.zeros(shape, dtype) if name in empty else found.get(name)
        if array is None:
            problems.append(f"array {name}: missing")
        elif (array.shape, array.dtype) != (shape, dtype):
            problems.append(f"array {name}: {array.dtype}{list(array.shape)}, {dtype}{list(shape)} was written")
        elif isinstance(array, spread.Stored) and array.missing():
            problems.append(f"array {name}: {array.missing()} of its elements are in no part")
        elif name not in in_parts and (crc := stored.checksum(array)) != entry["crc32"]:
            problems.append(f"array {name}: crc32 {crc}, {entry['crc32']} was written")
        else:
            arrays[name] = array
    return arrays, problems
