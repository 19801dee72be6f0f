"""`jaxnn doctor`: will training work here? Each check says what it found, and what to do where it is not well.

The process itself never imports jax: whatever may crash or hang happens in `probe`, in a process of its own with a
limit on its time.
"""

import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxnn import __version__
from jaxnn.cli.probe import MARK

OK, WARN, FAIL = "ok", "warn", "FAIL"
DISTRIBUTION = "jaxnn-training"
# The same lower bounds as the distribution's; a test holds them together.
REQUIRED = {
    "chex": "0.1.92",
    "flatbuffers": "25.1",
    "flax": "0.12.8",
    "jax": "0.10.2",
    "matplotlib": "3.9",
    "numpy": "2.0",
    "optax": "0.2.8",
    "orbax-checkpoint": "0.12",
    "rich": "13.7",
    "scipy": "1.14",
    "tyro": "1.0",
}
NEWEST_JAX = (0, 12)  # the newest minor version that the tests run on
PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
THREADS = 16  # fewer threads than this, and collectives between forced devices wait for each other for ever
GIB = 2**30


class Check(NamedTuple):
    """One line of the table.

    Attributes:
        name: What was looked at.
        status: "ok", "warn" (works, but look at it) or "FAIL" (something will fail).
        found: What is so.
        fix: What to do about it; empty where nothing needs doing.
    """

    name: str
    status: str
    found: str
    fix: str = ""


def main(json_output: bool = False, folder: str = ".", timeout: float = 120) -> int:
    """Runs every check and prints the result.

    Args:
        json_output: Print a JSON list of checks instead of a table.
        folder: Where runs will be written.
        timeout: Seconds after which the backend is taken to hang.

    Returns:
        1 when a check failed, else 0.
    """
    checks = [check_python(sys.version_info[:3]), check_packages(installed()), check_clash()]
    checks += [check_forced_devices(os.environ, version("jax")), *check_backend(timeout)]
    checks += [check_memory(available_memory()), check_disk(Path(folder))]
    failed = [c for c in checks if c.status == FAIL]
    if json_output:
        print(json.dumps([c._asdict() for c in checks], indent=2))
    else:
        _print(checks)
        warned = sum(c.status == WARN for c in checks)
        print(f"{len(failed)} failed, {warned} to look at, {len(checks) - len(failed) - warned} well")
    return 1 if failed else 0


def numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: "0.12.0.1" -> (0, 12, 0, 1), "2.0rc1" -> (2, 0)."""
    match = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(x) for x in match[0].split(".")) if match else ()


def version(distribution: str) -> str | None:
    """The installed version, None where there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed() -> dict[str, str | None]:
    """The installed version of each required distribution."""
    return {name: version(name) for name in REQUIRED}


def check_python(found: tuple[int, ...]) -> Check:
    """Whether the interpreter is one that the tests run on."""
    text = ".".join(map(str, found))
    if found[:2] < PYTHON:
        return Check("python", FAIL, text, "Use Python 3.11 or newer.")
    if found[:2] > NEWEST_PYTHON:
        return Check("python", WARN, f"{text}, newer than any tested", "Should something fail, try Python 3.13.")
    return Check("python", OK, text)


def check_packages(found: Mapping[str, str | None]) -> Check:
    """Whether every required distribution is there and new enough."""
    missing = [f"{k} is not installed" for k, v in found.items() if v is None]
    old = [f"{k} {v} < {REQUIRED[k]}" for k, v in found.items() if v is not None and numbers(v) < numbers(REQUIRED[k])]
    if missing or old:
        bad = [k for k, v in found.items() if v is None or numbers(v) < numbers(REQUIRED[k])]
        wanted = " ".join(f"'{k}>={REQUIRED[k]}'" for k in bad)
        return Check("packages", FAIL, "; ".join(missing + old), f"{sys.executable} -m pip install {wanted}")
    text = ", ".join(f"{k} {found[k]}" for k in ("jax", "flax", "optax", "numpy", "orbax-checkpoint"))
    if numbers(found["jax"] or "")[:2] > NEWEST_JAX:
        return Check("packages", WARN, text, "This jax is newer than any tested; constraints/ has versions that are.")
    return Check("packages", OK, f"jaxnn {__version__}, {text}")


def check_clash() -> Check:
    """Whether another distribution installed files into the package `jaxnn`: the index has a project of that name."""
    owners = set(importlib.metadata.packages_distributions().get("jaxnn", ()))
    owners |= {"jaxnn"} if version("jaxnn") else set()
    if others := sorted(owners - {DISTRIBUTION}):
        fix = f"pip uninstall -y {' '.join(others)} {DISTRIBUTION}, then install {DISTRIBUTION} again."
        text = f"{', '.join(others)} installs files under jaxnn/ too: they overwrite each other"
        return Check("package clash", FAIL, text, fix)
    return Check("package clash", OK, f"jaxnn comes from {Path(__file__).parents[1]}")


def check_forced_devices(environment: Mapping[str, str], jax_version: str | None) -> Check:
    """Whether several forced host devices would deadlock (jax before 0.12 with a small thread pool)."""
    match = re.search(r"--xla_force_host_platform_device_count=(\d+)", environment.get("XLA_FLAGS", ""))
    count = int(match[1]) if match else 1
    if count == 1:
        return Check("forced devices", OK, "none")
    setting = environment.get("NPROC", "")
    threads = int(setting) if setting.isdigit() else os.cpu_count() or 1
    text = f"{count} forced host devices, {threads} threads" + ("" if setting.isdigit() else " (NPROC is not set)")
    if numbers(jax_version or "0") < (0, 12) and threads < THREADS:
        return Check("forced devices", FAIL, f"{text}: collectives will deadlock", "export NPROC=32 before jax starts.")
    return Check("forced devices", OK, text)


