"""Exact resume, with real processes and real signals: N + kill + rest gives the bytes of 2N steps in one go.

What is compared: every leaf of the last state (parameters, BatchNorm's statistics, optimizer state, counters, key) and
`metrics.jsonl`. The undisturbed run is made in this process, the killed ones are children.
"""

import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxnn import runs, train, tree
from tests.integration import child

CHILD = Path(child.__file__)
ROOT = CHILD.parents[2]
COMBINATIONS = list(itertools.product(["mlp", "cnn", "gpt"], ["single", "replicate"], ["device", "host"]))


def state_bytes(state):
    return {path: np.asarray(leaf).tobytes() for path, leaf in tree.leaves_by_path(jax.device_get(state)).items()}


@functools.cache
def undisturbed(temporary, combination, **options):
    """The bytes of a run in one go: its state and its metrics."""
    out = temporary / "-".join(combination)
    run = child.fit(out, *combination, child.STEPS, False)
    assert int(run.state.data_step) == child.STEPS
    reduced = [event["step"] for event in run.folder.journal.read("replace")]
    assert reduced  # the plateau's memory must survive kills, or the rates would differ
    return state_bytes(run.state), (out / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return functools.partial(undisturbed, tmp_path_factory.mktemp("undisturbed"))


def assert_same(run, expected):
    state, metrics = expected
    found = state_bytes(run.state)
    assert found.keys() == state.keys()
    assert [path for path in state if found[path] != state[path]] == []
    assert (run.folder.path / "metrics.jsonl").read_bytes() == metrics
    assert json.loads(metrics.splitlines()[-1])["step"] == child.STEPS


def start(out, combination, resume=False, *how):
    arguments = [str(CHILD), str(out), *combination, str(child.STEPS), *(["resume"] if resume else []), *how]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *arguments], env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes)


