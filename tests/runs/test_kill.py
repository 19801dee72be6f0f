"""Real processes and real SIGKILL: whatever the instant, the newest good checkpoint and the files are whole."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxnn import runs
from jaxnn.runs import stored

ROOT = Path(__file__).resolve().parents[2]
LOOP = """
import sys, numpy as np
from jaxnn import runs
folder = sys.argv[1]
run = runs.RunFolder.open(folder)
with run.checkpoints(keep=2) as c:
    good = c.good_steps()
    start = c.restore({"x": np.zeros(50_000)}).step if good else 0
    c.discard_after(start)
    run.metrics.truncate(start)
    run.journal.append("start", start)
    for step in range(start + 1, 10_000):
        run.metrics.append({"step": step, "loss": 1 / step})
        run.journal.append("save", step)
        c.save(step, {"x": np.full(50_000, float(step))}, {"step": step})
        c.mark_good(step - 1)
        if step == start + 2:
            c.wait()
            print("going", flush=True)
"""


def kills(tmp_path, number):
    folder = tmp_path / "run"
    run = runs.RunFolder.create(folder, {"a": 1}, environment={})
    delays = random.Random(0)
    temporary, best = 0, 0
    for _ in range(number):
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        child = subprocess.Popen([sys.executable, "-c", LOOP, str(folder)], stdout=subprocess.PIPE, env=environment)
        assert child.stdout.readline() == b"going\n"
        time.sleep(delays.uniform(0, 0.15))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        checkpoints = folder / "checkpoints"
        temporary += any(not p.name.isdigit() for p in checkpoints.iterdir())
        with run.checkpoints(keep=2) as c:
            back = c.restore({"x": np.zeros(50_000)})
            assert back.set_aside == []
            assert back.step > best
            assert back.extra == {"step": back.step}
            np.testing.assert_array_equal(back.state["x"], float(back.step))
            assert all(stored.verify(row.path) == [] for row in stored.listing(checkpoints))
            assert all(p.name.isdigit() for p in checkpoints.iterdir())
        best = back.step
        run.metrics.truncate(best)
        assert run.metrics.path.read_text() == "".join(
            f'{{"step": {s}, "loss": {1 / s!r}}}\n' for s in range(1, best + 1)
        )
        saves = run.journal.read("save")
        assert saves[-1]["step"] >= best
    return temporary


def test_a_kill_during_saving_loses_nothing(tmp_path):
    kills(tmp_path, 3)


@pytest.mark.slow
def test_many_kills_during_saving_lose_nothing(tmp_path):
    assert kills(tmp_path, 30) > 0  # some of them left a temporary folder behind, which was cleaned up


def test_opening_removes_what_dead_writers_left_and_spares_the_living(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {
        f"writing-00000003-{dead.pid}": False,
        f"writing-00000003-{dead.pid}.orbax-checkpoint-tmp": False,
        f"writing-00000003-{dead.pid}.0badcafe.2.1-hidden": False,
        f"writing-00000003-{os.getpid()}.0badcafe.2.1": False,  # another writer's, with our number
        f"writing-00000003-{os.getpid()}": False,  # an earlier process may have had our number
        "deleting-00000001-1": False,
        f"writing-00000004-{os.getppid()}": True,
        f"writing-00000004-{os.getppid()}.0badcafe.2.1": True,
        "damaged-00000002-1": True,
    }
    for name in names:
        (tmp_path / name).mkdir()
    runs.Checkpoints(tmp_path).close()
    assert {name: (tmp_path / name).exists() for name in names} == names
