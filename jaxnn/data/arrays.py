"""A data set held in memory, or memory-mapped, as NumPy arrays with a leading example axis."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnn.data import order
from jaxnn.data.given import example_numbers
from jaxnn.tree import describe
from jaxnn.typing import HostArray, Resident

RESERVED = ("mask", "index")
_BLOCK_BYTES = 2**24  # checks read this much at a time, so that a memory-mapped array is never copied whole


class FirstBad(NamedTuple):
    """Where a check failed: the example's number and the value."""

    example: int
    value: Any


def _first_bad(array: HostArray, good: Any) -> FirstBad | None:
    """The first element, in order of examples, for which `good(block) -> bool block` is False."""
    rows = max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        block = array[start : start + rows]
        ok = good(block)
        if not ok.all():
            at = np.argwhere(~ok)[0]
            return FirstBad(start + int(at[0]), block[tuple(at)])
    return None


def _convert(name: str, value: Any, allow_nonfinite: bool) -> HostArray:
    """One array, checked, in the dtype that JAX will give it on the device."""
    if np.ma.isMaskedArray(value):
        raise TypeError(
            f"data.Arrays: {name!r} {describe(value)} is a masked array, whose mask would be lost. Tried: NumPy's "
            "asarray. Drop or fill the masked examples: value.filled(0)."
        )
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"data.Arrays: {name!r} of type {type(value).__name__} is no array ({error}). Tried: NumPy's asarray. "
            f"Pad ragged examples to one shape, or write a Source of your own."
        ) from error
    label = f"{name!r} {describe(array)}"
    if array.dtype.kind == "O":
        raise TypeError(
            f"data.Arrays: {label} holds Python objects, which no device can. Tried: the dtype NumPy gave it. "
            f"Give equally long rows of numbers: np.stack(rows), or array.astype(np.float32)."
        )
    if array.dtype.kind in "SU":
        raise TypeError(
            f"data.Arrays: {label} holds text, which no device can. Tried: the dtype NumPy gave it. "
            f"Give numbers: np.unique(labels, return_inverse=True)[1] makes class ids of names."
        )
    if array.dtype.kind in "mM" or array.dtype.type is np.void:
        raise TypeError(
            f"data.Arrays: {label} has a dtype that no device has. Tried: the dtype NumPy gave it. "
            f"Give numbers: one array a field, or array.astype(np.float32)."
        )
    if array.ndim == 0:
        raise ValueError(
            f"data.Arrays: {label} is a scalar and has no example axis. Tried: {array!r} as given. "
            f"Give an array whose first axis is the examples."
        )
    return _narrow(name, array, allow_nonfinite)


def _narrow(name: str, array: HostArray, allow_nonfinite: bool) -> HostArray:
    """Checks the values and casts to JAX's dtype (float64 to float32 and so on, unless x64 is enabled)."""
    floating = not (np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_)
    target = np.dtype(jax.dtypes.canonicalize_dtype(array.dtype))
    if floating and not allow_nonfinite:
        bad = _first_bad(array, np.isfinite)
        if bad:
            raise ValueError(
                f"data.Arrays: {name!r} {describe(array)} has {bad.value} in example {bad.example}. Tried: every value "
                "is finite. Clean or drop the example, or pass allow_nonfinite=True."
            )
    if target == array.dtype:
        return array
    if floating:
        limit = np.finfo(target).max
        # Infinities and NaNs that were allowed stay what they are; only a finite value that would overflow is an error.
        bad = _first_bad(array, lambda x: ~np.isfinite(x) | (np.abs(x) <= limit))
    else:
        info = np.iinfo(target)
        bad = _first_bad(array, lambda x: (x >= info.min) & (x <= info.max))
    if bad:
        raise ValueError(
            f"data.Arrays: {name!r} {describe(array)} has {bad.value} in example {bad.example}, out of the range of "
            f"{target}, which JAX gives to {array.dtype}. Tried: a cast to {target}. Scale or renumber the values."
        )
    return array.astype(target)


def take_rows(arrays: Mapping[str, Any], index: Any) -> dict[str, Any]:
    """The rows `index` [B] of every array, traceable: the `take` of a `Resident`."""
    # Every index is valid, so clipping changes nothing; the default mode would fill rows with NaN and cost a select.
    return {name: jax.numpy.take(array, index, axis=0, mode="clip") for name, array in arrays.items()}


