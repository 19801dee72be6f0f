"""What a benchmark file offers, and what is said of one that offers nothing or breaks."""

import jax.numpy as jnp
import pytest

from jaxnn.bench import BenchError, Case, collect

GOOD = """
import jax.numpy as jnp
from jaxnn import bench

@bench.benchmark(donate="thread")
def step():
    return (lambda s, x: s + x), (jnp.ones(4), jnp.ones(4))

@bench.benchmark(name="two arms")
def pair():
    return {"a": jnp.sin, "b": jnp.cos}, (jnp.ones(4),)

@bench.benchmark
def broken():
    raise RuntimeError("boom")

CASES = [bench.Case("listed", jnp.tanh, (jnp.ones(3),))]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "stranger.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "_private.py").write_text("CASES = 3\n")
    return tmp_path


def names(items):
    return [item.name for item in items]


def test_a_folder_offers_its_cases_in_order_and_strangers_are_not_imported(folder):
    items = collect.collect([folder])
    assert names(items) == ["good/step", "good/two arms", "good/broken", "good/listed"]
    step, arms, listed = (items[i].make() for i in (0, 1, 3))
    assert isinstance(step, Case)
    assert (step.name, step.donate) == ("good/step", "thread")
    assert list(arms.cases) == ["good/two arms:a", "good/two arms:b"]
    assert listed.name == "good/listed"
    assert float(step.function(*step.make_args())[0]) == 2


def test_a_case_that_cannot_be_made_fails_when_it_is_made(folder):
    with pytest.raises(RuntimeError, match="boom"):
        collect.collect([folder], "broken")[0].make()


@pytest.mark.parametrize(
    ("expression", "kept"),
    [
        ("", 4),
        ("STEP", 1),
        ("step or listed", 2),
        ("good and not broken", 3),
        ("not step and not arms or step", 3),
    ],
)
def test_expressions_keep_names(folder, expression, kept):
    assert len(collect.collect([folder], expression)) == kept


def test_a_cases_function_is_called_late_enough(tmp_path):
    (tmp_path / "f.py").write_text(
        "from jaxnn import bench\ndef CASES():\n    return [bench.Case('x', abs, ())]\nCASES.called = False\n"
    )
    assert names(collect.collect([tmp_path / "f.py"])) == ["f/x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"f\.py offers no case\. Decorate"),
        ("CASES = [3]\n", "CASES holds int, not bench.Case"),
        ("from jaxnn import bench\nCASES = [bench.Case('a', abs), bench.Case('a', abs)]\n", "two cases are called"),
    ],
)
def test_a_file_that_offers_nothing_that_can_be_used(tmp_path, text, message):
    (tmp_path / "f.py").write_text(text)
    with pytest.raises(BenchError, match=message):
        collect.collect([tmp_path / "f.py"])


def test_missing_paths_empty_folders_and_no_match(folder, tmp_path_factory):
    with pytest.raises(BenchError, match="'nowhere' does not exist"):
        collect.collect(["nowhere"])
    with pytest.raises(BenchError, match="offers a case"):
        collect.collect([tmp_path_factory.mktemp("empty")])
    with pytest.raises(BenchError, match=r"no case matches 'zzz'\. There are: good/step"):
        collect.collect([folder], "zzz")


@pytest.mark.parametrize("text", ["import jaxnn.nothing\nCASES = []\n", "def benchmark(:\n"])
def test_a_file_that_cannot_be_imported_is_a_case_that_fails(tmp_path, text):
    (tmp_path / "bad.py").write_text(text)
    items = collect.collect([tmp_path])
    assert names(items) == ["bad"]
    with pytest.raises(BenchError, match=r"importing bad\.py raised"):
        items[0].make()


@pytest.mark.parametrize(
    ("returned", "message"),
    [("3", "returned int"), ("{'a': abs}, ()", "has the arms"), ("(1, 2, 3)", "returned tuple")],
)
def test_a_function_that_returns_something_else(tmp_path, returned, message):
    (tmp_path / "f.py").write_text(f"from jaxnn import bench\n@bench.benchmark\ndef f():\n    return {returned}\n")
    with pytest.raises(BenchError, match=message):
        collect.collect([tmp_path])[0].make()


def test_targets_of_explain(folder):
    file = folder / "good.py"
    for target in (f"{file}:step", f"{file}:two arms", f"{file}:listed"):
        function, args, _ = collect.program(target)
        assert jnp.asarray(function(*args)).shape
    (folder / "plain.py").write_text(
        "import jax.numpy as jnp\ndef make():\n    return jnp.sin, (jnp.ones(2),)\nN = 3\n"
    )
    assert collect.program(f"{folder / 'plain.py'}:make")[0] is jnp.sin


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("noplace", "names nothing"),
        ("no.such.module:f", "importing 'no.such.module' raised ModuleNotFoundError"),
        ("gone.py:f", "there is no file 'gone.py'"),
        ("jaxnn.losses:nothing", "has no 'nothing'. It has"),
        ("jaxnn.losses:mse", "could not be called without arguments"),
        ("jaxnn.bench.schema:SCHEMA", "is str. Name a function"),
    ],
)
def test_targets_that_do_not_exist(target, message):
    with pytest.raises(BenchError, match=message):
        collect.program(target)
