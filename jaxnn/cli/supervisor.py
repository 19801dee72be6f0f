"""The processes of one job on one machine: started, listened to, watched, killed and started again.

One process of a job that is gone or stands still holds up all others for ever, and none can come back alone: so the
whole job is killed and started again, and the run goes on from its newest good checkpoint.
"""

import collections
import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

REFUSED, GIVEN_UP = 2, 3
POLL_S = 0.05
STACKS_S = 2.0  # for the processes to write their stacks before they are killed
LAST_LINES = 30  # of the culprit, when the job is given up
HEADSTART_S = 0.3  # after a process has died, for the last words of all
_NOISE = re.compile(r"^\[Gloo\] Rank|^I\d{4} ")
_FORCED = re.compile(r"--xla_force_host_platform_device_count=\d+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """When a job is killed and when it is given up.

    Attributes:
        restarts: Without progress (no further step than any attempt before), then it is given up.
        stall_s: Seconds without a sign of a process's main loop.
        start_s: Likewise before the first sign, and after training.
        grace_s: From a request to stop to the kill.
    """

    restarts: int = 3
    stall_s: float = 300.0
    start_s: float = 900.0
    grace_s: float = 60.0


class _Process:
    """One process, and the threads that read what it says."""

    def __init__(self, index: int, words: Sequence[str], environment: Mapping[str, str], say: Any):
        reads, writes = os.pipe()
        self.index, self._say = index, say
        self.last: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self.step = -1  # the newest that it told
        self.heard_at: float | None = None  # when it last moved
        self.began = time.monotonic()
        self.ended_at: float | None = None
        try:
            self._popen = subprocess.Popen(
                words,
                env=dict(environment) | {"JAXNN_BEAT": str(writes), "JAXNN_PROCESS": str(index)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(writes,),
                start_new_session=True,  # a Ctrl-C on the terminal is the supervisor's to pass on
            )
        except OSError:
            os.close(reads)
            raise
        finally:
            os.close(writes)
        self._threads = [threading.Thread(target=self._read, daemon=True)]
        self._threads.append(threading.Thread(target=self._listen, args=(reads,), daemon=True))
        self._threads.append(threading.Thread(target=self._wait, daemon=True))
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as stream:
            for line in stream:
                text = line.decode(errors="replace").rstrip("\n")
                if not _NOISE.match(text):
                    self.last.append(text)
                    self._say(f"[{self.index}] {text}")

    def _listen(self, pipe: int) -> None:
        with os.fdopen(pipe, "rb") as file:
            for line in file:
                if line == b"rest\n":  # it trains no more, and may take the time of a start for what it does now
                    self.began, self.heard_at = time.monotonic(), None
                    continue
                self.heard_at = time.monotonic()
                with contextlib.suppress(ValueError):
                    self.step = max(self.step, int(line))

    def _wait(self) -> None:
        self._popen.wait()
        self.ended_at = time.monotonic()

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it lives."""
        return self._popen.returncode if self.ended_at is not None else None

    def silent_s(self, limits: Limits) -> float:
        """Seconds by which it has been silent for too long; negative while all is well."""
        now = time.monotonic()
        if self.heard_at is None:
            return now - self.began - limits.start_s
        return now - self.heard_at - limits.stall_s

    def is_stopped(self) -> bool:
        """Whether somebody has stopped it (SIGSTOP), where the system tells."""
        try:
            text = Path(f"/proc/{self._popen.pid}/stat").read_text()
        except OSError:
            return False
        return self.status is None and text.rpartition(")")[2].split()[:1] == ["T"]

    def send(self, number: int) -> None:
        """Sends a signal to it and to what it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, number)

    def send_alone(self, number: int) -> None:
        """Sends a signal to it."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                self._popen.send_signal(number)

    def finish(self) -> None:
        """Kills it, and returns when its last words are read."""
        self.send(signal.SIGKILL)
        self._popen.wait()
        for thread in self._threads:
            thread.join(5.0)

    def text(self) -> str:
        """How it ended, for people."""
        status = self.status
        if status is None:
            return "was still running"
        if status < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(-status).name}"
        return f"ended with status {status}"


class End(NamedTuple):
    """How an attempt ended.

    Attributes:
        outcome: The job's exit status; or why it has to be started again.
        culprit: Whose fault that is.
        step: How far it had come.
    """

    outcome: int | str
    culprit: _Process | None = None
    step: int = -1


