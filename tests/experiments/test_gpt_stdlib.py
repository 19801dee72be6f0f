"""The main job at toy size: trained, sampled, scored against real compressors, reported, resumed."""

import dataclasses
import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import gpt_stdlib
from jaxnn import data, parallel, train, tree

ROOT = Path(__file__).resolve().parents[2]
TINY = gpt_stdlib.Config(size="tiny", steps=2, batch=2)


@pytest.fixture
def few_files(monkeypatch):
    """Three training files and two held-out ones, so that scoring takes no time."""
    train_files, held_out = data.stdlib_files()
    small = sorted(held_out, key=lambda f: f.stat().st_size)[:2]

    def sources(length):
        return data.TextFiles(train_files[:3], length=length), data.TextFiles(small, length=length), small

    monkeypatch.setattr(gpt_stdlib, "sources", sources)
    return small


def test_two_steps_leave_a_whole_run(few_files, tmp_path, capsys):
    totals = gpt_stdlib.main(dataclasses.replace(TINY, out=str(tmp_path / "run")))
    assert 6 < totals["ours"] < 10  # bits a byte after two steps
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {"config.json", "environment.json", "metrics.jsonl", "journal.jsonl", "checkpoints"}
    report = (tmp_path / "run" / "report.html").read_text()
    assert all(text in report for text in ("this model", few_files[0].name, "blocks_0/qkv/kernel"))
    out = capsys.readouterr().out
    assert all(text in out for text in ("learning_rate", "writes", "xz_concatenated"))
    some, size = few_files[0].stat().st_size, sum(file.stat().st_size for file in few_files)
    assert f"scoring {some:,} of {size:,} bytes of the held-out files" in out
    assert f"{some:,} of {size:,} bytes" in report
    assert few_files[1].name not in report


@pytest.mark.parametrize(("steps", "every"), [(4800, 1), (1000, 1), (999, 2), (200, 5), (10, 100), (1, 1000)])
def test_short_runs_score_a_share_of_the_held_out_files(steps, every):
    """The published command's run scores all of them; the shortest one at least one."""
    files = data.stdlib_files()[1]
    chosen = gpt_stdlib.scored(dataclasses.replace(TINY, steps=steps), files)
    assert chosen == files[::every]
    assert gpt_stdlib.scored(gpt_stdlib.Config(), files) == files


def test_the_comparison_is_with_the_real_compressors_byte_for_byte(few_files):
    setup = gpt_stdlib.build(TINY)
    batch = setup.data.take(np.arange(2))
    state = train.init_state(setup.task, setup.tx, batch, strategy=parallel.single())
    totals, rows = gpt_stdlib.compare(dataclasses.replace(TINY, steps=gpt_stdlib.THOROUGH), setup.task, state)
    texts = [file.read_bytes() for file in few_files]
    size = sum(map(len, texts))
    assert [row[1] for row in rows] == [len(text) for text in texts]
    assert totals["gzip"] == pytest.approx(8 * sum(len(gzip.compress(t, 9)) for t in texts) / size)
    assert totals["xz"] == pytest.approx(
        8 * sum(len(lzma.compress(t, preset=9 | lzma.PRESET_EXTREME)) for t in texts) / size
    )
    # The oracle: the file's nats from one forward pass over the whole of it, where it fits into the window.
    short = texts[0][: gpt_stdlib.model(TINY).config.length]
    logits = setup.task.module.apply(
        {"params": state.params}, np.frombuffer(b"\0" + short[:-1], np.uint8)[None].astype(np.int32)
    )
    nats = -jax.nn.log_softmax(logits)[0, np.arange(len(short)), np.frombuffer(short, np.uint8)].sum()
    windows = data.scoring_windows(short, gpt_stdlib.model(TINY).config.length)
    scored = train.evaluate(setup.task, state, data.Arrays(windows))
    assert scored["loss"] * len(short) == pytest.approx(float(nats), rel=1e-5)


def test_matrices_go_to_muon_and_everything_else_to_adam():
    cfg = TINY
    setup = gpt_stdlib.build(cfg)
    state = train.init_state(setup.task, setup.tx, setup.data.take(np.arange(2)), strategy=parallel.single())
    muon = {p for p in tree.leaves_by_path(state.opt_state) if "inner_states/muon" in p and "mu/" in p}
    adam = {p for p in tree.leaves_by_path(state.opt_state) if "inner_states/adam" in p and "mu/" in p}
    assert {p.rsplit("mu/", 1)[1] for p in muon} == {
        f"blocks_{i}/{name}/kernel" for i in range(2) for name in ("qkv", "attention_out", "mlp_in", "mlp_out")
    }
    assert "embed/embedding" in {p.rsplit("mu/", 1)[1] for p in adam}


@pytest.mark.slow
def test_the_command_line_runs_every_strategy_alike(tmp_path):
    """Real processes on forced devices: the same first losses from one device and from two."""
    losses = {}
    for name, devices in (("single", 1), ("replicate", 2), ("pmap", 2)):
        out = tmp_path / name
        code = (
            "import sys; from experiments import gpt_stdlib as g; "
            "names = ['ours', 'gzip', 'xz', 'gzip_concatenated', 'xz_concatenated']; "
            "g.compare = lambda *a: (dict.fromkeys(names, 0.0), []); "
            "from jaxnn import train; train.command(g.main, g.Config)"
        )
        arguments = ["--size", "tiny", "--steps", "3", "--batch", "2", "--precision", "float32"]
        environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
        subprocess.run(
            [sys.executable, "-c", code, *arguments, "--strategy", name, "--devices", str(devices), "--out", str(out)],
            check=True,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            timeout=300,
        )
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [row["val_loss"] for row in rows if "val_loss" in row]
        assert json.loads((out / "config.json").read_text())["fit"]["devices"] == devices
    assert len(losses["single"]) == 3
    np.testing.assert_allclose(losses["replicate"], losses["single"], rtol=1e-5)
    np.testing.assert_allclose(losses["pmap"], losses["single"], rtol=1e-5)
