"""One helper for meshes, on CPU, GPU and TPU."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh

from jaxnn.parallel.devices import select


def mesh(
    axes: Mapping[str, int], devices: int | Sequence[jax.Device] | None = None, where: str = "parallel.mesh"
) -> Mesh:
    """A mesh of devices; on TPU, neighbours in the mesh are neighbours on the chip network.

    Args:
        axes: Name -> size, the outermost (slowest links) first; one may be -1, for what is left.
        devices: Their number, a list of them, or None for all.
        where: For errors.

    Raises:
        ValueError: If there are fewer devices than asked for, or the sizes do not multiply to their number.
    """
    chosen = select(devices, where)
    sizes = dict(axes)
    known = math.prod(size for size in sizes.values() if size != -1)
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"{where}: axes {dict(axes)}. Tried: sizes of at least 1, at most one of them -1. Write so.")
    if free and len(chosen) % known == 0:
        sizes[free[0]] = len(chosen) // known
    if math.prod(sizes.values()) != len(chosen):
        raise ValueError(
            f"{where}: axes {dict(axes)} for {len(chosen)} devices. Tried: sizes that multiply to {len(chosen)}. "
            f"Write devices=, or one size as -1 where the others divide {len(chosen)}."
        )
    # Linen fails under the Explicit axes that make_mesh makes by default.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=chosen)
