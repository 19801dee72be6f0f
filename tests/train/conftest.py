"""What the tests of the loop share."""

import signal
import sys

import pytest


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """SIGINT interrupts, although a shell starts what stands behind & with it ignored: `fit` would keep it so."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def no_report(monkeypatch):
    """Runs write no report, which costs half a second each; for tests that start many."""
    # The module, not the function of the same name that `jaxnn.train` re-exports.
    monkeypatch.setattr(sys.modules["jaxnn.train.fit"], "write_summary", lambda *_, **__: None)
