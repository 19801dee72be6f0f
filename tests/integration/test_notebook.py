"""A notebook's kernel, interrupted in the middle of a fit: the run is saved and at hand, and the kernel goes on."""

import queue
import time
from pathlib import Path

import pytest

client = pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).resolve().parents[2]
SETUP = f"""
import sys, time; sys.path.insert(0, {str(ROOT)!r})
import numpy as np, optax
from jaxnn import data, losses, models, train
x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
task = train.supervised(models.MLP((1,)), losses.mse)

class Pace(train.Hook):
    def every(self, plan): return 5
    def act(self, at):
        time.sleep(0.02)
        if at.step == 50: print("in the middle", flush=True)

def fit(steps, progress=False, **keywords):
    return train.fit(task, optax.sgd(0.1), data.Arrays(x, 2 * x), batch_size=8, steps=steps, seed=1,
                     hooks=[Pace()], log=train.Log(progress=progress), **keywords)
"""


class Kernel:
    """A real kernel; `run` gives what a cell printed, and the name of its error with the text below the cell."""

    def __init__(self):
        self.manager, self.client = client.manager.start_new_kernel(kernel_name="python3")

    def run(self, code, interrupt_at=None):
        deadline = time.monotonic() + 120
        asked = self.client.execute(code)
        printed, error, shown = "", None, ""
        while True:
            try:
                message = self.client.get_iopub_msg(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"the kernel did not answer; printed: {printed}")
            if message["parent_header"].get("msg_id") != asked:
                continue
            content = message["content"]
            if message["msg_type"] == "stream":
                printed += content["text"]
                if interrupt_at is not None and interrupt_at in printed:
                    interrupt_at = None
                    self.manager.interrupt_kernel()
            elif message["msg_type"] == "error":
                error, shown = content["ename"], content["evalue"]
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                return printed, error, shown

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel():
    started = Kernel()
    printed, error, shown = started.run(SETUP)
    assert (error, shown) == (None, ""), printed
    yield started
    started.close()


def test_an_interrupted_cell_saves_its_run_and_a_second_one_goes_on(kernel, tmp_path):
    out = str(tmp_path / "run")
    printed, error, shown = kernel.run(f"run = fit(5000, out={out!r})", interrupt_at="in the middle")
    assert error == "Interrupted", printed
    assert "train.fit: interrupted by SIGINT at step " in shown
    assert f"in {out}; go on with resume=True" in shown
    # The next cell finds the run in the error, as Python keeps the last one.
    printed, error, shown = kernel.run(
        """
        stopped = sys.last_value.run
        at = int(stopped.state.data_step)
        print(at, stopped.stopped, stopped.folder.good_step() == at, at < 5000)
    """.replace("\n        ", "\n")
    )
    assert (error, shown) == (None, "")
    at, _, _, by, good, early = printed.split()
    assert (by, good, early) == ("SIGINT", "True", "True")
    printed, error, shown = kernel.run(f"run = fit({at} + 20, out={out!r}, resume=True); print(run)")
    assert (error, shown) == (None, "")
    assert f"Run({int(at) + 20} steps, 2 parameters" in printed
    # The handlers are the kernel's own again: an interrupt of another cell is an ordinary one.
    printed, error, _ = kernel.run("print('waiting', flush=True); time.sleep(60)", interrupt_at="waiting")
    assert error == "KeyboardInterrupt"
    assert kernel.run("print(1 + 1)") == ("2\n", None, "")


def test_a_run_without_a_folder_is_in_the_error(kernel):
    printed, error, _ = kernel.run(
        "try:\n    fit(5000, progress=True)\nexcept train.Interrupted as error:\n    run = error.run\n"
        "print(type(run).__name__, int(run.state.data_step) < 5000)",
        interrupt_at="in the middle",
    )
    assert (printed, error) == ("in the middle\nRun True\n", None)


def test_in_a_thread_a_fit_sets_no_handler_and_ends_by_itself(kernel):
    code = """
import threading, signal
before = signal.getsignal(signal.SIGINT)
runs = []
thread = threading.Thread(target=lambda: runs.append(fit(60)))
thread.start()
thread.join()
print(int(runs[0].state.data_step), signal.getsignal(signal.SIGINT) is before)
"""
    printed, error, shown = kernel.run(code)
    assert (error, shown) == (None, "")
    assert printed.endswith("60 True\n")


def test_an_interrupt_while_a_thread_trains_leaves_the_thread_alone(kernel, tmp_path):
    out = str(tmp_path / "run")
    code = f"""
import threading
runs = []
thread = threading.Thread(target=lambda: runs.append(fit(400, out={out!r})))
thread.start()
thread.join()
"""
    _, error, _ = kernel.run(code, interrupt_at="in the middle")
    assert error == "KeyboardInterrupt"
    # Not by another join: in Python 3.11 one that was interrupted takes the thread for ended.
    printed, error, shown = kernel.run("while not runs: time.sleep(0.01)\nprint(int(runs[0].state.data_step))")
    assert (error, shown) == (None, ""), printed
    assert printed.endswith("400\n")
