"""`stacked`: an optimizer that sees the layers of a loop as a scan would keep them, one leaf for all of them."""

import collections
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnn import tree
from jaxnn.optim.compose import probe, select
from jaxnn.optim.compose.apart import joined, part, starts
from jaxnn.optim.compose.evaluated import averages
from jaxnn.optim.compose.layers import order, unnumbered
from jaxnn.optim.compose.transformation import (
    KINDS,
    Context,
    Transformation,
    apply_part,
    asks,
    label,
    shared_multiplier,
    walk,
)
from jaxnn.optim.compose.wrapping import inner_of, wrap
from jaxnn.typing import Array, PyTree


class StackedState(NamedTuple):
    """State of `stacked`.

    Attributes:
        inner: The wrapped optimizer's, of the stacked parameters.
    """

    inner: PyTree


def stacked(tx: optax.GradientTransformation) -> Transformation:
    """Applies an optimizer to the parameters as a model that scans over its layers would keep them.

    Leaves of one shape and dtype whose paths differ in numbers alone are one leaf with a stacked axis, named without
    the numbers: `blocks_0/qkv/kernel` to `blocks_11/qkv/kernel` are `blocks/qkv/kernel` [12, ...]; those of a bare
    list are `all`. Every layer is still treated alone, as in any optimizer of this library; parts of optax that go by
    the rank or the norm of a leaf (`optax.lamb`, masks by `ndim`) would not, and are refused. A program that has the
    update in it then has one momentum to move instead of 96, which makes it faster to compile, and `state_specs` may
    split the stack over devices (`zero_axis`), layer by layer. Updates are those of `tx`, random draws included, but
    that blocks of eight bits are cut and rounded otherwise. Gradients of several dtypes are promoted to one in a stack.

        optim.stacked(optim.muon(1e-3))
        optim.stages(muon=optim.stacked(optim.muon_core()), decay=optim.decay(0.1), lr=optim.scale_by_lr(1e-3))

    The price is a copy of gradients and parameters a step, as `flat`, and that the state has no leaf for each
    parameter; `migrate` goes from leaves to stacks and back. Sharded parameters would be gathered.

    Args:
        tx: A whole optimizer or a core; where its update is given no parameters, gradients must have their dtypes. It
            sees paths without numbers: a predicate that asks for `blocks_3` goes around it,
            `optim.groups(NAME=(optim.path("blocks_3"), optim.stacked(...)), ...)`. So do averages.

    Raises:
        TypeError: If `tx` is no gradient transformation.
        ValueError: At init, if `tx` fails on the stacks (a mask of the leaves), averages parameters, or a part of optax
            is seen to update a stack otherwise than its layers (tried on small ones), if leaves that would be one have
            different roles, or two have one path; at trace time, if leaves that are one have different multipliers of a
            rate or decay inside.
    """
    where = "optim.stacked"
    inner = inner_of(where, tx)

    @functools.cache
    def blind() -> str | None:
        """A part of optax that does not know layers in a stack."""
        opaque = [(path, p) for path, p in walk(inner) if isinstance(p, Transformation) and p.facts.get("opaque")]
        seen = (
            f"{path!r} ({label(p)})" if path else label(p) for path, p in opaque if not p.parts and probe.sees_stacks(p)
        )
        return next(seen, None)

    def init(params: PyTree) -> StackedState:
        stacks = _Stacks(where, params)
        if any(len(ids) > 1 for ids in stacks.members) and (part := blind()):
            raise ValueError(
                f"{where}: {part}, tried on two layers, updates their stack otherwise than each of them: by its rank "
                "or its norm, or with noise. Leave it outside, optim.stages(first=..., adam=optim.stacked(...), ...), "
                "or take the library's own rule, which knows stacks (optim.NAME, optim.groups, optim.decay(where=...))."
            )
        try:
            with stacks.declared():
                state = inner.init(stacks.join(params))
        except ValueError as error:
            raise ValueError(
                f"{where}: {label(inner)} fails on the stacks {stacks.names[:6]}{' ...' if stacks.names[6:] else ''}: "
                f"{error} What it holds of masks, labels and paths is for the stacks: ask by role, rank or a path "
                "without numbers, or put it around: optax.masked(optim.stacked(...), mask)."
            ) from error
        found = [node for node in jax.tree.leaves(state, is_leaf=averages) if averages(node)]
        if found:
            raise ValueError(
                f"{where}: {label(inner)} averages parameters ({type(found[0]).__name__}), which are not stacked "
                "where they are read. Put the average around: optim.ema(optim.stacked(...))."
            )
        return StackedState(state)

    def update(
        updates: PyTree, state: StackedState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, StackedState]:
        stacks = _Stacks(where, updates if params is None else params)
        if "grad" in extra:
            extra["grad"] = stacks.join(extra["grad"])
        if "value_fn" in extra:
            extra["value_fn"] = _of_layers(extra["value_fn"], stacks)
        told = stacks.told(where, inner, context)
        weights = None if params is None else stacks.join(params)
        with stacks.declared():
            whole, new = apply_part(inner, stacks.join(updates), state.inner, weights, told, extra)
        return stacks.split(whole), StackedState(new)

    known = inner.facts if isinstance(inner, Transformation) else {}
    facts: dict[str, Any] = {}
    if "assign" in known:
        facts["assign"] = lambda params: _asked(where, params, known["assign"])
    if "multipliers" in known:
        facts["multipliers"] = lambda state, params, kind: _asked(
            where, params, lambda like: known["multipliers"](state.inner, like, kind)
        )
    return wrap("stacked", inner, init, update, facts=facts)


