"""The pytest fixture `jaxbench`: a benchmark is a test that measures.

    def test_step(jaxbench):
        r = jaxbench.measure("step", step, args=make_args, donate="thread")
        assert r.compile.retraces == 0

    def test_new_attention(jaxbench):
        assert jaxbench.compare({"base": old, "head": new}, args=make_args).verdict != "regress"

The blocks are printed after the tests; `--jaxbench-json FILE` keeps them. Nothing of jax is imported before the fixture
is used, so that a test suite can still set its environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from jaxnn.bench.comparison import Comparison
    from jaxnn.bench.measurement import Measurement
    from jaxnn.bench.sweeping import Sweep

_RESULTS = pytest.StashKey[list]()


class JaxBench:
    """What the fixture gives: `measure`, `compare` and `sweep` of `jaxnn.bench`, whose results pytest reports."""

    def __init__(self, results: list[Any]):
        self._results = results

    def _keep(self, result: Any) -> Any:
        self._results.append(result)
        return result

    def measure(self, *args: Any, **kwargs: Any) -> Measurement:
        """`bench.measure`."""
        from jaxnn import bench

        return self._keep(bench.measure(*args, **kwargs))

    def compare(self, *args: Any, **kwargs: Any) -> Comparison:
        """`bench.compare`."""
        from jaxnn import bench

        return self._keep(bench.compare(*args, **kwargs))

    def sweep(self, *args: Any, **kwargs: Any) -> Sweep:
        """`bench.sweep`."""
        from jaxnn import bench

        return self._keep(bench.sweep(*args, **kwargs))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds `--jaxbench-json`."""
    group = parser.getgroup("jaxbench", "benchmarks of jitted steps")
    group.addoption("--jaxbench-json", metavar="FILE", help="keep the results of jaxbench in FILE (jaxnn.bench/1)")


def pytest_configure(config: pytest.Config) -> None:
    """Makes room for the results."""
    config.stash[_RESULTS] = []


@pytest.fixture
def jaxbench(request: pytest.FixtureRequest) -> JaxBench:
    """Measures jitted steps; see `jaxnn.bench.pytest_plugin`."""
    return JaxBench(request.config.stash[_RESULTS])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints a block a result, and writes the file that was asked for."""
    results = config.stash[_RESULTS]
    if not results:
        return
    terminalreporter.section("jaxbench")
    for result in results:
        terminalreporter.write_line(str(result))
    path = config.getoption("--jaxbench-json")
    if path:
        from jaxnn import bench

        bench.save(path, results)
        terminalreporter.write_line(f"{len(results)} results in {path}")
