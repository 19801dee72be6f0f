"""Which integers a model can look up: noticed while it is traced, so that data is checked before it is read.

A table of rows and a loss over classes say here how many there are, and of which array the numbers come. While nobody
is noticing, this costs nothing.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Lookup(NamedTuple):
    """Numbers that are looked up: each must be in [0, count).

    Attributes:
        count: How many there are.
        what: What they are, in an error.
        advice: What to do instead.
        weighed: Whether those that weigh nothing may be anything (targets).
    """

    count: int
    what: str
    advice: str
    weighed: bool = False


class _Noticed:
    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.arrays = arrays
        self.lookups: list[tuple[Any, Lookup]] = []
        self.parts: list[tuple[Any, Any]] = []


_noticed: contextvars.ContextVar[_Noticed | None] = contextvars.ContextVar("jaxnn_lookups", default=None)


def notice(ids: Any, lookup: Lookup) -> bool:
    """Says that `ids` are looked up; whether they are an array that is noticed, whose values are checked then."""
    noticed = _noticed.get()
    if noticed is None:
        return False
    noticed.lookups.append((ids, lookup))
    return any(ids is array for array in noticed.arrays.values())


def part_of(part: Any, whole: Any) -> None:
    """Says that the numbers in `part` are some of `whole`."""
    noticed = _noticed.get()
    if noticed is not None:
        noticed.parts.append((part, whole))


@contextlib.contextmanager
def noticing(arrays: Mapping[str, Any]) -> Iterator[dict[str, Lookup]]:
    """While inside, fills what it gives: of those of `arrays` that are looked up, the narrowest lookup by name.

    The very objects are recognised, and what `part_of` said is a part of one; what is computed of them is not.
    """
    noticed, found = _Noticed(arrays), {}
    token = _noticed.set(noticed)
    try:
        yield found
    finally:
        _noticed.reset(token)
        for ids, lookup in noticed.lookups:
            for part, whole in reversed(noticed.parts):
                ids = whole if ids is part else ids
            name = next((name for name, array in arrays.items() if array is ids), None)
            if name is not None and (name not in found or lookup.count < found[name].count):
                found[name] = lookup
