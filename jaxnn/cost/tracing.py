"""`of`: from a function and its arguments to its cost, by tracing alone."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxnn.cost import flops, jaxprs
from jaxnn.cost.result import Cost
from jaxnn.cost.walk import Tally, Walk


def of(
    f: Callable[..., Any] | jax.stages.Traced,
    *args: Any,
    trips: Mapping[str, int] | None = None,
    compile: bool | None = None,
    **kwargs: Any,
) -> Cost:
    """What one call of `f(*args, **kwargs)` costs. Nothing is run, and nothing compiled until a field needs it.

    Args:
        f: A function: plain, jitted, pmapped or shard_mapped; or what `jax.jit(f).trace(...)` gave, and no arguments.
        *args: Arrays, or `jax.ShapeDtypeStruct`s of them; static ones where `f` is a jitted function that has some.
        trips: Iterations of while loops that nothing in the program bounds: "file.py:line", or a name scope around the
            loop -> count. `flags` names the loops.
        compile: True to compile now, False never to; None to compile when `memory`, `collectives` or another of XLA's
            figures is first read.
        **kwargs: As `args`.

    Raises:
        TypeError: If `f` is not callable, or can't be traced with these arguments.
        ValueError: If `trips` names no loop of the program, or a count is negative.
    """
    traced, lower = trace("cost.of", f, args, kwargs)
    tally, used = count(traced, trips, detail=False)
    name = str(getattr(traced, "fun_name", "") or getattr(f, "__name__", type(f).__name__))
    low = _argument_and_result_bytes(traced.jaxpr, used)
    found = Cost(
        name=name,
        flops=tally.total("flops"),
        flops_by=_by_primitive(tally, "flops"),
        flops_per_device=tally.total("device_flops"),
        transcendentals=tally.total("transcendentals"),
        bytes=low,
        bytes_upper=max(tally.total("bytes"), low),
        bytes_by=_by_primitive(tally, "bytes"),
        unknown=tally.unknown,
        flags=tuple(tally.flags),
        meshes=(*tally.meshes, *_meshes(args, kwargs)),
        _compile=None if compile is False else lambda: lower().compile(),
    )
    if compile:
        _ = found.compiled
    return found


def trace(
    caller: str, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[jax.stages.Traced, Callable[[], jax.stages.Lowered]]:
    """A function traced, and what lowers it as it would be called.

    Raises:
        TypeError: As `of`.
    """
    if isinstance(f, jax.stages.Traced):
        if args or kwargs:
            raise TypeError(
                f"{caller}: {f.fun_name} is traced already and {len(args) + len(kwargs)} arguments came with it. "
                f"Write {caller}(traced), or give the function itself."
            )
        return f, f.lower
    if not callable(f):
        raise TypeError(
            f"{caller}: the first argument is {describe(f)}, not a function. "
            f"Write {caller}(f, *args), not {caller}(f(*args))."
        )
    try:
        if hasattr(f, "trace"):
            traced = f.trace(*args, **kwargs)
            return traced, traced.lower
        traced = jax.jit(f).trace(*args, **kwargs)
    except (TypeError, ValueError) as error:
        name = getattr(f, "__name__", type(f).__name__)
        given = jax.tree_util.tree_leaves_with_path((args, kwargs) if kwargs else args)
        named = [f"{jax.tree_util.keystr(path, simple=True, separator='/')}: {describe(leaf)}" for path, leaf in given]
        listed = ", ".join(named[:8]) + ", ..." * (len(named) > 8)
        raise TypeError(
            f"{caller}: {name} can't be traced with ({listed}). Tried: jax.jit({name}).trace(...), which says: "
            f"{(str(error) or type(error).__name__).splitlines()[0].rstrip('.')}. Give the arguments of one call, "
            "arrays or jax.ShapeDtypeStructs; static ones by giving jax.jit(f, static_argnums=...) as the function."
        ) from error
    # pmap can lower but not trace: its own lowering knows the devices and the donations.
    return traced, (lambda: f.lower(*args, **kwargs)) if hasattr(f, "lower") else traced.lower


def count(traced: jax.stages.Traced, trips: Mapping[str, int] | None, detail: bool) -> tuple[Tally, jaxprs.Mask]:
    """The tally of a traced program, and which of its inputs it reads.

    Raises:
        ValueError: As `of`.
    """
    for key, value in (trips or {}).items():
        if not isinstance(value, int) or value < 0:
            raise ValueError(f"cost.of: trips[{key!r}] is {value!r}. Give the number of iterations, 0 or more.")
    walk = Walk(trips, detail)
    jaxpr = jaxprs.bare(traced.jaxpr)
    out = (True,) * len(jaxpr.outvars)
    tally = walk.jaxpr(jaxpr, out, {})
    if unused := set(walk.given) - walk.used:
        raise ValueError(
            f"cost.of: trips names {sorted(unused)}, but no while loop is there. "
            f"Loops: {', '.join(tally.loops) or 'none'}. Write one of them, or a name scope around one."
        )
    return tally, jaxprs.live(jaxpr, out)[1]


def describe(leaf: Any) -> str:
    """An argument in an error message: `float32[12, 1152]`."""
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is None or dtype is None:
        return f"{type(leaf).__name__} {leaf!r:.60}"
    return f"{dtype}[{', '.join(map(str, shape))}]"


def _by_primitive(tally: Tally, what: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for key, row in tally.rows.items():
        if value := getattr(row, what):
            found[key.primitive] = found.get(key.primitive, 0) + value
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _argument_and_result_bytes(closed: Any, used: jaxprs.Mask) -> int:
    """Used arguments and closed-over arrays read once, results written once; one that is an argument isn't written."""
    jaxpr = jaxprs.bare(closed)
    read = [v for v, is_used in zip(jaxpr.invars, used, strict=True) if is_used]
    passed = {id(v) for v in (*jaxpr.invars, *jaxpr.constvars)}
    written = {id(v): v for v in jaxpr.outvars if id(v) not in passed}
    return sum(flops.nbytes(v.aval) for v in (*read, *jaxpr.constvars, *written.values()))


def _meshes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Meshes that the arguments are placed on."""
    found = []
    for leaf in jax.tree.leaves((args, kwargs)):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, jax.sharding.NamedSharding) and sharding.mesh not in found:
            found.append(sharding.mesh)
    return found
