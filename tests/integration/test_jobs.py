"""Jobs of several real processes, with real signals: they equal one device, and survive what happens to one of them.

`STRATEGIES` is the table that a strategy joins by a line.
"""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jaxnn import data, parallel, runs
from jaxnn.runs import reading
from tests.integration import job

pytestmark = pytest.mark.multiprocess
ROOT = Path(job.__file__).parents[2]
PROGRAM = [sys.executable, "-m", "tests.integration.job"]
STRATEGIES = ["replicate", "zero1", "zero2", "zero3", "fsdp", "tensor", "sequence", "fsdp_tensor"]
GIVEN_UP = 3


def command(processes, options, launch=()):
    words = [word for name, value in options.items() for word in option(name, value)]
    head = [sys.executable, "-m", "jaxnn", "launch", "--processes", str(processes), *launch, "--"]
    return [*(head if processes else []), *PROGRAM, *words]


def option(name, value):
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    return [f"--{name}", str(value)]


def start(processes, options, launch=(), **environment):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command(processes, options, launch), cwd=ROOT, env=os.environ | environment, **pipes)


def run(processes, *launch, status=0, **options):
    """The log of a job that ends with `status`."""
    process = start(processes, options, launch)
    log, _ = process.communicate(timeout=240)
    assert process.returncode == status, log
    return log


def losses(out):
    rows = runs.MetricFile(Path(out) / "metrics.jsonl").read()
    return np.array([row["loss"] for row in rows if "loss" in row])


def params(out):
    step = max(row.step for row in runs.stored.listing(Path(out) / "checkpoints"))
    arrays, problems = reading.read_arrays(runs.stored.step_folder(Path(out) / "checkpoints", step))
    assert not problems
    return {name: array for name, array in arrays.items() if name.startswith(("params", "model_state"))}


def bytes_of(out):
    return (Path(out) / "metrics.jsonl").read_bytes(), {name: x.tobytes() for name, x in params(out).items()}


@functools.cache
def alone(temporary, model, where):
    """The run on one device of this process."""
    out = temporary / f"{model}-{where}"
    job.fit(job.Config(model=model, where=where, out=str(out)), parallel.single())
    return out


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return functools.partial(alone, tmp_path_factory.mktemp("alone"))