class Supervisor:
    """A job of `processes` processes of the command `words`; `run` returns its exit status.

    Args:
        words: The command.
        processes: How many.
        devices: CPU devices that each shows.
        limits: When to kill it, when to give up.
    """

    def __init__(self, words: Sequence[str], processes: int, devices: int, limits: Limits):
        self._words, self._count, self._devices, self._limits = list(words), processes, devices, limits
        self._asked: int | None = None  # a signal that asked for an end
        self._insisted = False  # a second one
        self._talking = threading.Lock()

    def say(self, text: str) -> None:
        """Prints one line of the job's log."""
        with self._talking:
            print(text, flush=True)

    def run(self) -> int:
        """Runs the job to its end."""
        job = Path(tempfile.mkdtemp(prefix="jaxnn-job-"))
        # What is ignored stays so, as behind a shell's `&`.
        heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
        old = {number: signal.signal(number, self._ask) for number in heard}
        try:
            return self._attempts(job)
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
            shutil.rmtree(job, ignore_errors=True)

    def _ask(self, number: int, _: Any) -> None:
        self._insisted = self._asked is not None
        self._asked = number

    def _attempts(self, job: Path) -> int:
        furthest, in_vain, attempt = -1, 0, 0
        while True:
            outcome, culprit, step = self._attempt(job, again=attempt > 0)
            if isinstance(outcome, int):
                return outcome
            in_vain = 1 if step > furthest else in_vain + 1
            furthest, attempt = max(furthest, step), attempt + 1
            reached = f" at step {step}" if step >= 0 else " before its first step"
            if in_vain > self._limits.restarts:
                self.say(f"jaxnn launch: {outcome}{reached}. Given up after {in_vain - 1} restarts without progress.")
                if culprit is not None:
                    self.say(f"jaxnn launch: the last lines of process {culprit.index}:")
                    for line in culprit.last:
                        self.say(f"    {line}")
                return GIVEN_UP
            self.say(f"jaxnn launch: {outcome}{reached}; starting all {self._count} processes again.")

    def _environment(self, job: Path, again: bool) -> dict[str, str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = dict(os.environ)
        environment["XLA_FLAGS"] = _FORCED.sub("", environment.get("XLA_FLAGS", "")).strip()
        environment.setdefault("JAX_PLATFORMS", "cpu")
        environment.setdefault("NPROC", str(max(32, 2 * self._count * self._devices)))
        environment |= {
            "JAX_NUM_CPU_DEVICES": str(self._devices),
            "JAXNN_COORDINATOR": f"127.0.0.1:{port}",
            "JAXNN_PROCESSES": str(self._count),
            "JAXNN_JOB": str(job),
            "PYTHONUNBUFFERED": "1",
        }
        environment.setdefault("JAXNN_START_SECONDS", str(min(300.0, self._limits.start_s)))
        if again:
            environment["JAXNN_RESUME"] = "auto"
        return environment

    def _attempt(self, job: Path, again: bool) -> End:
        """One start of all processes: an exit status or why it failed, whose fault that is, and how far it came."""
        environment = self._environment(job, again)
        processes: list[_Process] = []
        try:
            for index in range(self._count):
                processes.append(_Process(index, self._words, environment, self.say))
            return self._watch(processes)
        except OSError as error:
            self.say(f"jaxnn launch: {self._words[0]!r} cannot be started ({error.strerror or error}).")
            return End(REFUSED)
        finally:
            for process in processes:
                process.finish()

    def _watch(self, processes: list[_Process]) -> End:
        """Waits until the job has ended, in whichever way."""
        deadline: float | None = None  # of an end that was asked for
        while True:
            time.sleep(POLL_S)
            ended = sorted((p for p in processes if p.status is not None), key=lambda p: p.ended_at or 0)
            if self._asked is not None and deadline is None:
                deadline = time.monotonic() + self._limits.grace_s
                self.say(f"jaxnn launch: {signal.Signals(self._asked).name}: asking all processes to save and end.")
                for process in processes:
                    process.send_alone(signal.SIGTERM)
            bad = [p for p in ended if p.status != 0]
            if bad and _is_request(bad[0].status) and deadline is None:
                deadline = time.monotonic() + self._limits.grace_s  # one was asked to stop: all save, and end
                if (bad[0].status or 0) < 0:  # too early to tell the others
                    for process in processes:
                        process.send_alone(signal.SIGTERM)
            if len(ended) == len(processes):
                return self._ended(processes, bad)
            if deadline is not None:
                if time.monotonic() > deadline or self._insisted:
                    late = ", ".join(str(p.index) for p in processes if p.status is None)
                    why = "asked twice" if self._insisted else f"{self._limits.grace_s:g} s after it was to end"
                    self.say(f"jaxnn launch: killed process {late}: {why}.")
                    return End(128 + (self._asked or signal.SIGTERM))
            elif bad:
                time.sleep(HEADSTART_S)
                return self._ended(processes, bad)
            elif stalled := [p for p in processes if p.status is None and p.silent_s(self._limits) > 0]:
                return self._stalled(processes, max(stalled, key=lambda p: p.silent_s(self._limits)))

    def _ended(self, processes: list[_Process], bad: list[_Process]) -> End:
        if not bad:
            return End(0)
        if self._asked is not None:
            return End(128 + self._asked)
        first = bad[0]
        if first.status == REFUSED:
            return End(REFUSED)
        if _is_request(first.status):
            number = first.status or 0
            return End(128 - number if number < 0 else number)
        return End(f"process {first.index} {first.text()}", first, max(p.step for p in processes))

    def _stalled(self, processes: list[_Process], culprit: _Process) -> End:
        limit = self._limits.start_s if culprit.heard_at is None else self._limits.stall_s
        stopped = next((p for p in processes if p.is_stopped()), None)
        culprit = stopped or culprit
        why = " (it is stopped)" if stopped is not None else ""
        what = f"process {culprit.index} has not moved for {limit:g} s{why}"
        step = max(p.step for p in processes)  # before it goes on, if it does
        self.say(f"jaxnn launch: {what}; the stacks of all:")
        for process in processes:
            process.send_alone(signal.SIGUSR1)  # faulthandler writes the stacks; a stopped process once it goes on
            process.send_alone(signal.SIGCONT)
        time.sleep(STACKS_S)
        return End(what, culprit, step)


def _is_request(status: int | None) -> bool:
    """Whether a process ended because it was asked to: saved (128 + SIGINT, 128 + SIGTERM), or too early to save."""
    return status in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGINT)
