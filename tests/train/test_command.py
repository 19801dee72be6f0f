"""An experiment as a command: what is refused is one line, an interrupted run says how to go on, bugs stay loud."""

import dataclasses
import shlex
import signal
from pathlib import Path

import numpy as np
import optax
import pytest

from jaxnn import data, losses, models, train


@dataclasses.dataclass(frozen=True)
class Config:
    """Something small."""

    batch: int = 4  # global examples a step
    profile: str | None = None


def test_the_arguments_reach_main_and_its_result_comes_back():
    assert train.command(lambda cfg: cfg.batch + 1, Config, ["--batch", "7"]) == 8


def test_what_the_library_refuses_is_one_line_and_exit_code_2(capsys):
    def main(cfg):
        source = data.Arrays(np.ones((4, 1)), np.ones((4, 1)))
        task = train.supervised(models.MLP((1,)), losses.mse)
        return train.fit(task, optax.sgd(0.1), source, batch_size=cfg.batch, steps=1)

    with pytest.raises(SystemExit) as caught:
        train.command(main, Config, ["--batch", "9"])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("train.fit: batch_size 9 is larger than the data")


@pytest.mark.parametrize(
    "text", ["Task: the batch has no 'y'", "layers.Conv: x is", "optim.adam: b1=2", "batch: every"]
)
def test_every_room_is_ours(text, capsys):
    def main(cfg):
        raise ValueError(text)

    with pytest.raises(SystemExit):
        train.command(main, Config, [])
    assert capsys.readouterr().err == f"{text}\n"


def test_an_error_that_is_not_ours_is_raised():
    def main(cfg):
        raise ValueError("something broke")

    with pytest.raises(ValueError, match="something broke"):
        train.command(main, Config, [])


def test_an_interrupted_run_exits_with_its_signal_and_says_how_to_go_on(capsys, tmp_path):
    class Interrupt(train.Hook):
        def every(self, plan):
            return 2

        def act(self, at):
            signal.raise_signal(signal.SIGTERM)

    def main(cfg):
        source = data.Arrays(np.ones((4, 1)), np.ones((4, 1)))
        task = train.supervised(models.MLP((1,)), losses.mse)
        log = train.Log(progress=False)
        return train.fit(
            task, optax.sgd(0.1), source, batch_size=4, steps=9, hooks=[Interrupt()], out=tmp_path / "r", log=log
        )

    with pytest.raises(SystemExit) as caught:
        train.command(main, Config, [])
    assert caught.value.code == 128 + signal.SIGTERM
    assert "--resume" in capsys.readouterr().err


@dataclasses.dataclass(frozen=True)
class Long:
    """A run that is stopped on its way."""

    steps: int = 3
    out: str | None = None
    resume: bool = False


class StopEarly(train.Hook):
    def every(self, plan):
        return 2

    def act(self, at):
        if at.step == 2:
            signal.raise_signal(signal.SIGINT)


def long_run(cfg):
    source = data.Arrays(np.ones((4, 1)), np.ones((4, 1)))
    task = train.supervised(models.MLP((1,)), losses.mse)
    return train.fit(
        task,
        optax.sgd(0.1),
        source,
        batch_size=4,
        steps=cfg.steps,
        hooks=[StopEarly()],
        out=train.run_folder("long", cfg.out, cfg.resume),
        resume=cfg.resume,
        log=train.Log(progress=False),
    )


def test_an_interrupted_command_prints_the_one_that_goes_on(capsys, tmp_path, monkeypatch):
    """With the options that it was started with, and in its own folder, whatever was started since."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        train.command(long_run, Long, ["--steps", "9"])
    assert caught.value.code == 128 + signal.SIGINT
    last = capsys.readouterr().err.splitlines()[-1]
    words = shlex.split(last.removeprefix("Go on: "))
    assert words[-5:] == ["--steps", "9", "--out", "runs/long-001", "--resume"]
    run = train.command(long_run, Long, words[-5:])
    assert int(run.state.step) == 9
    with pytest.raises(SystemExit):
        train.command(long_run, Long, ["--out=here"])
    assert capsys.readouterr().err.splitlines()[-1].endswith(" --out=here --resume")


def test_a_span_is_two_steps():
    assert train.span("20:25") == (20, 25)
    assert train.span(None) is None
    for text in ("20", "a:b", "20-25", "5:"):
        with pytest.raises(ValueError, match=r"train\.span: '.*' is not START:STOP"):
            train.span(text)


def test_the_next_folder_is_free_and_resume_takes_the_newest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.run_folder("a") == Path("runs/a-001")
    assert train.run_folder("a", resume=True) == Path("runs/a-001")
    for number in ("a-001", "a-1002", "a-b", "ab-2000"):
        Path("runs", number).mkdir(parents=True)
    assert train.run_folder("a") == Path("runs/a-1003")
    assert train.run_folder("a", resume=True) == Path("runs/a-1002")
    assert train.run_folder("a", out="here", resume=True) == Path("here")
