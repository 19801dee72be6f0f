"""Log windows: from the sums of steps, as they come back from the device, to the rows that people read."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxnn.typing import Mean

LEAVES = "nonfinite/"  # counts of a leaf's elements that are not finite, under debug
WATCHED = (f"{LEAVES}params/", f"{LEAVES}grads/", "loss", "grad_norm")  # at equal steps, what is told first


def _first_bad(first: int, sums: Mapping[str, Mean]) -> tuple[int, str] | None:
    """The earliest step (counted from 1) at which a watched value is not finite, and its name."""
    found: list[tuple[int, int, str]] = []
    for name, mean in sums.items():
        hits = [i for i, w in enumerate(WATCHED) if name == w or (w.endswith("/") and name.startswith(w))]
        if not hits:
            continue
        rank = hits[0]
        values = np.asarray(mean.sum)
        bad = values > 0 if name.startswith(LEAVES) else ~np.isfinite(values)
        if bad.any():
            found.append((int(np.argmax(bad)), rank, name))
    if not found:
        return None
    at, _, name = min(found)
    return first + at + 1, name.removeprefix(LEAVES)


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
            stop = min(count, start + self.every - (first + start) % self.every)
            self._take(first + start, {name: Mean(m.sum[start:stop], m.weight[start:stop]) for name, m in sums.items()})
            self.step = first + stop
            start = stop
            if self.step % self.every == 0:
                rows.append(self.flush())
        return rows

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
        row: dict[str, Any] = {"step": self.step, "epoch": round(self.step / self.epoch, 6)}
        row |= {name: self.finish(name, Mean(*pair)) for name, pair in self._sums.items()}
        if self._bad is not None:
            row |= {"nonfinite_step": self._bad[0], "nonfinite_name": self._bad[1]}
        self._sums, self._bad = {}, None
        return row

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