def run_probe(timeout: float) -> dict[str, Any] | Check:
    """What `probe` found, or the failed check that says how it ended."""
    # -P: this folder's names must not shadow other packages'.
    command = [sys.executable, "-P", str(Path(__file__).with_name("probe.py"))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout)
    except subprocess.TimeoutExpired:
        fix = "Look for another process that holds the accelerator; JAX_PLATFORMS=cpu does without it."
        return Check("backend", FAIL, f"jax did not start within {timeout:g} s", fix)
    for line in done.stdout.splitlines():
        if line.startswith(MARK) and done.returncode == 0:
            return json.loads(line.removeprefix(MARK))
    if match := re.search(r"Unknown flags? in XLA_FLAGS: *(.*)", done.stderr):
        fix = "Remove it from XLA_FLAGS; flags differ between versions of jax."
        return Check("backend", FAIL, f"XLA_FLAGS holds a flag that this jaxlib does not know: {match[1].strip()}", fix)
    how = f"exit status {done.returncode}"
    if done.returncode < 0:
        how = f"killed by {signal.Signals(-done.returncode).name}"
    said = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
    fix = "Try `python -c 'import jax; jax.devices()'`; see JAX_PLATFORMS and the installed accelerator plugins."
    return Check("backend", FAIL, f"jax does not start ({how}): {said[0].strip()[:300]}", fix)


def check_backend(timeout: float) -> list[Check]:
    """Backend and devices, the compilation cache, and matrix products, from one run of `probe`."""
    found = run_probe(timeout)
    if isinstance(found, Check):
        return [found]
    text = f"{found['number']} x {', '.join(found['kinds'])} ({found['backend']})"
    if found["bytes_limit"]:
        text += f", {found['bytes_limit'] / GIB:.1f} GiB each"
    return [Check("backend", OK, text), check_cache(found["cache"]), *map(check_product, found["products"])]


def check_cache(folder: str | None) -> Check:
    """The persistent compilation cache: whether there is one, whether it can be written, how big it is."""
    name, set_it = "compilation cache", "export JAX_COMPILATION_CACHE_DIR=FOLDER, and programs compile once."
    if not folder:
        return Check(name, WARN, "not set: every process compiles everything anew", set_it)
    if "://" in folder:
        return Check(name, OK, folder)
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        return Check(
            name, WARN, f"{path} cannot be written ({error.strerror})", "Choose a folder that you may write to."
        )
    files = [p.stat().st_size for p in path.iterdir() if p.is_file()]
    text = f"{path}: {len(files)} files, {sum(files) / GIB:.2f} GiB"
    if sum(files) > 20 * GIB:
        return Check(name, WARN, text, "Remove old entries, or set JAX_COMPILATION_CACHE_MAX_SIZE (bytes).")
    return Check(name, OK, text)


def check_product(found: Mapping[str, Any]) -> Check:
    """A timed matrix product: right values, and its rate for the reader to judge."""
    name, text = f"matrix product {found['dtype']}", f"{found['gflops']:,.0f} GFLOP/s"
    if not found["right"]:
        return Check(
            name, FAIL, f"{text}, wrong values", "Driver, compiler or hardware is broken; try JAX_PLATFORMS=cpu."
        )
    return Check(name, OK, text)


def available_memory() -> int | None:
    """Bytes that this process may still use: the system's, or less under a container's limit; None where unknown."""
    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        limits += [1024 * int(kb) for kb in re.findall(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)]
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
        limits.append(max(0, int(text) - int(used.read_text())))
    return min(limits, default=None)


def check_memory(nbytes: int | None) -> Check:
    """Free host memory: below 2 GiB is little, below 0.5 GiB jax and one compilation do not fit."""
    if nbytes is None:
        return Check("free memory", WARN, "unknown on this system")
    text = f"{nbytes / GIB:.1f} GiB"
    if nbytes < GIB // 2:
        return Check("free memory", FAIL, text, "Starting jax and compiling takes about 0.5 GiB: end other processes.")
    if nbytes < 2 * GIB:
        return Check("free memory", WARN, text, "Small models only.")
    return Check("free memory", OK, text)


def check_disk(folder: Path) -> Check:
    """Free space where runs are written: below 5 GiB is little, below 0.2 GiB checkpoints do not fit."""
    folder = folder.absolute()
    exists = next(p for p in (folder, *folder.parents) if p.exists())
    nbytes = shutil.disk_usage(exists).free
    text = f"{nbytes / GIB:.1f} GiB at {folder}"
    if not os.access(exists, os.W_OK):
        return Check("free disk", FAIL, f"{exists} cannot be written", "Write runs elsewhere (--out).")
    if nbytes < GIB // 5:
        return Check("free disk", FAIL, text, "Free space, or write runs elsewhere (--out).")
    if nbytes < 5 * GIB:
        return Check("free disk", WARN, text, "A checkpoint of a model with Adam takes 12 bytes a parameter.")
    return Check("free disk", OK, text)


def _print(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    color = {OK: "green", WARN: "yellow", FAIL: "bold red"}
    table = Table("check", "", "found", "fix", box=None, pad_edge=False)
    for c in checks:
        table.add_row(c.name, f"[{color[c.status]}]{c.status}[/]", escape(c.found), escape(c.fix))
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)
