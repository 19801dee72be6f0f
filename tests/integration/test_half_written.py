"""A run folder half written, by kills, full disks, copies cut short and hands: it goes on or says why not, and nothing
that was there is lost."""

import shutil
import sys

import numpy as np
import optax
import pytest

from jaxnn import cli, data, losses, models, runs, train
from jaxnn.runs import stored

X = np.linspace(-1, 1, 24, dtype=np.float32)[:, None]
SOURCE = data.Arrays(X, 3 * X)
TASK = train.supervised(models.MLP((1,)), losses.mse)
STEPS = 30


@pytest.fixture(scope="module", autouse=True)
def no_report():
    with pytest.MonkeyPatch.context() as patch:  # half a second a run
        patch.setattr(sys.modules["jaxnn.train.fit"], "write_summary", lambda *_, **__: None)
        yield


def fit(out, steps=STEPS, resume=False):
    save = train.Checkpointing(every=10, minutes=None)
    log = train.Log(every=5, progress=False)
    return train.fit(
        TASK, optax.sgd(0.1), SOURCE, batch_size=8, steps=steps, seed=2, out=out, resume=resume, log=log, save=save
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("half") / "run", 20).folder.path


@pytest.fixture
def run(half, tmp_path):
    return shutil.copytree(half, tmp_path / "run")


def files(path):
    return {p.relative_to(path): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file() and p.name != "lock"}


def ends_as_if_nothing_had_happened(run, finished):
    np.testing.assert_array_equal(run.state.params["head"]["kernel"], finished.state.params["head"]["kernel"])
    assert run.folder.metrics.path.read_bytes() == finished.folder.metrics.path.read_bytes()


def refused_and_left_alone(path, message):
    before = files(path)
    with pytest.raises(ValueError, match=message) as error:
        fit(path, resume=True)
    assert "\n" not in str(error.value)
    assert files(path) == before


# Killed while it was made


@pytest.mark.parametrize("made", [["lock"], ["environment.json.tmp"], ["lock", "environment.json", "config.json.tmp"]])
def test_a_run_killed_while_its_folder_was_made_is_made_anew(tmp_path, finished, made):
    (tmp_path / "run").mkdir()
    for name in made:
        (tmp_path / "run" / name).write_text("" if name == "lock" else '{"half": ')
    ends_as_if_nothing_had_happened(fit(tmp_path / "run", resume=True), finished)
    assert runs.RunFolder.open(tmp_path / "run").environment["versions"]
    assert not runs.RunFolder.is_half_made(tmp_path / "run")


