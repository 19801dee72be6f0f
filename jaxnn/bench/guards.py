"""The ways in which timing a jitted step goes wrong, each a check that names the culprit or a habit that prevents it.

| guard | without it |
|---|---|
| sync | a call returns before the device is done: 153 us "measured" for 28 ms |
| aot | the first call traces and compiles inside the timing |
| events | anything traced, compiled or loaded from a cache while the clock runs goes unseen |
| clear_caches, cache_off | compile "time" is that of a look-up in memory or on disk |
| constants | a closed-over array is a constant, and XLA computes with it at compile time |
| dead_code | nothing that depends on the arguments is returned, so nothing need be computed |
| donation, aliases | a donated buffer is used twice, cannot be used at all, or is donated behind bench's back |
| transfers | an argument is copied from the host at every call |
| retrace | the second call has other shapes, dtypes or weak types than the first |
| gc | a garbage collection falls into one block and not into the other |
| rewarm | the first call after another program is 8-9 % slower |
| separate | two arms share one executable, so the control arm controls nothing |
| order | an arm that always comes second is always disturbed by the first |
| placement | buffers stay where they were first put, and a lucky place looks like a faster program |

Guards have no public switch. `_without` takes one out, for the tests that show what each is for.
"""

import contextlib
import contextvars
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxnn import tree
from jaxnn.typing import PyTree

GUARDS = frozenset(
    (
        *("sync", "aot", "events", "clear_caches", "cache_off", "constants", "dead_code", "donation", "aliases"),
        *("transfers", "retrace", "gc", "rewarm", "separate", "order", "placement"),
    )
)
_off: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("jaxnn_bench_off", default=frozenset())

_TRACE = "/jax/core/compile/jaxpr_trace_duration"
_COMPILE = "/jax/core/compile/backend_compile_duration"
_HIT = "/jax/compilation_cache/cache_hits"
_MISS = "/jax/compilation_cache/cache_misses"


