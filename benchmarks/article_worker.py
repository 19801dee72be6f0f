"""One arm of `benchmarks.articles` on one program, in a process of its own, in the environment of its framework.

python -m benchmarks.article_worker ARM PROGRAM DATA.npz steady|whole

What it finds goes to standard output as lines of JSON; whatever a framework prints goes to standard error. "whole" is
the articles' program: import, fit, evaluate, predict; it tells when its imports were done and when the first step was.
"steady" trains in stretches, each when a line arrives on standard input, until that closes.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from benchmarks.article_programs import PROGRAMS, Program

TARGET_S = 0.4  # a stretch lasts at least this long
ARMS = {
    "fit": ("benchmarks.article_jax", "fit"),
    "loop": ("benchmarks.article_jax", "loop"),
    "scan": ("benchmarks.article_jax", "scan"),
    "scans": ("benchmarks.article_jax", "scans"),
    "keras_tensorflow": ("benchmarks.article_keras", "tensorflow"),
    "keras_jax": ("benchmarks.article_keras", "jax"),
    "torch": ("benchmarks.article_torch", "eager"),
    "torch_compiled": ("benchmarks.article_torch", "compiled"),
}
OURS = ("fit", "loop", "scan", "scans")

Data = dict[str, np.ndarray]


class Arm(Protocol):
    """What a module of arms offers for each of its arms."""

    def whole(self, program: Program, data: Data, first: Callable[[], None]) -> dict[str, float]:
        """The whole program after its imports; calls `first` when a step is done. Gives values of the test data."""
        ...

    def steady(self, program: Program, data: Data, turn: Callable[[int, float], int | None]) -> None:
        """Trains for ever: `turn(epochs, seconds)` of the last stretch gives the epochs of the next, or None."""
        ...


def stretches(tell: Callable[..., None], hear: Callable[[], bool]) -> Callable[[int, float], int | None]:
    """`turn` of a steady arm: grows the stretch until it lasts `TARGET_S`, then tells every one that was asked for."""
    settled = False

    def turn(epochs: int, seconds: float) -> int | None:
        nonlocal settled
        if epochs == 0:
            return 1
        if settled:
            tell(epochs=epochs, seconds=seconds)
        elif seconds < TARGET_S:
            return max(epochs + 1, min(64 * epochs, round(1.2 * epochs * TARGET_S / max(seconds, 1e-6))))
        else:
            settled = True
            tell(ready=True)
        return epochs if hear() else None

    return turn


def main(arm: str, name: str, path: str, phase: str) -> None:
    """Runs one arm."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(**values: Any) -> None:
        print(json.dumps(values), file=out, flush=True)

    began = time.perf_counter()
    module, kind = ARMS[arm]
    made: Arm = importlib.import_module(module).make(kind)
    imported = time.perf_counter()
    with np.load(path) as file:
        data = dict(file)
    program = PROGRAMS[name]
    if phase == "steady":
        made.steady(program, data, stretches(tell, lambda: bool(sys.stdin.readline())))
        return
    marks: list[float] = []
    values = made.whole(program, data, lambda: marks.append(time.perf_counter()) if not marks else None)
    ended = time.perf_counter()
    tell(import_s=imported - began, first_s=marks[0] - imported, rest_s=ended - marks[0], values=values)


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # the threads of some frameworks take seconds to end