class Arrays:
    """Examples as arrays of one length, by name: "x", "y" and whatever else a task reads.

    float64 becomes float32 and int64 int32 once, here, because JAX would do it silently on the way to the device (not
    where `jax_enable_x64` is set); uint8 and every other dtype stay as they are. An array that needs no conversion is
    not copied, so a memory-mapped one stays on disk, though the check for NaN reads it once.
    """

    def __init__(self, x: Any = None, y: Any = None, /, *, allow_nonfinite: bool = False, **named: Any):
        """Makes a source from `Arrays(x)`, `Arrays(x, y)`, `Arrays(x, y, weights=w)` or `Arrays({"tokens": t})`.

        Args:
            x: Array [N, ...] or anything NumPy reads as one; or a mapping of names to such arrays.
            y: Targets [N, ...]; None where there are none.
            allow_nonfinite: Accept NaN and infinities.
            named: Further arrays [N, ...].

        Raises:
            ValueError: If there is no array or no example, lengths differ, an array is a scalar, a name is reserved, or
                a value is not finite or does not fit the dtype that JAX uses.
            TypeError: If an array holds objects, text, dates or records.
        """
        given: dict[str, Any] = {}
        if isinstance(x, Mapping):
            if y is not None:
                raise ValueError(
                    f"data.Arrays: a mapping with names {list(x)} and a second array. Tried: names from the mapping. "
                    f'Put the targets into the mapping as "y".'
                )
            given.update(x)
        elif x is not None:
            given["x"] = x
        if y is not None:
            given["y"] = y
        for name in named:
            if name in given:
                raise ValueError(
                    f"data.Arrays: the name {name!r} is given twice. Tried: {list(given)} + {list(named)}. Give it "
                    "once."
                )
        given.update(named)
        if not given:
            raise ValueError(
                "data.Arrays: no arrays. Tried: x, y, a mapping and names. Give at least one array [N, ...]."
            )
        for name in given:
            if not isinstance(name, str):
                raise TypeError(
                    f"data.Arrays: the name {name!r} is not text. Tried: {list(given)}. Name arrays by strings."
                )
            if name in RESERVED:
                raise ValueError(
                    f"data.Arrays: the name {name!r} is reserved for what the loader adds. Tried: {list(given)}. "
                    f'Rename it; for weights per example use "weights".'
                )
        self.arrays = {name: _convert(name, value, allow_nonfinite) for name, value in given.items()}
        lengths = {name: len(a) for name, a in self.arrays.items()}
        first = next(iter(lengths))
        for name, length in lengths.items():
            if length != lengths[first]:
                raise ValueError(
                    f"data.Arrays: {first!r} has {lengths[first]} examples ({describe(self.arrays[first])}) and "
                    f"{name!r} has {length} ({describe(self.arrays[name])}). Tried: the first axis of each. Give every "
                    "array one row an example."
                )
        if not lengths[first]:
            raise ValueError(
                f"data.Arrays: {first!r} {describe(self.arrays[first])} has no examples. Tried: its first axis. Give "
                "at least one."
            )

    @classmethod
    def _of(cls, arrays: dict[str, HostArray]) -> "Arrays":
        """A source of arrays that were checked already."""
        source = object.__new__(cls)
        source.arrays = arrays
        return source

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={describe(a)}" for name, a in self.arrays.items())
        return f"Arrays({len(self)} examples, {self.nbytes / 1e6:.3g} MB: {shapes})"

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(a.nbytes for a in self.arrays.values())

    def __getitem__(self, rows: slice) -> "Arrays":
        """The examples of a slice, as views.

        Raises:
            TypeError: If `rows` is not a slice.
            ValueError: If it selects nothing.
        """
        if not isinstance(rows, slice):
            raise TypeError(
                f"data.Arrays: index {rows!r}. Tried: a slice. Write source[a:b], or source.take(ids) for single "
                "examples."
            )
        chosen = {name: a[rows] for name, a in self.arrays.items()}
        if not len(next(iter(chosen.values()))):
            raise ValueError(
                f"data.Arrays: {rows} selects none of {len(self)} examples. Tried: NumPy's slicing. Give a slice "
                "inside."
            )
        return Arrays._of(chosen)

    def split(self, fraction: float, seed: int = 0) -> tuple["Arrays", "Arrays"]:
        """Two disjoint parts that together hold every example, drawn at random; each is in the order of the source.

        Args:
            fraction: Share of the examples in the first part, in (0, 1).
            seed: The split is a function of it and of the number of examples.

        Raises:
            ValueError: If a part would be empty.
        """
        first, second = order.split("data.Arrays.split", "examples", len(self), fraction, seed)
        return self._of(self.take(first)), self._of(self.take(second))

    def take(self, index: HostArray) -> dict[str, HostArray]:
        """The examples `index` [B]: a fresh array [B, ...] for each name.

        Raises:
            TypeError: If they are no integers.
            ValueError: If one is not there.
        """
        index = example_numbers("data.Arrays", index, len(self))
        return {name: array[index] for name, array in self.arrays.items()}

    def resident(self) -> Resident:
        """The arrays themselves, for the device."""
        return Resident(dict(self.arrays), take_rows)
