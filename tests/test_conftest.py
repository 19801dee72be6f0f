"""The counter behind "nothing was compiled": a counter that never counts would pass every such test."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import pytest

pytestmark = pytest.mark.smoke


def test_a_program_is_counted_once_and_not_again(count_compiles):
    program = jax.jit(lambda x: x @ x + 3)
    x = jnp.ones((4, 4))
    with count_compiles() as first:
        program(x)
    with count_compiles() as second:
        program(x)
    program(jnp.ones((5, 5)))
    assert len(first.compiles) == 1
    assert first.traces
    assert second.compiles == second.traces == []


def test_a_program_in_the_persistent_cache_is_counted(count_compiles):
    def make():
        return jax.jit(lambda x: jnp.sin(x) * 5)

    x = jnp.ones(3)
    make()(x)
    jax.clear_caches()
    with count_compiles() as seen:
        make()(x)
    assert len(seen.compiles) == 1


def test_tracing_alone_is_not_a_compilation(count_compiles):
    with count_compiles() as seen:
        jax.eval_shape(lambda x: x * 2, jax.ShapeDtypeStruct((3,), jnp.float32))
    assert seen.traces
    assert seen.compiles == []


def test_there_are_eight_devices(devices8):
    assert {d.platform for d in devices8} == {"cpu"}


def test_every_test_that_is_listed_as_slow_is_there():
    root = pathlib.Path(__file__).parent
    lines = (root / "slow.txt").read_text().splitlines()
    assert lines == sorted(set(lines))
    files = {path: ast.parse((root.parent / path).read_text()) for path in {line.split("::")[0] for line in lines}}
    names = {
        path: {node.name for node in ast.walk(module) if isinstance(node, ast.FunctionDef)}
        for path, module in files.items()
    }
    lost = [line for line in lines if line.split("[")[0].split("::")[-1] not in names[line.split("::")[0]]]
    assert not lost
