"""What the tests of the loop share."""

import sys

import pytest


@pytest.fixture
def no_report(monkeypatch):
    """Runs write no report, which costs half a second each; for tests that start many."""
    # The module, not the function of the same name that `jaxnn.train` re-exports.
    monkeypatch.setattr(sys.modules["jaxnn.train.fit"], "write_summary", lambda *_, **__: None)
