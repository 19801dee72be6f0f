"""The fingerprint: right, JSON, with fixed keys, and without the host's name. The room: light to import."""

import importlib.metadata
import json
import platform
import socket
import subprocess
import sys

import jax

from jaxnn import runs
from jaxnn.runs import environment


def test_the_fingerprint_says_what_is_so():
    found = runs.fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert list(found) == ["versions", "platform", "cpu", "devices", "xla_flags", "jax", "git", "command"]
    assert found["versions"]["python"] == platform.python_version()
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["orbax-checkpoint"] == importlib.metadata.version("orbax-checkpoint")
    assert found["devices"] == {"backend": "cpu", "kinds": ["cpu"], "number": 8, "processes": 1}
    assert "device_count=8" in found["xla_flags"]
    assert found["jax"]["jax_default_prng_impl"] == "threefry2x32"
    with jax.enable_x64(not found["jax"]["jax_enable_x64"]):
        assert runs.fingerprint()["jax"]["jax_enable_x64"] is not found["jax"]["jax_enable_x64"]
    assert socket.gethostname() not in json.dumps({k: v for k, v in found.items() if k not in ("command", "platform")})


def test_a_system_that_does_not_tell_its_load_stops_no_run(monkeypatch):
    assert list(runs.usage()) == ["cpu_s", "load"]

    def unobtainable():
        raise OSError

    monkeypatch.setattr(environment.os, "getloadavg", unobtainable)
    assert list(runs.usage()) == ["cpu_s"]
    monkeypatch.delattr(environment.os, "getloadavg")
    assert list(runs.usage()) == ["cpu_s"]


def test_git_state_knows_a_dirty_checkout_and_no_checkout(tmp_path):
    assert environment.git_state(tmp_path) is None

    def git(*args):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        done = subprocess.run(["git", "-C", tmp_path, *identity, *args], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "environment.py").write_text("a = 1\n")
    assert environment.git_state(tmp_path) is None  # inside a checkout, but not of it
    git("add", ".")
    git("commit", "-q", "-m", "x")
    assert environment.git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "environment.py").write_text("a = 2\n")
    assert environment.git_state(tmp_path)["dirty"] is True


def test_importing_runs_and_cli_loads_nothing_heavy():
    code = "import sys, jaxnn.runs, jaxnn.cli; print([m for m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.replace("'", "").strip("[]\n").split(", "))
    assert not loaded & {
        "orbax",
        "orbax.checkpoint",
        "matplotlib",
        "tensorboardX",
        "rich",
        "tyro",
        "grain",
        "PIL",
        "flax",
    }
