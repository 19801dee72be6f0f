"""A card says what the folders of its runs hold, and nothing that they do not; what cannot be one is refused."""

import json
import re
import shutil
import statistics

import numpy as np
import pytest

from jaxnn import report, runs
from jaxnn.runs import card as card_module, result as result_module
from jaxnn.runs.card import spread
from jaxnn.train.command import conclude_folder

PARAMS = {"w": np.zeros((3, 2), np.float32)}
ENVIRONMENT = {
    "versions": {"python": "3.99.1", "jax": "9.9.9", "flax": "8.8.8", "optax": "7.7.7", "jaxnn": "0.5"},
    "cpu": {"model": "Abacus 3", "count": 2},
    "devices": {"backend": "cpu", "kinds": ["cpu"], "number": 1, "processes": 1},
    "git": {"commit": "0123456789abcdef", "dirty": True},
    "command": [
        "/somewhere/bin/python",
        "-m",
        "experiments.shapes",
        "--out",
        "/elsewhere/x",
        "--resume",
        "--lr",
        "0.5",
    ],
}


@pytest.fixture
def blank(monkeypatch):
    """Pictures are not drawn, which takes most of the time; for tests of what is written."""
    for module in (card_module, result_module):
        monkeypatch.setattr(module, "png", lambda figure: b"\x89PNG")


def make(path, seed=0, accuracy=0.75, ended=True, lr=0.5, **begun):
    """A run of 8 steps, without training."""
    fit = {"steps": 8, "batch_size": 4, "examples": 16, "seed": seed, "precision": "bfloat16", "epochs": None}
    config = {"seed": seed, "lr": lr, "out": str(path), "data": "digits"}
    folder = runs.RunFolder.create(path, {"fit": fit, "config": config}, environment=ENVIRONMENT)
    folder.journal.append("start", 0, cpu_s=100.0, load=1.5, **begun)
    for step in range(1, 9):
        folder.metrics.append({"step": step, "epoch": step / 4, "loss": 2 / step, "learning_rate": 0.1 / step})
        folder.timing.append({"step": step, "examples_per_s": 1000.0 + step})
    folder.metrics.append({"step": 8, "epoch": 2.0, "val_loss": 0.3125, "val_accuracy": accuracy})
    if ended:
        folder.journal.append("end", 8, stopped=None, cpu_s=130.0, load=9.25)
    return folder


def conclude(folder, **values):
    sections = [
        runs.Section("Where|it looked", text="All *of* it.", figure=report.curve([0, 1], {"a": [1.0, 2.0]})),
        runs.Section("Words", [["a|b <c>", 1], ["d", 2]], ["word", "count"]),
    ]
    runs.write_result(folder, values, PARAMS, 8, sections=sections)


def card(tmp_path, *folders, **keywords):
    return runs.write_card([folder.path for folder in folders], tmp_path / "docs" / "shapes", **keywords).read_text()