@functools.cache
def undisturbed_job(temporary, strategy="replicate"):
    out = temporary / f"undisturbed-{strategy}"
    run(2, out=out, where="host", strategy=strategy)
    return out


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Two processes, streamed, that nothing happens to."""
    return undisturbed_job(tmp_path_factory.mktemp("jobs"))


def assert_equal(out, expected):
    assert len(losses(expected)) >= job.STEPS
    np.testing.assert_allclose(losses(out), losses(expected), rtol=1e-5, atol=1e-5)
    found, right = params(out), params(expected)
    assert found.keys() == right.keys()
    for name in right:
        np.testing.assert_allclose(found[name], right[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_two_processes_equal_one_device_and_one_of_them_writes(tmp_path, one_device):
    log = run(2, out=tmp_path / "run")
    assert "[0] finished 50" in log
    assert_equal(tmp_path / "run", one_device("mlp", "device"))
    events = [row["event"] for row in runs.Journal(tmp_path / "run" / "journal.jsonl").read()]
    assert events == ["start", *["save"] * 5, "end"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("model", "where", "processes", "devices"),
    [
        ("mlp", "host", 4, 1),
        ("cnn", "device", 2, 2),
        ("cnn", "host", 4, 1),
        ("gpt", "device", 4, 1),
        ("gpt", "host", 2, 2),
    ],
)
def test_processes_equal_one_device(tmp_path, one_device, strategy, model, where, processes, devices):
    out = tmp_path / "run"
    run(processes, "--devices-per-process", str(devices), out=out, model=model, where=where, strategy=strategy)
    assert_equal(out, one_device(model, where))


# ---- what happens to a process


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["replicate", "fsdp"])
def test_after_kill_9_the_job_goes_on_to_the_same_bytes(tmp_path, strategy):
    out, expected = tmp_path / "run", undisturbed_job(tmp_path, strategy)
    log = run(2, out=out, where="host", pause=0.02, fail=25, how="kill", strategy=strategy)
    heard = re.search(r"process 1 was killed by SIGKILL at step (\d+); starting all 2 processes again", log)
    assert heard, log
    assert int(heard[1]) <= 25  # processes tell five times a second
    events = runs.Journal(out / "journal.jsonl").read()
    assert next(row["step"] for row in events if row["event"] == "resume") < 25
    assert bytes_of(out) == bytes_of(expected)
    assert not list((out / "checkpoints").glob("writing-*"))


@pytest.mark.slow
def test_each_process_writes_the_blocks_that_it_holds(tmp_path):
    out = tmp_path / "run"
    run(4, out=out, strategy="fsdp")
    for row in runs.stored.listing(out / "checkpoints"):
        sizes = [(row.path / f"parts-{process}" / "blocks").stat().st_size for process in range(4)]
        assert min(sizes) == max(sizes) > 0
        whole = sum(x.nbytes for x in reading.read_arrays(row.path)[0].values())
        assert 4 * sizes[0] <= whole <= 4 * sizes[0] * 1.25  # biases and the like are not split


@pytest.mark.slow
def test_a_stopped_process_is_noticed_and_the_stacks_of_all_are_shown(tmp_path, undisturbed):
    out = tmp_path / "run"
    log = run(2, "--stall-seconds", "8", out=out, where="host", pause=0.05, fail=25, how="stop")
    assert "process 1 has not moved for 8 s (it is stopped)" in log
    stacks = log[log.index("the stacks of all") : log.index("starting all 2 processes again")]
    for index in (0, 1):
        assert re.search(rf'^\[{index}\]   File ".*session.py", line \d+ in run$', stacks, re.MULTILINE)
    assert re.search(r"^\[1\]   File .*job.py.* in act$", stacks, re.MULTILINE)  # where it was stopped
    assert bytes_of(out) == bytes_of(undisturbed)


@pytest.mark.slow
def test_sigterm_to_one_process_makes_all_save_at_one_step(tmp_path, undisturbed):
    out = tmp_path / "run"
    log = run(2, out=out, where="host", pause=0.1, fail=5, how="term", status=128 + signal.SIGTERM)
    step = int(re.search(r"interrupted by SIGTERM at step (\d+) of 50. Saved at step \1", log)[1])
    assert 5 <= step < 50
    assert max(row.step for row in runs.stored.listing(out / "checkpoints") if row.good) == step
    assert "starting all" not in log
    run(2, out=out, where="host", resume=True)
    assert bytes_of(out) == bytes_of(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_launcher_passes_a_request_to_end_on(tmp_path, number):
    out = tmp_path / "run"
    process = start(2, {"out": out, "pause": 0.1})
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    log, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, log
    assert "asking all processes to save and end" in log
    assert "Saved at step" in log


@pytest.mark.slow
def test_a_crash_loop_is_given_up_and_its_cause_told(tmp_path):
    log = run(
        2, "--restarts", "1", out=tmp_path / "run", where="host", pause=0.02, fail=25, how="loop", status=GIVEN_UP
    )
    assert log.count("starting all 2 processes again") == 1
    tail = log[log.index("Given up after 1 restarts without progress") :]
    assert re.search(r"process 1 ended with status 1 at step \d+", log)
    assert "    RuntimeError: a bug in process 1" in tail


# ---- other numbers of processes and devices


def what_was_read(folder, name, processes):
    """step -> the ids that the processes read for it, in their order, and the targets of each; of one attempt."""
    steps = {}
    for index in range(processes):
        for line in (folder / f"{name}-{index}").read_text().splitlines():
            step, *read = json.loads(line)  # ids, targets
            steps.setdefault(step, {})[index] = read
    return {
        step: [[x for part in sorted(parts) for x in parts[part][which]] for which in (0, 1)]
        for step, parts in steps.items()
        if len(parts) == processes
    }


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "packed", "buckets"])
def test_other_numbers_of_processes_go_on_with_the_right_examples(tmp_path, one_device, model):
    out = tmp_path / "run"
    read = {}
    at = 0
    for processes, devices, steps in ((2, 1, 20), (4, 2, 33), (0, 1, 41), (2, 4, 50)):
        name = f"ids-{processes}-{steps}"
        options = {"out": out, "model": model, "steps": steps, "ids": tmp_path / name, "resume": at > 0}
        log = run(processes, *(["--devices-per-process", str(devices)] if processes else []), **options)
        assert f"finished {steps}" in log
        found = what_was_read(tmp_path, name, max(1, processes))
        read |= {step: found[step] for step in range(at, steps)}
        at = steps
    source = job.parts(model)[1]
    n = len(source)
    expected = data.epoch_order(source, job.SEED, job.BATCH)(0, job.STEPS)
    ids = np.array([read[step][0] for step in range(job.STEPS)])
    np.testing.assert_array_equal(ids, np.maximum(expected, 0))
    # Every token but a document's first is a target once an epoch, whoever read it.
    whole = Counter({d + 1: len(tokens) - 1 for d, tokens in enumerate(job.DOCUMENTS)} if model == "packed" else {})
    each = -(-n // job.BATCH)
    for first in range(0, job.STEPS - each + 1, each):
        epoch = [row for step in range(first, first + each) for row in zip(expected[step], *read[step]) if row[0] >= 0]
        assert sorted(row[1] for row in epoch) == list(range(n))
        assert Counter(token for row in epoch for token in row[2]) == whole
    assert_equal(out, one_device(model, "host"))


@pytest.mark.slow
def test_slurm_s_variables_are_enough(tmp_path, one_device):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
    slurm |= {"JAX_COORDINATOR_PORT": str(port), "XLA_FLAGS": "", "JAXNN_RESUME": "auto"}
    options = {"out": tmp_path / "run"}
    jobs = [start(0, options, **slurm, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in range(2)]
    logs = [process.communicate(timeout=120)[0] for process in jobs]
    assert [process.returncode for process in jobs] == [0, 0], logs
    assert_equal(tmp_path / "run", one_device("mlp", "device"))


# ---- what is refused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 15}, "a global batch of 15 examples does not divide over 2 devices"),
        ({"vary": True}, "config.width: 0 -> 1"),
        ({"strategy": "single"}, "leave out process 1 of 2"),
        ({"model": "gpt", "bad": True}, "Tried: layers.Embed: tokens in [0, 16)"),
    ],
)
def test_what_a_job_cannot_do_is_refused_once(tmp_path, options, message):
    log = run(2, out=tmp_path / "run", status=2, **options)
    assert message in log
    assert "starting all" not in log
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("every", [10, 1])  # a save, and a hook's period, may come before the next meeting
def test_a_bad_example_that_one_process_reads_ends_the_job(tmp_path, every):
    """Its error is everyone's: those that do not read the example wait for nobody, and nothing is saved after it."""
    out = tmp_path / "run"
    options = {"model": "gpt", "bad": True, "where": "host", "out": out, "steps": 4, "every": every}  # within an epoch
    log = run(2, status=2, **options)
    example = data.epoch_order(job.parts("gpt")[1], job.SEED, job.BATCH)(2, 1)[0, -1]
    message = rf"'x' int32\[8, 8\] of data step 2 has 99 in example {example}, place 3\. Tried: layers\.Embed"
    assert re.search(rf"^\[1\] train\.fit: {message}", log, re.MULTILINE)
    assert re.search(rf"^\[0\] train\.fit: {message}", log, re.MULTILINE)
    assert "Traceback" not in log
    assert max((row.step for row in runs.stored.listing(out / "checkpoints")), default=0) <= 2


