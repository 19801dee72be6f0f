"""Reading and changing parts of an optimizer's state by name."""

import dataclasses
from typing import Any

import jax
import optax

from jaxnn import tree
from jaxnn.typing import PyTree


def _children(node: Any) -> dict[str, Any]:
    """A node's entries by name; {} for leaves."""
    if isinstance(node, dict):
        return {str(key): value for key, value in node.items()}
    if isinstance(node, tuple) and (fields := getattr(node, "_fields", None)):
        return dict(zip(fields, node, strict=True))
    if isinstance(node, (list, tuple)):
        return {str(i): value for i, value in enumerate(node)}
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return {f.name: getattr(node, f.name) for f in dataclasses.fields(node) if not f.metadata.get("static")}
    return {}


def _with_child(node: Any, name: str, value: Any) -> Any:
    if isinstance(node, dict):
        key = next(k for k in node if str(k) == name)
        return type(node)({**node, key: value})
    if isinstance(node, tuple) and (fields := getattr(node, "_fields", None)):
        return type(node)(**dict(zip(fields, node, strict=True)) | {name: value})
    if isinstance(node, (list, tuple)):
        return type(node)(value if str(i) == name else item for i, item in enumerate(node))
    return dataclasses.replace(node, **{name: value})


def _steps(state: PyTree, path: str, where: str) -> list[str]:
    """The full way to what `path` names: each part is looked for as near as possible below the one before it."""
    way: list[str] = []
    node = state
    for part in path.replace("/", ".").split("."):
        level: list[tuple[tuple[str, ...], Any]] = [((), node)]
        while level:
            hits = [(at, child) for at, n in level for name, child in _children(n).items() if name == part]
            ways = [at for at, n in level if part in _children(n)]
            if len(hits) > 1:
                options = [".".join((*way, *at, part)) for at in ways]
                raise ValueError(f"{where}: {path!r} could be any of {options}. Write one of them.")
            if hits:
                way += [*ways[0], part]
                node = hits[0][1]
                break
            level = [((*at, name), child) for at, n in level for name, child in _children(n).items()]
        else:
            below = ".".join(way) or "the state"
            raise ValueError(
                f"{where}: nothing called {part!r} below {below} (path {path!r}). There are {sorted(_children(node))}."
            )
    return way


def get(state: PyTree, path: str) -> Any:
    """The part of an optimizer's state that `path` names: `get(state, "precondition.muon.mu")`.

    Each part of the path is looked for as near as possible below the one before it, so that levels which only hold
    others (`stages`, `groups`, a tuple's index) may be left out. Works on any optimizer's state.

    Raises:
        ValueError: If there is no such part, or several; lists what there is.
    """
    node = state
    for name in _steps(state, path, "optim.get"):
        node = _children(node)[name]
    return node


def replace(state: PyTree, path: str, value: Any) -> PyTree:
    """The state with another value at `path`, of the same structure, shapes and dtypes.

    Raises:
        ValueError: If there is no such part, or the value does not fit.
    """
    way = _steps(state, path, "optim.replace")

    def visit(node: Any, rest: list[str]) -> Any:
        if not rest:
            changes = list(tree.differences(node, value))
            if changes or jax.tree.structure(node) != jax.tree.structure(value):
                raise ValueError(
                    f"optim.replace: {path!r} takes another kind of value (state against given): "
                    f"{'; '.join(changes[:4]) or 'another structure'}. Keep every leaf's shape and dtype."
                )
            return value
        return _with_child(node, rest[0], visit(_children(node)[rest[0]], rest[1:]))

    return visit(state, way)


def reset(state: PyTree, path: str, tx: optax.GradientTransformation, params: PyTree) -> PyTree:
    """The state whose part at `path` is as at the beginning: `reset(state, "precondition.muon", tx, params)`.

    Raises:
        ValueError: If there is no such part, or the state is not one of `tx`.
    """
    return replace(state, path, get(tx.init(params), path))
