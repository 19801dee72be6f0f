"""Compiling a case: trace, lower and compile timed apart, from cold caches, each arm by itself."""

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.extend import core as jex

from jaxnn import tree
from jaxnn.bench import constants, guards
from jaxnn.bench.case import Case, Flow, copies, flow


@dataclass(frozen=True)
class Compile:
    """What compiling cost, from cold caches.

    Attributes:
        trace_s: Seconds from the function to a jaxpr.
        lower_s: Seconds from the jaxpr to StableHLO.
        compile_s: Seconds from StableHLO to an executable.
        executable_bytes: Size of the serialized executable; None where the backend cannot tell.
        retraces: Traces that the second and third call would need; 0, or an error was raised.
        persistent: What jax's persistent cache would have done: "off" (there is none), "hit", "miss", or "unasked".
        program: SHA-256 of the StableHLO text, 16 digits.
    """

    trace_s: float
    lower_s: float
    compile_s: float
    executable_bytes: int | None
    retraces: int
    persistent: str
    program: str

    @property
    def total_s(self) -> float:
        """Seconds from the function to an executable."""
        return self.trace_s + self.lower_s + self.compile_s


@dataclass(frozen=True)
class Program:
    """A compiled case.

    Attributes:
        case: What was compiled.
        call: The executable; takes the case's arguments.
        args: The case's arguments, never donated.
        flow: Where outputs go.
        compile: What compiling cost.
        traced: jax's traced object, for counting what the program does.
        compiled: jax's ahead-of-time compiled object.
        notes: What a reader should know (arguments that are not used).
    """

    case: Case
    call: Callable[..., Any]
    args: tuple
    flow: Flow
    compile: Compile
    traced: Any
    compiled: Any
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def persistent_cache(enabled: bool) -> Iterator[None]:
    """Switches jax's persistent compilation cache, and back."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()  # jax remembers whether it uses the cache from the first compilation on
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def build(case: Case, seed: int = 0, ask_cache: bool = False) -> Program:
    """Compiles a case by itself: no other arm shares its executable.

    Args:
        case: What to compile.
        seed: Of the key that the case makes its arguments from.
        ask_cache: Also find out whether the persistent cache has the program; a second compilation, which writes it.

    Raises:
        BenchError: A guard's message; see `jaxnn.bench.guards`.
    """
    args = case.make_args(seed)
    shapes = jax.eval_shape(_fresh(case.function), *args)
    if guards.on("dead_code") and not jax.tree.leaves(shapes):
        raise guards.BenchError(
            f"bench: {case.name}: the function returns no array, so XLA need not compute anything. "
            "Return the result; every array that is returned is kept alive."
        )
    plan = flow(case, args, shapes)
    guards.check_aliases(case.name, args, plan.donated)
    function = _fresh(case.function)
    if guards.on("clear_caches"):
        jax.clear_caches()
    off = persistent_cache(False) if guards.on("cache_off") else contextlib.nullcontext()
    with off, guards.watch() as seen, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.perf_counter()
        traced = jax.jit(function, donate_argnums=plan.donated, keep_unused=True).trace(*args)
        traced_at = time.perf_counter()
        lowered = traced.lower()
        lowered_at = time.perf_counter()
        compiled = lowered.compile()
        compiled_at = time.perf_counter()
    _check_donation(case, plan, caught)
    if guards.on("cache_off") and seen.hits:
        raise guards.BenchError(f"bench: {case.name}: the compilation was read from a cache; its time means nothing.")
    closed = traced.jaxpr
    constants.check_constants(case.name, case.function, closed)
    notes = _check_dead_code(case, closed, args)
    if guards.on("donation"):
        _check_inner_donation(case, closed)
    retraces = _retraces(case, args, plan, compiled, seed)
    result = Compile(
        trace_s=traced_at - start,
        lower_s=lowered_at - traced_at,
        compile_s=compiled_at - lowered_at,
        executable_bytes=_size(compiled),
        retraces=retraces,
        persistent=_ask(traced) if ask_cache else "unasked",
        program=sha256(lowered.as_text().encode()).hexdigest()[:16],
    )
    call = compiled if guards.on("aot") else jax.jit(_fresh(case.function), donate_argnums=plan.donated)
    return Program(case, call, args, plan, result, traced, compiled, notes)


def _fresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that jax has never seen, so that nothing of another arm's is reused."""
    if not guards.on("separate"):
        return function

    def arm(*args: Any) -> Any:
        return function(*args)

    return arm


