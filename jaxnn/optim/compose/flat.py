"""`flat`: an elementwise optimizer on few vectors, for parameters in thousands of leaves."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn import tree
from jaxnn.optim.compose.apart import joined, part, starts
from jaxnn.optim.compose.in_place import update_in_place
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

_LARGE = 8_192  # elements from which on a leaf's part is written where it lies
_BUNCH = 64  # such leaves in one vector: XLA's time to compile grows faster than the writes to one


class FlatState(NamedTuple):
    """State of `flat`.

    Attributes:
        inner: The wrapped optimizer's, of vectors by name: `small` for all leaves below 8,192 elements (those of one
            size side by side, sizes in the order in which the parameters' first of each comes), `large_000`, ... for
            64 of the others each.
    """

    inner: PyTree


def flat(tx: optax.GradientTransformation) -> Transformation:
    """Applies an elementwise optimizer to few vectors of many leaves; its state is these vectors.

    XLA's time to compile grows with the instructions and kernels that an optimizer needs for every leaf, and the time
    to call a program with the arrays that it takes and gives. Small leaves are one vector, so that of AdamW's three
    kernels a leaf one is left, which adds its part of the vector, in any program that the update is part of. Large
    leaves, of 8,192 elements or more, would be copied for longer than their kernels take: of these only the state lies
    in vectors, and on one CPU device it is written there, part after part; that compiles no faster than leaf by leaf.

    The price is that the state has no leaf for each parameter: `state_specs` splits vectors as a whole (by `zero_axis`
    where that divides their size), a checkpoint of it wants the same leaves in the same order, and `migrate` from a
    state by leaves begins anew. It is for many leaves that are replicated; sharded ones would be gathered.

        optim.flat(optim.adamw(1e-3))  # fewest kernels and arrays
        optim.stages(adam=optim.flat(optim.adamw_core()), decay=optim.decay(0.01, where=matrices), lr=...)

    Args:
        tx: A core that treats each element alone: `adam_core`, `adamw_core`, `sgd_core`, `rmsprop_core`,
            `adagrad_core`, `lion_core`, `amsgrad_core`, `nadam_core`, `radam_core`, `ademamix_core`; or `stages` of
            such cores, `scale_by_lr`, `clip_by_global_norm` and a `decay` of everything, in `skip_nonfinite` or
            `loss_scale` too. What asks which leaf an element is of (`groups`, `decay(where=...)`, norms of layers) and
            `with_state_dtype` go around it.

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
        dtype = _dtype(where, "parameters", params)
        zeros = {name: jnp.zeros((sum(sizes[i] for i in row),), dtype) for name, row in _rows(sizes).items()}
        return FlatState(inner.init(zeros))

    def update(
        updates: PyTree, state: FlatState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, FlatState]:
        leaves, treedef = jax.tree.flatten(updates)
        weights = jax.tree.leaves(params) if reads_params and params is not None else None
        dtype = _dtype(where, "gradients", updates)
        if weights is not None:
            _dtype(where, "parameters", params)
        rows = _rows([x.size for x in leaves])
        shared = _shared(where, inner, context)
        plain = (context or Context())._replace(**dict.fromkeys(shared))

        def run(held: PyTree, grads: PyTree, weights: PyTree) -> tuple[PyTree, PyTree]:
            told = {name: jax.tree.map(lambda _, m=m: m, grads) for name, m in shared.items() if m is not None}
            return apply_part(inner, grads, held, weights, plain._replace(**told), extra)

        found = None
        apart = {name: row for name, row in rows.items() if name != _SMALL and len(row) > 1}
        if apart and jax.default_backend() == "cpu" and jax.device_count() == 1:  # over several it might be sharded
            given = [None if x is None else _by_row(x, rows, apart) for x in (leaves, weights)]
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), given[0])
            found = update_in_place(run, state.inner, jax.eval_shape(inner.init, shapes), *given)
        if found is None:
            given = [None if x is None else _by_row(x, rows, {}) for x in (leaves, weights)]
            found = run(state.inner, *given)
        new_updates, new = found
        result: list[Any] = [None] * len(leaves)
        for name, row in rows.items():
            mine = new_updates[name]
            if not isinstance(mine, list):
                (places,) = starts([leaves[i].size for i in row])
                mine = [part(mine, start, leaves[i].size) for i, start in zip(row, places, strict=True)]
            for i, u in zip(row, mine, strict=True):
                result[i] = jax.lax.reshape(u, leaves[i].shape)
        return jax.tree.unflatten(treedef, result), FlatState(new)

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


_SMALL = "small"


def _rows(sizes: Sequence[int]) -> dict[str, list[int]]:
    """The leaves of each vector, by its name; those of one size in succession."""
    groups: dict[int, list[int]] = {}
    for i, size in enumerate(sizes):
        groups.setdefault(size, []).append(i)
    small = [i for size, row in groups.items() if size < _LARGE for i in row]
    large = [i for size, row in groups.items() if size >= _LARGE for i in row]
    rows = {_SMALL: small} if small or not large else {}
    return rows | {f"large_{i // _BUNCH:03d}": large[i : i + _BUNCH] for i in range(0, len(large), _BUNCH)}


def _by_row(leaves: Sequence[Array], rows: Mapping[str, Sequence[int]], apart: Collection[str]) -> PyTree:
    """Each row's leaves in one vector; those of the rows `apart` as a list."""

    def vector(row: Sequence[int]) -> Array:
        parts = [jax.lax.reshape(leaves[i], (leaves[i].size,)) for i in row]
        return joined(parts) if parts else jnp.zeros((0,), jnp.float32)

    return {name: [leaves[i] for i in row] if name in apart else vector(row) for name, row in rows.items()}


def _shared(where: str, inner: Transformation, context: Context | None) -> dict[str, Any]:
    """The fields of a context that are the leaves' multipliers: of each the one that all of them share, or None.

    Raises:
        ValueError: Naming two leaves that differ, if a rate or a decay would be multiplied.
    """
    found = {}
    for kind in KINDS:
        field = f"{kind}_multipliers"
        given = getattr(context, field) if context is not None and asks(inner, kind) else None
        known = {} if given is None else tree.leaves_by_path(given)
        found[field] = shared_multiplier(where, "vector", kind, known)
    return found


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
