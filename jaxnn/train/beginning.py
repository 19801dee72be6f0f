"""The beginning of a run from variables that there are, `fit(..., init_from=)`, and what its journal says of it."""

import os
import re
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxnn import tree
from jaxnn.core import State
from jaxnn.runs import reading, stored
from jaxnn.typing import ModelState, Params, PyTree, Source

_SAID = 300  # characters of a source


class Beginning(NamedTuple):
    """What there is to begin with: parameters, and the model's other variables, {} where there are none."""

    params: Params
    model_state: ModelState


def given(where: str, init_from: Any, own: Collection[str]) -> Beginning:
    """What `init_from` means: a tree, a module's variables, a state, a run, or the newest checkpoint of a folder.

    Args:
        where: Who asks.
        init_from: As given to `fit`.
        own: Top-level entries of the task's parameters: {"params": ..., "batch_stats": ...} are variables where
            "params" is none of them.

    Raises:
        ValueError: If a folder holds no run or no good checkpoint.
    """
    if not isinstance(init_from, (str, os.PathLike)):
        held = getattr(init_from, "state", init_from)
        if hasattr(held, "params"):
            return Beginning(held.params, getattr(held, "model_state", {}))
        if isinstance(held, Mapping) and "params" in held and "params" not in own:
            return Beginning(held["params"], {name: value for name, value in held.items() if name != "params"})
        return Beginning(held, {})
    if not any((Path(init_from) / name).is_file() for name in ("config.json", stored.SEAL)):
        raise ValueError(
            f"{where}: init_from={str(init_from)!r} holds no config.json. Tried: a run's folder, or a "
            f"checkpoint's. Give one, or parameters: models.load(folder)[1] reads weights of others."
        )
    return _stored(where, Path(init_from))


def _stored(where: str, path: Path) -> Beginning:
    """What is in a checkpoint's folder, or in the newest good one of a run; verified, and nothing is changed."""
    folders = [path]
    if not (path / stored.SEAL).is_file():
        every = path / "checkpoints"
        folders = [stored.step_folder(every, step) for step in stored.steps(every)[::-1]]
        folders = [folder for folder in folders if stored.is_good(folder)]
    problems: list[str] = []
    for folder in folders:
        if not (found := stored.verify(folder)):
            arrays, found = reading.read_arrays(folder)
            if not found:
                parts = [
                    {k.removeprefix(part): v for k, v in arrays.items() if k.startswith(part) and v.size}
                    for part in ("params/", "model_state/")
                ]
                return Beginning(*parts)
        problems += found[:2]
    why = f" ({'; '.join(problems)})" if problems else ""
    raise ValueError(
        f"{where}: init_from={str(path)!r} holds no good checkpoint{why}. Tried: {len(folders)} of them. Give a "
        "run that has saved, or one of its checkpoints; a folder of weights is read by "
        "init_from=models.load(folder)[1]."
    )


def check_given(where: str, params: Params, given: Params, depth: int = 1, advice: str = "") -> None:
    """Refuses parameters that are not the task's: each entry of `given` must be whole and of its shapes.

    Args:
        where: Who asks.
        params: Shapes of the task's.
        given: By the same paths, entries left out or not.
        depth: How many parts of a path name an entry: 1, the top level.
        advice: What else may be done about what the task has not.

    Raises:
        ValueError: If a leaf is missing in an entry, unknown or of another shape.
    """
    wanted, found = tree.leaves_by_path(params), tree.leaves_by_path(given)
    entry_of = lambda path: "/".join(path.split("/")[:depth])  # noqa: E731
    entries = {entry_of(path) for path in found}
    for path in sorted(wanted.keys() | found.keys()):
        entry = entry_of(path)
        if path not in wanted:
            tops = {name.split("/")[0] for name in wanted}
            below = [top for top in sorted(tops) if all(f"{top}/{name}" in wanted for name in found)]
            if below:
                advice = f" They fit below {below[0]!r}. Write init_from={{{below[0]!r}: ...}}."
            raise ValueError(
                f"{where}: init_from has {path!r} {tree.describe(found[path])}, which the task has not. Tried: its "
                f"{len(wanted)} variables. Leave it out, or change the model.{advice}"
            )
        if path in found and tuple(np.shape(found[path])) != tuple(wanted[path].shape):
            raise ValueError(
                f"{where}: init_from has {path!r} {tree.describe(found[path])}. Tried: {tree.describe(wanted[path])}. "
                f"Leave {entry!r} out wholly, to begin it anew, or change the model."
            )
        if path not in found and entry in entries:
            raise ValueError(
                f"{where}: init_from lacks {path!r}. Tried: whole entries. Leave {entry!r} out wholly, to begin it "
                f"anew, or give all of it."
            )


