"""What does not fit is refused by name: leaves without a gradient, gradients and states of other parameters."""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import tree
from jaxnn.typing import PyTree

SHOWN = 4  # leaves in a message


def check_leaves(where: str, params: PyTree) -> None:
    """Refuses parameters that cannot be trained.

    Raises:
        TypeError: Naming a leaf that is not floating or complex.
    """
    if all(_floats(leaf) for leaf in jax.tree.leaves(params)):
        return
    path, leaf = next((path, leaf) for path, leaf in tree.leaves_by_path(params).items() if not _floats(leaf))
    raise TypeError(
        f"{where}: leaf {path!r} {tree.describe(leaf)} is not floating, and has no gradient. Keep it out of the "
        "parameters, in the model state."
    )


def check_paths(where: str, params: PyTree) -> None:
    """Refuses parameters of which two have one path.

    Raises:
        ValueError: Naming it.
    """
    paths = [tree.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if len(set(paths)) < len(paths):
        twice = next(path for path, count in collections.Counter(paths).items() if count > 1)
        raise ValueError(f"{where}: two leaves have the path {twice!r}. Give keys without '/'.")


def check_gradients(where: str, grads: PyTree, params: PyTree = None) -> None:
    """Refuses gradients that are none, or do not fit the parameters (or a tree like them), where those are given.

    Raises:
        TypeError: Naming a leaf that is not floating or complex.
        ValueError: Naming the leaves whose place or shape differs.
    """
    leaves = jax.tree.leaves(grads)
    if not all(map(_floats, leaves)):
        path, leaf = next((path, leaf) for path, leaf in tree.leaves_by_path(grads).items() if not _floats(leaf))
        raise TypeError(f"{where}: the gradient of {path!r} is {tree.describe(leaf)}. Give one that is floating.")
    if params is None or (
        jax.tree.structure(grads) == jax.tree.structure(params)
        and all(np.shape(g) == np.shape(p) for g, p in zip(leaves, jax.tree.leaves(params)))
    ):
        return
    raise ValueError(
        f"{where}: gradients and parameters differ (first against second): {differing(grads, params)}. Give gradients "
        "by the same parameters."
    )


def checked_init(where: str, init: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`init` that refuses parameters that cannot be trained or told apart, and gives every array once."""

    @functools.wraps(init)
    def checked(params: PyTree) -> PyTree:
        check_leaves(where, params)
        check_paths(where, params)
        return once(init(params), params)

    return checked


def once(state: PyTree, params: PyTree) -> PyTree:
    """A state with a copy of what it holds twice, or shares with the parameters: donated, it is given away once."""
    seen = set(map(id, jax.tree.leaves(params)))

    def one(x: Any) -> Any:
        if not isinstance(x, jax.Array) or isinstance(x, jax.core.Tracer):
            return x
        if id(x) in seen:
            return x.copy()
        seen.add(id(x))
        return x

    return jax.tree.map(one, state)


def checked_update(
    where: str, init: Callable[[Any], Any], update: Callable[..., tuple[Any, Any]]
) -> Callable[..., tuple[Any, Any]]:
    """`update` that refuses gradients and states that do not fit, and does nothing else.

    Gradients are compared with the parameters. What `init` would give is compared with the state only where the update
    fails, or changes a shape: neither costs anything in a program that works.
    """

    @functools.wraps(update)
    def checked(updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
        check_gradients(where, updates, params)
        like, kind = (updates, "gradients") if params is None else (params, "parameters")
        try:
            found, new = update(updates, state, params, **extra)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            misfit = _misfit(init, like, state)
            if misfit is None:
                raise
            raise ValueError(_none_of(where, kind, misfit)) from error
        if _shapes(found) != _shapes(updates) or _shapes(new) != _shapes(state):
            misfit = _misfit(init, like, state)
            if misfit is not None:
                raise ValueError(_none_of(where, kind, misfit))
        return found, new

    return checked


def _none_of(where: str, kind: str, misfit: str) -> str:
    return (
        f"{where}: the state is none of this optimizer for these {kind} (expected against given): {misfit}. Give "
        f"{'gradients by the parameters of ' if kind == 'gradients' else ''}tx.init(params), or take over another "
        "optimizer's state with optim.migrate."
    )


def _misfit(init: Callable[[Any], Any], like: PyTree, state: PyTree) -> str | None:
    """How a state differs from what `init` gives for parameters like these; None where it does not, or none knows."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), like)
    try:
        expected = jax.eval_shape(init, shapes)
    except Exception:  # whatever it was, it was not the state
        return None
    if jax.tree.structure(expected) == jax.tree.structure(state) and _shapes(expected) == _shapes(state):
        return None
    return differing(expected, state)


def _shapes(values: PyTree) -> list[tuple[int, ...]]:
    return [np.shape(x) for x in jax.tree.leaves(values)]


def differing(left: PyTree, right: PyTree) -> str:
    """Where two trees differ, dtypes aside."""
    plain = [jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.float32), t) for t in (left, right)]
    lines = list(tree.differences(*plain))
    more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return f"{'; '.join(lines[:SHOWN]) or 'in structure'}{more}"


def _floats(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and _inexact(leaf.dtype)


@functools.cache
def _inexact(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, np.inexact))
