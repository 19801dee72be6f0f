"""What a run ran on, as data: enough to explain how two runs differ, nothing that names whose machine it is."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "jaxnn-training")
JAX_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
    "jax_debug_nans",
)


def fingerprint() -> dict[str, Any]:
    """The environment of this process, as JSON with the same keys everywhere.

    Starts the jax backend if it has not been started. The host's name is left out on purpose; the command line is in.

    Returns:
        `versions`, `platform`, `cpu` (model, count usable by this process), `devices` (backend, kinds, number,
        processes), `xla_flags`, `jax` (settings that change numbers), `git` (commit and whether the checkout differs
        from it, or None outside one), `command`.
    """
    import jax

    from jaxnn import __version__

    devices = jax.devices()
    return {
        "versions": {
            "python": platform.python_version(),
            "jaxnn": __version__,
            **{p: package_version(p) for p in PACKAGES},
        },
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": {"model": cpu_model(), "count": cpu_count()},
        "devices": {
            "backend": jax.default_backend(),
            "kinds": sorted({d.device_kind for d in devices}),
            "number": len(devices),
            "processes": jax.process_count(),
        },
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "jax": {name: _plain(getattr(jax.config, name)) for name in JAX_SETTINGS},
        "git": git_state(Path(__file__).parent),
        "command": list(sys.orig_argv),
    }


def usage() -> dict[str, float]:
    """What this process has used so far, and how busy the machine is: the journal's clocks beside the time.

    Returns:
        `cpu_s`, user and system seconds of all threads since the process began, and, where the system tells it, `load`,
        how many processes ran or waited to run, averaged over the last minute.
    """
    used = {"cpu_s": round(time.process_time(), 2)}
    with contextlib.suppress(AttributeError, OSError):  # not on every system, nor in every container
        used["load"] = round(os.getloadavg()[0], 2)
    return used


def package_version(distribution: str) -> str | None:
    """The installed version of a distribution, None where there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that tracks `folder`, and whether tracked files differ from it; None outside one."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A copy inside site-packages of some other checkout is not that checkout's code: ask whether git tracks it.
    if git("ls-files", "--error-unmatch", "environment.py") is None:
        return None
    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
