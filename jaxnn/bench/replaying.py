"""Baselines that run again: the old program itself is kept, and takes turns with the new one in one process.

A stored time is off by 8 % on a quiet machine and by half on a busy one. So a baseline is the program, as the bytes of
`jax.export`, which any later version can load. The new program goes through the same export before it is compiled, so
that the two differ in nothing else.
"""

import base64
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from jax import export

from jaxnn.bench import guards
from jaxnn.bench.case import Case
from jaxnn.bench.comparison import Comparison, compare
from jaxnn.bench.compilation import build
from jaxnn.bench.schema import environment

SCHEMA = "jaxnn.bench.program/1"


def _exported(case: Case, seed: int) -> export.Exported:
    args = case.make_args(seed)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), args)

    def program(*given: Any) -> Any:
        return case.function(*given)

    return export.export(jax.jit(program))(*shapes)


def record(path: str | os.PathLike, case: Case, seed: int = 0) -> None:
    """Keeps a case's program in a file, to be replayed later.

    Args:
        path: The file; replaced if it is there.
        case: Its arguments give the shapes; they are not kept.
        seed: Of the arguments' key.

    Raises:
        BenchError: If the program cannot be exported.
    """
    build(case, seed)  # a program that trips a guard is no baseline
    try:
        data = bytes(_exported(case, seed).serialize())
    except (NotImplementedError, ValueError, TypeError) as error:
        raise guards.BenchError(
            f"bench.record: {case.name} cannot be exported: {str(error).splitlines()[0]}. Programs with host callbacks "
            "cannot be kept; compare two revisions instead."
        ) from error
    content = {
        "schema": SCHEMA,
        "name": case.name,
        "environment": environment(),
        "program": base64.b64encode(data).decode(),
    }
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    os.replace(temporary, path)


def stored(path: str | os.PathLike) -> tuple[str, export.Exported]:
    """The name and the program that `record` kept.

    Raises:
        BenchError: If the file is torn, foreign, of a newer schema, or for another platform.
    """
    path = pathlib.Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content.get("schema") if isinstance(content, dict) else None
    except ValueError as error:
        raise guards.BenchError(f"bench.replay: {path.name} is no JSON, or it was cut short: {error}.") from error
    if schema != SCHEMA:
        raise guards.BenchError(
            f"bench.replay: {path.name} holds {schema!r}, not a program ({SCHEMA!r}). Use bench.record."
        )
    try:
        program = export.deserialize(bytearray(base64.b64decode(content["program"])))
    except Exception as error:  # flatbuffers raise whatever they stumble over
        raise guards.BenchError(f"bench.replay: {path.name} is damaged: {error}. Record it again.") from error
    if jax.default_backend() not in program.platforms:
        raise guards.BenchError(
            f"bench.replay: {path.name} was made for {program.platforms}, and this is {jax.default_backend()}."
        )
    return content["name"], program


def replay(
    path: str | os.PathLike,
    case: Case,
    *,
    tolerance: float = 0.03,
    max_seconds: float = 6.0,
    seed: int = 0,
    **options: Any,
) -> Comparison:
    """Compares a case with the program that was kept, in turns; "base" is the old one, "head" the new one.

    Args:
        path: From `record`.
        case: Today's program, with arguments of the same shapes.
        tolerance: As for `compare`.
        max_seconds: As for `compare`.
        seed: As for `compare`.
        **options: As for `compare`.

    Raises:
        BenchError: If the file cannot be used, or the arguments have other shapes than the kept program's.
    """
    name, old = stored(path)
    new = _exported(case, seed)
    before, after = (jax.tree.unflatten(program.in_tree, program.in_avals)[0] for program in (old, new))
    lines = guards.differences(before, after)
    if lines:
        raise guards.BenchError(
            f"bench.replay: {case.name} takes other arguments than {name} did when it was kept: {'; '.join(lines[:3])} "
            "(kept, then now). Record it again."
        )
    both: dict[str, Callable | Case] = {
        side: Case(side, program.call, case.args, case.donate) for side, program in (("base", old), ("head", new))
    }
    return compare(both, tolerance=tolerance, max_seconds=max_seconds, seed=seed, **options)
