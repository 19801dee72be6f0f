"""A process that runs one side of a comparison of two revisions, a block when it is told to.

    python -P worker.py HARNESS PATHS...
    python -P worker.py HARNESS --explain TARGET FILE

It stands in its own worktree and imports the library and the cases from there; what measures (`jaxnn.bench` and
`jaxnn.cost`) it takes from HARNESS, the folder of the package that started it, so that both sides are measured alike.
It reads a JSON request a line and answers with a JSON line; the case's own prints go to the standard error. With
--explain it writes the explanation of a target to a file, and answers once.
"""

import contextlib
import dataclasses
import importlib.machinery
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any


class _Harness:
    """Finds `jaxnn.bench` and `jaxnn.cost` in one folder, wherever the rest of jaxnn comes from."""

    def __init__(self, package: str):
        self._package = package

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        """A spec for the measuring part of the library, None for everything else."""
        parent, _, _ = name.rpartition(".")
        if name not in ("jaxnn.bench", "jaxnn.cost") and not parent.startswith(("jaxnn.bench", "jaxnn.cost")):
            return None
        folder = os.path.join(self._package, *parent.split(".")[1:])
        return importlib.machinery.PathFinder.find_spec(name, [folder])


class Worker:
    """Answers requests; each is a method."""

    def __init__(self, paths: Sequence[str]):
        from jaxnn.bench import collect

        self._items = {item.name: item for item in collect.collect(paths)}
        self._arm: Any = None
        self._blocks: list[Any] = []
        self._quiet = contextlib.ExitStack()

    def names(self) -> dict[str, Any]:
        """The cases that can be compared, and what they will be measured on."""
        import jax

        return {"names": list(self._items), "backend": jax.default_backend()}

    def build(self, name: str, seed: int) -> dict[str, Any]:
        """Compiles a case by itself."""
        import numpy as np

        from jaxnn.bench import collect, compilation, guards, timing

        self._quiet.close()

        case = self._items[name].make()
        if isinstance(case, collect.Arms):
            case = next(iter(case.cases.values()))
        self._arm = timing.Arm(name, compilation.build(case, seed), np.random.default_rng(seed))
        self._blocks = []
        self._quiet.enter_context(guards.frozen_gc())
        return {"program": self._arm.program.compile.program}

    def calibrate(self, block_s: float) -> dict[str, Any]:
        """Chooses the calls of a block."""
        return {"step_s": self._arm.calibrate(block_s), "calls": self._arm.calls}

    def calls(self, number: int) -> dict[str, Any]:
        """Sets the calls of a block."""
        self._arm.calls = number
        return {}

    def block(self, round: int, position: int, arm: int) -> dict[str, Any]:
        """Runs a block."""
        from jaxnn.bench import timing

        self._blocks.append(timing.run_block(self._arm, round, position, arm))
        return dataclasses.asdict(self._blocks[-1])

    def finish(self, path: str, level: float, seed: int) -> dict[str, Any]:
        """Writes what was measured to a file of results, and forgets the program."""
        import numpy as np

        from jaxnn.bench import measurement, schema, statistics

        x = np.array([block.seconds("wall") for block in self._blocks])
        interval = statistics.median_interval(x, level, seed)
        found = measurement.summarise(self._arm.name, self._arm.program, self._blocks, interval, True)
        schema.save(path, [found])
        self._arm = None
        self._quiet.close()
        return {}


def explained(target: str, path: str) -> dict[str, Any]:
    """Writes what `bench.explain` says of a target's step here."""
    from jaxnn.bench import collect, explaining

    step, arguments, donate = collect.program(target)
    explaining.explain(step, *arguments, name=target, donate=donate).save(path)
    return {}


def main(argv: Sequence[str]) -> int:
    """Answers requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.meta_path.insert(0, _Harness(argv[0]))  # pyrefly: ignore[bad-argument-type]

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    def explain(error: Exception) -> None:
        kind = type(error).__name__
        answer({"error": str(error) if kind == "BenchError" else f"{kind}: {error}"})

    try:
        if argv[1:2] == ["--explain"]:
            answer(explained(*argv[2:]))
            return 0
        worker = Worker(argv[1:])
        answer(worker.names())
    except Exception as error:
        explain(error)
        return 1
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(getattr(worker, request.pop("do"))(**request))
        except Exception as error:  # whatever a stranger's case raises belongs to its case
            explain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) if pathlib.Path(sys.argv[1]).is_dir() else "worker: no such folder")