def _check_donation(case: Case, plan: Flow, caught: list[warnings.WarningMessage]) -> None:
    for warning in caught:
        if guards.on("donation") and "donated buffers were not usable" in str(warning.message):
            what = str(warning.message).split("usable:")[-1].split("\n")[0].strip(" .")
            owners = [f"args[{i}]" for i in plan.donated]
            raise guards.BenchError(
                f"bench: {case.name}: of the donated {', '.join(owners)}, {what} cannot be reused: no output has that "
                "shape and dtype. Donate only arguments that are returned in a new state, or donate=None."
            )
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _check_dead_code(case: Case, closed: Any, args: tuple) -> tuple[str, ...]:
    """Raises where no output depends on an argument; notes arguments that nothing depends on."""
    jaxpr = closed.jaxpr
    inputs = set(jaxpr.invars)
    depends = set(jaxpr.invars)
    used = set()
    for equation in jaxpr.eqns:
        sources = [v for v in equation.invars if not isinstance(v, jex.Literal)]
        used |= inputs.intersection(sources)
        if depends.intersection(sources) or equation.effects:
            depends |= set(equation.outvars)
    outputs = [v for v in jaxpr.outvars if not isinstance(v, jex.Literal)]
    used |= inputs.intersection(outputs)
    if guards.on("dead_code") and jaxpr.eqns and not depends.intersection(outputs):
        raise guards.BenchError(
            f"bench: {case.name}: no output depends on an argument, so XLA computes the result when it compiles. "
            "Pass what it computes with through args=."
        )
    names = guards.named(args)
    unused = [f"{path} {tree.describe(names[path])}" for path, v in zip(names, jaxpr.invars) if v not in used]
    return tuple(f"{what} is not used" for what in unused)


def _check_inner_donation(case: Case, closed: Any) -> None:
    for equation in closed.jaxpr.eqns:
        if case.donate is None and any(equation.params.get("donated_invars", ())):
            raise guards.BenchError(
                f"bench: {case.name}: the function is jitted with donation ({equation.params.get('name', '?')}), which "
                "the program that bench compiles around it would not do. Say donate='thread', or donate=(argument "
                "numbers), so that it does."
            )


def _retraces(case: Case, args: tuple, plan: Flow, compiled: Any, seed: int) -> int:
    """Runs the first call, and counts the traces that a second and a third would need."""
    first = args
    out = jax.block_until_ready(compiled(*copies(args, plan.donated)))
    calls = [first]
    calls.append(plan.following(args, out) if plan.threaded else args)
    if callable(case.args):
        calls.append(case.make_args(seed + 1))
    _check_placement(case, calls)
    return guards.check_retraces(case.name, _fresh(case.function), calls)


def _check_placement(case: Case, calls: list[tuple]) -> None:
    """Raises where a threaded output lives elsewhere than the argument did: jit would compile a second program."""
    if not guards.on("retrace") or guards.differences(calls[0], calls[1]):
        return
    before, after = guards.named(calls[0]), guards.named(calls[1])
    for path, leaf in before.items():
        if not leaf.sharding.is_equivalent_to(after[path].sharding, leaf.ndim):
            raise guards.BenchError(
                f"bench: {case.name}: {path} {tree.describe(leaf)} comes in as {leaf.sharding} and goes out as "
                f"{after[path].sharding}: the second call would compile again. Place the argument as the step returns "
                "it before the first call."
            )


def _size(compiled: Any) -> int | None:
    try:
        return len(compiled.runtime_executable().serialize())
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return None


def _ask(traced: Any) -> str:
    """Whether the persistent cache has the program; writes it there if it has not."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        return "off"
    jax.clear_caches()
    with persistent_cache(True), guards.watch() as seen:
        traced.lower().compile()
    return "hit" if seen.hits else "miss"
