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
from jaxnn.optim.compose.apart import part, starts
from jaxnn.optim.compose.transformation import Context, Transformation, apply_part, check, label
from jaxnn.optim.compose.wrapping import wrap
from jaxnn.typing import PyTree


class FlatState(NamedTuple):
    """State of `flat`.

    Attributes:
        inner: The wrapped optimizer's, of one vector: leaves of one size side by side, sizes in the order in which
            the parameters' first of each comes.
    """

    inner: PyTree


def flat(tx: optax.GradientTransformation) -> Transformation:
    """Applies an elementwise core once to one vector of all leaves; its state is vectors too.

    XLA's time to compile grows with the number of kernels, which an optimizer needs for every leaf: three of AdamW's
    become one, in any program that the update is part of. The price is that the gradients are copied into the vector,
    and that the state has no leaf for each parameter: `state_specs` splits it as a whole (by `zero_axis` where that
    divides its size), a checkpoint of it wants the same leaves in the same order, and `migrate` from a state by leaves
    begins anew. It is for many small leaves that are replicated; sharded ones would be gathered.

        optim.stages(adam=optim.flat(optim.adamw_core()), decay=optim.decay(0.01), lr=optim.scale_by_lr(1e-3))

    Args:
        tx: A core of which each element of the update depends on that element of the gradients and the state alone:
            `adam_core`, `adamw_core`, `sgd_core`, `rmsprop_core`, `adagrad_core`, `lion_core`, `amsgrad_core`,
            `nadam_core`, `radam_core`, `ademamix_core`. What it is composed with (`stages`, `groups`,
            `with_state_dtype`) goes around it.

    Raises:
        TypeError: If `tx` is no gradient transformation.
        ValueError: If `tx` is not known to be elementwise; at init and trace time, if leaves differ in dtype.
    """
    where = "optim.flat"
    inner = check(where, "tx", tx)
    if not isinstance(inner, Transformation) or inner.parts or not inner.facts.get("elementwise"):
        raise ValueError(
            f"{where}: {label(inner)} is not known to be elementwise, and on one vector it might be another optimizer. "
            "Give a core like optim.adam_core(), and put flat inside what it is composed with: "
            "optim.stages(adam=optim.flat(optim.adam_core()), lr=...)."
        )

    def init(params: PyTree) -> FlatState:
        sizes = [math.prod(np.shape(p)) for p in jax.tree.leaves(params)]
        return FlatState(inner.init(jnp.zeros((sum(sizes),), _dtype(where, "parameters", params))))

    def update(
        updates: PyTree, state: FlatState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, FlatState]:
        del params
        dtype = _dtype(where, "gradients", updates)
        leaves, treedef = jax.tree.flatten(updates)
        order = _order([x.size for x in leaves])
        sizes = [leaves[i].size for i in order]
        vector = jnp.zeros((0,), dtype)
        if leaves:
            vector = jax.lax.concatenate([jax.lax.reshape(leaves[i], (leaves[i].size,)) for i in order], 0)
        whole, new = apply_part(inner, vector, state.inner, None, context or Context(), extra)
        (places,) = starts(sizes)
        found: list[Any] = [None] * len(leaves)
        for i, start, size in zip(order, places, sizes, strict=True):
            found[i] = jax.lax.reshape(part(whole, start, size), leaves[i].shape)
        return jax.tree.unflatten(treedef, found), FlatState(new)

    return wrap("flat", inner, init, update)


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
