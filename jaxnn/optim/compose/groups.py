"""Parameter groups: each leaf belongs to exactly one, or to the one `otherwise`; nothing passes through unseen."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnn import tree
from jaxnn.optim.compose import rates, select
from jaxnn.optim.compose.stable import stable
from jaxnn.optim.compose.transformation import (
    KINDS,
    Context,
    Transformation,
    apply_part,
    check,
    products,
)
from jaxnn.optim.hyper import NONNEGATIVE, Hyperparameters, Hypers
from jaxnn.typing import Array, PyTree


class Group(NamedTuple):
    """One group: which parameters, what is done with their gradients, and multipliers of the rate and the decay that
    `stages` applies later. Make it by `group`."""

    where: select.Predicate
    tx: optax.GradientTransformation
    lr: float = 1.0
    decay: float = 1.0
    may_be_empty: bool = False


def group(
    where: select.Predicate,
    tx: optax.GradientTransformation,
    *,
    lr: float = 1.0,
    decay: float = 1.0,
    may_be_empty: bool = False,
) -> Group:
    """A group with multipliers: `groups(embed=group(role("embedding"), adam_core(), lr=0.1, decay=0.0), ...)`.

    Args:
        where: Which parameters.
        tx: What is done with their gradients.
        lr: Multiplies the rate of the `stages` around; >= 0. Hyperparameter `NAME_lr` where it is not 1.
        decay: Multiplies their weight decay, and that of a stage within the group; >= 0. Hyperparameter `NAME_decay`
            where it is not 1. Of groups within groups all multiply. It reaches `optim.decay` in `optim.stages`; optax's
            decay, and any that stands beside the groups in an `optax.chain`, does not see it.
        may_be_empty: Whether no leaf may match; else that is an error.
    """
    return Group(where, tx, lr, decay, may_be_empty)


class GroupsState(NamedTuple):
    """State of `groups`: each group's own, whose trees hold `optax.MaskedNode()` in other groups' places."""

    groups: dict[str, PyTree]
    hyper: Hypers


def assign(params: PyTree, named: Mapping[str, Group], where: str = "optim.groups") -> PyTree:
    """A tree like `params` of group names.

    Raises:
        ValueError: If a leaf matches two groups, or none and there is no `otherwise`; or if a group matches no leaf.
    """
    catch_all = next((name for name, g in named.items() if g.where is select.otherwise), None)
    tried = ", ".join(f"{name}={g.where!r}" for name, g in named.items())
    used: set[str] = set()

    def one(leaf: select.Leaf) -> str:
        hits = [name for name, g in named.items() if g.where is not select.otherwise and g.where(leaf)]
        shown = f"leaf {leaf.path!r} {leaf.shape}, role {leaf.role.name!r}{'' if leaf.declared else ' (a guess)'},"
        if len(hits) > 1:
            raise ValueError(
                f"{where}: {shown} matches {hits}. Tried: {tried}. Make them exclude each other: "
                f"{hits[1]}=({named[hits[1]].where!r} & ~{named[hits[0]].where!r}, ...)."
            )
        if not hits and catch_all is None:
            raise ValueError(f"{where}: {shown} matches no group. Tried: {tried}. Add NAME=(optim.otherwise, ...).")
        used.add(hits[0] if hits else str(catch_all))
        return hits[0] if hits else str(catch_all)

    labels = jax.tree.map(one, select.leaves(params))
    unused = [name for name, g in named.items() if name not in used and name != catch_all and not g.may_be_empty]
    if unused and jax.tree.leaves(params):
        paths = [leaf.path for leaf in jax.tree.leaves(select.leaves(params))]
        shown = ", ".join(paths[:6]) + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")
        raise ValueError(
            f"{where}: group {unused[0]!r} = {named[unused[0]].where!r} matches no leaf of {shown}. Correct its "
            "predicate, or leave the group out."
        )
    return labels


def _lift(name: str, value: Any) -> Group:
    where = f"optim.groups: {name!r}"
    if isinstance(value, Group):
        made = value
    elif isinstance(value, tuple) and not isinstance(value, optax.GradientTransformation) and len(value) == 2:
        made = Group(*value)
    else:
        raise TypeError(f"{where} must be (predicate, transformation) or optim.group(...), got {value!r:.60}.")
    select.check(where, made.where)
    return made._replace(tx=stable(check("optim.groups", name, made.tx)))


def groups(**named: Group | tuple[select.Predicate, optax.GradientTransformation]) -> Transformation:
    """Each group of parameters through its own transformation.

    Every leaf must match exactly one predicate; the one group whose predicate is `optim.otherwise` takes the rest.
    `optim.frozen` is a transformation that leaves its group as it is: decay around it passes it by. Norms outside stay
    global; a group's own transformation sees only its leaves. `optim.summary` prints the assignment.

    Args:
        named: Name -> (predicate, transformation), or `optim.group(...)` with multipliers.

    Raises:
        TypeError: If a group is something else.
        ValueError: If two groups are `otherwise`, some have a rate of their own and others none, or the decay that is
            to be multiplied is part of a rule; at init, what optax hides of that in closures, as far as a trial tells;
            at init and trace time as in `assign`; at trace time, if a multiplier finds no rate.
    """
    members = {name: _lift(name, value) for name, value in named.items()}
    rest = [name for name, g in members.items() if g.where is select.otherwise]
    if len(rest) > 1 or not members:
        raise ValueError(f"optim.groups: {rest or 'no group'}: give groups, of which at most one is optim.otherwise.")
    parts, lr, decay = ({name: getattr(g, kind) for name, g in members.items()} for kind in ("tx", "lr", "decay"))
    rates.check_groups("optim.groups", parts, lr, decay)
    numbers: dict[str, Any] = {f"{n}_{kind}": getattr(g, kind) for n, g in members.items() for kind in ("lr", "decay")}
    numbers = {name: value for name, value in numbers.items() if value != 1.0}
    hyper = Hyperparameters("optim.groups", domains=dict.fromkeys(numbers, NONNEGATIVE), **numbers)

    still = {name for name, g in members.items() if isinstance(g.tx, Transformation) and g.tx.facts.get("frozen")}

    def multiplier(h: Mapping[str, Array], name: str, kind: str) -> Array | None:
        """A group's own, None where it is 1; what is frozen does not decay either."""
        return jnp.zeros((), jnp.float32) if kind == "decay" and name in still else h.get(f"{name}_{kind}")

    def split(labels: list[str], values: PyTree) -> dict[str, PyTree]:
        leaves, treedef = jax.tree.flatten(values)
        masked = {
            name: [x if at == name else optax.MaskedNode() for at, x in zip(labels, leaves, strict=True)]
            for name in members
        }
        return {name: jax.tree.unflatten(treedef, xs) for name, xs in masked.items()}

    def init(params: PyTree) -> GroupsState:
        rates.check_groups("optim.groups", parts, lr, decay, tried=True)  # not before: a trial starts the backend
        for name, g in members.items():
            select.check_masks(f"optim.groups: {name!r}", g.where, params)
        own = split(jax.tree.leaves(assign(params, members)), params)
        return GroupsState({name: g.tx.init(own[name]) for name, g in members.items()}, hyper.init())

    def update(
        updates: PyTree, state: GroupsState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, GroupsState]:
        structure, like = jax.tree.structure(updates), updates if params is None else params
        labels = jax.tree.leaves(assign(like, members))
        values = split(labels, updates)
        weights = split(labels, params) if params is not None else dict.fromkeys(members)
        told = context or Context()
        _check_rate(told, {name: numbers[f"{name}_lr"] for name in members if f"{name}_lr" in numbers})
        grad = split(labels, extra["grad"]) if extra.get("grad") is not None else None
        fields = {kind: f"{kind}_multipliers" for kind in KINDS}
        given = {kind: split(labels, whole) for kind, at in fields.items() if (whole := getattr(told, at)) is not None}
        h, hypers = hyper.at(state.hyper)
        states: dict[str, PyTree] = {}
        merged: list[Any] = [None] * len(labels)
        for name, g in members.items():
            # What a line search asks of the objective is a group's own: its gradient, its value at the group's leaves.
            passed = dict(extra) if grad is None else {**extra, "grad": grad[name]}
            if params is not None and "value_fn" in extra:
                passed["value_fn"] = _beside(extra["value_fn"], params)
            mine = told
            for kind, field in fields.items():
                own, theirs = multiplier(h, name, kind), given[kind][name] if kind in given else None
                of_leaves = None if own is None else jax.tree.map(lambda _, m=own: m, values[name])
                mine = mine._replace(**{field: products(theirs, of_leaves)})
            new, states[name] = apply_part(g.tx, values[name], state.groups[name], weights[name], mine, passed)
            for i, (at, leaf) in enumerate(zip(labels, structure.flatten_up_to(new), strict=True)):
                if at == name:
                    merged[i] = leaf
        return jax.tree.unflatten(structure, merged), GroupsState(states, hypers)

    inside = {
        name: g.tx.facts["multipliers"]
        for name, g in members.items()
        if isinstance(g.tx, Transformation) and "multipliers" in g.tx.facts
    }

    def multipliers(state: GroupsState, params: PyTree, kind: str) -> PyTree:
        """A tree like `params` of the groups' multipliers and of those of groups inside, or None where all are 1."""
        h, one = hyper.at(state.hyper)[0], jnp.ones((), jnp.float32)
        known = {name: m for name in members if (m := multiplier(h, name, kind)) is not None}
        if not known and not inside:
            return None
        labels, structure = jax.tree.leaves(assign(params, members)), jax.tree.structure(params)
        own = jax.tree.unflatten(structure, [known.get(name, one) for name in labels]) if known else None
        if not inside:
            return own
        parts = split(labels, params)
        trees = {name: fact(state.groups[name], parts[name], kind) for name, fact in inside.items()}
        found = {name: structure.flatten_up_to(tree_of) for name, tree_of in trees.items() if tree_of is not None}
        leaves = [found[name][i] if name in found else one for i, name in enumerate(labels)]
        return products(own, jax.tree.unflatten(structure, leaves) if found else None)

    return Transformation(
        init,
        update,
        name="groups",
        parts={name: g.tx for name, g in members.items()},
        hyper=hyper,
        wants_context=True,
        facts={
            "multipliers": multipliers,
            "assign": lambda params: assign(params, members),
            "where": {name: g.where for name, g in members.items()},
        },
    )


