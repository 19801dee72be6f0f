"""Reading and changing the hyperparameters in an optimizer's state by name: ours, and those that optax injects."""

import difflib
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import tree
from jaxnn.optim.hyper import DOMAINS, Hypers, check_number
from jaxnn.typing import Array, PyTree


def _injected(x: Any) -> bool:
    """Whether this is the state of `optax.inject_hyperparams`."""
    return hasattr(x, "hyperparams") and hasattr(x, "inner_state")


def _is_node(x: Any) -> bool:
    return isinstance(x, Hypers) or _injected(x)


def _nodes(state: PyTree) -> Iterator[tuple[str, Any]]:
    """Every node of an optimizer's state that holds hyperparameters, with its path: ours and optax's."""
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_node):
        if _is_node(node):
            at = tree.path_name(path)
            yield at, node
            if _injected(node):
                for below, deeper in _nodes(node.inner_state):
                    yield f"{at}/{below}", deeper


def _values(node: Any) -> Mapping[str, Any]:
    """Name -> value."""
    return node.values if isinstance(node, Hypers) else node.hyperparams


def _scheduled(node: Any) -> Container[str]:
    """The names that a schedule moves."""
    return node.held if isinstance(node, Hypers) else getattr(node, "hyperparams_states", {})


_WRAPPING = ("inner", "inner_state")
_SILENT = (*_WRAPPING, "stages", "groups", "hyper", "hyperparams", ".")


def short_path(path: str, silent: Sequence[str] = _SILENT) -> str:
    """A state path as people write it: `stages/precondition/groups/muon/hyper` is `precondition.muon`."""
    return ".".join(part for part in path.split("/") if part not in silent)


def named(state: PyTree) -> dict[str, tuple[str, str]]:
    """Every hyperparameter in a state by its full name: `precondition.adam.b2` -> (path of its node, "b2").

    Levels that only hold others are left out of a name, unless two names would then be one: `ema(ema(...))` has
    `decay` and `inner.decay`.
    """
    held = [
        (path, name)
        for path, node in _nodes(state)
        for name, value in _values(node).items()
        if hasattr(value, "dtype") or isinstance(value, float)
    ]
    full: dict[tuple[str, str], str] = {}
    for silent in (_SILENT, [part for part in _SILENT if part not in _WRAPPING], ()):
        times = Counter(full.values())
        for path, name in held:
            if times[full.get((path, name), "")] != 1:
                full[path, name] = f"{short_path(path, silent)}.{name}".lstrip(".")
    return {name: at for at, name in full.items()}


