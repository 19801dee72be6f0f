"""Results in the JSON of other tools: pytest-benchmark, google-benchmark, asv."""

import math
from typing import Any

import numpy as np

from jaxnn.bench.guards import BenchError
from jaxnn.bench.measurement import Measurement
from jaxnn.bench.schema import Results
from jaxnn.bench.statistics import outliers

FORMATS = ("pytest-benchmark", "google-benchmark", "asv")


def export(results: Results, format: str) -> dict[str, Any]:
    """The measurements of a file as another tool's JSON document.

    Args:
        results: From `load`.
        format: "pytest-benchmark", "google-benchmark" or "asv".

    Raises:
        BenchError: If there is no such format.
    """
    if format not in FORMATS:
        raise BenchError(f"bench.export: no format {format!r}. There are {FORMATS}.")
    measurements = results.measurements()
    make = {"pytest-benchmark": _pytest, "google-benchmark": _google, "asv": _asv}[format]
    return make(measurements, dict(results.environment))


def _seconds(measurement: Measurement) -> np.ndarray:
    """Mean wall seconds a call of each block."""
    return np.array([block.seconds("wall") for block in measurement.blocks])


def _bound(end: float) -> float | None:
    """An interval's end; None where it has none, as JSON has no infinity."""
    return end if math.isfinite(end) else None


def _pytest(measurements: dict[str, Measurement], where: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for name, m in measurements.items():
        x = _seconds(m)
        first, median, third = (float(q) for q in np.quantile(x, [0.25, 0.5, 0.75]))
        found = outliers(x)
        deviation = float(np.std(x, ddof=1)) if len(x) > 1 else 0.0
        stats = {
            "min": float(x.min()),
            "max": float(x.max()),
            "mean": float(x.mean()),
            "stddev": deviation,
            "rounds": len(x),
            "median": median,
            "iqr": third - first,
            "q1": first,
            "q3": third,
            "iqr_outliers": found.total,
            "stddev_outliers": int(np.sum(np.abs(x - x.mean()) > deviation)),
            "outliers": f"{int(np.sum(np.abs(x - x.mean()) > deviation))};{found.total}",
            "ld15iqr": float(x[x >= first - 1.5 * (third - first)].min()),
            "hd15iqr": float(x[x <= third + 1.5 * (third - first)].max()),
            "ops": 1 / float(x.mean()),
            "total": float(x.sum()),
            "data": [float(v) for v in x],
            "iterations": len(m.blocks[0].calls_ns),
        }
        extra = {"interval": [_bound(m.interval.low), _bound(m.interval.high)], "program": m.compile.program}
        options = {"disable_gc": True, "timer": "perf_counter_ns", "warmup": True}
        row = {"group": None, "name": name, "fullname": name, "params": None, "param": None}
        rows.append(row | {"extra_info": extra, "options": options, "stats": stats})
    commit = where.get("commit") or "unversioned"
    return {
        "machine_info": {"machine": where.get("machine"), "python_version": where.get("python"), "cpu": {}},
        "commit_info": {"id": commit.rstrip("+"), "dirty": commit.endswith("+")},
        "benchmarks": rows,
        "datetime": where.get("time"),
        "version": "5.1.0",
    }


def _google(measurements: dict[str, Measurement], where: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for index, (name, m) in enumerate(measurements.items()):
        for repetition, block in enumerate(m.blocks):
            rows.append(
                {
                    "name": name,
                    "family_index": index,
                    "run_name": name,
                    "run_type": "iteration",
                    "repetitions": len(m.blocks),
                    "repetition_index": repetition,
                    "threads": 1,
                    "iterations": len(block.calls_ns),
                    "real_time": 1e9 * block.seconds("wall"),
                    "cpu_time": 1e9 * block.seconds("cpu"),
                    "time_unit": "ns",
                }
            )
    context = {
        "date": where.get("time"),
        "num_cpus": where.get("cores"),
        "executable": "jaxnn.bench",
        "load_avg": [where.get("load")],
        "library_build_type": "release",
    }
    return {"context": context, "benchmarks": rows}


def _asv(measurements: dict[str, Measurement], where: dict[str, Any]) -> dict[str, Any]:
    columns = ["result", "params", "version", "stats_ci_99_a", "stats_ci_99_b", "stats_q_25", "stats_q_75", "samples"]
    rows: dict[str, list] = {}
    for name, m in measurements.items():
        x = _seconds(m)
        first, median, third = (float(q) for q in np.quantile(x, [0.25, 0.5, 0.75]))
        ends = [[_bound(m.interval.low)], [_bound(m.interval.high)]]
        rows[name] = [[median], [], m.compile.program, *ends, [first], [third], [[float(v) for v in x]]]
    return {
        "version": 2,
        "commit_hash": (where.get("commit") or "").rstrip("+"),
        "env_name": f"python{where.get('python')}-jax{where.get('jax')}",
        "date": 0,
        "params": {"machine": where.get("device"), "cpu": where.get("processor"), "python": where.get("python")},
        "python": where.get("python"),
        "requirements": {"jax": where.get("jax"), "numpy": where.get("numpy")},
        "env_vars": {},
        "result_columns": columns,
        "results": rows,
        "durations": {},
    }