def check_beginning(where: str, variables: tuple[Params, ModelState], begin: Beginning) -> None:
    """Refuses what does not belong to a task of these variables' shapes.

    Raises:
        ValueError: As `check_given`; statistics are an entry a layer.
    """
    check_given(where, variables[0], begin.params)
    advice = " Give its parameters alone: init_from=run.state.params."
    check_given(where, variables[1], begin.model_state, depth=2, advice=advice)


def check_frozen(where: str, params: Params, begin: Beginning | None, frozen: Callable[[str], bool]) -> None:
    """Refuses to draw, without a word, what no step changes: it would stay at random. `init_from={}` is that word.

    Args:
        where: Who asks.
        params: Shapes of the task's.
        begin: What there is to begin with, or None.
        frozen: Which parameters, by path, no step changes.

    Raises:
        ValueError: If something is given, or nothing at all, and an entry of such parameters is not.
    """
    if begin is not None and not tree.leaves_by_path(begin.params) and not begin.model_state:
        return
    held = set() if begin is None else tree.leaves_by_path(begin.params).keys()
    lacking = sorted({path.split("/")[0] for path in tree.leaves_by_path(params) if frozen(path)} - _tops(held))
    if lacking:
        name, given = lacking[0], "is None" if begin is None else f"has {sorted(_tops(held))} alone"
        others = "" if begin is None else " beside those"
        raise ValueError(
            f"{where}: init_from {given}, and {name!r}, which no step changes, would stay as it is drawn at random. "
            f"Tried: the parameters that the rest belongs to. Write init_from={{{name!r}: params}}{others}; "
            "init_from={} where all is to be drawn."
        )


def _tops(paths: Collection[str]) -> set[str]:
    return {path.split("/")[0] for path in paths}


def fingerprint(params: Params, frozen: Callable[[str], bool]) -> str:
    """A checksum of the parameters that never change: 8 hexadecimal digits."""
    crc = 0
    for path, leaf in tree.leaves_by_path(params).items():
        if frozen(path):
            crc = zlib.crc32(f"{path} {stored.checksum(np.asarray(leaf))}".encode(), crc)
    return f"{crc:08x}"


def begun_from(params: PyTree, given: PyTree) -> PyTree:
    """`params`, or a model's other variables, with the values of `given` where it has them; dtypes stay."""
    found = tree.leaves_by_path(given)

    def one(path: str, leaf: Any) -> Any:
        # `given` stays its owner's: the run donates its state.
        return np.array(found[path], dtype=leaf.dtype) if path in found else leaf

    return tree.map_by_path(one, params)


def without_frozen(state: State, frozen: Any) -> State:
    """The state as a checkpoint keeps it: an empty array in the place of each parameter that never changes."""
    if frozen is None:
        return state
    empty = lambda path, leaf: np.zeros((0,), leaf.dtype) if frozen(path) else leaf  # noqa: E731
    return state._replace(params=tree.map_by_path(empty, state.params))


def with_frozen(state: State, frozen: Any, params: Params) -> State:
    """Undoes `without_frozen`, given the run's first parameters."""
    if frozen is None:
        return state
    first = tree.leaves_by_path(params)
    return state._replace(params=tree.map_by_path(lambda p, x: np.asarray(first[p]) if frozen(p) else x, state.params))


def told(source: Source, validation: Source | None, init_from: Any, out: str | os.PathLike[str]) -> dict[str, Any]:
    """What a new run's journal says of its data, and of the run that its parameters come from.

    Args:
        source: Training data.
        validation: Held-out data, or None.
        init_from: As given to `fit`.
        out: The run's folder; another run is named as seen from there.
    """
    said: dict[str, Any] = {"data": _said(source)}
    if validation is not None:
        said |= {"validation": _said(validation), "validation_examples": len(validation)}
    if init_from is not None and not (isinstance(init_from, Mapping) and not init_from):
        held = getattr(init_from, "folder", None)
        path = init_from if isinstance(init_from, (str, os.PathLike)) else getattr(held, "path", None)
        said["init_from"] = "given parameters" if path is None else os.path.relpath(path, out)
    return said


def _said(source: Source) -> str:
    """What a source says of itself, without addresses in memory."""
    text = type(source).__name__ if type(source).__repr__ is object.__repr__ else " ".join(repr(source).split())
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", text)
    return text if len(text) <= _SAID else text[: _SAID - 4] + " ..."
