"""An elementwise update whose state is vectors, each written where it lies, one leaf's part after the other.

The moments of a thousand leaves are two thousand arrays to hand to a program and to get back, which takes longer than
the arithmetic; in few vectors they are few. But what takes a part out, computes, and puts the result back copies the
whole vector if anything may still read the part that was there before. So the update is traced as if the state lay by
leaves, and evaluated in another order: first every part of a vector is replaced, by what reads no old part but its own;
whatever needs the new parts reads them from the finished vector.
"""

import collections
import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

from jaxnn.optim.compose.apart import Start, part, starts
from jaxnn.optim.compose.split import evaluate
from jaxnn.typing import Array, PyTree


class _Vector(NamedTuple):
    """One vector of the state.

    Attributes:
        at: Its number among the state's leaves.
        shapes: Of its parts.
        places: Where they start.
    """

    at: int
    shapes: tuple[tuple[int, ...], ...]
    places: Sequence[Start]


def update_in_place(
    update: Callable[..., tuple[PyTree, PyTree]], state: PyTree, by_parts: PyTree, *given: PyTree
) -> tuple[PyTree, PyTree] | None:
    """One update of a state of vectors.

    Args:
        update: `update(state by parts, *given) -> (updates, new state by parts)`.
        state: Vectors, and what else an optimizer keeps (counters, hyperparameters).
        by_parts: The shapes of the state by parts: as `state`, with a list of arrays for each vector that is to be
            written in place, in their order there.
        given: What else `update` takes.

    Returns:
        Updates and the new state; None where a vector cannot be finished before its new parts are read, because
        something else reads the old ones (Lion's update does), or they depend on each other.
    """
    leaves, treedef = jax.tree.flatten(state)
    vectors = list(_vectors(treedef.flatten_up_to(by_parts)))
    # XLA writes what it reads in place if both have one shape: state in vectors, parameters as they are.
    flat = _traced(update, state, vectors, [jax.tree.map(_raveled, x) for x in given], flat=True)
    reads = _reads(flat, vectors)
    order = None if reads is None else _order(flat, vectors)
    if reads is None or order is None:
        return None

    env = flat.known(leaves)
    for ready in order:
        own = collections.defaultdict(list)  # old part -> the equations that read it
        for eqn in _needed(flat.eqns, [v for vector in ready for v in flat.new[vector.at]], env):
            own[reads.get(eqn.outvars[0])].append(eqn)
        evaluate(own[None], env)
        for vector in ready:
            whole = leaves[vector.at]
            parts = list(zip(flat.old[vector.at], flat.new[vector.at], vector.places, vector.shapes, strict=True))
            for old, new, start, shape in parts:
                env[old] = part(whole, start, math.prod(shape))
                evaluate(own[old], env)
                # At an index that is visibly the part's, or XLA takes the old part out before.
                whole = jax.lax.dynamic_update_slice(whole, env[new], (start,), allow_negative_indices=False)
            env |= {new: part(whole, start, math.prod(shape)) for _, new, start, shape in parts}
            leaves[vector.at] = whole

    shaped = _traced(update, state, vectors, given, flat=False)
    env = shaped.known(leaves)
    for vector in vectors:
        for new, start, shape in zip(shaped.new[vector.at], vector.places, vector.shapes, strict=True):
            env[new] = jax.lax.reshape(part(leaves[vector.at], start, math.prod(shape)), shape)
    evaluate(_needed(shaped.eqns, shaped.rest(vectors), env), env)

    def value(v: Any) -> Any:
        return v.val if isinstance(v, core.Literal) else env[v]

    found = [leaf if isinstance(v, list) else value(v) for leaf, v in zip(leaves, shaped.new, strict=True)]
    return jax.tree.map(value, shaped.updates), treedef.unflatten(found)


class _Traced(NamedTuple):
    """An update by parts.

    Attributes:
        eqns: Its equations.
        inputs: Variables whose values are known but for the state's, and these values.
        old: The state's variables before; a list for each vector.
        new: Those after.
        updates: Those of the updates.
    """

    eqns: Sequence[Any]
    inputs: Mapping[Any, Any]
    old: list[Any]
    new: list[Any]
    updates: PyTree

    def known(self, leaves: Sequence[Array]) -> dict[Any, Any]:
        """The values of all inputs but the vectors' parts."""
        return {**self.inputs, **{v: x for v, x in zip(self.old, leaves, strict=True) if not isinstance(v, list)}}

    def rest(self, vectors: Sequence[_Vector]) -> list[Any]:
        """The results that are no vector's parts."""
        ours = {v for vector in vectors for v in self.new[vector.at]}
        found = [*(v for v in self.new if not isinstance(v, list)), *jax.tree.leaves(self.updates)]
        return [v for v in found if not isinstance(v, core.Literal) and v not in ours]


