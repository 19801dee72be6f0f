"""What a run ended with is kept as it was given, replaces what an earlier end had kept, and never breaks a reader."""

import json

import numpy as np
import pytest

from jaxnn import report, runs
from jaxnn.runs.follower import Follower

PARAMS = {"w": np.zeros((3, 2), np.float32)}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def folder(tmp_path):
    return runs.RunFolder.create(tmp_path / "r", {"fit": {"seed": 3}}, environment={})


def drawn():
    return report.curve([0, 1], {"a": [1.0, 2.0]})


def test_values_sections_and_pictures_are_kept(folder):
    rows = [["shirt", np.float32(0.5), np.int64(7), None, float("nan")]]
    sections = (
        runs.Section("Held-out images", text="Some\n\nof them.", figure=drawn()),
        runs.Section("Held-out images", rows, ["name", "share", "count", "none", "odd"], figure=drawn()),
        runs.Section("Curves", figure=drawn()),
    )
    runs.write_result(folder, {"accuracy": np.float32(0.75), "loss": float("nan")}, PARAMS, 12, sections=sections)
    found = runs.read_result(folder.path)
    assert (found.step, found.parameters, found.values["accuracy"]) == (12, 6, 0.75)
    assert np.isnan(found.values["loss"])
    pictures = ["card_held_out_images.png", "card_held_out_images_2.png", "card_curves_2.png"]
    assert [part.picture for part in found.parts] == pictures  # card_curves.png is the card's own
    assert all((folder.path / name).read_bytes().startswith(PNG) for name in pictures)
    assert found.parts[0].text == "Some\n\nof them."
    assert found.parts[1].rows == [["shirt", 0.5, 7, None, "nan"]]
    (event,) = folder.journal.read("result")
    assert event["step"] == 12
    assert event["cpu_s"] > 0


def test_another_end_takes_the_place_of_the_first(folder):
    runs.write_result(folder, {"a": 1}, PARAMS, 1, sections=[runs.Section(t, figure=drawn()) for t in ("One", "Two")])
    runs.write_result(folder, {"a": 2}, PARAMS, 2, sections=[runs.Section("Two", figure=drawn())])
    assert sorted(path.name for path in folder.path.glob("*.png")) == ["card_two.png"]
    assert runs.read_result(folder.path).values == {"a": 2}


def test_the_other_processes_of_a_job_write_nothing(folder):
    before = sorted(folder.path.iterdir())
    runs.write_result(Follower(folder.path, {"fit": {"seed": 3}}), {"a": 1}, PARAMS, 1)
    assert sorted(folder.path.iterdir()) == before


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", '{"step": 1}', '{"step": 1, "values": {}, "parameters": 1, "parts": [{"x": 1}]}']
)
def test_a_damaged_file_is_told_and_left_out(folder, content):
    assert runs.read_result(folder.path) is None
    (folder.path / "result.json").write_text(content)
    troubles = []
    assert runs.read_result(folder.path, troubles) is None
    assert len(troubles) == 1
    assert troubles[0].startswith("result.json could not be read: ")


def test_a_picture_elsewhere_is_not_followed(folder):
    runs.write_result(folder, {"a": 1}, PARAMS, 1, sections=[runs.Section("One", figure=drawn())])
    path = folder.path / "result.json"
    held = json.loads(path.read_text())
    held["parts"][0]["picture"] = "../../other.png"
    path.write_text(json.dumps(held))
    assert runs.read_result(folder.path).parts == []