def named(leaves: list[select.Leaf], like: list[Any]) -> tuple[list[str], list[list[int]]]:
    """The stacks' paths, and for each the numbers of its leaves, in the order of their layers."""
    kinds: dict[Any, list[int]] = {}
    for i, (leaf, x) in enumerate(zip(leaves, like, strict=True)):
        kinds.setdefault((unnumbered(leaf.path), leaf.shape, jax.dtypes.canonicalize_dtype(x.dtype)), []).append(i)
    members = [sorted(ids, key=lambda i: order(leaves[i].path)) for ids in kinds.values()]
    return _names([name for name, *_ in kinds], [leaves[ids[0]].path for ids in members]), members


class _Stacks:
    """Which leaves of a tree are one, and under which names.

    Attributes:
        treedef: Of the tree.
        members: For each stack the numbers of its leaves.
        names: The stacks' paths.
        leaves: What predicates see of the leaves.
        like: The leaves.
    """

    def __init__(self, where: str, params: PyTree) -> None:
        self.like, self.treedef = jax.tree.flatten(params)
        self.leaves: list[select.Leaf] = jax.tree.leaves(select.leaves(params))
        self.names, self.members = named(self.leaves, self.like)
        twice, count = next(iter(collections.Counter(self.names).most_common(1)), ("", 0))
        if count > 1:
            raise ValueError(f"{where}: two leaves have the path {twice!r}. Give keys without '/'.")
        for ids in self.members:
            first = self.leaves[ids[0]]
            other = next((self.leaves[i] for i in ids if self.leaves[i].role != first.role), None)
            if other is not None:
                raise ValueError(
                    f"{where}: {first.path!r} and {other.path!r} would be one stack, and their roles are "
                    f"{first.role.name!r} and {other.role.name!r}. Give each its group: "
                    "optim.groups(NAME=(optim.path(...), optim.stacked(...)), ...)."
                )

    def declared(self) -> Any:
        """A context in which the stacks have their leaves' roles, with an axis more that stacks layers."""
        roles = {
            name: first.role._replace(stacked=first.role.stacked + (len(ids) > 1))
            for name, ids in zip(self.names, self.members, strict=True)
            for first in [self.leaves[ids[0]]]
        }
        return tree.declaring(lambda: roles)

    def shapes(self) -> PyTree:
        """The stacks' shapes and dtypes."""
        dtypes = [self.like[ids[0]].dtype for ids in self.members]
        return self._named([jax.ShapeDtypeStruct(self._shape(ids), d) for ids, d in zip(self.members, dtypes)])

    def join(self, values: PyTree) -> PyTree:
        """A tree of arrays like the leaves, stacked."""
        leaves = self.treedef.flatten_up_to(values)
        return self._named([self._one(ids, [leaves[i] for i in ids]) for ids in self.members])

    def split(self, whole: PyTree) -> PyTree:
        """The inverse of `join`."""
        found: list[Any] = [None] * len(self.like)
        known = tree.leaves_by_path(whole)
        rows = [self._rows(ids) for ids in self.members]
        places = starts(*([n] * len(ids) for n, ids in zip(rows, self.members, strict=True)))
        for name, ids, n, at in zip(self.names, self.members, rows, places, strict=True):
            if len(ids) == 1:
                found[ids[0]] = known[name]
                continue
            shape = self.leaves[ids[0]].shape
            flat = jax.lax.reshape(known[name], (len(ids) * n, *shape[1:]))
            for i, start in zip(ids, at, strict=True):
                x = part(flat, start, n)
                found[i] = x if shape else jax.lax.reshape(x, ())
        return jax.tree.unflatten(self.treedef, found)

    def told(self, where: str, inner: optax.GradientTransformation, context: Context | None) -> Context:
        """What the stacks' optimizer is told: of each stack the multiplier that its leaves share.

        Raises:
            ValueError: Naming two leaves that differ, if a rate or a decay would be multiplied.
        """
        told = context or Context()
        for kind in KINDS:
            field = f"{kind}_multipliers"
            given = getattr(told, field) if asks(inner, kind) else None
            if given is None:
                told = told._replace(**{field: None})
                continue
            each = self.treedef.flatten_up_to(given)
            shared = [
                shared_multiplier(where, "stack", kind, {self.leaves[i].path: each[i] for i in ids})
                for ids in self.members
            ]
            told = told._replace(**{field: self._named(shared)})
        return told

    def named(self, values: PyTree) -> PyTree:
        """For each leaf what a tree like the stacks says of its stack."""
        known = tree.leaves_by_path(values)
        found: list[Any] = [None] * len(self.like)
        for name, ids in zip(self.names, self.members, strict=True):
            for i in ids:
                found[i] = known[name]
        return jax.tree.unflatten(self.treedef, found)

    def _rows(self, ids: list[int]) -> int:
        """Entries along the first axis of one leaf; a scalar is one."""
        return (self.leaves[ids[0]].shape or (1,))[0]

    def _shape(self, ids: list[int]) -> tuple[int, ...]:
        shape = self.leaves[ids[0]].shape
        return shape if len(ids) == 1 else (len(ids), *shape)

    def _one(self, ids: list[int], leaves: list[Array]) -> Array:
        if len(ids) == 1:
            return leaves[0]
        dtype = jnp.result_type(*leaves)
        leaves = [jax.lax.convert_element_type(x, dtype) for x in leaves]
        below = joined([x if x.ndim else jax.lax.reshape(x, (1,)) for x in leaves])
        return jax.lax.reshape(below, self._shape(ids))

    def _named(self, values: list[Any]) -> PyTree:
        """A tree of nested dicts with those values under the stacks' names."""
        root: dict[str, Any] = {}
        for name, value in zip(self.names, values, strict=True):
            *above, last = name.split("/")
            node = root
            for entry in above:
                node = node.setdefault(entry, {})
            node[last] = value
        return root