def test_an_empty_and_a_foreign_folder_are_not_taken_for_one(tmp_path):
    for name, found in (("empty", None), ("foreign", "thesis.tex"), ("none", None)):
        if name != "none":
            (tmp_path / name).mkdir()
        if found:
            (tmp_path / name / "environment.json").write_text("{}")
            (tmp_path / name / found).write_text("mine")
        with pytest.raises(ValueError, match=r"nothing to resume from in .*Start the run without resume=True"):
            fit(tmp_path / name, resume=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["empty", "environment.json", "foreign", "thesis.tex"]


def test_an_interrupt_before_the_first_step_leaves_a_run_that_begins_again(tmp_path, finished, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["jaxnn.train.session"].Session, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "run")
    with pytest.raises(ValueError, match=r"already holds a run\. Give resume=True to go on"):
        fit(tmp_path / "run")
    ends_as_if_nothing_had_happened(fit(tmp_path / "run", resume=True), finished)


def test_a_report_that_cannot_be_written_costs_no_run(tmp_path, finished, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["jaxnn.train.fit"], "write_summary", full)
    with pytest.warns(
        RuntimeWarning, match=r"report of the run could not be written \(No space left on device\); all else is in"
    ):
        ends_as_if_nothing_had_happened(fit(tmp_path / "run"), finished)


# What goes on


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl", "journal.jsonl"])
@pytest.mark.parametrize(
    "torn", [b'{"step": 25, "lo', bytes(300), b'{"step": 25}\n{"step"'], ids=["line", "zeros", "two"]
)
def test_a_torn_last_line_is_cut_off(run, finished, name, torn):
    with open(run / name, "ab") as file:
        file.write(torn)
    ends_as_if_nothing_had_happened(fit(run, resume=True), finished)
    assert bytes(1) not in (run / name).read_bytes()


@pytest.mark.parametrize("name", ["environment.json", "timing.jsonl", "journal.jsonl", "report.html"])
def test_a_file_that_is_gone_and_not_needed_is_not_missed(run, finished, name):
    (run / name).unlink(missing_ok=True)
    ends_as_if_nothing_had_happened(fit(run, resume=True), finished)


def test_an_empty_checkpoints_folder_begins_again(run, finished):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    ends_as_if_nothing_had_happened(fit(run, resume=True), finished)


def test_a_foreign_folder_among_the_checkpoints_is_left_alone(run, finished):
    for name in ("writing-notes", "notes"):
        (run / "checkpoints" / name).mkdir()
    ends_as_if_nothing_had_happened(fit(run, resume=True), finished)
    assert (run / "checkpoints" / "writing-notes").is_dir()


@pytest.mark.parametrize("name", ["seal", "manifest", "arrays"])
def test_a_checkpoint_copied_in_part_is_set_aside_for_the_one_before(run, finished, name):
    part = run / "checkpoints" / "00000020" / name
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink()
    with pytest.warns(RuntimeWarning, match=r"Checkpoint 20 is damaged \(.*set aside as damaged-00000020-1"):
        ends_as_if_nothing_had_happened(fit(run, resume=True), finished)


# What is refused, and left as it is


def test_a_config_that_is_gone_beside_checkpoints(run):
    (run / "config.json").unlink()
    refused_and_left_alone(
        run,
        r"run holds checkpoints, metrics\.jsonl, timing\.jsonl, journal\.jsonl of a run and no config\.json\. .*Put con"
        r"fig\.json back \(a report\.html shows what it held\); the other files are left as they are",
    )


@pytest.mark.parametrize("content", [b"", b'{"fit": {"st', b"[]", b"null", b'{"fit": 3}', bytes(64), b"\xff\xfe{"])
def test_a_config_that_is_damaged(run, content):
    (run / "config.json").write_bytes(content)
    refused_and_left_alone(run, r"run/config\.json cannot be read: .*Restore it, or start a new run")


def test_metrics_that_are_gone_or_damaged_inside(run):
    rows = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").unlink()
    refused_and_left_alone(run, r"metrics\.jsonl has 0 rows; the checkpoint was written after 4\. Restore the file")
    (run / "metrics.jsonl").write_bytes(rows[:9] + b"\0\0\n" + rows[12:])
    refused_and_left_alone(run, r"line 1 of .*metrics\.jsonl is not a JSON object: .*Remove the line or restore")


def test_rows_are_counted_before_what_is_later_is_removed(run):
    (run / "checkpoints" / "00000020" / "good").unlink()
    (run / "metrics.jsonl").write_bytes(b"")
    refused_and_left_alone(run, r"has 0 rows; the checkpoint was written after 2")
    assert stored.steps(run / "checkpoints") == [10, 20]


def test_no_checkpoint_that_is_marked_good(run):
    for mark in run.glob("checkpoints/*/good"):
        mark.unlink()
    refused_and_left_alone(
        run,
        r"train\.fit: the run in .*run cannot go on: none of \[10, 20\] .* is marked good: the values up to it were "
        r"not known to be finite\. .*`jaxnn checkpoint verify .*run`; to begin again give another out=",
    )


def test_every_checkpoint_damaged(run):
    for seal in run.glob("checkpoints/*/seal"):
        seal.write_bytes(b"")
    said = (
        r"train\.fit: the run in .* cannot go on: no usable checkpoint .*Checkpoint 20 is damaged.*Checkpoint 10 is dam"
    )
    with pytest.raises(ValueError, match=said):
        fit(run, resume=True)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["damaged-00000010-1", "damaged-00000020-1"]


def test_a_file_where_the_checkpoints_should_be(run):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("")
    refused_and_left_alone(run, r"runs\.Checkpoints: .*checkpoints cannot be made \(File exists\)")


# Looking into it


def harm(path, what):
    """One way in which a folder may be half written."""
    if what == "no config":
        (path / "config.json").unlink()
    elif what == "no checkpoints":
        shutil.rmtree(path / "checkpoints")
    elif what == "empty checkpoints":
        shutil.rmtree(path / "checkpoints")
        (path / "checkpoints").mkdir()
    elif what == "empty checkpoint":
        shutil.rmtree(path / "checkpoints" / "00000020")
        (path / "checkpoints" / "00000020").mkdir()
    elif what == "manifest of another kind":
        (path / "checkpoints" / "00000020" / "manifest" / "metadata").write_text("[]")
    elif what == "a save cut short":
        shutil.rmtree(path / "checkpoints" / "00000010")
        (path / "checkpoints" / "00000020").rename(path / "checkpoints" / "writing-00000020-1")
    elif what == "checkpoints is a file":
        shutil.rmtree(path / "checkpoints")
        (path / "checkpoints").write_text("")


HARMS = {
    "no config": (0, 0, 0),
    "no checkpoints": (1, 1, 1),
    "empty checkpoints": (1, 1, 1),
    "empty checkpoint": (0, 1, 0),
    "manifest of another kind": (0, 1, 1),
    "a save cut short": (1, 1, 1),
    "checkpoints is a file": (1, 1, 1),
}


@pytest.mark.parametrize("what", HARMS)
def test_the_checkpoint_commands_answer_and_change_nothing(run, what, capsys):
    harm(run, what)
    before = files(run)
    for action, status in zip(("list", "verify", "inspect"), HARMS[what]):
        assert cli.main(["checkpoint", action, str(run)]) == status, action
        out, err = capsys.readouterr()
        assert out if status == 0 else err
        assert "Traceback" not in err
        if status and action != "verify":
            assert "it holds no checkpoints" in err or "damaged: 00000020: manifest/metadata" in err
    assert files(run) == before


DAMAGES = [b"", b"\0" * 40, b"{}\n", b"null\n", b'{"step": 1, "loss": 0.5}\n{"st', b'{"step": 1, "lo{"step": 2}\n{}\n']


@pytest.mark.parametrize("name", ["metrics.jsonl", "timing.jsonl", "journal.jsonl", "environment.json"])
def test_the_report_is_written_whatever_a_file_holds(run, name):
    folder = runs.RunFolder.open(run)
    for content in [*DAMAGES, None]:
        if content is None:
            (run / name).unlink()
        else:
            (run / name).write_bytes(content)
        runs.write_summary(folder, {"w": np.zeros(2)})
        text = folder.report.read_text()
        assert "Parameters" in text
        assert "fit.batch_size" in text