class BenchError(ValueError):
    """A measurement that would not have meant what it says; the message names the culprit and what to write instead."""


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Takes guards out, for the tests that show what each one is for."""
    unknown = set(names) - GUARDS
    if unknown:
        raise BenchError(f"bench.guards: no guard is called {sorted(unknown)}. There are: {sorted(GUARDS)}.")
    token = _off.set(_off.get() | set(names))
    try:
        yield
    finally:
        _off.reset(token)


def on(name: str) -> bool:
    """Whether a guard is in place; always, outside the tests of the guards."""
    return name not in _off.get()


@dataclass
class Events:
    """What jax did while `watch()` was open.

    Attributes:
        traces: Names of the functions traced.
        compiles: Names of the programs handed to XLA or loaded from the persistent cache.
        hits: Persistent-cache hits.
        misses: Persistent-cache misses.
    """

    traces: list[str] = field(default_factory=list)
    compiles: list[str] = field(default_factory=list)
    hits: int = 0
    misses: int = 0


@contextlib.contextmanager
def watch() -> Iterator[Events]:
    """Counts what jax traces, compiles and finds in its persistent cache, in any thread."""
    seen = Events()

    def duration(event: str, duration_secs: float, **kwargs: Any) -> None:
        name = str(kwargs.get("fun_name", "?"))
        if event == _TRACE:
            seen.traces.append(name)
        elif event == _COMPILE:
            seen.compiles.append(name)

    def count(event: str, **kwargs: Any) -> None:
        seen.hits += event == _HIT
        seen.misses += event == _MISS

    jax.monitoring.register_event_duration_secs_listener(duration)
    jax.monitoring.register_event_listener(count)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(duration)
        jax.monitoring.unregister_event_listener(count)


def check_silent(name: str, seen: Events) -> None:
    """Raises where anything was traced or compiled while the clock ran."""
    if on("events") and (seen.traces or seen.compiles):
        raise BenchError(
            f"bench: {name}: jax traced {seen.traces or 'nothing'} and compiled {seen.compiles or 'nothing'} inside a "
            "timed block. Something that the step calls on the host (a callback) runs jitted code of its own: compile "
            "it before, or take it out."
        )


@contextlib.contextmanager
def frozen_gc() -> Iterator[None]:
    """No garbage collection inside; what is alive now is left out of later ones until the end."""
    if not on("gc"):
        yield
        return
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def check_arguments(name: str, args: Any) -> None:
    """Raises where the arguments are not a tuple of arrays that are on the device already.

    Raises:
        TypeError: If `args` is no tuple.
        BenchError: If a leaf is no `jax.Array` (each call would copy it), or one array stands in two places.
    """
    if not isinstance(args, tuple):
        raise TypeError(
            f"bench: {name}: args gave {type(args).__name__}, not a tuple. "
            "Return the step's positional arguments as a tuple; (x,) for one."
        )
    for path, leaf in named(args).items():
        if on("transfers") and not isinstance(leaf, jax.Array):
            if isinstance(leaf, (np.ndarray, np.generic, bool, int, float, complex)):
                raise BenchError(
                    f"bench: {name}: {path} is {tree.describe(leaf)} on the host ({type(leaf).__name__}): every call "
                    f"would copy it to the device inside the timing. Return jax.device_put(...) of it from args."
                )
            raise BenchError(
                f"bench: {name}: {path} is {type(leaf).__name__} {leaf!r:.60}, no array. Only arrays are arguments; "
                "bind the rest with functools.partial or in the function."
            )


def named(args: tuple) -> dict[str, Any]:
    """Leaves of the arguments, by a name that a reader finds again: `args[0]/params/w`."""
    found = {}
    for index, arg in enumerate(args):
        for path, leaf in tree.leaves_by_path(arg).items():
            found[f"args[{index}]" + ("" if path == "." else f"/{path}")] = leaf
    return found


def check_aliases(name: str, args: tuple, donated: tuple[int, ...]) -> None:
    """Raises where a donated array is also another argument: the second use would find it gone."""
    if not on("aliases"):
        return
    seen: dict[int, str] = {}
    leaves = named(args)
    inside = tuple(f"args[{i}]" for i in donated)
    for path, leaf in leaves.items():
        first = seen.setdefault(id(leaf), path)
        if first != path and (path.split("/")[0] in inside or first.split("/")[0] in inside):
            raise BenchError(
                f"bench: {name}: {first} and {path} are one array, {tree.describe(leaf)}, and it cannot be donated "
                "twice. Make two: x.copy()."
            )


def differences(before: PyTree, after: PyTree) -> list[str]:
    """What would make jit trace or compile again: other leaves, shapes, dtypes, weak types or shardings."""
    a, b = named(before), named(after)
    lines = []
    for path in [*a, *(p for p in b if p not in a)]:
        if path not in a or path not in b:
            lines.append(f"{path} is only in the {'second' if path not in a else 'first'}")
        elif tree.describe(a[path]) != tree.describe(b[path]):
            lines.append(f"{path}: {tree.describe(a[path])}, then {tree.describe(b[path])}")
        elif _weak(a[path]) != _weak(b[path]):
            lines.append(f"{path}: {tree.describe(a[path])} {_weak(a[path])}, then {_weak(b[path])}")
    return lines


def _weak(leaf: Any) -> str:
    return "weak-typed" if getattr(leaf, "weak_type", False) else "not weak-typed"


def check_same(name: str, call: int, before: tuple, after: tuple) -> None:
    """Raises where call number `call` has other argument types than the first: a jitted loop would trace again."""
    lines = differences(before, after) if on("retrace") else []
    if lines:
        raise BenchError(
            f"bench: {name}: call {call} would retrace: {'; '.join(lines[:4])}"
            + (f" and {len(lines) - 4} more" if len(lines) > 4 else "")
            + ". Make them alike: jnp.asarray(x, dtype) for a weak type, padding for a shape."
        )


def check_retraces(name: str, function: Callable[..., Any], calls: list[tuple]) -> int:
    """Traces `function` for each of the calls as jit would, and counts the traces after the first.

    Raises:
        BenchError: If a later call traces again, naming the call and the difference.
    """
    jitted = jax.jit(function)
    jitted.trace(*calls[0])
    retraces = 0
    for number, args in enumerate(calls[1:], start=2):
        with watch() as seen:
            jitted.trace(*args)
        if seen.traces:
            retraces += 1
            check_same(name, number, calls[0], args)
    return retraces
