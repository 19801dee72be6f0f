"""What the documents say that there is is what there is."""

import pathlib
import re

from jaxnn.optim.registry import OPTIMIZERS

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_page_lists_the_registry():
    page = (ROOT / "docs" / "optim.md").read_text(encoding="utf-8")
    section = page.split("\n## The registry\n")[1].split("\n## ")[0]
    listed = [name for row in section.splitlines() if row.startswith("| ") for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(OPTIMIZERS)
    assert "docs/optim.md#the-registry" in (ROOT / "README.md").read_text(encoding="utf-8")
