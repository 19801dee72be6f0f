"""The launcher with small shell programs for processes; tests/integration/test_jobs.py has it train."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxnn import cli
from jaxnn.cli.supervisor import GIVEN_UP, REFUSED, Limits, Supervisor

pytestmark = pytest.mark.multiprocess


def launch(script, *, processes=2, **limits):
    return Supervisor(["sh", "-c", script], processes, 1, Limits(**limits)).run()


def test_every_process_knows_its_place_and_speaks_with_its_number(capfd, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --other")
    monkeypatch.delenv("NPROC", raising=False)
    script = (
        'echo "$JAXNN_PROCESS of $JAXNN_PROCESSES, $JAX_NUM_CPU_DEVICES $NPROC $XLA_FLAGS $JAXNN_RESUME"; echo no >&2'
    )
    assert Supervisor(["sh", "-c", script], 3, 2, Limits()).run() == 0
    lines = capfd.readouterr().out.splitlines()
    assert sorted(lines) == sorted(line for i in range(3) for line in (f"[{i}] {i} of 3, 2 32 --other ", f"[{i}] no"))


def test_a_crash_loop_is_given_up_with_the_culprit_s_last_lines(capfd):
    script = '[ "$JAXNN_PROCESS" = 1 ] || exec sleep 60; echo "why: $JAXNN_RESUME"; exit 7'
    assert launch(script, restarts=2) == GIVEN_UP
    out = capfd.readouterr().out
    assert out.count("process 1 ended with status 7 before its first step; starting all 2 processes again") == 2
    assert out.endswith(
        "jaxnn launch: process 1 ended with status 7 before its first step. Given up after 2 restarts without "
        "progress.\njaxnn launch: the last lines of process 1:\n    why: auto\n"
    )


def test_an_attempt_that_comes_further_counts_as_progress(capfd, tmp_path):
    # Attempts reach steps 1, 2, 3, 3, 3: two restarts without progress.
    script = f"""
        n=$(($(cat {tmp_path}/n 2>/dev/null || echo 0) + 1)); echo $n > {tmp_path}/n
        [ $n -lt 3 ] || n=3
        echo $n > /dev/fd/$JAXNN_BEAT; sleep 0.1; exit 1"""
    assert launch(script, processes=1, restarts=2) == GIVEN_UP
    out = capfd.readouterr().out
    assert [line.split("at step ")[1][0] for line in out.splitlines() if "at step" in line] == list("12333")


def test_what_the_program_refuses_is_not_tried_again(capfd):
    assert launch("exit 2") == REFUSED
    assert "starting all" not in capfd.readouterr().out


def test_a_program_that_is_not_there_is_told(capfd):
    assert Supervisor(["/no/such/program"], 2, 1, Limits()).run() == REFUSED
    assert "'/no/such/program' cannot be started (No such file or directory)" in capfd.readouterr().out


@pytest.mark.slow
def test_silence_before_the_first_step_and_after_it_have_limits_of_their_own(capfd):
    assert launch("exec sleep 60", restarts=0, start_s=0.3) == GIVEN_UP
    assert "has not moved for 0.3 s before its first step. Given up" in capfd.readouterr().out
    assert launch("echo 4 > /dev/fd/$JAXNN_BEAT; exec sleep 60", restarts=0, stall_s=0.4) == GIVEN_UP
    assert "has not moved for 0.4 s at step 4. Given up" in capfd.readouterr().out
    script = "echo 4 > /dev/fd/$JAXNN_BEAT; sleep 0.1; echo rest > /dev/fd/$JAXNN_BEAT; exec sleep 1"
    assert launch(script, restarts=0, stall_s=0.5) == 0


def test_a_stopped_process_is_named(capfd):
    script = '[ "$JAXNN_PROCESS" = 0 ] || kill -STOP $$; exec sleep 60'
    assert launch(script, restarts=0, start_s=0.5) == GIVEN_UP
    assert "process 1 has not moved for 0.5 s (it is stopped)" in capfd.readouterr().out


def test_one_that_was_asked_to_end_ends_the_job_with_its_status(capfd):
    assert launch("exit 143") == 143
    assert launch('[ "$JAXNN_PROCESS" = 0 ] && kill -TERM $$; exec sleep 60') == 143  # before it could save
    assert "starting all" not in capfd.readouterr().out


def test_a_request_is_passed_on_and_a_process_that_does_not_end_is_killed(capfd):
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    script = 'trap "echo saving; exit 143" TERM; [ "$JAXNN_PROCESS" = 0 ] || trap "" TERM; while :; do sleep 0.1; done'
    assert launch(script, grace_s=1.5) == 130
    assert time.monotonic() - began < 30
    out = capfd.readouterr().out
    assert "SIGINT: asking all processes to save and end" in out
    assert "[0] saving" in out
    assert "killed process 1: 1.5 s after it was to end" in out


def test_nothing_is_left_running(tmp_path):
    script = (
        f'sleep 61 & echo $! > {tmp_path}/child-$JAXNN_PROCESS; [ "$JAXNN_PROCESS" = 0 ] && sleep 0.3 && exit 1; wait'
    )
    assert launch(script, restarts=0) == GIVEN_UP
    for index in (0, 1):
        child = int((tmp_path / f"child-{index}").read_text())
        deadline = time.monotonic() + 10
        while _runs(child) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not _runs(child)


def _runs(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("wrong", [["--processes", "0"], ["--processes", "2", "--stall-seconds", "0"]])
def test_numbers_out_of_range_are_refused(capsys, wrong):
    assert cli.main(["launch", *wrong, "--", "true"]) == REFUSED
    assert "jaxnn launch: " in capsys.readouterr().err


def test_the_command_line_passes_its_words_on():
    words = [
        "--processes",
        "1",
        "--",
        sys.executable,
        "-c",
        "import sys; print(sys.argv[1:])",
        "--resume",
        "-x",
        "--",
        "y",
    ]
    found = subprocess.run(
        [sys.executable, "-m", "jaxnn", "launch", *words], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout == "[0] ['--resume', '-x', '--', 'y']\n"
