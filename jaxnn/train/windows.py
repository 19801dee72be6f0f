"""Log windows: from the sums of steps, as they come back from the device, to the rows that people read."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxnn.core.finite import LAYERS, LEAVES
from jaxnn.typing import Mean

WATCHED = (f"{LEAVES}params/", f"{LEAVES}grads/", "loss", "grad_norm")  # at equal steps, what is told first


def _first_bad(first: int, sums: Mapping[str, Mean]) -> tuple[int, str] | None:
    """The earliest step (counted from 1) at which a watched value is not finite, and the name of what was so first.

    A layer's value that is not finite while everything watched is (scores masked by -inf, say) is no trouble.
    """
    found: list[tuple[int, int, str]] = []
    for name, mean in sums.items():
        hits = [i for i, w in enumerate(WATCHED) if name == w or (w.endswith("/") and name.startswith(w))]
        if not hits:
            continue
        values = np.asarray(mean.sum)
        bad = values > 0 if name.startswith(LEAVES) else ~np.isfinite(values)
        if bad.any():
            found.append((int(np.argmax(bad)), hits[0], name))
    if not found:
        return None
    at, rank, name = min(found)
    if rank:  # the parameters are finite: then forwards comes before backwards
        name = _first_layer(at, sums) or _last_gradient(at, sums, found) or name
    return first + at + 1, name.removeprefix(LEAVES)


def _first_layer(at: int, sums: Mapping[str, Mean]) -> str | None:
    """The first of the layers' inputs and outputs, in forward order, that are less finite than a step before."""
    for name in sorted(name for name in sums if name.startswith(LAYERS)):
        values = np.asarray(sums[name].sum)
        if values[at] > (values[at - 1] if at else 0):
            return name.partition(":")[2]
    return None


def _last_gradient(at: int, sums: Mapping[str, Mean], found: list[tuple[int, int, str]]) -> str | None:
    """Of the gradients that are not finite the one of the last layer: backwards, it was so first."""
    order = [name.partition(":outputs/")[2] for name in sorted(sums) if name.startswith(LAYERS)]
    prefix = WATCHED[1]
    bad = [name for step, _, name in found if step == at and name.startswith(prefix)]
    if not bad or not order:
        return None
    place = {layer: i for i, layer in enumerate(order)}
    return max(bad, key=lambda name: place.get(name.removeprefix(prefix).rpartition("/")[0], -1))


def _totals(parts: np.ndarray) -> list[float]:
    """The sums of the rows of [windows, every], from the left and from 0.0 on, as `Windows._take` adds them up."""
    parts = parts.astype(np.float64)
    bound = np.abs(parts).sum()
    if bound < 2**53 and (parts == np.rint(parts)).all():  # sums of integers, as most weights are, have no order
        return (parts.sum(axis=1) + 0.0).tolist()
    return (np.cumsum(parts, axis=1)[:, -1] + 0.0).tolist()  # a sum of -0.0s alone would else have another sign


class Windows:
    """Adds up the sums of `every` data steps into a row, in float64 and strictly in order, so that the way in which a
    run was cut into dispatches never changes a digit.

    Args:
        every: Data steps a row.
        epoch: Data steps an epoch.
        finish: `(name, Mean) -> value`.
    """

    def __init__(self, every: int, epoch: int, finish: Callable[[str, Mean], Any]):
        self.every, self.epoch, self.finish = every, epoch, finish
        self._sums: dict[str, list[float]] = {}
        self._bad: tuple[int, str] | None = None
        self.step = 0

    def add(self, first: int, sums: Mapping[str, Mean]) -> list[dict[str, Any]]:
        """Takes in the steps from data step `first` on (leaves [k]); gives the rows they complete."""
        count = len(np.asarray(next(iter(sums.values())).sum))
        rows = []
        start = 0
        while start < count:
            whole = 0 if self._sums or (first + start) % self.every else (count - start) // self.every
            if whole > 1 and _first_bad(first, sums) is None:
                rows += self._rows(first + start, whole, sums, start)
                start += whole * self.every
                continue
            stop = min(count, start + self.every - (first + start) % self.every)
            self._take(first + start, {name: Mean(m.sum[start:stop], m.weight[start:stop]) for name, m in sums.items()})
            self.step = first + stop
            start = stop
            if self.step % self.every == 0:
                rows.append(self.flush())
        return rows

    def _rows(self, first: int, whole: int, sums: Mapping[str, Mean], start: int) -> list[dict[str, Any]]:
        """The rows of `whole` windows at once: small programs complete hundreds a dispatch."""
        self.step = first + whole * self.every
        stop = start + whole * self.every
        columns = {}
        for name, mean in sums.items():
            if not name.startswith(LEAVES):
                totals, weights = (_totals(np.asarray(part)[start:stop].reshape(whole, -1)) for part in mean)
                columns[name] = list(map(self.finish, itertools.repeat(name), map(Mean, totals, weights)))
        steps = range(first + self.every, self.step + 1, self.every)
        names = ("step", "epoch", *columns)
        return [dict(zip(names, row)) for row in zip(steps, map(self._epochs, steps), *columns.values())]

    def _epochs(self, step: int) -> float:
        whole, rest = divmod(step, self.epoch)
        return round(step / self.epoch, 6) if rest else float(whole)  # the same, and `round` of a float is slow

    def _take(self, first: int, sums: Mapping[str, Mean]) -> None:
        if self._bad is None:
            self._bad = _first_bad(first, sums)
        for name, mean in sums.items():
            if name.startswith(LEAVES):
                continue
            held = self._sums.setdefault(name, [0.0, 0.0])
            for part, values in enumerate(mean):
                held[part] = float(np.cumsum(np.concatenate(([held[part]], np.asarray(values, np.float64))))[-1])

    def flush(self) -> dict[str, Any]:
        """The row of what was taken in since the last one."""
        row: dict[str, Any] = {"step": self.step, "epoch": self._epochs(self.step)}
        row |= {name: self.finish(name, Mean(*pair)) for name, pair in self._sums.items()}
        if self._bad is not None:
            row |= {"nonfinite_step": self._bad[0], "nonfinite_name": self._bad[1]}
        self._sums, self._bad = {}, None
        return row

    def first_values(self, sums: Mapping[str, Mean]) -> dict[str, Any]:
        """The values of the first of some steps."""
        return {name: self.finish(name, Mean(m.sum[0], m.weight[0])) for name, m in sums.items()}

    @property
    def pending(self) -> bool:
        """Whether steps were taken in since the last row."""
        return bool(self._sums)

    def memory(self) -> dict[str, Any]:
        """The unfinished row, as JSON."""
        return {"sums": self._sums, "step": self.step, "bad": self._bad}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Goes on from `memory`."""
        self._sums = {name: list(pair) for name, pair in memory["sums"].items()}
        self.step = memory["step"]
        self._bad = tuple(memory["bad"]) if memory["bad"] else None
