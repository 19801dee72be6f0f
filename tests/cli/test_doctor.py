"""The doctor: well where it is well, and every way of failing provoked."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jaxnn.cli import doctor, probe

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments, path=(), **environment):
    """The doctor in a process of its own: its status, its checks by name, and what it said."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NPROC")}
    inherited |= {"PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)])}
    command = [sys.executable, "-m", "jaxnn", "doctor", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=inherited | environment, timeout=120, cwd=ROOT)
    assert done.stdout.startswith("["), done.stderr
    return done.returncode, {c["name"]: c for c in json.loads(done.stdout)}


@pytest.fixture(scope="module")
def broken_jax(tmp_path_factory):
    """A folder whose `jax` hangs or dies, as told by an environment variable."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "jax").mkdir()
    (folder / "jax" / "__init__.py").write_text(
        "import os, sys, time\n"
        "if os.environ['BREAK'] == 'hang': time.sleep(60)\n"
        "if os.environ['BREAK'] == 'abort': sys.stderr.write('driver lost\\n'); sys.stderr.flush(); os.abort()\n"
    )
    return folder


@pytest.mark.smoke
def test_a_machine_that_is_well_exits_with_0(tmp_path):
    status, checks = run("--out", str(tmp_path))
    assert [c for c in checks.values() if c["status"] == "FAIL"] == []
    assert status == 0
    assert checks["backend"]["found"] == "1 x cpu (cpu)"
    assert str(tmp_path) in checks["free disk"]["found"]
    for dtype in ("float32", "bfloat16"):
        rate = re.fullmatch(r"([\d,]+) GFLOP/s", checks[f"matrix product {dtype}"]["found"])
        assert 1 <= int(rate[1].replace(",", "")) < 10_000_000


def test_the_table_shows_the_same_and_counts(monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "check_backend", lambda timeout: [doctor.Check("backend", "FAIL", "gone [x]", "buy one")]
    )
    monkeypatch.setattr(doctor, "available_memory", lambda: doctor.GIB)
    assert doctor.main() == 1
    out = capsys.readouterr().out
    assert "gone [x]" in out
    assert "buy one" in out
    assert "1 failed, 1 to look at" in out


def test_an_unknown_xla_flag_is_reported_and_does_not_kill_the_doctor():
    status, checks = run(XLA_FLAGS="--xla_no_such_flag=1")
    assert status == 1
    assert checks["backend"]["status"] == "FAIL"
    assert "--xla_no_such_flag" in checks["backend"]["found"]
    assert "free disk" in checks


def test_a_backend_that_is_not_there_is_reported():
    status, checks = run(JAX_PLATFORMS="nonsense")
    assert status == 1
    assert checks["backend"]["status"] == "FAIL"
    assert "nonsense" in checks["backend"]["found"]


def test_a_backend_that_hangs_is_reported(broken_jax):
    status, checks = run("--timeout", "1", path=[broken_jax], BREAK="hang")
    assert status == 1
    assert checks["backend"]["found"] == "jax did not start within 1 s"


def test_a_backend_that_aborts_is_reported(broken_jax):
    status, checks = run(path=[broken_jax], BREAK="abort")
    assert status == 1
    assert "killed by SIGABRT" in checks["backend"]["found"]
    assert "driver lost" in checks["backend"]["found"]


def distribution(folder, name, version, files=()):
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{f},,\n" for f in files))
    for file in files:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()


@pytest.mark.parametrize(("name", "files"), [("jaxnn", ()), ("other-thing", ("jaxnn/__init__.py", "jaxnn/nets.py"))])
def test_another_owner_of_the_import_name_fails(tmp_path, broken_jax, name, files):
    distribution(tmp_path, name, "9.9", files)
    distribution(tmp_path, "jaxnn-training", "0.1.0", ("jaxnn/__init__.py",))
    status, checks = run("--timeout", "0.1", path=[tmp_path, broken_jax], BREAK="hang")
    assert status == 1
    assert checks["package clash"]["status"] == "FAIL"
    assert checks["package clash"]["found"].startswith(f"{name} installs files under jaxnn/")
    assert f"pip uninstall -y {name} jaxnn-training" in checks["package clash"]["fix"]


def test_a_package_that_is_too_old_fails(tmp_path, broken_jax):
    distribution(tmp_path, "flax", "0.9.1")
    status, checks = run("--timeout", "0.1", path=[tmp_path, broken_jax], BREAK="hang")
    assert status == 1
    assert (checks["packages"]["status"], checks["packages"]["found"]) == ("FAIL", "flax 0.9.1 < 0.12.8")
    assert "'flax>=0.12.8'" in checks["packages"]["fix"]


def test_missing_and_very_new_packages():
    found = dict.fromkeys(doctor.REQUIRED, "99.0")
    assert doctor.check_packages(found).status == "warn"
    assert doctor.check_packages(found | {"jax": "0.12.3"}).status == "ok"
    missing = doctor.check_packages(found | {"optax": None})
    assert (missing.status, missing.found) == ("FAIL", "optax is not installed")


def test_the_bounds_are_the_distributions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert dict(d.split(">=") for d in project["dependencies"]) == doctor.REQUIRED
    assert project["requires-python"] == ">=" + ".".join(map(str, doctor.PYTHON))
    assert project["name"] == doctor.DISTRIBUTION
    assert project["scripts"]["jaxnn"] == "jaxnn.cli:main"


def test_python_versions():
    assert [doctor.check_python(v).status for v in ((3, 10, 9), (3, 11, 0), (3, 13, 1), (3, 15, 0))] == [
        "FAIL",
        "ok",
        "ok",
        "warn",
    ]


def test_the_forced_device_trap(broken_jax):
    eight = "--xla_foo=1 --xla_force_host_platform_device_count=8"
    old, new = "0.10.2", "0.12.0.1"

    def status(flags, nproc, jax):
        environment = {"XLA_FLAGS": flags} | ({"NPROC": nproc} if nproc else {})
        return doctor.check_forced_devices(environment, jax).status

    assert status(eight, "8", old) == "FAIL"
    assert status(eight, "15", "0.11.9") == "FAIL"
    assert status(eight, "32", old) == status(eight, "2", new) == "ok"
    assert status("--xla_force_host_platform_device_count=1", "2", old) == status("", "", old) == "ok"
    assert status(eight, "", old) == ("FAIL" if os.cpu_count() < 16 else "ok")
    flags = "--xla_force_host_platform_device_count=4"
    code, checks = run("--timeout", "0.1", path=[broken_jax], BREAK="hang", XLA_FLAGS=flags, NPROC="2")
    expected = "FAIL" if doctor.numbers(doctor.version("jax")) < (0, 12) else "ok"
    assert (code, checks["forced devices"]["status"]) == (1, expected)
    if expected == "FAIL":
        assert "NPROC=32" in checks["forced devices"]["fix"]


def test_the_cache_folder(tmp_path):
    assert doctor.check_cache(None).status == "warn"
    (tmp_path / "entry").write_bytes(b"x")
    found = doctor.check_cache(str(tmp_path))
    assert found.status == "ok"
    assert "1 files" in found.found
    below_a_file = doctor.check_cache(str(tmp_path / "entry" / "below"))
    assert below_a_file.status == "warn"
    assert "cannot be written" in below_a_file.found


def test_memory_and_disk_thresholds(tmp_path, monkeypatch):
    gib = doctor.GIB
    assert [doctor.check_memory(n).status for n in (None, gib // 4, gib, 4 * gib)] == ["warn", "FAIL", "warn", "ok"]
    for free, status in ((gib // 10, "FAIL"), (gib, "warn"), (10 * gib, "ok")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path, free=free: type("Usage", (), {"free": free}))
        assert doctor.check_disk(tmp_path / "not" / "there").status == status
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert doctor.check_disk(tmp_path).status == "FAIL"


def test_available_memory_is_what_the_system_says():
    found = doctor.available_memory()
    assert found is not None
    assert 0 < found <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_product_with_wrong_values_fails():
    assert doctor.check_product({"dtype": "float32", "gflops": 12.0, "right": False}).status == "FAIL"
    assert probe.gflops(64, "bfloat16", seconds=0)["right"] is True
