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
    from jaxnn.bench.collect import benchmark as benchmark
    from jaxnn.bench.comparison import Comparison as Comparison, compare as compare
    from jaxnn.bench.explaining import explain as explain
    from jaxnn.bench.exporting import export as export
    from jaxnn.bench.guards import BenchError as BenchError
    from jaxnn.bench.measurement import (
        Failure as Failure,
        Measurement as Measurement,
        measure as measure,
        measure_all as measure_all,
    )
    from jaxnn.bench.probes import Peaks as Peaks, peaks as peaks
    from jaxnn.bench.profiling import device_times as device_times, op_table as op_table
    from jaxnn.bench.replaying import record as record, replay as replay
    from jaxnn.bench.roofline import Roofline as Roofline
    from jaxnn.bench.schema import Results as Results, load as load, save as save
    from jaxnn.bench.statistics import Interval as Interval
    from jaxnn.bench.sweeping import Fit as Fit, Sweep as Sweep, sweep as sweep

_HOMES = {
    "BenchError": "guards",
    "Case": "case",
    "Comparison": "comparison",
    "Failure": "measurement",
    "Fit": "sweeping",
    "Interval": "statistics",
    "Measurement": "measurement",
    "Peaks": "probes",
    "Results": "schema",
    "Roofline": "roofline",
    "Sweep": "sweeping",
    "benchmark": "collect",
    "compare": "comparison",
    "device_times": "profiling",
    "explain": "explaining",
    "export": "exporting",
    "load": "schema",
    "measure": "measurement",
    "measure_all": "measurement",
    "op_table": "profiling",
    "peaks": "probes",
    "record": "replaying",
    "replay": "replaying",
    "save": "schema",
    "sweep": "sweeping",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxnn.bench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxnn.bench.{_HOMES[name]}"), name)