def _traced(
    update: Callable[..., tuple[PyTree, PyTree]],
    state: PyTree,
    vectors: Sequence[_Vector],
    given: Sequence[PyTree],
    *,
    flat: bool,
) -> _Traced:
    """The update with the state's parts in their shapes, or all `flat`."""
    leaves, treedef = jax.tree.flatten(state)
    view: list[Any] = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    for vector in vectors:
        shapes = [(math.prod(shape),) if flat else shape for shape in vector.shapes]
        view[vector.at] = [jax.ShapeDtypeStruct(shape, leaves[vector.at].dtype) for shape in shapes]

    def run(view: list[Any], given: Sequence[PyTree]) -> tuple[list[Any], PyTree]:
        updates, new = update(treedef.unflatten(view), *given)
        return treedef.flatten_up_to(new), updates

    closed, shape = jax.make_jaxpr(run, return_shape=True)(view, list(given))
    jaxpr = closed.jaxpr
    old, others = jax.tree.unflatten(jax.tree.structure((view, list(given))), jaxpr.invars)
    new, updates = jax.tree.unflatten(jax.tree.structure(shape), jaxpr.outvars)
    inputs = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    inputs |= zip(jax.tree.leaves(others), jax.tree.leaves(given), strict=True)
    return _Traced(jaxpr.eqns, inputs, old, new, updates)


def _raveled(x: Array) -> Array:
    return jax.lax.reshape(x, (x.size,))


def _vectors(subtrees: Sequence[Any]) -> Iterator[_Vector]:
    """The state's leaves that lie in parts."""
    shapes = {i: tuple(x.shape for x in sub) for i, sub in enumerate(subtrees) if isinstance(sub, list)}
    kinds = list(dict.fromkeys(shapes.values()))
    places = dict(zip(kinds, starts(*([math.prod(s) for s in kind] for kind in kinds)), strict=True))
    for i, kind in shapes.items():
        yield _Vector(i, kind, places[kind])


def _reads(traced: _Traced, vectors: Sequence[_Vector]) -> dict[Any, Any] | None:
    """Variable -> the one old part that it is computed from; what is computed from new parts is none of it.

    Returns:
        None if something is computed from several old parts, a new part from another than its own, or a result that is
        no new part from any; or if a new part is no result of an equation, or two are the same one.
    """
    parts = [v for vector in vectors for v in zip(traced.old[vector.at], traced.new[vector.at], strict=True)]
    before = {new: old for old, new in parts if not isinstance(new, core.Literal)}
    missing = set(before)
    found = {old: old for old, _ in parts}
    for eqn in traced.eqns:
        read = {found[v] for v in _variables(eqn) if v in found and v not in before}
        if len(read) > 1 or any(v in before and read - {before[v]} for v in eqn.outvars):
            return None
        missing -= set(eqn.outvars)
        if read:
            found |= dict.fromkeys(eqn.outvars, read.pop())
    possible = not missing and len(before) == len(parts) and not any(v in found for v in traced.rest(vectors))
    return found if possible else None


def _order(traced: _Traced, vectors: Sequence[_Vector]) -> list[list[_Vector]] | None:
    """Which vectors can be written at once, those first whose new parts others need; None where there is no order."""
    owner = {v: 1 << k for k, vector in enumerate(vectors) for v in traced.new[vector.at]}
    needs: dict[Any, int] = {}  # variable -> the vectors whose new parts it is computed from, a bit each
    wants = dict.fromkeys(owner.values(), 0)
    for eqn in traced.eqns:
        need = functools.reduce(operator.or_, (needs.get(v, 0) for v in _variables(eqn)), 0)
        for v in eqn.outvars:
            needs[v] = need
            if v in owner:
                wants[owner[v]] |= need
                needs[v] |= owner[v]
    order: list[list[_Vector]] = []
    done = 0
    while wants:
        ready = [bit for bit, need in wants.items() if not need & ~done]
        if not ready:
            return None
        order.append([vectors[bit.bit_length() - 1] for bit in ready])
        for bit in ready:
            del wants[bit]
            done |= bit
    return order


def _needed(eqns: Sequence[Any], wanted: Sequence[Any], known: Mapping[Any, Any]) -> list[Any]:
    """The equations, in order, that `wanted` takes beyond what is known."""
    need = {v for v in wanted if v not in known}
    found = []
    for eqn in reversed(eqns):
        if any(v in need for v in eqn.outvars):
            found.append(eqn)
            need |= {v for v in _variables(eqn) if v not in known}
    return found[::-1]


def _variables(eqn: Any) -> Iterator[Any]:
    """What an equation reads."""
    return (v for v in eqn.invars if not isinstance(v, core.Literal))
