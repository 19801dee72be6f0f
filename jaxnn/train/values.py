"""The numbers in data against what a model can look up: token ids against tables, targets against classes.

Data that lives on the device is checked whole before the run; what is streamed, each batch as it is made.
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from jaxnn.data import host_batch
from jaxnn.data.arrays import take_rows
from jaxnn.lookups import Lookup
from jaxnn.tree import describe
from jaxnn.typing import Batch, HostArray, Resident, Source

Lookups = Mapping[str, Lookup]
_BLOCK = 1024  # examples looked at together


def _outside(x: HostArray, count: int) -> bool:
    """Whether some of `x` is not in [0, count)."""
    info = np.iinfo(x.dtype)
    if not x.size or (info.min >= 0 and info.max < count):
        return False
    return bool(x.max() >= count or (info.min < 0 and x.min() < 0))


def within(where: str, batch: Batch, lookups: Lookups, at: str) -> None:
    """Refuses a batch on the host with numbers that the model cannot look up.

    Args:
        where: Who asks.
        batch: As `data.host_batch` makes it.
        lookups: By the name of an array.
        at: Which batch it is, in the error.

    Raises:
        ValueError: Naming the array, the example, the place in it, the number and the range.
    """
    for name, lookup in lookups.items():
        x = batch[name]
        if not _outside(x, lookup.count):
            continue
        bad = (x < 0) | (x >= lookup.count)
        for weights in ("mask", "weights") if lookup.weighed else ("mask",):
            if weights in batch and batch[weights].ndim <= bad.ndim:
                weight = batch[weights]
                bad &= weight.reshape(weight.shape + (1,) * (bad.ndim - weight.ndim)) != 0
        if bad.any():
            row, *place = (int(i) for i in np.argwhere(bad)[0])
            example = batch["index"][row] if "index" in batch else row
            there = f", place {place[0] if len(place) == 1 else place}" if place else ""
            raise ValueError(
                f"{where}: {name!r} {describe(x)} of {at} has {x[row, *place]} in example {example}{there}. Tried: "
                f"{lookup.what} in [0, {lookup.count}). {lookup.advice}"
            )


def step_check(where: str, lookups: Lookups) -> Callable[[Batch, int], None] | None:
    """What checks the batch of a data step, or None where there is nothing to check."""
    return (lambda batch, step: within(where, batch, lookups, f"data step {step}")) if lookups else None


def resident_within(where: str, source: Source, resident: Resident, lookups: Lookups) -> None:
    """Refuses data that lives on the device with numbers that the model cannot look up.

    An array whose rows the examples are is looked at whole, two passes at the speed of memory. Of others (a stream,
    packed rows) it suffices that no integer in them is out of range; else all examples are taken, once.

    Raises:
        ValueError: As `within`.
    """
    arrays = resident.arrays
    integers = [x for x in jax.tree.leaves(arrays) if x.dtype.kind in "iu"]
    suspects = {}
    for name, lookup in lookups.items():
        own = arrays.get(name) if resident.take is take_rows else None
        if any(_outside(x, lookup.count) for x in ([own] if own is not None else integers)):
            suspects[name] = lookup
    if suspects:
        for first in range(0, len(source), _BLOCK):
            ids = np.arange(first, min(first + _BLOCK, len(source)))
            within(where, host_batch(source, ids), suspects, f"examples {first} to {ids[-1]}")