@pytest.mark.slow
def test_an_error_that_a_program_catches_leaves_no_process_waiting(tmp_path):
    """As in a notebook: the process that reads the bad example lives on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "from jaxnn import parallel; parallel.initialize(); from tests.integration import job\n"
        f"cfg = job.Config(model='gpt', bad=True, where='host', steps=4, out={str(tmp_path / 'run')!r})\n"
        "try: job.fit(cfg, parallel.replicate())\n"
        "except ValueError as error: print('caught', error)"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    shared = os.environ | {"JAXNN_COORDINATOR": f"127.0.0.1:{port}", "JAXNN_PROCESSES": "2", "XLA_FLAGS": ""}
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=shared | {"JAXNN_PROCESS": str(i)}, **pipes)
        for i in range(2)
    ]
    try:
        logs = [process.communicate(timeout=120)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], logs
    assert all("caught train.fit: 'x' int32[8, 8] of data step 2 has 99" in log for log in logs)


@pytest.mark.slow
def test_processes_that_do_not_come_are_told(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job_of_two = {"JAXNN_COORDINATOR": f"127.0.0.1:{port}", "JAXNN_PROCESSES": "2", "JAXNN_PROCESS": "0"}
    process = start(0, {"out": tmp_path / "run"}, **job_of_two, JAXNN_START_SECONDS="5")
    log, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert log.startswith("parallel.initialize: process 1 of 2 did not come within 5 s.")
