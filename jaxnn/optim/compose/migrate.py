"""From one optimizer's state to another's: what both remember is carried over, and the rest is said."""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn import tree
from jaxnn.optim.compose import select
from jaxnn.optim.compose.dtypes import decoded, encoded
from jaxnn.optim.compose.fits import once
from jaxnn.optim.compose.hyper_access import short_path
from jaxnn.optim.compose.places import Place, abstract_init, places
from jaxnn.optim.compose.quantize import Quantized
from jaxnn.optim.compose.stacked import named
from jaxnn.optim.compose.transformation import Transformation, walk
from jaxnn.report import html_table, text_table
from jaxnn.typing import PyTree

Key = tuple[str, str, str | None, str]
Written = dict[str, list[Any]]
_SAME = {  # states of optax that are ours by another name
    "schedule": "lr",
    "learningrate": "lr",
    "trace": "momentum",
    "factored": "adafactor",
}


@dataclasses.dataclass(frozen=True)
class Migration:
    """What `migrate` did; prints as a table.

    Attributes:
        kept: Path in the new state -> path in the old one.
        initialised: Path in the new state -> why it is as at the beginning.
        dropped: Paths in the old state that nothing takes.
    """

    kept: Mapping[str, str]
    initialised: Mapping[str, str]
    dropped: tuple[str, ...]
    params: tuple[str, ...] = dataclasses.field(repr=False)

    def _table(self) -> tuple[list[tuple[Any, ...]], tuple[str, ...]]:
        """Rows of leaves that differ in the parameter only."""
        moved = {path: "" if source == path else f"from {self._place(source)}" for path, source in self.kept.items()}
        named = {"kept": moved, "initialised": self.initialised, "dropped": dict.fromkeys(self.dropped, "")}
        count = collections.Counter(
            (what, self._place(path), why) for what, paths in named.items() for path, why in paths.items()
        )
        return [(what, at, n, why) for (what, at, why), n in count.items()], ("", "state", "leaves", "")

    def _place(self, path: str) -> str:
        for param in sorted(self.params, key=len, reverse=True):
            if f"/{param}/" in f"/{path}/":
                return f"/{path}/".replace(f"/{param}/", "/*/", 1).strip("/")
        return path

    def __str__(self) -> str:
        head = f"{len(self.kept)} leaves kept, {len(self.initialised)} initialised, {len(self.dropped)} dropped"
        return f"{head}\n{text_table(*self._table())}"

    def _repr_html_(self) -> str:
        return html_table(*self._table(), "Migration")


def migrate(
    old_state: PyTree, old_tx: optax.GradientTransformation, new_tx: optax.GradientTransformation, params: PyTree
) -> tuple[PyTree, Migration]:
    """A state of `new_tx` that goes on from `old_state`.

    A leaf is carried over to where the same algorithm keeps the same thing of the same parameter, wherever in the chain
    that is: stages may be added, removed, renamed and wrapped, parameters may change their group, storage its dtype
    (8-bit included), layers be `stacked` or no longer, and optax's `chain`, `partition`, `masked` and
    `inject_hyperparams` are seen through. A moment is not carried from one algorithm to another. Hyperparameters are
    those of `new_tx` where it writes another value than `old_tx` did, else the state's. Stages without moments (the
    rate, decay) count on from where the old ones were; of moments that all begin anew, as between `flat` and leaves, so
    do the count and what else corrects them. Where only some do (a parameter is new, or changed its group), they share
    the others' count: Adam's first steps of them are up to (1 - b1^k) / sqrt(1 - b2^k) = 6.6 times the rate. Warm the
    rate up, or give new parameters a group.

    Args:
        old_state: A state of `old_tx`; concrete arrays. Kept arrays are shared with it, not copied.
        old_tx: The optimizer before.
        new_tx: The optimizer from now on.
        params: The parameters.

    Returns:
        (state, report): print the report.

    Raises:
        ValueError: If `old_state` is none of `old_tx`.
    """
    _check(old_state, old_tx, params)
    flat = decoded(old_state)
    old, stacks = list(places(flat, params)), _stacks(params)
    found: dict[Key, list[Place]] = {}
    for place in old:
        for part in (place, *_layers(place, stacks)):
            found.setdefault(_key(part), []).append(part)
    written = _written(old_tx), _written(new_tx)
    start = new_tx.init(params)
    fresh, treedef = jax.tree.flatten(start, is_leaf=lambda x: isinstance(x, Quantized))
    targets = list(places(jax.eval_shape(decoded, start), params))
    common = _common_count(old)
    sources = [_source(target, found.get(_key(target), []), targets, common) for target in targets]
    used: set[str] = set()
    for i, target in enumerate(targets):
        if sources[i] is None and (parts := _of_layers(target, found, stacks)):
            sources[i] = parts[0]._replace(leaf=jnp.stack([part.leaf for part in parts]))
            used.update(part.path for part in parts)
    reasons = [_refusal(source, target, written) for source, target in zip(sources, targets, strict=True)]
    anew = _begun_anew(targets, reasons)
    kept: dict[str, str] = {}
    why: dict[str, str] = {}
    leaves = []
    for target, leaf, source, reason in zip(targets, fresh, sources, reasons, strict=True):
        if reason is None and (_is_count(target) or not target.scalar) and _root(target) in anew:
            reason = "its moments begin anew"
        if isinstance(source, Place) and reason is None:
            kept[target.path] = source.path
            leaves.append(encoded(source.leaf, leaf))
        else:
            why[target.path] = str(reason)
            leaves.append(leaf)
    used.update(kept.values())
    dropped = tuple(place.path for place in old if place.path not in used and not _superseded(place))
    report = Migration(kept, why, dropped, tuple(tree.leaves_by_path(params)))
    return once(jax.tree.unflatten(treedef, leaves), params), report


