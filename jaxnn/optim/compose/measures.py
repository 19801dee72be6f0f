"""What an optimizer reports about itself: chosen when it is built, kept in its state, read by `metrics(state)`.

Nothing is computed that was not chosen. A norm that clipping, skipping and a metric share is one reduction in the
compiled program, because they write the same expression.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn import tree
from jaxnn.optim.compose.transformation import Context, Transformation, known_norm
from jaxnn.typing import Array, PyTree


class Metrics(NamedTuple):
    """Values of the last update by name, float32 scalars; 0 before the first."""

    values: dict[str, Array]


class Seen(NamedTuple):
    """What a metric is computed from, at the end of an update.

    Attributes:
        grads: What the chain was given.
        updates: What it gives.
        params: Before the update.
        parts: The chain's transformations by name.
        states: Their new states.
        context: The rate in effect and the groups' multipliers.
    """

    grads: PyTree
    updates: PyTree
    params: PyTree
    parts: Mapping[str, optax.GradientTransformation]
    states: Mapping[str, PyTree]
    context: Context


def metrics(state: PyTree) -> dict[str, Array]:
    """What the optimizers in a state report, by name; float32 scalars (a leading axis under `vmap`).

    Where several chains report the same name, it is prefixed with its place.
    """
    found: dict[str, list[tuple[str, Array]]] = {}
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: isinstance(x, Metrics)):
        if isinstance(node, Metrics):
            for name, value in node.values.items():
                found.setdefault(name, []).append((tree.path_name(path), value))
    single = {name: hits[0][1] for name, hits in found.items() if len(hits) == 1}
    many = {f"{path}/{name}": value for name, hits in found.items() if len(hits) > 1 for path, value in hits}
    return single | many


def _norms(
    grads: PyTree, updates: PyTree, params: PyTree, suffix: str = "", context: Context | None = None
) -> dict[str, Array]:
    norms = {"grad": known_norm(grads, context), "update": tree.global_norm(updates)}
    if params is not None:
        norms["param"] = tree.global_norm(params)
        norms["ratio"] = norms["update"] / jnp.maximum(norms["param"], np.finfo(np.float32).tiny)
    return {f"norm/{name}{suffix}": value for name, value in norms.items()}


def _lr(seen: Seen) -> dict[str, Array]:
    if seen.context.lr is not None:
        return {"lr": seen.context.lr}
    raise ValueError('optim.stages: metrics has "lr", but no stage is an optim.scale_by_lr.')


def _global_norms(seen: Seen) -> dict[str, Array]:
    return _norms(seen.grads, seen.updates, seen.params, context=seen.context)


def _layer(path: str) -> str:
    return path.rpartition("/")[0] or path


def _layer_norms(seen: Seen) -> dict[str, Array]:
    return _by(seen, {path: _layer(path) for path in tree.leaves_by_path(seen.grads)})


def _group_norms(seen: Seen) -> dict[str, Array]:
    assigns = [p.facts["assign"] for p in seen.parts.values() if isinstance(p, Transformation) and "assign" in p.facts]
    found: dict[str, Array] = {}
    for assign in assigns:
        found |= _by(seen, tree.leaves_by_path(assign(seen.grads if seen.params is None else seen.params)))
    if not assigns:
        raise ValueError('optim.stages: metrics has "group_norms", but no stage is an optim.groups.')
    return found


def _by(seen: Seen, names: Mapping[str, str]) -> dict[str, Array]:
    """Norms of the leaves of each name."""
    trees = [tree.leaves_by_path(t) if t is not None else None for t in (seen.grads, seen.updates, seen.params)]
    found: dict[str, Array] = {}
    for name in dict.fromkeys(names.values()):
        mine = [p for p, at in names.items() if at == name]
        grads, updates, params = (None if t is None else [t[p] for p in mine] for t in trees)
        found |= _norms(grads, updates, params, f"/{name}")
    return found


def _clip(seen: Seen) -> dict[str, Array]:
    clips = {
        name: part.facts["clip_factor"](seen.states[name])
        for name, part in seen.parts.items()
        if isinstance(part, Transformation) and "clip_factor" in part.facts
    }
    if not clips:
        raise ValueError('optim.stages: metrics has "clip", but no stage is an optim.clip_by_global_norm.')
    only = len(clips) == 1
    return {"clip" if only else f"clip/{name}": (f < 1).astype(jnp.float32) for name, f in clips.items()}


CHOICES: dict[str, Callable[[Seen], dict[str, Array]]] = {
    "lr": _lr,  # the rate in effect
    "norms": _global_norms,  # norm/grad, norm/update, norm/param, norm/ratio (update over parameter)
    "layer_norms": _layer_norms,  # the same of each layer: norm/grad/blocks_0/mlp/up
    "group_norms": _group_norms,  # the same of each group: norm/grad/muon
    "clip": _clip,  # 1 where the update was clipped: its mean over a window is the share of clipped steps
}

BY_LEAVES = {"layer_norms", "group_norms"}  # what one vector of all leaves would not show


def check_choices(where: str, choices: Any) -> tuple[str, ...]:
    """The chosen metrics.

    Raises:
        TypeError: If they are no sequence of names.
        ValueError: If one is unknown.
    """
    if isinstance(choices, str) or not isinstance(choices, Iterable) or not all(isinstance(c, str) for c in choices):
        raise TypeError(f"{where}: metrics must be a tuple of names, got {choices!r:.60}. Write metrics=('lr',).")
    for name in choices:
        if name not in CHOICES:
            close = difflib.get_close_matches(name, CHOICES, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{where}: no metric {name!r}. There are {list(CHOICES)}.{hint}")
    return tuple(choices)


def measure(choices: tuple[str, ...], seen: Seen) -> Metrics:
    """The chosen metrics of an update."""
    values: dict[str, Array] = {}
    for name in choices:
        values |= CHOICES[name](seen)
    return Metrics({name: value.astype(jnp.float32) for name, value in values.items()})
