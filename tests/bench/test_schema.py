"""Results survive a file, bad files say what is wrong with them, old programs run again, other tools can read."""

import dataclasses
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from jaxnn import bench
from jaxnn.bench import BenchError, exporting, schema


@pytest.fixture
def results(dial, measurement):
    comparison = bench.compare({"base": dial("a", 5), "head": dial("b", 5)}, max_seconds=0.0, block_s=1e-3)
    sweep = bench.sweep("dial", lambda n: dial("", n), {"n": [5, 10]}, max_seconds=0.0)
    return [measurement, comparison, sweep, bench.Failure("broken", "TypeError", "no")]


def test_what_is_saved_is_what_is_loaded(tmp_path, results):
    bench.save(tmp_path / "r.json", results)
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    found = bench.load(tmp_path / "r.json")
    assert list(found.results) == results
    assert set(found.measurements()) == {"small", "base", "head", "A/A", "dial n=5", "dial n=10"}
    content = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)  # no Infinity, no NaN
    assert content["schema"] == "jaxnn.bench/1"
    first = content["results"][0]
    assert first["blocks"][0]["calls_ns"] == list(results[0].blocks[0].calls_ns)  # raw
    assert first["compile"]["program"] == results[0].compile.program
    assert content["environment"]["jax"] == jax.__version__
    assert content["environment"]["device"] == "8 x cpu cpu"
    assert "commit" in content["environment"]


def test_bad_files_each_have_their_message(tmp_path, measurement):
    path = tmp_path / "r.json"
    bench.save(path, [measurement])
    whole = path.read_text()
    content = json.loads(whole)

    def change(**fields):
        path.write_text(json.dumps(content | fields))

    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(BenchError, match=r"r.json is no JSON, or it was cut short"):
        bench.load(path)
    for foreign in ({"schema": "coverage/3"}, [1, 2]):
        path.write_text(json.dumps(foreign))
        with pytest.raises(BenchError, match=r"r.json is no file of jaxnn.bench"):
            bench.load(path)
    change(schema="jaxnn.bench/2")
    with pytest.raises(BenchError, match=r"of schema 'jaxnn.bench/2'; .* Update jaxnn"):
        bench.load(path)
    change(results=[{k: v for k, v in content["results"][0].items() if k != "interval"}])
    with pytest.raises(BenchError, match=r"damaged: ValueError results\[0\] lacks \['interval'\]"):
        bench.load(path)
    change(results=[{"kind": "poem"}])
    with pytest.raises(BenchError, match="damaged: KeyError 'poem'"):
        bench.load(path)
    change(environment=content["environment"] | {"device": "4 x tpu v5e"})
    with pytest.raises(BenchError, match="measured on 4 x tpu v5e, and this is 8 x cpu cpu"):
        bench.load(path)
    assert bench.load(path, other_device=True).results == (measurement,)
    with pytest.raises(TypeError, match="int is no result"):
        bench.save(path, [3])


