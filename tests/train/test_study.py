"""A study keeps each part when it is done, goes on where it was stopped, and refuses what is not its own."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import optax
import pytest

from jaxnn import data, losses, models, train
from jaxnn.runs import RunFolder

PARAMS = {"w": np.zeros((3, 2), np.float32)}


def study(out, resume=False, **config):
    return train.Study(
        "seeds", {"steps": 3, "seeds": [0], "out": str(out), **config}, free=["seeds"], out=str(out), resume=resume
    )


def refuse():
    raise AssertionError("made again")


def test_a_part_is_made_once_and_comes_back_as_it_was(tmp_path):
    with study(tmp_path / "s") as first:
        made = first.once({"seed": 0}, lambda: {"losses": (1.5, math.inf)})
        assert made == {"seed": 0, "losses": [1.5, math.inf]}
        assert first.once({"seed": 0}, refuse) is made
        first.once({"seed": 1}, lambda: {"losses": []})
    with study(tmp_path / "s", True, seeds=[0, 1, 2]) as again:
        assert again.once({"seed": 0}, refuse) == made
        assert again.parts == first.parts
        again.once({"seed": 2}, lambda: {"losses": [2.0]})
        again.conclude({"loss": 0.25}, PARAMS, 3)
    assert [json.loads(line)["seed"] for line in (tmp_path / "s" / "parts.jsonl").read_text().splitlines()] == [0, 1, 2]
    assert "0.25" in (tmp_path / "s" / "card.md").read_text()
    assert (tmp_path / "s" / "report.html").exists()
    events = [row["event"] for row in RunFolder.open(tmp_path / "s").journal.read()]
    assert events == ["start", "part", "part", "resume", "part", "end", "result"]


def test_a_key_may_have_any_name_and_stays_what_it_is(tmp_path):
    """Keys were fields of a journal's entry, which has a step and an event of its own."""
    key = {"step": 3, "event": "late", "cpu_s": 1}
    with study(tmp_path / "s") as first:
        made = first.once(key, lambda: {"step": 4, "loss": 1.0})
        assert made == {**key, "loss": 1.0}
    with study(tmp_path / "s", True) as again:
        assert again.once(key, refuse) == made


def test_other_settings_and_a_folder_in_use_are_refused(tmp_path):
    with study(tmp_path / "s"):
        with pytest.raises(ValueError, match="already holds a run"):
            study(tmp_path / "s")
        with pytest.raises(ValueError, match="is writing the run"):
            study(tmp_path / "s", True)
    with pytest.raises(
        ValueError, match=r"config.steps: 3 -> 4\. Resume with the old values.*may change: config.seeds"
    ):
        study(tmp_path / "s", True, steps=4)
    with pytest.raises(ValueError, match="nothing to resume from"):
        study(tmp_path / "other", True)
    with study(tmp_path / "s", True) as free:  # what was refused holds no lock
        assert free.parts == []
    with study(tmp_path / "new", "auto") as begun:
        begun.once({"seed": 0}, dict)


def test_a_part_that_fails_or_is_no_json_is_not_kept(tmp_path):
    with study(tmp_path / "s") as it:
        with pytest.raises(ZeroDivisionError):
            it.once({"seed": 0}, lambda: {"loss": 1 / 0})
        with pytest.raises(TypeError, match=r"train.Study.once: part {'seed': 0} .*float32.* is not JSON"):
            it.once({"seed": 0}, lambda: {"loss": np.float32(1)})
        assert it.parts == []
        assert it.once({"seed": 0}, lambda: {"loss": 1.0})["loss"] == 1.0


class Stop(train.Hook):
    def every(self, plan):
        return 2

    def act(self, at):
        if at.step == 2:
            signal.raise_signal(signal.SIGINT)


@dataclasses.dataclass(frozen=True)
class Config:
    """Two runs."""

    out: str | None = None
    resume: bool = False


def main(cfg):
    source = data.Arrays(np.ones((4, 1)), np.ones((4, 1)))
    task = train.supervised(models.MLP((1,)), losses.mse)
    with train.Study("two", dataclasses.asdict(cfg), out=cfg.out, resume=cfg.resume) as it:
        for seed in range(2):

            def part(out=it.folder.path / str(seed)):
                log = train.Log(progress=False)
                kept = {"out": out, "resume": "auto", "log": log}
                run = train.fit(task, optax.sgd(0.1), source, batch_size=4, steps=4, hooks=[Stop()], **kept)
                return {"step": int(run.state.data_step)}

            it.once({"seed": seed}, part)
        return it.parts


def test_a_study_that_is_stopped_says_how_to_go_on_with_the_study(tmp_path, monkeypatch, capsys):
    """The command that was printed named the folder of the part."""
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        with pytest.raises(SystemExit) as caught:
            train.command(main, Config, ["--resume"] if seed else [])
        assert caught.value.code == 128 + signal.SIGINT
        assert capsys.readouterr().err.rstrip().endswith("--out runs/two-001 --resume")
    found = train.command(main, Config, ["--out", "runs/two-001", "--resume"])
    assert found == [{"seed": 0, "step": 4}, {"seed": 1, "step": 4}]


def test_a_study_that_is_killed_keeps_its_parts(tmp_path):
    """A real kill -9 in a part; what was done before it is there, and the folder is free."""
    code = """
        import os, signal, sys
        from jaxnn import train
        with train.Study("killed", {}, out=sys.argv[1], resume="auto") as it:
            it.once({"part": 0}, lambda: {"pid": os.getpid()})
            if len(sys.argv) > 2:
                it.once({"part": 1}, lambda: os.kill(os.getpid(), signal.SIGKILL))
            print(it.parts[0]["pid"], len(it.parts))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "s")]
    first = subprocess.Popen([*command, "kill"], env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert first.wait(60) == -signal.SIGKILL
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    assert done.stdout.split() == [str(first.pid), "1"]


@pytest.mark.slow
def test_the_processes_of_a_job_do_every_part_and_one_of_them_writes(tmp_path):
    code = """
        import sys
        from jaxnn import parallel, train
        parallel.initialize()
        with train.Study("job", {}, out=sys.argv[1], resume="auto") as it:
            for part in range(int(sys.argv[2])):
                it.once({"part": part}, lambda: {"process": parallel.process_index()})
            print([row["process"] for row in it.parts], flush=True)
            it.conclude({"loss": 1.0}, {}, 1)
    """
    (tmp_path / "job.py").write_text(textwrap.dedent(code))
    job = [sys.executable, "-m", "jaxnn", "launch", "--processes", "2", "--", sys.executable, str(tmp_path / "job.py")]
    said = []
    for parts in ("1", "2"):
        command = [*job, str(tmp_path / "s"), parts]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=240)
        said.append({line for line in done.stdout.splitlines() if line.endswith("]")})
    # One that was made is each process's own; one that was kept is what process 0 had found.
    assert said == [{"[0] [0]", "[1] [1]"}, {"[0] [0, 0]", "[1] [0, 1]"}]
    assert [json.loads(line)["process"] for line in (tmp_path / "s" / "parts.jsonl").read_text().splitlines()] == [0, 0]
