"""Measuring jitted steps so that the answer can be trusted.

Timing a jitted function by hand goes wrong in a dozen ways (`jaxnn.bench.guards` lists them); here each is impossible
or an error that names the culprit. Two programs are compared in one process, in turns, with a hidden copy of the first
as a control, until an interval is narrow enough for a verdict:

    bench.measure("train_step", step, args=lambda key: (state, batch), donate="thread")
    bench.compare({"base": f, "head": g}, args=make_args, tolerance=0.03).verdict

Names load on first use: pytest imports this package for its fixture before a test suite has set jax's environment.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxnn.bench.case import Case as Case
    from jaxnn.bench.comparison import Comparison as Comparison
    from jaxnn.bench.comparison import compare as compare
    from jaxnn.bench.guards import BenchError as BenchError
    from jaxnn.bench.measurement import Measurement as Measurement
    from jaxnn.bench.measurement import measure as measure
    from jaxnn.bench.statistics import Interval as Interval

_HOMES = {
    "BenchError": "guards",
    "Case": "case",
    "Comparison": "comparison",
    "Interval": "statistics",
    "Measurement": "measurement",
    "compare": "comparison",
    "measure": "measurement",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxnn.bench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxnn.bench.{_HOMES[name]}"), name)
