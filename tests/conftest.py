"""Eight forced CPU devices, one compilation cache for every test process, and a counter of compilations.

The environment is set before jax starts, and the processes that tests start inherit it.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _cpu() -> str:
    """What compiled code may assume of this machine: executables in the cache are not portable."""
    flags = ""
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:8]


def _set_environment() -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        flags += " --xla_force_host_platform_device_count=8"
    # Most programs here run for milliseconds and compile for seconds; `make test-all` asks for XLA's own level, 3.
    if "xla_backend_optimization_level" not in flags:
        flags += " --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = flags.strip()
    # Eight devices on two cores: with the default thread pool their collectives wait for each other for ever.
    os.environ.setdefault("NPROC", "32")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    cache = ROOT / ".cache" / f"jax-tests-{importlib.metadata.version('jax')}-{_cpu()}"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


_set_environment()

import jax  # noqa: E402

SLOW = ROOT / "tests" / "slow.txt"  # tests that took three seconds of a cold, busy core: see CONTRIBUTING.md
_TRACE = "/jax/core/compile/jaxpr_trace_duration"
_COMPILE = "/jax/core/compile/backend_compile_duration"


@dataclass
class Compilations:
    """What jax did while `count_compiles()` was open: function names, in order, one entry an event.

    Attributes:
        traces: Functions traced to a jaxpr (by jit, eval_shape, scan's body, ...).
        compiles: Programs handed to XLA, or loaded from the persistent cache.
    """

    traces: list[str] = field(default_factory=list)
    compiles: list[str] = field(default_factory=list)


@contextlib.contextmanager
def _count_compiles() -> Iterator[Compilations]:
    seen = Compilations()

    def listen(event: str, duration: float, **kwargs: object) -> None:
        name = str(kwargs.get("fun_name", "?"))
        if event == _TRACE:
            seen.traces.append(name)
        elif event == _COMPILE:
            seen.compiles.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that `slow.txt` lists, before `-m` chooses."""
    listed = frozenset(SLOW.read_text().splitlines())
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def count_compiles() -> Callable[[], contextlib.AbstractContextManager[Compilations]]:
    """`with count_compiles() as seen: ...`, then `seen.compiles == []` says that nothing was compiled."""
    return _count_compiles


@pytest.fixture
def devices8() -> list[jax.Device]:
    """The eight forced CPU devices."""
    devices = jax.devices()
    assert len(devices) == 8, f"{len(devices)} devices: jax started before tests/conftest.py set XLA_FLAGS"
    return devices
