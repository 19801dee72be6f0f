"""An optimizer taken apart into stages by groups, without its state."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

import optax

from jaxnn import tree
from jaxnn.optim.compose.transformation import Transformation, label
from jaxnn.optim.schedules import Schedule
from jaxnn.typing import PyTree


class Cells(NamedTuple):
    """What an optimizer consists of.

    Attributes:
        kinds: (stage, group) -> (kind, hyperparameters: name -> number or schedule, paths of parameters).
        moved: (stage, group) that has no row of its own -> the one whose row has it.
        columns: Stage -> path -> group, for each `groups`.
    """

    kinds: dict[tuple[str, str], tuple[str, Mapping[str, Any], list[str]]]
    moved: dict[tuple[str, str], tuple[str, str]]
    columns: dict[str, dict[str, str]]


def cells(tx: optax.GradientTransformation, params: PyTree) -> Cells:
    """The cells of an optimizer on these parameters, in the order in which they apply."""
    found = Cells({}, {}, {})
    _fill(tx, params, "", "", found)
    return found


def _fill(
    part: optax.GradientTransformation,
    params: PyTree,
    stage: str,
    group: str,
    found: Cells,
) -> None:
    """Fills the cells of a part and of what is in it, in the order in which they apply."""
    parts = part.parts if isinstance(part, Transformation) else {}
    if _is(part, "stages"):
        for name, inner in parts.items():
            _fill(inner, params, _join(stage, name), group, found)
        return
    if _is(part, "groups"):
        labels = tree.leaves_by_path(part.facts["assign"](params))
        found.columns.setdefault(stage or "group", {}).update(labels)
        own = _hypers(part)
        if own:
            found.kinds[stage, group] = ("groups", own, list(labels))
        elif parts:
            found.moved[stage, group] = (stage, _join(group, next(iter(parts))))
        for name, inner in parts.items():
            mine = tree.map_by_path(lambda p, x, n=name: x if labels[p] == n else optax.MaskedNode(), params)
            _fill(inner, mine, stage, _join(group, name), found)
        return
    kind, hypers, inside = _leaf_kind(part)
    found.kinds[stage, group] = (kind, hypers, list(tree.leaves_by_path(params)))
    for inner in inside:
        _fill(inner, params, stage, group, found)


def _join(above: str, name: str) -> str:
    return f"{above}.{name}" if above else name


def _leaf_kind(part: optax.GradientTransformation) -> tuple[str, dict[str, Any], list[optax.GradientTransformation]]:
    """What a part that is no `stages` and no `groups` is called, its hyperparameters, and such parts inside it."""
    if not isinstance(part, Transformation):
        return label(part), {}, []
    hypers = _hypers(part)
    names, inside = [], []
    for inner in part.parts.values():
        if _is(inner, "stages") or _is(inner, "groups"):
            inside.append(inner)
            continue
        name, more, below = _leaf_kind(inner)
        names.append(name)
        hypers |= {f"{label(inner)}.{n}" if n in hypers else n: value for n, value in more.items()}
        inside += below
    return f"{part.name}({', '.join(names)})" if names else part.name, hypers, inside


def _is(part: optax.GradientTransformation, name: str) -> TypeGuard[Transformation]:
    return isinstance(part, Transformation) and part.name == name


def _hypers(part: Transformation) -> dict[str, Any]:
    """A part's own hyperparameters: numbers, and schedules as they were written; "schedule" where one does not say."""
    if part.hyper is None:
        return {}
    written = {name: repr(s) if isinstance(s, Schedule) else "schedule" for name, s in part.hyper.schedules.items()}
    return dict(part.hyper.constants) | written