def _stacks(params: PyTree) -> dict[str, list[str]]:
    """The paths of what `optim.stacked` would make of several parameters -> theirs, in order."""
    known = jax.tree.leaves(select.leaves(params))
    names, members = named(known, jax.tree.leaves(params))
    return {name: [known[i].path for i in ids] for name, ids in zip(names, members, strict=True) if len(ids) > 1}


def _layers(place: Place, stacks: Mapping[str, list[str]]) -> list[Place]:
    """A stack of layers as places of the layers' own; [] of anything else."""
    parts = tuple(place.inside.split("/"))
    hit = tree.find_param(parts, tuple(stacks)) if place.remembers and place.param is None else None
    paths = stacks["/".join(parts[hit[0] : hit[1]])] if hit else []
    if not hit or np.shape(place.leaf)[0] != len(paths):
        return []
    own = place._replace(inside="/".join(parts[: hit[0]]), rest="/".join(parts[hit[1] :]))
    shape = jax.ShapeDtypeStruct(np.shape(place.leaf)[1:], place.leaf.dtype)

    def row(i: int) -> Any:  # by a number that is given: one program for all of them
        return jax.lax.dynamic_index_in_dim(place.leaf, np.int32(i), keepdims=False)

    abstract = isinstance(place.leaf, jax.ShapeDtypeStruct)
    return [own._replace(param=path, leaf=shape if abstract else row(i)) for i, path in enumerate(paths)]


def _of_layers(target: Place, found: Mapping[Key, list[Place]], stacks: Mapping[str, list[str]]) -> list[Place]:
    """The leaves of which a stack is made; [] where there is none, or one is missing."""
    layers = _layers(target, stacks)
    sources = [_choose(found.get(_key(layer), []), layer) for layer in layers]
    parts = [source for source in sources if isinstance(source, Place)]
    fit = [np.shape(part.leaf) == np.shape(layer.leaf) for part, layer in zip(parts, layers)]
    return parts if all(fit) and len(parts) == len(layers) else []


def _check(state: PyTree, tx: optax.GradientTransformation, params: PyTree) -> None:
    expected, _ = abstract_init(tx, params)
    if jax.tree.structure(expected) != jax.tree.structure(state):
        shown = "; ".join(list(tree.differences(expected, state))[:4])
        raise ValueError(
            f"optim.migrate: old_state is no state of old_tx for these parameters (expected against given): "
            f"{shown or 'another structure'}. Give the optimizer that made it."
        )


def _algorithm(name: str) -> str:
    """`ScaleByAdamState`, `AdamState`, "scale_by_adam" -> "adam"."""
    plain = re.sub(r"^scaleby|state$", "", name.lower().replace("_", ""))
    return _SAME.get(plain, plain)


