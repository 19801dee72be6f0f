"""Batches of examples of similar length, padded to one of a few lengths: less padding, and a program a length.

A source whose examples differ in length says so by `padded_to` [n], the length that each one is padded to, one of a
few; its `take` then has a keyword `length`. The order brings examples that are padded to the same length together, and
stays arithmetic: the ids of a data step are a function of (seed, data_step, global batch), each example is seen once an
epoch, and an epoch has as many steps as without. What is left of a length when its batches are full joins the next
longer one, so that an epoch has one ragged batch at most.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxnn.data import order
from jaxnn.data.given import example_numbers
from jaxnn.data.transforms import take_at
from jaxnn.tree import describe
from jaxnn.typing import HostArray, Source

Ids = Callable[[int, int], HostArray]  # (data_step, count) -> int64 [count, B], -1 for padding
_BATCHES, _MEMBERS = 1, 2  # what a key is for; those of lengths count on from _MEMBERS


def padded_to(source: Source) -> HostArray | None:
    """The length that each example is padded to, int [n], or None where all are alike."""
    return getattr(source, "padded_to", None)


def batch_lengths(source: Source) -> list[int]:
    """The lengths that batches of a source may have, ascending; none where all are alike."""
    lengths = padded_to(source)
    return [] if lengths is None else np.unique(lengths).tolist()


def batch_length(source: Source, ids: HostArray) -> int | None:
    """How long the batch of `ids` [B] (-1 for padding) is: what its longest example is padded to; None as above."""
    lengths = padded_to(source)
    return None if lengths is None else int(lengths[np.maximum(ids, 0)][(ids >= 0) | (ids.max() < 0)].max())


def epoch_order(source: Source, seed: int, batch_size: int, shuffle: bool = True) -> Ids:
    """The order in which a run sees `source`: `order.examples`, with examples of similar length together where they
    differ in it.

    Args:
        source: The data.
        seed: Any integer.
        batch_size: Examples in a global batch.
        shuffle: False keeps the order of the source among examples of one length, the shorter ones first.
    """
    lengths = padded_to(source)
    if lengths is None:
        return functools.partial(order.examples, seed, n=len(source), batch_size=batch_size, shuffle=shuffle)
    return functools.partial(_Grouped(lengths, batch_size).examples, seed, shuffle)


class _Grouped:
    """The order of examples by length. Of each length there is a pool: those padded to it, and what a shorter one left.

    Pool g has `pools[g]` places, a permutation of which fills `full[g]` batches; the places after these go to pool
    g + 1, before its own members.
    """

    def __init__(self, lengths: HostArray, batch_size: int):
        self.size = batch_size
        self.per_epoch = order.steps_per_epoch(len(lengths), batch_size)
        kinds, group = np.unique(lengths, return_inverse=True)
        self.members = [np.flatnonzero(group == g) for g in range(len(kinds))]
        self.pools: list[int] = []
        self.full: list[int] = []
        left = 0
        for members in self.members:
            self.pools.append(len(members) + left)
            self.full.append(self.pools[-1] // batch_size)
            left = self.pools[-1] % batch_size
        self.full[-1] += left > 0  # the ragged one
        self.first = np.cumsum([0, *self.full])

    def examples(self, seed: int, shuffle: bool, data_step: int, count: int) -> HostArray:
        """int64 [count, B], as `order.examples`."""
        epoch, batch = np.divmod(np.arange(data_step, data_step + count), self.per_epoch)
        if shuffle and count:
            batch = order.permute(batch, self.per_epoch, order.fold(seed, epoch, _BATCHES))
        group = np.searchsorted(self.first[1:], batch, side="right")
        at = (batch - self.first[group])[:, None] * self.size + np.arange(self.size)
        group, epoch = (np.repeat(x[:, None], self.size, axis=1) for x in (group, epoch))
        ids = np.full(at.shape, -1, np.int64)
        for g in reversed(range(len(self.members))):
            here = np.nonzero((group == g) & (at < self.pools[g]))  # the last pool's last batch may be ragged
            place, members = at[here], self.members[g]
            if shuffle and len(place):
                place = order.permute(place, self.pools[g], order.fold(seed, epoch[here], _MEMBERS + g))
            place = place - (self.pools[g] - len(members))  # negative: left by the next shorter length
            own = place >= 0
            ids[tuple(x[own] for x in here)] = members[place[own]]
            if not own.all():
                others = tuple(x[~own] for x in here)
                group[others] = g - 1
                at[others] = self.pools[g - 1] + place[~own]
        return ids


class Bucketed:
    """A source of padded arrays whose batches are cut to what their longest example needs; made by `bucketed`.

    Attributes:
        padded_to: int [n], the length that each example is cut to.
    """

    def __init__(self, source: Source, lengths: Any, buckets: Sequence[int], arrays: Sequence[str]):
        where = "data.bucketed"
        lengths = np.asarray(lengths)
        if lengths.shape != (len(source),) or lengths.dtype.kind not in "iu":
            raise ValueError(
                f"{where}: lengths {describe(lengths)} for {len(source)} examples. Tried: one a example. Give "
                f"integers [{len(source)}], how many places of each are no padding."
            )
        first = take_at(source, np.zeros(1, np.int64), 0)
        self.arrays = tuple(arrays)
        for name in self.arrays:
            if name not in first or first[name].ndim < 2:
                has = describe(first[name]) if name in first else f"absent; there are {sorted(first)}"
                raise ValueError(
                    f"{where}: array {name!r} is {has}. Tried: cutting its second axis. Name arrays [B, T, ...]."
                )
        sizes = {name: first[name].shape[1] for name in self.arrays}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"{where}: the second axes are {sizes}. Tried: one length. Name arrays [B, T, ...] alike.")
        whole = next(iter(sizes.values()))
        bad = [b for b in buckets if not 0 < b < whole]
        if bad:
            raise ValueError(
                f"{where}: bucket {bad[0]} for examples of {whole} places. Tried: buckets in [1, {whole}). Leave it "
                "out; the whole length is one anyhow."
            )
        if int(lengths.min()) < 0 or int(lengths.max()) > whole:
            at = int(np.argmax((lengths < 0) | (lengths > whole)))
            raise ValueError(
                f"{where}: example {at} has length {lengths[at]}. Tried: up to {whole}, the second axis. Give how "
                "many of its places are no padding."
            )
        steps = np.array([*sorted(set(buckets)), whole])
        self.source, self.padded_to = source, steps[np.searchsorted(steps, lengths)]
        self.takes_step = getattr(source, "takes_step", False)

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"bucketed({self.source!r}, {counted(self)})"

    def take(self, index: HostArray, step: int = 0, length: int | None = None) -> dict[str, HostArray]:
        """The examples `index` [B], cut to `length`, or to what the longest of them needs."""
        index = example_numbers("data.bucketed", index, len(self))
        length = batch_length(self, index) if length is None else length
        taken = take_at(self.source, index, step)
        return {name: x[:, :length] if name in self.arrays else x for name, x in taken.items()}

    def resident(self) -> None:
        """None: what lives on the device has one shape."""
        return None


def counted(source: Source) -> str:
    """How many examples are padded to each length: "120 to 16, 80 to 32"."""
    lengths = padded_to(source)
    if lengths is None:
        return "all alike"
    return ", ".join(f"{count} to {length}" for length, count in zip(*np.unique(lengths, return_counts=True)))


def bucketed(source: Source, lengths: Any, buckets: Sequence[int], *, arrays: Sequence[str] = ("x",)) -> Bucketed:
    """A source whose batches hold examples of similar length, cut to one of a few lengths.

    `fit`, `evaluate` and `predict` bring examples of one length together; a program is compiled for each length, at
    most `len(buckets) + 1`. Losses are those of the same examples uncut, where what is cut is padding that weighs
    nothing. Such data is streamed.

    Args:
        source: Of arrays that are padded at their end to one length T.
        lengths: Integers [n]: how many places of each example are no padding.
        buckets: Lengths below T that batches are cut to; T is one as well.
        arrays: Names of the arrays [B, T, ...] to cut: targets and weights of tokens too.

    Raises:
        ValueError: If lengths or buckets are out of range, or an array has no such axis.
    """
    return Bucketed(source, lengths, buckets, arrays)
