"""`jaxnn new`: what it writes runs as it is, and it overwrites nothing."""

import ast
import os
import subprocess
import sys

import pytest

from jaxnn import cli
from jaxnn.cli import new


def run(folder, name, *arguments):
    env = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    return subprocess.run(
        [sys.executable, f"{name}.py", *arguments], cwd=folder, capture_output=True, text=True, env=env, timeout=250
    )


@pytest.mark.parametrize("kind", [new.KINDS[0], *(pytest.param(k, marks=pytest.mark.slow) for k in new.KINDS[1:])])
def test_what_is_written_trains_and_reports(tmp_path, kind, capsys):
    assert cli.main(["new", "tried_out", "--kind", kind, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"python {tmp_path / 'tried_out.py'} --steps 20" in out
    done = run(tmp_path, "tried_out", "--steps", "3")
    assert done.returncode == 0, done.stderr
    assert "loss" in done.stdout.splitlines()[-3]
    report = tmp_path / "runs" / "tried_out-001" / "report.html"
    assert done.stdout.splitlines()[-1] == f"report: {report}"
    assert report.exists()
    assert done.stdout.splitlines()[-2] == f"card: {report.with_name('card.md')}"
    again = run(tmp_path, "tried_out", "--steps", "3", "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == f"report: {report}"  # of the same run, which was over


@pytest.mark.parametrize("kind", new.KINDS)
def test_the_name_is_put_everywhere(tmp_path, kind):
    assert new.write("mine", kind, str(tmp_path / "made" / "here")) == 0
    text = (tmp_path / "made" / "here" / "mine.py").read_text()
    assert "my_experiment" not in text
    tree = ast.parse(text)
    assert ast.get_docstring(tree).startswith("mine: ")
    assert {f.name for f in tree.body if isinstance(f, ast.FunctionDef)} >= {"build", "main"}


def test_bad_data_is_one_line(tmp_path):
    new.write("mine", "csv", str(tmp_path))
    (tmp_path / "holes.csv").write_text("a,price\n1,2\n,3\n5,6\n7,8\n8,9\n")
    done = run(tmp_path, "mine", "--data", "holes.csv")
    assert done.returncode == 2
    assert done.stderr.startswith("data.CSV: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    done = run(tmp_path, "mine", "--data", "holes.csv", "--missing", "mean", "--steps", "2", "--batch", "2")
    assert done.returncode == 0, done.stderr


def test_nothing_is_overwritten(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("precious")
    assert cli.main(["new", "mine", "--out", str(tmp_path)]) == 1
    assert "is there already; it is left as it is" in capsys.readouterr().err
    assert (tmp_path / "mine.py").read_text() == "precious"
    (tmp_path / "file").touch()
    assert cli.main(["new", "mine", "--out", str(tmp_path / "file")]) == 1
    assert "is a file; it is left as it is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-experiment", "'my-experiment' is no name for a Python module. Try: jaxnn new my_experiment"),
        ("mine.py", "Try: jaxnn new mine"),
        ("2nd", "Try: jaxnn new experiment_2nd"),
        ("class", "Try: jaxnn new experiment_class"),
        ("", "Try: jaxnn new experiment"),
        ("größe", "is no name for a Python module. Try: jaxnn new gr_e"),
        ("a/b", "'a/b' is a path. Give a name, and the folder as --out: jaxnn new b --out FOLDER."),
        ("../x", "is a path"),
        ("random", "a file random.py would hide the module 'random' from Python wherever it is run"),
        ("jax", "Try: jaxnn new my_jax"),
        ("jaxnn", "would hide the module 'jaxnn'"),
        ("numpy", "would hide"),
    ],
)
def test_names_that_will_not_do(tmp_path, name, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", name]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_the_refusals_suggest_is_accepted():
    for name in ("my-experiment", "2nd", "class", "", "größe", "a b.py", "x/y-z"):
        suggested = new.refusal(name).split("jaxnn new ")[1].split()[0]
        assert new.refusal(suggested) is None


def test_an_unwritable_folder_is_named(tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert new.write("mine", "regression", str(tmp_path)) == 1
    assert "mine.py cannot be written: Permission denied" in capsys.readouterr().err