def wait_until(process, condition):
    """Whether the condition came true while the process lived."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.002)
    return False


def good(out):
    return [row.step for row in runs.stored.listing(out / "checkpoints") if row.good]


def writing(out):
    return list((out / "checkpoints").glob("writing-*"))


def kill(process):
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    return process.returncode == -signal.SIGKILL, output


def killed_run(out, combination, how, resume=False):
    """Starts the run and kills it in its middle: `how` seconds after there is a good checkpoint that is new, or while
    it is writing one ("save"). False where it was too late."""
    already = max(good(out), default=-1) if resume else -1
    process = start(out, combination, resume)
    arrived = wait_until(process, lambda: max(good(out), default=-1) > already)
    if arrived and how == "save":
        arrived = wait_until(process, lambda: writing(out))
    elif arrived:
        time.sleep(how)
    hit, output = kill(process)
    assert hit or "done" in output, output
    if hit and how == "save":
        assert writing(out)  # the kill left half of a checkpoint behind
    return hit and arrived


def kill_and_resume(tmp_path, combination, how, expected):
    for attempt in range(5):
        out = tmp_path / f"run{attempt}"
        if killed_run(out, combination, how):
            break
    else:
        pytest.fail("five runs ended before they could be killed")
    last = good(out)[-1]
    assert 0 < last < child.STEPS
    run = child.fit(out, *combination, child.STEPS, True)
    resumed = run.folder.journal.read("resume")
    assert [row["step"] for row in resumed] == [last]
    assert_same(run, expected)


@pytest.mark.parametrize(
    ("combination", "how"),
    [
        (("mlp", "single", "device"), 0.05),
        pytest.param(("cnn", "replicate", "host"), "save", marks=pytest.mark.slow),
        pytest.param(("gpt", "replicate", "device"), 0.3, marks=pytest.mark.slow),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, whole, combination, how):
    kill_and_resume(tmp_path, combination, how, whole(combination))


def test_a_run_killed_before_its_first_checkpoint_begins_again_to_the_same_bytes(tmp_path, whole):
    out, combination = tmp_path / "run", ("mlp", "single", "device")
    process = start(out, combination, False, "unsaved")
    metrics = out / "metrics.jsonl"
    arrived = wait_until(process, lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 3)
    hit, output = kill(process)
    assert arrived, output
    assert hit, output
    assert metrics.read_bytes().count(b"\n") > 3
    assert runs.stored.steps(out / "checkpoints") == []
    run = child.fit(out, *combination, child.STEPS, True)
    assert [(row["event"], row["step"]) for row in run.folder.journal.read()][:2] == [("start", 0), ("resume", 0)]
    assert_same(run, whole(combination))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills(tmp_path, whole):
    """All combinations in turn; each run is killed up to four times before it may end, the resumed ones too."""
    draw, hits, finished = random.Random(0), 0, 0
    for number in itertools.count():
        if hits >= 50:
            break
        combination = COMBINATIONS[number % len(COMBINATIONS)]
        out, kills = tmp_path / f"run{number}", 0
        while kills < 4 and killed_run(out, combination, draw.choice(["save", draw.uniform(0, 0.6)]), kills > 0):
            kills += 1
        if kills:
            run = child.fit(out, *combination, child.STEPS, True)
            assert_same(run, whole(combination))
        hits, finished = hits + kills, finished + 1
    assert finished >= len(COMBINATIONS)


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=pytest.mark.slow, id="SIGINT"), pytest.param(signal.SIGTERM, id="SIGTERM")],
)
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, whole, number):
    combination = ("mlp", "single", "device") if number == signal.SIGINT else ("cnn", "single", "host")
    out = tmp_path / "run"
    process = start(out, combination)
    assert wait_until(process, lambda: good(out))
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    (saved,) = [row["step"] for row in runs.RunFolder.open(out).journal.read("interrupted")]
    assert f"interrupted by {number.name} at step {saved} of {child.STEPS}. Saved at step {saved}" in output
    assert "resume=True (--resume)" in output
    assert saved < child.STEPS
    assert good(out)[-1] == saved
    run = child.fit(out, *combination, child.STEPS, True)
    assert [row["step"] for row in run.folder.journal.read("resume")] == [saved]
    assert_same(run, whole(combination))


# ---- in this process: half a run, something done to it, and the rest

MLP = ("mlp", "single", "device")


def half(out, **options):
    return child.fit(out, *MLP, child.STEPS // 2, False, **options)


def flip_a_bit(path):
    files = [p for p in (path / "arrays").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)
    return largest.relative_to(path), "crc32"


def truncate(path):
    file = path / "extra" / "metadata"
    file.write_bytes(file.read_bytes()[:-3])
    return file.relative_to(path), "bytes"


def delete(path):
    file = path / "manifest" / "metadata"
    file.unlink()
    return file.relative_to(path), "missing"


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, delete])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(tmp_path, whole, damage):
    half(tmp_path / "run")
    newest = child.STEPS // 2
    file, reason = damage(tmp_path / "run" / "checkpoints" / f"{newest:08d}")
    with pytest.warns(RuntimeWarning, match=f"Checkpoint {newest} is damaged"):
        run = child.fit(tmp_path / "run", *MLP, child.STEPS, True)
    (event,) = run.folder.journal.read("set_aside")
    assert event["step"] == newest - child.EVERY
    assert f"Checkpoint {newest} is damaged ({file}: " in event["message"]
    assert reason in event["message"]
    assert f"damaged-{newest:08d}-1" in event["message"]
    assert (tmp_path / "run" / "checkpoints" / f"damaged-{newest:08d}-1").is_dir()
    assert_same(run, whole(MLP))


def test_a_finished_run_goes_on(tmp_path, whole):
    """N steps to the end, then 2N: the unfinished row at N is taken back, since 2N in one go has none there."""
    run = half(tmp_path / "run")
    assert run.history[-1]["step"] == child.STEPS // 2
    assert_same(child.fit(tmp_path / "run", *MLP, child.STEPS, True), whole(MLP))


def test_resuming_a_finished_run_changes_nothing(tmp_path, whole):
    child.fit(tmp_path / "run", *MLP, child.STEPS, False)
    assert_same(child.fit(tmp_path / "run", *MLP, child.STEPS, True), whole(MLP))


def test_any_strategy_reads_any_others_checkpoint(tmp_path):
    one = half(tmp_path / "run")
    run = child.fit(tmp_path / "run", "mlp", "replicate", "device", child.STEPS, True)
    (event,) = run.folder.journal.read("resume")
    assert sorted(line.split(":")[0] for line in event["changed"]) == ["fit.devices", "fit.steps", "fit.strategy"]
    assert int(run.state.data_step) == child.STEPS
    assert len(run.state.key.sharding.device_set) == 8
    assert len(one.state.key.sharding.device_set) == 1


def test_steps_a_dispatch_are_recorded_and_kept(tmp_path):
    """K_max belongs to the program: a resumed run that says nothing keeps it, one that says another is refused."""
    whole = child.fit(tmp_path / "whole", *MLP, child.STEPS, False, dispatch=train.Dispatch(resident=True, most=3))
    half(tmp_path / "run", dispatch=train.Dispatch(resident=True, most=3))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["fit"]["k_max"] == 3
    with pytest.raises(ValueError, match=r"fit\.k_max: 3 -> 4"):
        child.fit(tmp_path / "run", *MLP, child.STEPS, True, dispatch=train.Dispatch(resident=True, most=4))
    with pytest.raises(ValueError, match=r"fit\.resident: true -> false"):
        child.fit(tmp_path / "run", *MLP, child.STEPS, True, dispatch=train.Dispatch(resident=False))
    run = child.fit(tmp_path / "run", *MLP, child.STEPS, True, dispatch=train.Dispatch())
    assert run.folder.config["fit"]["k_max"] == 3
    assert state_bytes(run.state) == state_bytes(whole.state)


def test_a_changed_config_is_refused_by_field(tmp_path, count_compiles):
    half(tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    with count_compiles() as seen:
        with pytest.raises(ValueError, match=r"started with another config: config\.width: 16 -> 32\. Resume"):
            child.fit(tmp_path / "run", *MLP, child.STEPS, True, config={"model": "mlp", "width": 32})
        task, tx, source, _ = child.parts("mlp")
        with pytest.raises(ValueError, match=r"fit\.batch_size: 16 -> 8.*fit\.seed: 3 -> 4"):
            train.fit(task, tx, source, batch_size=8, steps=10, seed=4, out=tmp_path / "run", resume=True)
        with pytest.raises(ValueError, match=r"nothing to resume from.*the folder does not exist"):
            child.fit(tmp_path / "nothing", *MLP, 10, True)
        with pytest.raises(ValueError, match=r"already holds a run. Give resume=True"):
            child.fit(tmp_path / "run", *MLP, 10, False)
    assert seen.compiles == []
    assert (tmp_path / "run" / "config.json").read_bytes() == before
