"""The command line: help at once, honest exit statuses, and the checkpoint commands on real checkpoints."""

import subprocess
import sys
import time

import numpy as np
import pytest

from jaxnn import __version__, cli, runs
from jaxnn.cli import checkpoint
from jaxnn.runs import stored


def test_help_names_the_commands_and_loads_no_jax():
    code = (
        "import sys, jaxnn.cli; sys.argv[1:] = ['--help']\ntry: jaxnn.cli.main()\nfinally: print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "doctor" in done.stdout
    assert "checkpoint" in done.stdout
    assert done.stdout.endswith("False\n")


def test_python_m_jaxnn_runs_the_same_commands():
    done = subprocess.run([sys.executable, "-m", "jaxnn", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"jaxnn {__version__}\n")
    done = subprocess.run([sys.executable, "-m", "jaxnn", "doktor"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "invalid choice: 'doktor'" in done.stderr


@pytest.mark.parametrize(
    "argv", [["nonsense"], ["checkpoint"], ["checkpoint", "list"], ["checkpoint", "inspect", "x", "--step", "a"]]
)
def test_a_command_line_that_is_not_understood_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(argv)
    assert error.value.code == 2
    assert "usage: jaxnn" in capsys.readouterr().err


def test_no_command_prints_the_help(capsys):
    assert cli.main([]) == 0
    assert "{doctor,checkpoint,report,card,launch,bench,new,completion}" in capsys.readouterr().out


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run = runs.RunFolder.create(tmp_path_factory.mktemp("run") / "r", {}, environment={})
    with run.checkpoints() as c:
        for step in (5, 10):
            state = {"params": {"w": np.array([[3.0, 4.0]], np.float32), "[bold]": np.array([np.inf, 1.0, np.nan])}}
            c.save(step, state | {"step": np.int32(step)}, {}, metric=step / 4)
        c.mark_good(5)
    return run.path


@pytest.fixture
def run(saved, tmp_path):
    import shutil

    return shutil.copytree(saved, tmp_path / "r")


def test_list_shows_step_mark_metric_size_and_age(run, capsys):
    assert cli.main(["checkpoint", "list", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "good", "metric", "size", "age"]
    assert lines[1].split()[:4] == ["5", "good", "1.25", "lowest"]
    assert lines[2].split()[:5] == ["10", "not", "marked", "2.5", "highest"]
    assert " kB " in lines[1]
    assert lines[1].rstrip().endswith(" s")


def test_verify_passes_whole_checkpoints(run, capsys):
    assert cli.main(["checkpoint", "verify", str(run / "checkpoints")]) == 0
    out = capsys.readouterr().out
    assert out.count("whole") == 2


def test_verify_names_damage_and_exits_with_1_and_writes_nothing(run, capsys):
    file = max(
        (run / "checkpoints" / "00000010" / "arrays").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0
    )
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 2
    file.write_bytes(bytes(data))
    before = sorted(run.rglob("*"))
    assert cli.main(["checkpoint", "verify", str(run)]) == 1
    captured = capsys.readouterr()
    assert "damaged: 00000010: " in captured.err
    assert file.name in captured.err
    assert "00000005" not in captured.err
    assert cli.main(["checkpoint", "inspect", str(run), "--step", "10"]) == 1
    assert sorted(run.rglob("*")) == before


def test_inspect_shows_the_newest_good_one_by_leaf(run, capsys):
    assert cli.main(["checkpoint", "inspect", str(run)]) == 0
    out = capsys.readouterr().out
    *table, caption = [line.split() for line in out.splitlines() if line.strip()]
    rows = {row[0]: row for row in table}
    assert rows["params/w"][1:] == ["1x2", "float32", "8", "B", "5", "3.5", "yes"]
    assert rows["step"][1:] == ["scalar", "int32", "4", "B", "5", "5", "yes"]
    assert rows["params/[bold]"][-4:] == ["NO:", "2", "of", "3"]
    assert " ".join(caption) == "step 5, good, 3 arrays, 36 B"
    assert cli.main(["checkpoint", "inspect", str(run), "--step", "10"]) == 0
    assert "step 10, not marked good" in capsys.readouterr().out
    assert cli.main(["checkpoint", "inspect", str(run), "--step", "11"]) == 1
    assert "no checkpoint of step 11" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["list", "verify", "inspect"])
def test_a_folder_without_checkpoints_is_named(tmp_path, action, capsys):
    assert cli.main(["checkpoint", action, str(tmp_path)]) == 1
    assert "it holds no checkpoints" in capsys.readouterr().err
    assert cli.main(["checkpoint", action, str(tmp_path / "none")]) == 1
    assert "it does not exist" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("action", ["verify", "inspect"])
def test_a_checkpoint_of_another_version_is_told_in_a_line(run, action, capsys, monkeypatch):
    monkeypatch.setattr(stored, "FORMAT", stored.FORMAT - 1)
    assert cli.main(["checkpoint", action, str(run)]) == 1
    err = capsys.readouterr().err
    assert "is a checkpoint of format" in err
    assert "Traceback" not in err
    assert err.count("\n") == 1


def test_sizes_and_durations_read_well():
    assert [checkpoint.size(n) for n in (0, 999, 1000, 1_234_567, 5e12)] == ["0 B", "999 B", "1 kB", "1.23 MB", "5 TB"]
    spans = [checkpoint.duration(s) for s in (-1, 59, 61, 7261, 90_000)]
    assert spans == ["0 s", "59 s", "1 min 1 s", "2 h 1 min", "1 d 1 h"]


def test_list_says_how_old(run, capsys, monkeypatch):
    later = time.time() + 7200
    monkeypatch.setattr(checkpoint.time, "time", lambda: later)
    cli.main(["checkpoint", "list", str(run)])
    assert capsys.readouterr().out.count("2 h 0 min") == 2
