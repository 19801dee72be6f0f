"""How a run is spread over devices.

A strategy is a frozen value that the loop never looks into: it places the state and the batches, turns a gradient
function and an update function into a step, and owns the outermost jit or pmap. Gradients are added over devices as
sums and divided once, in the update, by the total weight, so that every strategy gives the numbers of one device.
"""

import jax

from jaxnn.parallel.devices import compilation_cache as compilation_cache
from jaxnn.parallel.devices import force_host_devices as force_host_devices
from jaxnn.parallel.devices import select
from jaxnn.parallel.members import members as members
from jaxnn.parallel.pmap import Pmap as Pmap
from jaxnn.parallel.replicate import Replicate as Replicate
from jaxnn.parallel.replicate import data_mesh
from jaxnn.parallel.single import Single as Single


def single(device: jax.Device | None = None) -> Single:
    """Everything on one device, by default the first."""
    return Single(device or jax.devices()[0])


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


STRATEGIES = {"single": single, "replicate": replicate, "pmap": pmap}


def by_name(name: str, devices: int | None = None) -> Single:
    """The strategy that a command line names, over the first `devices` devices.

    None is every device there is (one, for "single"). On a CPU, several are forced. Call it before anything else uses
    JAX.

    Raises:
        ValueError: If the name is unknown, there are fewer devices, or "single" is to use several.
    """
    if name not in STRATEGIES:
        raise ValueError(f"parallel.by_name: {name!r} is unknown. Tried: {', '.join(STRATEGIES)}. Write one of them.")
    if name == "single" and (devices or 1) > 1:
        raise ValueError(
            f"parallel.by_name: 'single' uses one device, {devices} were asked for. Write 'replicate' or 'pmap'."
        )
    if devices is not None and devices > 1:
        force_host_devices(devices)
    return single() if name == "single" else STRATEGIES[name](devices)