def test_a_save_that_fails_leaves_the_old_file(tmp_path, measurement, monkeypatch):
    path = tmp_path / "r.json"
    bench.save(path, [measurement])
    before = path.read_text()
    monkeypatch.setattr(schema.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        bench.save(path, [])
    assert path.read_text() == before


def test_exports_carry_the_samples(tmp_path, measurement):
    bench.save(tmp_path / "r.json", [measurement])
    found = bench.load(tmp_path / "r.json")
    seconds = [block.seconds("wall") for block in measurement.blocks]
    stats = bench.export(found, "pytest-benchmark")["benchmarks"][0]["stats"]
    assert stats["data"] == pytest.approx(seconds)
    assert stats["median"] == pytest.approx(np.median(seconds))
    assert stats["ld15iqr"] <= stats["q1"] <= stats["median"] <= stats["q3"] <= stats["hd15iqr"]
    google = bench.export(found, "google-benchmark")
    assert [row["real_time"] for row in google["benchmarks"]] == pytest.approx([1e9 * s for s in seconds])
    assert {row["name"] for row in google["benchmarks"]} == {"small"}
    asv = bench.export(found, "asv")
    row = dict(zip(asv["result_columns"], asv["results"]["small"]))
    assert row["result"] == [pytest.approx(np.median(seconds))]
    assert row["samples"][0] == pytest.approx(seconds)
    for format in ("pytest-benchmark", "google-benchmark", "asv"):
        json.dumps(bench.export(found, format), allow_nan=False)
    with pytest.raises(BenchError, match="no format 'csv'"):
        bench.export(found, "csv")


def test_an_interval_without_bounds_is_exported_as_none(tmp_path, measurement):
    unbounded = dataclasses.replace(measurement, interval=bench.Interval(-math.inf, math.inf, 0.95))
    bench.save(tmp_path / "r.json", [unbounded])
    found = bench.load(tmp_path / "r.json")
    assert found.measurements()["small"].interval == unbounded.interval
    exported = {f: json.loads(json.dumps(bench.export(found, f), allow_nan=False)) for f in exporting.FORMATS}
    assert exported["pytest-benchmark"]["benchmarks"][0]["extra_info"]["interval"] == [None, None]
    row = dict(zip(exported["asv"]["result_columns"], exported["asv"]["results"]["small"]))
    assert row["stats_ci_99_a"] == row["stats_ci_99_b"] == [None]


def state(key):
    return {"w": jax.random.normal(key, (32, 32))}, jnp.ones((32, 32))


def step(s, x):
    return {"w": jnp.tanh(s["w"] @ x)}, jnp.sum(x)


def test_an_old_program_runs_again_beside_the_new_one(tmp_path):
    case = bench.Case("step", step, state, "thread")
    bench.record(tmp_path / "step.program", case)
    name, program = bench.replaying.stored(tmp_path / "step.program")
    assert name == "step"
    args = case.make_args()
    old, new = jax.jit(program.call)(*args), jax.jit(step)(*args)
    np.testing.assert_array_equal(old[0]["w"], new[0]["w"])
    found = bench.replay(tmp_path / "step.program", case, max_seconds=0.3, block_s=1e-3)
    assert set(found.measurements) == {"base", "head", "A/A"}
    assert found.verdict in ("ok", "inconclusive")


def test_bad_programs_each_have_their_message(tmp_path):
    path = tmp_path / "step.program"
    case = bench.Case("step", step, state, "thread")
    bench.record(path, case)
    content = json.loads(path.read_text())

    def larger(key):
        return {"w": jnp.ones((16, 16))}, jnp.ones((16, 16))

    with pytest.raises(BenchError, match=r"other arguments .* args\[0\]/w: float32\[32, 32\], then float32\[16, 16\]"):
        bench.replay(path, bench.Case("step", step, larger, "thread"))
    path.write_text(json.dumps(content | {"schema": "jaxnn.bench/1"}))
    with pytest.raises(BenchError, match=r"holds 'jaxnn.bench/1', not a program"):
        bench.replay(path, case)
    path.write_text(json.dumps(content | {"program": content["program"][:200]}))
    with pytest.raises(BenchError, match="is damaged"):
        bench.replay(path, case)
    path.write_text("{")
    with pytest.raises(BenchError, match="cut short"):
        bench.replay(path, case)

    def calls(x):
        return io_callback(lambda y: y, jax.ShapeDtypeStruct((3,), jnp.float32), x)

    with pytest.raises(BenchError, match="cannot be exported"):
        bench.record(path, bench.Case("calls", calls, (jnp.ones(3),)))


def test_the_fixture_measures_reports_and_keeps(tmp_path):
    (tmp_path / "test_it.py").write_text(
        """
import jax.numpy as jnp

def test_step(jaxbench):
    r = jaxbench.measure("doubling", lambda x: x * 2, args=lambda key: (jnp.ones(100),), max_seconds=0.05)
    assert r.compile.retraces == 0

def test_pair(jaxbench):
    f = {"base": lambda x: x * 2, "head": lambda x: x + x}
    assert jaxbench.compare(f, args=lambda key: (jnp.ones(100),), max_seconds=0.0).verdict == "inconclusive"
"""
    )
    plugins = ["-p", "jaxnn.bench.pytest_plugin", "-p", "no:cacheprovider", "--jaxbench-json", "r.json"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**schema.os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "doubling   " in done.stdout
    assert "-> INCONCLUSIVE (tol 3%)" in done.stdout
    assert "2 results in r.json" in done.stdout
    assert [type(r).__name__ for r in bench.load(tmp_path / "r.json").results] == ["Measurement", "Comparison"]


ROOT = schema.pathlib.Path(__file__).resolve().parents[2]
