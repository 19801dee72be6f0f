"""Tensor parallelism: each layer's matrices split over devices, by rules that the model ships or its user writes."""

from collections.abc import Mapping, Sequence

import jax
from jax.sharding import PartitionSpec

from jaxnn.parallel import layout
from jaxnn.parallel.mesh import mesh
from jaxnn.parallel.partitioned import MODEL, Partitioned
from jaxnn.parallel.replicate import AXIS


def tensor(
    rules: Mapping[str, PartitionSpec],
    devices: int | Sequence[jax.Device] | None = None,
    *,
    model: int = -1,
    sequence: bool = False,
    fsdp: bool = False,
    min_size: int = layout.MIN_SIZE,
) -> Partitioned:
    """Matrices split over `model` devices, and what is left of the devices in data-parallel groups of that size.

    Args:
        rules: `role:NAME`, or a regular expression to find in a parameter's path -> how its own axes are split over
            "model"; the first that matches counts, and each parameter needs one. A model's own are beside it:
            `models.gpt.RULES`.
        devices: Their number, a list of them, or None for all.
        model: Devices that share a layer; -1 for all of them.
        sequence: Also split the time axis of what lies between the layers (norms, residuals, dropout), which trades
            each all-reduce for a reduce-scatter and an all-gather and divides those activations by `model`.
        fsdp: Also split parameters and optimizer state over the data-parallel groups, as `parallel.fsdp` does.
        min_size: With `fsdp`, elements below which a leaf is not split over the groups.

    Raises:
        ValueError: If the devices do not divide into groups of `model`; later, when the parameters are known: if one
            has no rule, or an axis that its rule does not divide.

    Source:
        Shoeybi et al. 2019, arXiv:1909.08053; Korthikanti et al. 2022, arXiv:2205.05198 (sequence).
    """
    where = "parallel.tensor"
    made = mesh({AXIS: 1 if model == -1 else -1, MODEL: model}, devices, where)
    return Partitioned(
        made.devices.flat[0], made, min_size, rules=tuple(rules.items()), sequence=sequence, fsdp=fsdp, where=where
    )
