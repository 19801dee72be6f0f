"""What the documents say that there is is what there is."""

import pathlib
import re

import pytest

from jaxnn import optim
from jaxnn.optim.registry import OPTIMIZERS, registered

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_page_lists_the_registry():
    page = (ROOT / "docs" / "optim.md").read_text(encoding="utf-8")
    section = page.split("\n## The registry\n")[1].split("\n## ")[0]
    listed = [name for row in section.splitlines() if row.startswith("| ") for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(OPTIMIZERS)
    assert "docs/optim.md#the-registry" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_registered_optimizer_is_one_line_of_the_room():
    """The door of the registry: its own file, and the line that imports it."""
    init = (ROOT / "jaxnn" / "optim" / "__init__.py").read_text(encoding="utf-8")
    for path in (ROOT / "jaxnn" / "optim" / "algorithms").glob("[a-z]*.py"):
        assert init.count(f"from jaxnn.optim.algorithms.{path.stem} import ") == 1
    entries = {"asam", "cautious_decay"}  # of what is there under another name
    assert {name for name in OPTIMIZERS if not hasattr(optim, name)} == entries


def test_two_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"two optimizers 'adam'. Give `name`"):
        registered(1e-3, "nowhere")(optim.adam)