def cells(text, name):
    """The cells of the row that begins with a name."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.split(" | ")[1:]]


def shown(text, tmp_path):
    """The pictures that a card shows; all must be there."""
    names = re.findall(r"!\[[^]]*\]\((.*?)\)", text)
    assert all((tmp_path / "docs" / name).read_bytes().startswith(b"\x89PNG") for name in names)
    return names


def test_a_run_tells_what_its_folder_holds(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (9.2, 9.2, 9.2))  # of the result's entry
    folder = make(tmp_path / "r", seed=3, data="Arrays(16 examples)", validation_examples=5)
    folder.journal.append("sample", 4, text="``` once")
    conclude(folder, accuracy=0.8125, loss=0.25)
    text = card(tmp_path, folder)
    assert text.startswith("# shapes\n\n```text\npython -m experiments.shapes --lr 0.5\n```\n")
    assert cells(text, "accuracy") == ["0.8125 |"]
    assert cells(text, "data") == ["16 examples to learn from; 5 for validation; from digits; Arrays(16 examples) |"]
    assert cells(text, "steps") == ["8 of 4 examples, 2 passes over the data |"]
    assert cells(text, "parameters") == ["6 |"]
    assert cells(text, "device") == ["CPU, 2 cores of Abacus 3 |"]
    assert cells(text, "training")[0].endswith(", 30.0 s of processor time |")
    assert cells(text, "load average") == ["1.5 to 9.2 |"]
    assert cells(text, "speed") == ["1,004 examples a second (median) |"]
    assert "jax 9.9.9, flax 8.8.8" in cells(text, "versions")[0]
    assert cells(text, "code") == ["commit 0123456789 of jaxnn, with changes that are not committed |"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \|", cells(text, "date")[0])
    assert cells(text, "`precision`") == ["`bfloat16` |"]
    assert not re.search(r"`(out|seed|epochs)`|somewhere|elsewhere|resume", text)
    assert shown(text, tmp_path) == ["shapes_curves.png", "shapes_where_it_looked.png"]
    assert "All \\*of\\* it." in text
    assert cells(text.replace("\\|", "/"), "a/b &lt;c>") == ["1 |"]
    assert "````text\n``` once\n````" in text
    assert text.endswith("*Written by `jaxnn card` from the files of `r`.*\n")


def test_one_run_says_its_seed_and_that_there_is_no_spread(tmp_path, blank):
    one, other = make(tmp_path / "a", seed=7), make(tmp_path / "b", seed=8)
    assert cells(card(tmp_path, one), "seed") == ["7; one run: the spread over seeds is not known |"]
    both = card(tmp_path, one, other)
    assert "| seed |" not in both
    assert "spread over seeds" not in both


def test_where_data_lies_on_a_machine_is_not_told(tmp_path, blank):
    folder = make(tmp_path / "r")
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    config["config"]["data"] = "/home/somebody/sets/flowers"
    (tmp_path / "r" / "config.json").write_text(json.dumps(config))
    text = card(tmp_path, folder)
    assert "from flowers" in cells(text, "data")[0]
    assert cells(text, "`data`") == ["`flowers` |"]
    assert "somebody" not in text


def test_seeds_have_a_row_each_and_a_mean_with_its_spread(tmp_path):
    accuracies = [0.8125, 0.75, 0.9]
    folders = [make(tmp_path / f"r{seed}", seed) for seed in range(3)]
    for folder, accuracy in zip(folders, accuracies):
        conclude(folder, accuracy=accuracy, loss=0.25)
    text = card(tmp_path, *folders, folders[0], title="Three shapes")
    assert text.startswith("# Three shapes\n")
    assert [cells(text, f"seed {seed}")[0] for seed in range(3)] == ["0.8125", "0.7500", "0.9000"]
    mean, deviation = statistics.fmean(accuracies), statistics.stdev(accuracies)
    assert cells(text, "**mean of 3**") == [f"**{mean:.3f} ± {deviation:.3f}**", "**0.25 ± 0** |"]
    assert "## Words (seed 0)" in text
    assert text.count("python -m experiments.shapes") == 1
    assert shown(text, tmp_path)[0] == "shapes_curves.png"


def test_a_run_that_did_not_conclude_shows_what_it_reported_last(tmp_path, blank):
    text = card(tmp_path, make(tmp_path / "r", accuracy=0.6875))
    assert cells(text, "last reported") == ["", "at step |"]
    assert cells(text, "validation accuracy") == ["0.6875", "8 |"]
    assert cells(text, "validation loss") == ["0.3125", "8 |"]
    assert "| loss |" not in text
    assert "scoring" not in text


def test_an_unfinished_run_is_told_as_such_and_is_in_no_mean(tmp_path, blank):
    unfinished = make(tmp_path / "u", seed=7, ended=False)
    text = card(tmp_path, unfinished)
    assert "\n**unfinished** at step 8. The journal has no end" in text
    folders = [make(tmp_path / f"r{seed}", seed) for seed in range(2)]
    for folder in folders:
        conclude(folder, accuracy=0.5)
    text = card(tmp_path, *folders, unfinished)
    assert "**seed 7: unfinished** at step 8." in text
    assert cells(text, "seed 7") == ["–", "0.3125", "0.7500 |"]
    assert cells(text, "**mean of 2**") == ["**0.5 ± 0**", "**–**", "**–** |"]


def test_a_result_of_a_run_that_went_on_is_left_out(tmp_path, blank):
    folder = make(tmp_path / "r")
    conclude(folder, accuracy=0.9)
    folder.journal.append("resume", 8, changed=[], cpu_s=1.0)
    assert cells(card(tmp_path, folder), "accuracy") == ["0.9000 |"]  # resumed, and not a step further
    folder.metrics.append({"step": 9, "val_accuracy": 0.5})
    text = card(tmp_path, folder)
    assert cells(text, "validation accuracy") == ["0.5000", "9 |"]
    assert "result.json is of step 8, and the run went on: it is left out." in text


def test_a_run_that_diverged_makes_a_card_too(tmp_path):
    folders = [
        make(tmp_path / f"r{seed}", seed, accuracy=0.5 if seed else float("nan"), ended=False) for seed in (0, 1)
    ]
    for folder in folders:
        folder.metrics.append({"step": 9, "loss": float("nan"), "nonfinite_step": 9})
        folder.journal.append("end", 9, stopped="loss is not finite at step 9")
    text = card(tmp_path, folders[0])
    assert "**stopped** at step 9 of 8. Stopped at step 9: loss is not finite at step 9." in text
    assert cells(text, "validation accuracy") == ["nan", "8 |"]
    text = card(tmp_path, *folders)
    assert cells(text, "**mean of 2**") == ["**0.3125 ± 0**", "**not finite** |"]
    assert shown(text, tmp_path) == ["shapes_curves.png"]


def test_the_run_that_gave_the_first_parameters_is_named_with_its_time(tmp_path, blank):
    make(tmp_path / "half")
    folder = make(tmp_path / "r", init_from="../half")
    assert cells(card(tmp_path, folder), "begun from")[0].startswith("half, 8 steps, ")
    shutil.rmtree(tmp_path / "half")
    assert cells(card(tmp_path, folder), "begun from") == ["half |"]


def test_times_add_up_over_the_processes_of_a_run(tmp_path):
    folder = make(tmp_path / "r")
    folder.journal.append("set_aside", 8, message="damaged")
    folder.journal.append("resume", 8, cpu_s=5.0)
    folder.journal.append("end", 8, stopped=None, cpu_s=7.5)
    folder.journal.append("result", 8, cpu_s=11.0)
    record = runs.read_record(folder.path)
    assert record.spent("cpu_s", training=True) == 32.5
    assert record.spent("cpu_s") == 36
    rows = [json.loads(line) for line in folder.journal.path.read_text().splitlines()]
    for row, when in zip(rows, (1000, 1060, 90_000, 90_001, 90_011, 90_031)):
        row["time"] = when
    del rows[3]["cpu_s"]
    folder.journal.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = runs.read_record(folder.path)
    assert (record.spent("time", training=True), record.wall_s) == (70, 90)  # the day in between is no time of the run
    assert record.spent("cpu_s") is None  # not known of the second process


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.9227, 0.9214, 0.9240], "0.9227 ± 0.0013"),
        ([1200.0, 1400.0], "1,300 ± 141"),
        ([1.0, 1.0], "1 ± 0"),
        ([1.0, 1.0 + 1e-9], "1 ± 7.071e-10"),
        ([0.1, 0.3, 0.2], "0.20 ± 0.10"),
        ([1.0], "–"),
        ([1.0, float("nan")], "not finite"),
        ([float("inf"), 1.0], "not finite"),
        ([1e30, 2e30], "1.500e+30 ± 7.071e+29"),
    ],
)
def test_a_spread_has_two_digits(values, said):
    assert spread(values) == said


def test_what_is_no_run_or_has_reported_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^runs\.write_card: no runs\. Give at least one"):
        runs.write_card([], tmp_path / "x")
    with pytest.raises(ValueError, match=r"^runs\.read_record: .*none does not exist"):
        runs.write_card([tmp_path / "none"], tmp_path / "x")
    empty = runs.RunFolder.create(tmp_path / "r", {"fit": {}}, environment={})
    empty.journal.append("start", 0)
    with pytest.raises(ValueError, match=r"^runs\.write_card: .*r has no result: it reported no values\. Tried: "):
        runs.write_card([empty.path], tmp_path / "x")
    assert not (tmp_path / "x.md").exists()


def test_runs_that_are_not_seeds_of_one_experiment_are_refused(tmp_path, blank):
    first, other, same = make(tmp_path / "a"), make(tmp_path / "b", 1, lr=0.25), make(tmp_path / "c")
    with pytest.raises(
        ValueError, match=r"/a and .*/b differ in more than their seed: config\.lr: 0\.5 -> 0\.25\. A mean"
    ):
        card(tmp_path, first, other)
    with pytest.raises(ValueError, match=r"/a and .*/c are of the same seed 0\. A spread is over seeds"):
        card(tmp_path, first, same)
    third = make(tmp_path / "d", 2)
    conclude(first, accuracy=1)
    with pytest.raises(ValueError, match=r"/d did not end with a result \(train\.conclude\), others did"):
        card(tmp_path, first, third)


def test_a_card_replaces_a_card_and_nothing_else(tmp_path, blank):
    folder = make(tmp_path / "r")
    first = card(tmp_path, folder)
    assert runs.write_card([folder.path], tmp_path / "docs" / "shapes.md").read_text() == first
    mine = tmp_path / "docs" / "mine.md"
    mine.write_text("# By hand\n\nThe program is called `jaxnn card`.\n")
    with pytest.raises(ValueError, match=r"mine\.md is there, and no card\. .*Give another name"):
        runs.write_card([folder.path], mine)
    assert mine.read_text().startswith("# By hand")
    with pytest.raises(ValueError, match=r"docs is a folder\. Give the card a name in it"):
        runs.write_card([folder.path], tmp_path / "docs")


def test_environments_that_differ_are_told_apart(tmp_path, blank):
    folders = [make(tmp_path / f"r{seed}", seed) for seed in range(2)]
    path = folders[1].path / "environment.json"
    path.write_text(path.read_text().replace("9.9.9", "10.0.0"))
    versions = cells(card(tmp_path, *folders), "versions")
    assert ["jax 9.9.9" in versions[0], "jax 10.0.0" in versions[1]] == [True, True]


def test_a_folder_that_holds_little_still_makes_a_card(tmp_path, blank):
    folder = make(tmp_path / "some-run")
    for name in ("environment.json", "journal.jsonl", "timing.jsonl", "config.json"):
        (folder.path / name).unlink()
    text = card(tmp_path, folder)
    assert text.startswith("# some-run\n")
    assert "config.json could not be read: it is missing." in text
    assert cells(text, "validation accuracy") == ["0.7500", "8 |"]


def test_a_run_ends_beside_a_card_that_somebody_wrote(tmp_path, blank, capsys):
    """Hours of training ended in an error: card.md was there, and no card."""
    folder = make(tmp_path / "run")
    mine = folder.path / "card.md"
    mine.write_text("# Notes\n")
    for loss in (0.5, 0.25):  # the run's own is replaced
        conclude_folder(folder, {"loss": loss}, PARAMS, 8)
    assert mine.read_text() == "# Notes\n"
    assert "0.25" in (folder.path / "card_2.md").read_text()
    assert not (folder.path / "card_3.md").exists()
    assert "card_2.md (the card.md that is there is none of jaxnn's, and stays)" in capsys.readouterr().out
    mine.unlink()
    conclude_folder(folder, {"loss": 0.25}, PARAMS, 8)
    assert "0.25" in mine.read_text()
