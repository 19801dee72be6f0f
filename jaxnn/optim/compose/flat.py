"""`flat`: an elementwise optimizer on all leaves as one vector, for parameters in thousands of small leaves."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn import tree
from jaxnn.optim.compose.apart import joined, part, starts
from jaxnn.optim.compose.transformation import (
    KINDS,
    Context,
    Transformation,
    apply_part,
    asks,
    check,
    label,
    shared_multiplier,
    walk,
)
from jaxnn.optim.compose.wrapping import wrap
from jaxnn.typing import Array, PyTree


class FlatState(NamedTuple):
    """State of `flat`.

    Attributes:
        inner: The wrapped optimizer's, of one vector: leaves of one size side by side, sizes in the order in which
            the parameters' first of each comes.
    """

    inner: PyTree


def flat(tx: optax.GradientTransformation) -> Transformation:
    """Applies an elementwise optimizer once to one vector of all leaves; its state is vectors too.

    XLA's time to compile grows with the instructions and kernels that an optimizer needs for every leaf: of AdamW's
    three kernels a leaf one is left, which adds its part of the vector, in any program that the update is part of. The
    price is that gradients (and parameters, where `tx` reads them) are copied into the vector, and that the state has
    no leaf for each parameter: `state_specs` splits it as a whole (by `zero_axis` where that divides its size), a
    checkpoint of it wants the same leaves in the same order, and `migrate` from a state by leaves begins anew. It is
    for many small leaves that are replicated; sharded ones would be gathered.

        optim.flat(optim.adamw(1e-3))  # compiles fastest
        optim.stages(adam=optim.flat(optim.adamw_core()), decay=optim.decay(0.01, where=matrices), lr=...)

    Args:
        tx: A core that treats each element alone: `adam_core`, `adamw_core`, `sgd_core`, `rmsprop_core`,
            `adagrad_core`, `lion_core`, `amsgrad_core`, `nadam_core`, `radam_core`, `ademamix_core`; or `stages` of
            such cores, `scale_by_lr`, `clip_by_global_norm` and a `decay` of everything. What asks which leaf an
            element is of (`groups`, `decay(where=...)`, norms of layers) and `with_state_dtype` go around it.

    Raises:
        TypeError: If `tx` is no gradient transformation.
        ValueError: If `tx` is not known to be elementwise; at init and trace time, if leaves differ in dtype, or in
            the multiplier of a rate or decay inside.
    """
    where = "optim.flat"
    inner = check(where, "tx", tx)
    if not isinstance(inner, Transformation) or not inner.facts.get("elementwise"):
        raise ValueError(
            f"{where}: {_culprit(inner)} is not known to be elementwise, and on one vector it might be another "
            "optimizer. What asks which leaf an element is of (groups, decay(where=...), norms of layers) goes around "
            "a core that does not: optim.stages(adam=optim.flat(optim.adam_core()), decay=..., lr=...)."
        )
    reads_params = bool(inner.facts.get("reads_params"))

    def init(params: PyTree) -> FlatState:
        sizes = [math.prod(np.shape(p)) for p in jax.tree.leaves(params)]
        return FlatState(inner.init(jnp.zeros((sum(sizes),), _dtype(where, "parameters", params))))

    def update(
        updates: PyTree, state: FlatState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, FlatState]:
        leaves, treedef = jax.tree.flatten(updates)
        order = _order([x.size for x in leaves])
        vector = _vector(where, "gradients", updates, order)
        weights = _vector(where, "parameters", params, order) if reads_params and params is not None else None
        whole, new = apply_part(inner, vector, state.inner, weights, _of_vector(where, inner, context), extra)
        (places,) = starts([leaves[i].size for i in order])
        found: list[Any] = [None] * len(leaves)
        for i, start in zip(order, places, strict=True):
            found[i] = jax.lax.reshape(part(whole, start, leaves[i].size), leaves[i].shape)
        return jax.tree.unflatten(treedef, found), FlatState(new)

    return wrap("flat", inner, init, update)


def _culprit(tx: optax.GradientTransformation) -> str:
    """The innermost part that keeps a transformation from being elementwise, by its place and name."""
    path, part_ = next(
        (
            (path, inner)
            for path, inner in reversed(list(walk(tx)))
            if not (isinstance(inner, Transformation) and inner.facts.get("elementwise"))
        ),
        ("", tx),
    )
    return f"{path!r} ({label(part_)})" if path else label(part_)


def _vector(where: str, what: str, values: PyTree, order: Sequence[int]) -> Array:
    """All leaves in one vector, in that order."""
    dtype = _dtype(where, what, values)
    leaves = jax.tree.leaves(values)
    if not leaves:
        return jnp.zeros((0,), dtype)
    return joined([jax.lax.reshape(leaves[i], (leaves[i].size,)) for i in order])


def _of_vector(where: str, inner: Transformation, context: Context | None) -> Context:
    """What the vector's optimizer is told: of the leaves' multipliers the one that all of them share.

    Raises:
        ValueError: Naming two leaves that differ, if a rate or a decay would be multiplied.
    """
    told = context or Context()
    for kind in KINDS:
        field = f"{kind}_multipliers"
        given = getattr(told, field) if asks(inner, kind) else None
        known = {} if given is None else tree.leaves_by_path(given)
        told = told._replace(**{field: shared_multiplier(where, "vector", kind, known)})
    return told


def _order(sizes: Sequence[int]) -> list[int]:
    """The leaves, those of one size in succession."""
    groups: dict[int, list[int]] = {}
    for i, size in enumerate(sizes):
        groups.setdefault(size, []).append(i)
    return list(itertools.chain.from_iterable(groups.values()))


def _dtype(where: str, what: str, values: PyTree) -> Any:
    """The dtype of all leaves; float32 where there is none.

    Raises:
        ValueError: Naming two leaves that differ.
    """
    paths: dict[Any, str] = {}
    for path, leaf in tree.leaves_by_path(values).items():
        paths.setdefault(np.dtype(leaf.dtype), path)
    if len(paths) > 1:
        (a, first), (b, second), *_ = paths.items()
        raise ValueError(
            f"{where}: {what} of one vector must have one dtype, and {first!r} is {a}, {second!r} is {b}. Give each "
            "dtype its group: optim.groups(NAME=(predicate, optim.flat(...)), ...)."
        )
    return next(iter(paths), np.dtype(np.float32))