def _of_layers(fn: Callable[..., Any], stacks: _Stacks) -> Callable[..., Any]:
    """An objective of the parameters as one of the stacks, of the same signature: optax reads what else it takes."""

    @functools.wraps(fn)
    def of_stacks(whole: PyTree, *rest: Any, **more: Any) -> Any:
        return fn(stacks.split(whole), *rest, **more)

    return of_stacks


def _asked(where: str, params: PyTree, ask: Callable[[PyTree], PyTree]) -> PyTree:
    """What is said of the stacks, for each leaf; None where nothing is."""
    stacks = _Stacks(where, params)
    with stacks.declared():
        found = ask(stacks.shapes())
    return None if found is None else stacks.named(found)


def _names(short: list[str], whole: list[str]) -> list[str]:
    """The short names; of those that are the same, or of which one would lie inside another, the whole ones."""
    off = _clashing(short)
    mended = [path if k in off else name for k, (name, path) in enumerate(zip(short, whole, strict=True))]
    return whole if _clashing(mended) else mended


def _clashing(names: list[str]) -> set[int]:
    known: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        known.setdefault(name, []).append(k)
    off = {k for same in known.values() if len(same) > 1 for k in same}
    for k, name in enumerate(names):
        for above in _above(name):
            off.update([k, *known[above]] if above in known else [])
    return off


def _above(name: str) -> Iterator[str]:
    entries = name.split("/")
    return ("/".join(entries[:k]) for k in range(1, len(entries)))