def _masked(x: Any) -> bool:
    """Whether this is another group's place."""
    return isinstance(x, optax.MaskedNode)


def _check_rate(told: Context, multipliers: Mapping[str, float]) -> None:
    """Refuses multipliers of a rate where there is none that shows.

    Raises:
        ValueError: Naming the first group.
    """
    if multipliers and told.lr is None:
        name, value = next(iter(multipliers.items()))
        raise ValueError(
            f"optim.groups: group {name!r} has lr={value!r:.20}, and around the groups no rate that it multiplies: "
            "optax hides its own. Put the groups and optim.scale_by_lr into one optim.stages."
        )


def _beside(fn: Callable[..., Any], params: PyTree) -> Callable[..., Any]:
    """An objective of all parameters as one of a group's, the others as they are; of the same signature, which optax
    reads for what else it takes."""

    @functools.wraps(fn)
    def of_group(own: PyTree, *rest: Any, **more: Any) -> Any:
        whole = jax.tree.map(lambda x, p: p if _masked(x) else x, own, params, is_leaf=_masked)
        return fn(whole, *rest, **more)

    return of_group


def mask(params: PyTree, where: select.Predicate) -> PyTree:
    """A tree like `params` of bools: which leaves match. For optax's `mask=`."""
    return jax.tree.map(lambda leaf: where(leaf), select.leaves(params))


def paths(params: PyTree, where: select.Predicate) -> list[str]:
    """The paths of the leaves that match."""
    return [path for path, hit in tree.leaves_by_path(mask(params, where)).items() if hit]
