"""FSDP: parameters, gradients and optimizer state split over the devices, partitioned by XLA."""

from collections.abc import Sequence

import jax

from jaxnn.parallel import layout
from jaxnn.parallel.mesh import mesh
from jaxnn.parallel.partitioned import Partitioned
from jaxnn.parallel.replicate import AXIS


def fsdp(devices: int | Sequence[jax.Device] | None = None, *, min_size: int = layout.MIN_SIZE) -> Partitioned:
    """Each device keeps 1/N of parameters and optimizer state; a layer's parameters are gathered when it runs.

    What `zero(stage=3)` does, written as one global program with constraints, so that it combines with `tensor`.

    Args:
        devices: Their number, a list of them, or None for all.
        min_size: Elements below which a leaf stays whole on every device.

    Raises:
        ValueError: If there are fewer devices than asked for.

    Source:
        Zhao et al. 2023, arXiv:2304.11277; Xu et al. 2021, arXiv:2105.04663.
    """
    where = "parallel.fsdp"
    made = mesh({AXIS: -1}, devices, where)
    return Partitioned(made.devices.flat[0], made, min_size, rules=None, sequence=False, fsdp=True, where=where)
