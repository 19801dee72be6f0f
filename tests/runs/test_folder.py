"""The run folder: refuses what is not its own, and names every field of a config that changed."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from jaxnn import runs
from jaxnn.runs import folder as folder_module, lock

CONFIG = {"steps": 10, "model": {"width": 8, "layers": (2, 3)}, "lr": 1e-3, "out": None}


def create(path, config=CONFIG):
    return runs.RunFolder.create(path, config, environment={"versions": {}})


def test_create_then_open(tmp_path):
    run = create(tmp_path / "deep" / "run")
    again = runs.RunFolder.open(run.path)
    assert again.config == run.config == json.loads(json.dumps(CONFIG))
    assert again.environment == {"versions": {}}
    assert sorted(p.name for p in run.path.iterdir()) == ["config.json", "environment.json"]
    run.metrics.append({"step": 1, "loss": 0.5})
    run.timing.append({"step": 1, "seconds": 0.1})
    run.journal.append("start", 0)
    with run.checkpoints(keep=1):
        pass
    assert {p.name for p in run.path.iterdir()} > {"metrics.jsonl", "timing.jsonl", "journal.jsonl", "checkpoints"}
    assert run.report == run.path / "report.html"


def test_an_empty_folder_and_an_interrupted_creation_will_do(tmp_path, monkeypatch):
    create(tmp_path)
    write = folder_module.write_json

    def die_before_config(path, value):
        if path.name == "config.json":
            raise KeyboardInterrupt
        write(path, value)

    monkeypatch.setattr(folder_module, "write_json", die_before_config)
    with pytest.raises(KeyboardInterrupt):
        create(tmp_path / "b")
    monkeypatch.undo()
    assert (tmp_path / "b" / "environment.json").exists()
    assert create(tmp_path / "b").config["steps"] == 10


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "file").write_text("hello")
    for make in (create, runs.RunFolder.open):
        with pytest.raises(ValueError, match=r"file is a file\. Give out= a folder"):
            make(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "hello"


def test_an_unwritable_path_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in ("/proc/jaxnn-run", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"cannot write to .*Give out= a folder that you may write to"):
            create(path)


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    for name in ("thesis.tex", "a", "b", "c", "d", "e"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty and holds no run .* found a, b, c, d, e and 1 more"):
        create(tmp_path)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_folder_that_holds_a_run_is_refused(tmp_path):
    create(tmp_path)
    with pytest.raises(ValueError, match=r"already holds a run\. Give resume=True .*or another out="):
        create(tmp_path, {"steps": 11})
    assert runs.RunFolder.open(tmp_path).config["steps"] == 10


def test_resuming_from_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nothing to resume from .*does not exist"):
        runs.RunFolder.open(tmp_path / "none")
    with pytest.raises(ValueError, match=r"nothing to resume from .*holds no config\.json"):
        runs.RunFolder.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        runs.RunFolder.open(tmp_path)


def test_a_changed_config_names_every_field(tmp_path):
    run = create(tmp_path)
    new = {"steps": 20, "model": {"width": 16, "layers": [2, 3]}, "lr": 1e-3, "seed": 1}
    with pytest.raises(ValueError, match="started with another config") as error:
        run.check_config(new, free=("steps",))
    message = str(error.value)
    for text in ("model.width: 8 -> 16", "out: null -> absent", "seed: absent -> 1", "What may change: steps"):
        assert text in message
    assert "layers" not in message
    assert "lr" not in message
    assert "steps: 10" not in message


def test_free_fields_may_change_and_are_reported(tmp_path):
    run = create(tmp_path)
    assert run.check_config(CONFIG) == []
    new = CONFIG | {"steps": 20, "model": {"width": 8, "layers": (4,)}}
    assert run.check_config(new, free=("steps", "model")) == ["steps: 10 -> 20", "model.layers: [2, 3] -> [4]"]
    run.update_config(new)
    assert runs.RunFolder.open(tmp_path).config["model"] == {"width": 8, "layers": [4]}


def test_a_config_that_is_not_json_names_the_field(tmp_path):
    with pytest.raises(TypeError, match=r"field 'model\.act' is builtin_function_or_method"):
        create(tmp_path / "x", {"model": {"act": len}})
    assert not (tmp_path / "x").exists()


# One writer

WRITER = """
import sys, time
from jaxnn import runs
try:
    run = runs.RunFolder.open(sys.argv[1], hold=True)
except ValueError as error:
    print(error, flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
"""


def writer(path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).resolve().parents[2])}
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path)], env=environment, **pipes)


def test_a_second_writer_is_told_who_holds_the_run_until_it_dies(tmp_path):
    path = create(tmp_path / "r").path
    with writer(path) as first:
        assert first.stdout.readline() == "held\n"
        said = rf"process {first.pid} is writing the run in .*/r; two at once .*Wait until it has ended, end it"
        with pytest.raises(ValueError, match=said):
            runs.RunFolder.open(path, hold=True)
        with writer(path) as second:
            assert re.match("runs.RunFolder: " + said, second.stdout.readline())
        assert runs.RunFolder.open(path).config["steps"] == 10  # who only reads, may
        first.kill()
    held = runs.RunFolder.open(path, hold=True)
    assert (path / "lock").read_text() == str(os.getpid())
    with pytest.raises(ValueError, match=rf"process {os.getpid()} \(this one\) is writing"):
        runs.RunFolder.open(path, hold=True)
    held.release()
    held.release()
    with writer(path) as third:
        assert third.stdout.readline() == "held\n"


def test_a_new_folder_is_held_from_its_creation(tmp_path, monkeypatch):
    run = runs.RunFolder.create(tmp_path / "r", CONFIG, environment={}, hold=True)
    (run.path / "config.json").unlink()  # as one that is being made: no config yet
    with pytest.raises(ValueError, match=r"\(this one\) is writing the run"):
        runs.RunFolder.create(run.path, CONFIG, environment={}, hold=True)
    run.release()
    write = folder_module.write_json
    monkeypatch.setattr(folder_module, "write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runs.RunFolder.create(run.path, CONFIG, environment={}, hold=True)
    monkeypatch.setattr(folder_module, "write_json", write)
    runs.RunFolder.create(run.path, CONFIG, environment={}, hold=True).release()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with pytest.warns(RuntimeWarning, match="on a file system without locks"):
        runs.RunFolder.create(tmp_path / "r", CONFIG, environment={}, hold=True).release()
