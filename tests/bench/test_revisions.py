"""Workers: what measures comes from one place for both sides, and a worker that dies says how."""

import pathlib
import shutil

import pytest

import jaxnn
from jaxnn.bench import BenchError, revisions, worker

PACKAGE = pathlib.Path(jaxnn.__file__).parent
LIVE = """
import statistics
import jaxnn, jaxnn.bench.timing, jaxnn.losses, jax.numpy as jnp
from jaxnn import bench
print("chatter on the standard output")
statistics.NormalDist  # Python's module, not the one beside the worker

@bench.benchmark(name=f"{jaxnn.bench.timing.__file__}|{jaxnn.losses.__file__}")
def f():
    return jnp.sin, (jnp.ones(4),)

@bench.benchmark
def broken():
    raise RuntimeError("boom")
"""


def test_the_harness_is_taken_from_the_starter_and_the_rest_from_the_worktree(tmp_path):
    """A worktree whose jaxnn has no bench at all, as a revision from before it would."""
    ignore = shutil.ignore_patterns("bench", "cost", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "jaxnn", ignore=ignore)
    (tmp_path / "b.py").write_text(LIVE)
    with revisions.Process("old", str(tmp_path), ["b.py"]) as process:
        harness, library = process.names[0].removeprefix("b/").split("|")
        assert pathlib.Path(harness).parent == PACKAGE / "bench"
        assert pathlib.Path(library).parent == tmp_path / "jaxnn"
        with pytest.raises(BenchError, match="at old: RuntimeError: boom"):
            process.ask("build", name="b/broken", seed=0)
        assert not process.dead
        assert len(process.ask("build", name=process.names[0], seed=0)["program"]) == 16


def test_only_the_measuring_rooms_are_redirected():
    harness = worker._Harness(str(PACKAGE))
    assert harness.find_spec("jaxnn.bench.timing").origin == str(PACKAGE / "bench" / "timing.py")
    assert harness.find_spec("jaxnn.cost").origin == str(PACKAGE / "cost" / "__init__.py")
    for name in ("jaxnn", "jaxnn.losses", "jaxnn.data.order", "bench", "statistics"):
        assert harness.find_spec(name) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import os, sys\nprint('last words', file=sys.stderr, flush=True)\nCASES = os._exit(7)\n", "status 7: .*last"),
        ("x = 1\n", r"at old: bench.collect: b\.py offers no case"),
    ],
)
def test_a_worker_that_does_not_start_says_why(tmp_path, text, message):
    (tmp_path / "b.py").write_text(text)
    with pytest.raises(BenchError, match=message), revisions.Process("old", str(tmp_path), ["b.py"]):
        pass