def _resolve(state: PyTree, name: str, where: str) -> tuple[str, str]:
    """What `name` means: a full name, or its last parts where they are unambiguous."""
    known = named(state)
    hits = [name] if name in known else [full for full in known if full.endswith(f".{name}")]
    if len(hits) == 1:
        return known[hits[0]]
    if hits:
        raise ValueError(f"{where}: {name!r} could be any of {hits}. Write one of them.")
    close = difflib.get_close_matches(name, {full.rsplit(".", 1)[-1] for full in known} | set(known), 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{where}: no hyperparameter {name!r}. There are {sorted(known) or 'none'}.{hint}")


def hyper(state: PyTree) -> dict[str, Array]:
    """The hyperparameters in an optimizer's state, in effect: by last name where it is the only one, else by full name.

    Reads the states of `jaxnn.optim` and of `optax.inject_hyperparams`, at any depth. Float32 scalars (a leading
    axis under `vmap`).
    """
    known = named(state)
    last = [full.rsplit(".", 1)[-1] for full in known]
    nodes = dict(_nodes(state))
    return {name if last.count(name) == 1 else full: _values(nodes[path])[name] for full, (path, name) in known.items()}


def constants(state: PyTree) -> dict[str, Array]:
    """Those of `hyper(state)` that no schedule moves, by the same names."""
    nodes, known = dict(_nodes(state)), named(state)
    full = {name.rsplit(".", 1)[-1]: name for name in known} | {name: name for name in known}

    def moved(path: str, name: str) -> bool:
        return name in _scheduled(nodes[path])

    return {name: value for name, value in hyper(state).items() if not moved(*known[full[name]])}


def set_hyper(state: PyTree, /, **values: float | Array | None) -> PyTree:
    """The state with other hyperparameters: nothing else changes, and a jitted step does not compile again.

    A value set over a schedule holds until it is released by `name=None`, from when the schedule applies again.
    Names are those of `hyper(state)`; full ones are passed as `**{"precondition.adam.b2": 0.99}`. May be traced.

    Args:
        state: An optimizer's state, or anything that holds one.
        values: Numbers, or arrays of the shape that the leaf has (a member each under `vmap`).

    Raises:
        TypeError: If a value is no number.
        ValueError: If a name is unknown or ambiguous, a value outside its domain or misshapen, a constant released, or
            if a schedule of `optax.inject_hyperparams` would write over the value.
    """
    where = "optim.set_hyper"
    wanted = wanted_values(state, values, where)

    def visit(prefix: str, node: Any) -> Any:
        def one(path: tuple[Any, ...], x: Any) -> Any:
            here = tree.path_name(path)
            full = here if not prefix else f"{prefix}/{here}"
            mine = {name: value for (at, name), value in wanted.items() if at == full}
            if isinstance(x, Hypers):
                return _with_values(x, mine, where) if mine else x
            if _injected(x):
                old = dict(x.hyperparams)
                new = {n: _like(where, n, v, old[n]) for n, v in mine.items()}
                return x._replace(hyperparams=old | new, inner_state=visit(full, x.inner_state))
            return x

        return jax.tree_util.tree_map_with_path(one, node, is_leaf=_is_node)

    return visit("", state)


def wanted_values(state: PyTree, values: Mapping[str, Any], where: str) -> dict[tuple[str, str], Any]:
    """(path of its node, name) -> the value that is to be set there, for names as `set_hyper` takes them.

    Raises:
        TypeError: If a value is no number.
        ValueError: If a name is unknown or ambiguous or follows a schedule of optax, or a value is outside its domain;
            traced values are not looked at.
    """
    nodes = dict(_nodes(state))
    wanted: dict[tuple[str, str], Any] = {}
    for name, value in values.items():
        path, last = _resolve(state, name, where)
        node = nodes[path]
        if _injected(node) and last in _scheduled(node):
            raise ValueError(
                f"{where}: {name} follows a schedule of optax, which writes over what is set. Inject a number, or let "
                "the schedule be ours, which may be set over: optim.scale_by_lr(schedule), optim.adamw(schedule), ..."
            )
        domain = node.domains.of(last) if isinstance(node, Hypers) else DOMAINS.get(last)
        if value is not None and not isinstance(value, jax.core.Tracer):
            for member in [value] if np.ndim(value) == 0 else np.asarray(value).ravel():
                check_number(where, name, member, domain)
        wanted[path, last] = value
    return wanted


def _like(where: str, name: str, value: Any, leaf: Any) -> Array:
    """`value` as the leaf is: its shape, dtype and sharding."""
    if value is None:
        raise ValueError(f"{where}: {name} is a constant: no schedule takes it back. Give a number.")
    if np.shape(value) not in ((), np.shape(leaf)):
        raise ValueError(f"{where}: {name} has shape {np.shape(value)} for a leaf of shape {np.shape(leaf)}.")
    new = jnp.broadcast_to(jnp.asarray(value, leaf.dtype), np.shape(leaf))
    if isinstance(leaf, jax.core.Tracer) or isinstance(new, jax.core.Tracer) or not isinstance(leaf, jax.Array):
        return new
    # Only where the leaf is bound to its place: else the step would compile again for a state that is.
    return jax.device_put(new, leaf.sharding) if leaf.committed else new


def _with_values(node: Hypers, new: Mapping[str, Any], where: str) -> Hypers:
    values, held = dict(node.values), dict(node.held)
    for name, value in new.items():
        if value is None and name in held:
            held[name] = _like(where, name, False, held[name])
            continue
        values[name] = _like(where, name, value, values[name])
        if name in held:
            held[name] = _like(where, name, True, held[name])
    return node._replace(values=values, held=held)
