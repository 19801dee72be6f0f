"""Leaves of one shape as one stacked computation: smaller programs, and larger matrix products."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn import tree
from jaxnn.optim.compose import select
from jaxnn.optim.compose.places import Place, places
from jaxnn.optim.compose.transformation import KINDS, Context, Transformation, apply_part, asks, label, walk
from jaxnn.optim.compose.wrapping import inner_of
from jaxnn.typing import Array, PyTree


def batched(tx: optax.GradientTransformation) -> Transformation:
    """Applies a transformation once to all leaves of the same shape and role, stacked.

    Compiling Newton-Schulz iterations for 96 matrices takes 96 times as long as for one; of one shape, they are one
    batched product. Only the program changes: the state is that of `tx`, leaf by leaf, so that paths, specs,
    checkpoints and `migrate` know no difference, and it can be taken away again. Stacking copies the leaves once a
    step, which matrix iterations do not notice and elementwise optimizers do.

    Args:
        tx: A transformation that works leaf by leaf (`muon_core`, `soap_core`, `adam_core`). What couples leaves, like
            clipping by the global norm, belongs outside; it is refused where its state shows it.

    Raises:
        ValueError: If there are groups inside, or what draws at random; at trace time, if state that all leaves share
            depends on them.
    """
    where = "optim.batched"
    inner = inner_of(where, tx)
    if any(isinstance(part, Transformation) and "assign" in part.facts for _, part in walk(inner)):
        raise ValueError(
            f"{where}: {label(inner)} has groups inside. Write optim.groups(NAME=(predicate, optim.batched(...)), ...)."
        )

    draws = [part for _, part in walk(inner) if isinstance(part, Transformation) and part.facts.get("draws")]
    if draws:
        raise ValueError(
            f"{where}: {label(draws[-1])} draws at random by layer, and would draw the same for all of a batch. Leave "
            "it as it is, or outside: optim.with_state_dtype(optim.batched(...), ...)."
        )

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        context = context or Context()
        multiplied = context.lr_multipliers is not None or context.decay_multipliers is not None
        if multiplied and any(asks(inner, kind) for kind in KINDS):
            raise ValueError(
                f"{where}: {label(inner)} asks for the groups' multipliers, which are the leaves' own. Put rate and "
                "decay outside: optim.stages(muon=optim.batched(optim.muon_core()), decay=..., lr=...)."
            )
        context = context._replace(lr_multipliers=None, decay_multipliers=None)
        passed = {name: value for name, value in extra.items() if name != "grad"}

        def run(grads: PyTree, weights: PyTree, part: PyTree) -> tuple[PyTree, PyTree]:
            return apply_part(inner, grads, part, weights, context, passed)

        flat, treedef = jax.tree.flatten(updates)
        weights = None if params is None else jax.tree.leaves(params)
        known = jax.tree.leaves(select.leaves(updates if params is None else params))
        held = tree.leaves_by_path(state)
        new_updates, new_held = list(flat), dict(held)
        for members in _alike(known, flat, weights):
            mine = _Stack(
                treedef,
                members,
                [known[i].path for i in members],
                len(flat),
                jax.tree.leaves(updates if params is None else params),
            )
            found, new = mine.update(inner, run, flat, weights, held, where)
            for i, u in zip(members, found):
                new_updates[i] = u
            new_held |= new
        restored = tree.map_by_path(lambda path, _: new_held[path], state)
        return jax.tree.unflatten(treedef, new_updates), restored

    known = inner.facts if isinstance(inner, Transformation) else {}
    facts = {name: fact for name, fact in known.items() if name != "elementwise"}  # the state is the inner one's
    return Transformation(inner.init, update, name="batched", parts={"": inner}, wants_context=True, facts=facts)


def _alike(known: Sequence[select.Leaf], grads: Sequence[Array], weights: Sequence[Array] | None) -> list[list[int]]:
    """The numbers of leaves that may be stacked: equal in shape, dtypes and role."""
    found: dict[Any, list[int]] = {}
    for i, leaf in enumerate(known):
        key = leaf.shape, leaf.role, grads[i].dtype, None if weights is None else weights[i].dtype
        found.setdefault(key, []).append(i)
    return list(found.values())


@dataclasses.dataclass(frozen=True)
class _Stack:
    """Leaves of one kind, computed as one: in the first one's place, with `optax.MaskedNode()` in all others.

    Attributes:
        treedef: Of the parameters.
        members: Their numbers.
        paths: Their paths.
        size: Number of all leaves.
        like: All parameters, for their shapes.
    """

    treedef: Any
    members: list[int]
    paths: list[str]
    size: int
    like: list[Any]

    def alone(self, x: Any) -> PyTree:
        """A tree with nothing but `x`, in the first member's place."""
        return jax.tree.unflatten(
            self.treedef, [x if i == self.members[0] else optax.MaskedNode() for i in range(self.size)]
        )

    def update(
        self,
        inner: optax.GradientTransformation,
        run: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
        grads: Sequence[Array],
        weights: Sequence[Array] | None,
        held: Mapping[str, Array],
        where: str,
    ) -> tuple[list[Array], dict[str, Array]]:
        """The members' updates, and their new state by path."""
        first = self.like[self.members[0]]
        shape = self.alone(jax.ShapeDtypeStruct(np.shape(first), first.dtype))
        abstract = jax.eval_shape(inner.init, shape)
        found = list(places(abstract, shape))
        own = [place.param is not None for place in found]
        joint = [p.path for p, mine in zip(found, own) if not mine and np.shape(held[p.path]) != np.shape(p.leaf)]
        if joint:
            raise _coupled(where, inner, f"its state {joint} holds all of them in one array")
        given = [
            jnp.stack([held[_path(place, path)] for path in self.paths]) if mine else held[place.path]
            for place, mine in zip(found, own)
        ]
        stacked = [jnp.stack([x[i] for i in self.members]) for x in (grads, weights) if x is not None]

        def one(leaves: list[Array], g: Array, p: Array | None = None) -> tuple[Array, list[Array]]:
            part = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
            u, new = run(self.alone(g), None if p is None else self.alone(p), part)
            return jax.tree.leaves(u)[0], jax.tree.leaves(new)

        axes = [0 if mine else None for mine in own]
        try:
            updates, new = jax.vmap(one, in_axes=(axes, *(0 for _ in stacked)), out_axes=(0, axes))(given, *stacked)
        except ValueError as error:
            if "out_axes" not in str(error):
                raise
            shared = [place.path for place, mine in zip(found, own) if not mine]
            text = f"of its state {shared}, which all of them share, some depends on a gradient"
            raise _coupled(where, inner, text) from error
        state = {
            _path(place, path) if mine else place.path: leaf[i] if mine else leaf
            for place, mine, leaf in zip(found, own, new, strict=True)
            for i, path in enumerate(self.paths)
        }
        return [updates[i] for i in range(len(self.members))], state


def _coupled(where: str, inner: optax.GradientTransformation, how: str) -> ValueError:
    return ValueError(
        f"{where}: {label(inner)} couples leaves: {how}. Put what couples them outside: "
        "optim.stages(clip=..., muon=optim.batched(...))."
    )


def _path(place: Place, param: str) -> str:
    """The path of the leaf that is to `param` what this one is to its own."""
    end = f"/{place.rest}" if place.rest else ""
    before = place.path.removesuffix(f"{place.param}{end}") if place.param != "." else place.path
    return f"{before}{param}{end}" if place.param != "." else place.path