def _inside(place: Place) -> str:
    return place.inside.removeprefix("hyper/")


def _key(place: Place) -> Key:
    return _algorithm(place.owner), _inside(place), place.param, place.rest


def _is_count(place: Place) -> bool:
    return _inside(place) == "count" and np.ndim(place.leaf) == 0 and jnp.issubdtype(place.leaf.dtype, jnp.integer)


def _choose(candidates: list[Place], target: Place) -> Place | str | None:
    """The leaf to carry over; a text where there are several; None where there is none."""
    for same in (lambda p: p.path == target.path, lambda p: (p.stage, p.group) == (target.stage, target.group)):
        hits = [place for place in candidates if same(place)]
        if len(hits) == 1:
            return hits[0]
    if len(candidates) > 1 and not _equal(candidates):
        return f"could be any of {[place.path for place in candidates]}"
    return candidates[0] if candidates else None


def _equal(candidates: Iterable[Place]) -> bool:
    """Whether scalars have one value."""
    values = [place.leaf for place in candidates]
    if any(np.ndim(v) or isinstance(v, jax.core.Tracer) for v in values):
        return False
    return len({np.asarray(v).item() for v in values}) == 1


def _common_count(old: list[Place]) -> Place | str | None:
    """The one number of updates that the old state has counted."""
    counts = [place for place in old if _is_count(place)]
    return counts[0] if counts and _equal(counts) else None


def _source(target: Place, candidates: list[Place], targets: list[Place], common: Place | str | None) -> Any:
    """As `_choose`; where there is none for a counter without moments, the number that all have counted."""
    source = _choose(candidates, target)
    if source is not None or not _is_count(target):
        return source
    return None if any(p.remembers and p.path.startswith(_root(target)) for p in targets) else common


def _root(place: Place) -> str:
    """The path of the state that holds a leaf."""
    own = [place.inside] if place.param in (None, ".") else [place.inside, str(place.param), place.rest]
    return place.path.removesuffix("/".join(filter(None, own)))


def _begun_anew(targets: list[Place], reasons: list[str | None]) -> set[str]:
    """The states of whose moments none is carried over: a correction by their count would be of other moments."""
    moments = [(_root(p), reason) for p, reason in zip(targets, reasons, strict=True) if p.remembers]
    return {root for root, _ in moments} - {root for root, reason in moments if reason is None}


def _refusal(source: Place | str | None, target: Place, written: tuple[Written, Written]) -> str | None:
    """Why a leaf stays as at the beginning; None where it is carried over."""
    if target.scalar and target.owner != "Metrics" and not _is_count(target):
        now = written[1].get(_hyper_name(target), ["its own"])
        before = written[0].get(_hyper_name(source), ["its own"]) if isinstance(source, Place) else None
        if before != now:
            shown = " and ".join(value if isinstance(value, str) else f"{value:g}" for value in now)
            return f"the new one writes {shown}"
    if source is None:
        return "no counterpart"
    if isinstance(source, str):
        return source
    if np.shape(source.leaf) != np.shape(target.leaf):
        return f"shape {np.shape(target.leaf)}, was {np.shape(source.leaf)}"
    return None


def _superseded(place: Place) -> bool:
    """Whether a leaf is a hyperparameter or a metric, whose successors are told of with the new state."""
    return place.scalar and not _is_count(place)


def _hyper_name(place: Place) -> str:
    """A hyperparameter's full name: `stages/adam/hyper/values/b1` is `adam.b1`."""
    node, _, name = place.path.rpartition("/")
    return f"{short_path(node.rpartition('/')[0])}.{name}".lstrip(".")


def _written(tx: optax.GradientTransformation) -> Written:
    """Full name of each hyperparameter -> what was written: a number, or "a schedule".

    Several where a wrapper's has the name of one that it wraps.
    """
    found: Written = {}
    for path, part in walk(tx):
        if isinstance(part, Transformation) and part.hyper is not None:
            values = {**part.hyper.constants, **dict.fromkeys(part.hyper.schedules, "a schedule")}
            for name, value in values.items():
                found.setdefault(short_path(f"{path}.{name}".lstrip(".").replace(".", "/")), []).append(value)
    return found
