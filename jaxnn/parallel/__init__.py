"""How a run is spread over devices.

A strategy is a frozen value that the loop never looks into: it places the state and the batches, turns a gradient
function and an update function into a step, and owns the outermost jit or pmap. Gradients are added over devices as
sums and divided once, in the update, by the total weight, so that every strategy gives the numbers of one device.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxnn.parallel import layout
from jaxnn.parallel.beats import beat as beat, rest as rest
from jaxnn.parallel.devices import (
    compilation_cache as compilation_cache,
    force_host_devices as force_host_devices,
    select,
)
from jaxnn.parallel.fsdp import fsdp as fsdp
from jaxnn.parallel.members import Members as Members, members as members
from jaxnn.parallel.mesh import mesh as mesh
from jaxnn.parallel.partitioned import Partitioned as Partitioned
from jaxnn.parallel.placing import (
    batch_part as batch_part,
    fetch as fetch,
    place as place,
    place_batch_rows as place_batch_rows,
    process_count as process_count,
    process_index as process_index,
)
from jaxnn.parallel.pmap import Pmap as Pmap
from jaxnn.parallel.processes import (
    agree as agree,
    gather as gather,
    initialize as initialize,
    leave as leave,
    meet as meet,
    numbers as numbers,
)
from jaxnn.parallel.replicate import Replicate as Replicate, data_mesh
from jaxnn.parallel.sharded import Sharded as Sharded
from jaxnn.parallel.single import Single as Single
from jaxnn.parallel.summary import summary as summary
from jaxnn.parallel.tensor import tensor as tensor
from jaxnn.parallel.zero import Zero as Zero


def single(device: jax.Device | None = None) -> Single:
    """Everything on one device, by default this process's first."""
    return Single(device or jax.local_devices()[0])


def replicate(devices: int | list[jax.Device] | None = None) -> Replicate:
    """Data parallelism over `devices` (a number of them, a list, or None for all): one jit, one all-reduce a step.

    Raises:
        ValueError: If there are fewer devices than asked for.
    """
    chosen = select(devices, "parallel.replicate")
    return Replicate(chosen[0], data_mesh(chosen))


def pmap(devices: int | list[jax.Device] | None = None) -> Pmap:
    """Data parallelism over `devices` by the real `jax.pmap`; same numbers as `replicate`.

    Raises:
        ValueError: If there are fewer devices than asked for.
    """
    chosen = select(devices, "parallel.pmap")
    return Pmap(chosen[0], data_mesh(chosen))


def zero(stage: int = 2, devices: int | list[jax.Device] | None = None, *, min_size: int = layout.MIN_SIZE) -> Zero:
    """Data parallelism in which each of N devices keeps 1/N of the optimizer's state (stage 1), also of the gradients
    (2), also of the parameters (3); same numbers as `replicate`.

    Args:
        stage: 1, 2 or 3.
        devices: Their number, a list of them, or None for all.
        min_size: Elements below which a leaf stays whole on every device.

    Raises:
        ValueError: If there is no such stage, or there are fewer devices than asked for.
    """
    if stage not in (1, 2, 3):
        raise ValueError(f"parallel.zero: stage={stage!r}. Tried: 1, 2, 3. Write one of them; stage 0 is replicate().")
    chosen = select(devices, "parallel.zero")
    return Zero(chosen[0], data_mesh(chosen), min_size, stage)


Rules = Mapping[str, PartitionSpec]

# Name on a command line -> strategy of (devices, rules, model).
STRATEGIES: dict[str, Callable[[int | None, Rules, int], Any]] = {
    "single": lambda devices, rules, model: single(),
    "replicate": lambda devices, rules, model: replicate(devices),
    "pmap": lambda devices, rules, model: pmap(devices),
    "zero1": lambda devices, rules, model: zero(1, devices),
    "zero2": lambda devices, rules, model: zero(2, devices),
    "zero3": lambda devices, rules, model: zero(3, devices),
    "fsdp": lambda devices, rules, model: fsdp(devices),
    "tensor": lambda devices, rules, model: tensor(rules, devices, model=model),
    "sequence": lambda devices, rules, model: tensor(rules, devices, model=model, sequence=True),
    "fsdp_tensor": lambda devices, rules, model: tensor(rules, devices, model=2 if model == -1 else model, fsdp=True),
}


def by_name(name: str, devices: int | None = None, rules: Rules | None = None, model: int = -1) -> Any:
    """The strategy that a command line names, over the first `devices` devices.

    None is every device there is (one, for "single"). On a CPU, several are forced. Call it before anything else uses
    JAX.

    Args:
        name: One of `STRATEGIES`.
        devices: How many.
        rules: The model's, for those that split its layers: "tensor", "sequence" (tensor with the residual stream's
            time axis split), "fsdp_tensor".
        model: For these, devices that share a layer; -1 for all ("fsdp_tensor": 2).

    Raises:
        ValueError: If the name is unknown, there are fewer devices, "single" is to use several, or rules are missing.
    """
    if name not in STRATEGIES:
        raise ValueError(f"parallel.by_name: {name!r} is unknown. Tried: {', '.join(STRATEGIES)}. Write one of them.")
    if name == "single" and (devices or 1) > 1:
        raise ValueError(
            f"parallel.by_name: 'single' uses one device, {devices} were asked for. Write 'replicate' or 'pmap'."
        )
    if rules is None and name in ("tensor", "sequence", "fsdp_tensor"):
        raise ValueError(
            f"parallel.by_name: {name!r} splits layers by rules, and this program passes none. Tried: the rules of its "
            "model. Pass rules=models.gpt.RULES, say, or write 'fsdp' or 'zero3', which need none."
        )
    if devices is not None and devices > 1 and not jax.distributed.is_initialized():
        force_host_devices(devices)
    return STRATEGIES[name](devices, rules or {}, model)
