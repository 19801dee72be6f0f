"""Whatever can be indexed as a data set: grain's sources and map data sets, lists of examples, others' data sets."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxnn.data.given import example_numbers
from jaxnn.tree import describe
from jaxnn.typing import HostArray


class Indexed:
    """A source over an object with `__len__` and `__getitem__`, whose items are one example each.

    Items are mappings of names to numbers or arrays, or pairs (x, y), or bare arrays ("x"); every item has the same
    names and shapes. Pure as every source: item i must be the same at every call, so that random transforms belong
    into `data.mapped`. Where the object has `__getitems__` (grain's, PyTorch's), a batch is one call.

    `Indexed(grain.MapDataset.source(...).map(...))`, `Indexed([{"x": ..., "y": ...}, ...])`.
    """

    def __init__(self, items: Any):
        """Looks at the first item.

        Raises:
            TypeError: If the object cannot be indexed, or the item is no example.
            ValueError: If it is empty.
        """
        missing = [name for name in ("__len__", "__getitem__") if not hasattr(items, name)]
        if missing:
            raise TypeError(
                f"data.Indexed: {type(items).__name__} has no {' and no '.join(missing)}. Tried: items[i]. Give "
                "something with a length and an index; of a stream make a list."
            )
        if not len(items):
            raise ValueError(
                f"data.Indexed: {type(items).__name__} has no items. Tried: its length. Give at least one."
            )
        self.items = items
        self.first = {name: (x.shape, x.dtype) for name, x in self._example(0, items[0]).items()}

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={dtype}{list(shape)}" for name, (shape, dtype) in self.first.items())
        return f"Indexed({len(self)} of {type(self.items).__name__}: {shapes})"

    def _example(self, i: int, item: Any) -> dict[str, HostArray]:
        if isinstance(item, tuple) and len(item) == 2:
            item = {"x": item[0], "y": item[1]}
        elif not isinstance(item, Mapping):
            item = {"x": item}
        example = {str(name): np.asarray(value) for name, value in item.items()}
        for name, value in example.items():
            if value.dtype.kind not in "biufc" and value.dtype.name not in ("bfloat16", "float8_e4m3fn"):
                raise TypeError(
                    f"data.Indexed: item {i} has {name!r} {describe(value)}. Tried: numbers. Encode text, and stack "
                    "ragged rows, before: items.map(...)."
                )
        return example

    def take(self, index: HostArray) -> dict[str, HostArray]:
        """The examples `index` [B], stacked.

        Raises:
            TypeError: If the numbers are no integers.
            ValueError: If an item is not there, or has other names or shapes than the first.
        """
        ids = example_numbers("data.Indexed", index, len(self)).tolist()
        many = getattr(self.items, "__getitems__", None)
        rows = many(ids) if many is not None else [self.items[i] for i in ids]
        examples = [self._example(i, row) for i, row in zip(ids, rows, strict=True)]
        for i, example in zip(ids, examples):
            found = {name: (x.shape, x.dtype) for name, x in example.items()}
            if found != self.first:
                raise ValueError(
                    f"data.Indexed: item {i} is { {n: describe(x) for n, x in example.items()} }. Tried: what item 0 "
                    f"is, {self.first}. Pad or crop items to one shape."
                )
        return {name: np.stack([e[name] for e in examples]) for name in self.first}

    def resident(self) -> None:
        """None: how large it is, only its owner knows. `data.Arrays(source.take(np.arange(n)))` holds it in memory."""
        return None
