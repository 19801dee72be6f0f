"""Processes that take turns: each waits until it is asked for a stretch of work, and tells in a line of JSON how long
it took. Frameworks that want environments of their own are compared so, in rounds of one machine's time."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class Worker:
    """A process that works a stretch when it is asked to.

    Args:
        line: Its command line, run at the root of the checkout.
        environment: All of its variables.
        log: Where its standard error goes.
    """

    def __init__(self, line: Sequence[str], environment: Mapping[str, str], log: Path):
        self.line, self.log = line, log
        self.process = subprocess.Popen(
            line,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(log, "w"),  # noqa: SIM115
            text=True,
        )

    def hear(self) -> dict[str, Any]:
        """Its next line; ends this program where the worker has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(self.line)} ended:\n{self.log.read_text()[-4000:]}")
        return json.loads(line)

    def stretch(self) -> dict[str, Any]:
        """Has it work a stretch, and gives what it tells of it."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.hear()

    def end(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()
