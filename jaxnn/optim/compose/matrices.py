"""Parameters as matrices, and matrices of one shape as one stack.

What works on matrices sees each parameter's logical form: axes that only stack layers are a batch, a convolution's
kernel is (everything else, outputs), attention heads may be matrices of their own. Equal shapes are computed in one
batch, so that a hundred matrices are a handful of operations to compile, whether a model scans over its layers or not.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.optim.compose import select
from jaxnn.optim.compose.apart import part, starts
from jaxnn.optim.compose.scaling import full
from jaxnn.typing import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Heads:
    """An attention projection that is several matrices side by side.

    Attributes:
        count: Matrices; it must divide the axis. A fused q, k, v of 12 heads is 36.
        axis: The axis that they share: "out", the last (q, k, v), or "in", the one before it (the output projection).
    """

    count: int
    axis: str = "out"


SplitHeads = Mapping[select.Predicate, int | Heads]


@dataclasses.dataclass(frozen=True)
class View:
    """How one parameter is a batch of matrices [batch, rows, cols]; kernels are (in, out).

    Attributes:
        path: The parameter's path.
        shape: Its shape.
        lead: The batch's shape: stacked axes, then heads.
        rows: Inputs of one matrix; 1 for a vector.
        cols: Outputs of one matrix; 1 for a scalar.
        ndim: The parameter's logical rank.
        heads: How it is split, or None.
        pairs: Whether it is complex, and seen as real: real parts, then imaginary ones, side by side.
    """

    path: str
    shape: tuple[int, ...]
    lead: tuple[int, ...]
    rows: int
    cols: int
    ndim: int
    heads: Heads | None = None
    pairs: bool = False

    @property
    def batch(self) -> int:
        """Matrices in this parameter."""
        return math.prod(self.lead)

    def fold(self, x: Array) -> Array:
        """The parameter's array, or one like it, as [batch, rows, cols]."""
        if self.pairs:
            x = x.reshape(self.batch, self.rows, self.cols // 2)
            return jnp.concatenate([x.real, x.imag], -1)
        if self.heads is None or self.heads.axis == "in":
            return jax.lax.reshape(x, (self.batch, self.rows, self.cols))
        x = x.reshape(-1, self.rows, self.heads.count, self.cols)
        return jnp.swapaxes(x, 1, 2).reshape(self.batch, self.rows, self.cols)

    def unfold(self, x: Array) -> Array:
        """The inverse of `fold`."""
        if self.pairs:
            return jax.lax.complex(*jnp.split(x, 2, -1)).reshape(self.shape)
        if self.heads is None or self.heads.axis == "in":
            return jax.lax.reshape(x, self.shape)
        x = x.reshape(-1, self.heads.count, self.rows, self.cols)
        return jnp.swapaxes(x, 1, 2).reshape(self.shape)

    def wide(self, x: Array) -> Array:
        """`fold`, transposed where that makes the rows the fewer, so that a matrix and a transpose share a shape."""
        x = self.fold(x)
        return jnp.swapaxes(x, 1, 2) if self.rows > self.cols else x

    def unwide(self, x: Array) -> Array:
        """The inverse of `wide`."""
        return self.unfold(jnp.swapaxes(x, 1, 2) if self.rows > self.cols else x)


def layer_norm(leaf: select.Leaf, x: Array) -> Array:
    """The L2 norm of each layer of a parameter, real: [*stacked, 1, ..., 1], or of rank 0 where none are stacked."""
    stacked = leaf.role.stacked
    x = full(x)
    if not stacked:
        flat = x.reshape(-1)
        return jnp.sqrt(jnp.vdot(flat, flat).real)
    squares = jnp.sum(jnp.square(jnp.abs(x)), tuple(range(stacked, x.ndim)), keepdims=True)
    return jnp.sqrt(squares)


def views(
    where: str, params: PyTree, split_heads: SplitHeads | None = None, *, complex_as_pairs: bool = False
) -> list[View]:
    """A view of every leaf, in flattening order.

    Args:
        where: What an error calls the caller.
        params: Parameters, or their shapes.
        split_heads: Which are several matrices.
        complex_as_pairs: Whether complex leaves are seen as real ones, twice as wide.

    Raises:
        ValueError: If a leaf to be split is no matrix, or its axis does not divide.
    """
    known = [_view(where, leaf, split_heads or {}) for leaf in jax.tree.leaves(select.leaves(params))]
    if not complex_as_pairs:
        return known
    return [
        dataclasses.replace(view, cols=2 * view.cols, pairs=True) if jnp.iscomplexobj(p) else view
        for view, p in zip(known, jax.tree.leaves(params), strict=True)
    ]


def _view(where: str, leaf: select.Leaf, split_heads: SplitHeads) -> View:
    stacked = leaf.role.stacked
    lead, rest = leaf.shape[:stacked], leaf.shape[stacked:]
    rows, cols = (math.prod(rest[:-1]), rest[-1]) if rest else (1, 1)
    hits = [n if isinstance(n, Heads) else Heads(n) for test, n in split_heads.items() if test(leaf)]
    if not hits:
        return View(leaf.path, leaf.shape, lead, rows, cols, leaf.ndim)
    heads = hits[0]
    size = cols if heads.axis == "out" else rows
    if len(rest) != 2 or size % heads.count:
        raise ValueError(
            f"{where}: split_heads: leaf {leaf.path!r} {leaf.shape} does not split into {heads.count} heads along its "
            f"{heads.axis!r} axis. Tried: {list(split_heads)}. Give a predicate of matrices and a count that divides."
        )
    rows, cols = (rows, cols // heads.count) if heads.axis == "out" else (rows // heads.count, cols)
    return View(leaf.path, leaf.shape, (*lead, heads.count), rows, cols, leaf.ndim, heads)


def check_split_heads(where: str, split_heads: Any) -> SplitHeads:
    """`split_heads` itself.

    Raises:
        TypeError: If it is no mapping of predicates to counts.
        ValueError: If a count is below 1 or an axis unknown.
    """
    split_heads = split_heads or {}
    if not isinstance(split_heads, Mapping):
        raise TypeError(
            f"{where}: split_heads must be {{predicate: count}}, got {split_heads!r:.60}. Write "
            '{optim.path("qkv/kernel"): 36, optim.path("attention_out/kernel"): optim.Heads(12, "in")}.'
        )
    for test, value in split_heads.items():
        select.check(f"{where}: split_heads", test)
        heads = value if isinstance(value, Heads) else Heads(value)
        if isinstance(heads.count, bool) or not isinstance(heads.count, int):
            raise TypeError(f"{where}: split_heads: {test!r} has {heads.count!r:.60} heads. Give a whole number.")
        if heads.count < 1 or heads.axis not in ("out", "in"):
            raise ValueError(f'{where}: split_heads: {test!r} has {heads}. Give a count >= 1 and "out" or "in".')
    return split_heads


def in_stacks(
    fn: Callable[..., tuple[Array, ...]],
    known: Sequence[View],
    *operands: Sequence[Array | np.ndarray],
    by: Sequence[Any] = (),
) -> tuple[list[Array], ...]:
    """`fn` once for all matrices of a shape: the operands of equal views are concatenated, the results taken apart.

    Args:
        fn: `fn(*stacks) -> stacks`, every stack [all matrices of a shape, ...].
        known: Views.
        operands: For each view an array [view.batch, ...]; NumPy's are joined before the program.
        by: What else must be equal within a stack, for each view; dtypes must be in any case.

    Returns:
        For each result of `fn`, the views' own parts [view.batch, ...].
    """
    stacks: dict[Any, list[int]] = {}
    for i in range(len(known)):
        own = tuple((x[i].shape[1:], x[i].dtype) for x in operands)
        stacks.setdefault((own, by[i] if by else None), []).append(i)
    results: list[list[Any]] = []
    places = starts(*([known[i].batch for i in members] for members in stacks.values()))
    for members, where in zip(stacks.values(), places, strict=True):
        alone = len(members) == 1
        joined = [x[members[0]] if alone else _below([x[i] for i in members]) for x in operands]
        for k, whole in enumerate(fn(*joined)):
            if k == len(results):
                results.append([None] * len(known))
            for i, start in zip(members, where, strict=True):
                results[k][i] = whole if alone else part(whole, start, known[i].batch)
    return tuple(results)


def _below(arrays: list[Any]) -> Any:
    """Arrays along their first axis; constants are one constant."""
    return np.concatenate(arrays) if isinstance(arrays[0], np.ndarray) else jax.lax.concatenate(arrays, 0)


def in_wide_stacks(fn: Callable[..., Array], known: Sequence[View], *operands: Sequence[Array]) -> list[Array]:
    """`in_stacks` of whole parameters, seen `wide`: arrays of the parameters' shapes in and out.

    Plain matrices that are not transposed lie below each other in their stack as they are, without an operation each to
    give them a batch's axis.

    Args:
        fn: `fn(*stacks) -> stack`, all [matrices of a shape, rows, cols], rows <= cols.
        known: Views.
        operands: For each view an array of its shape.
    """
    results: list[Any] = [None] * len(known)
    bare = [view.shape == (view.rows, view.cols) and view.rows <= view.cols and not view.pairs for view in known]
    kinds: dict[Any, list[int]] = {}
    for i, view in enumerate(known):
        kind = min(view.rows, view.cols), max(view.rows, view.cols), tuple(x[i].dtype for x in operands)
        kinds.setdefault(kind, []).append(i)
    plain = {kind: members for kind, members in kinds.items() if all(bare[i] for i in members)}
    others = [i for kind, members in kinds.items() if kind not in plain for i in members]
    wide = ([known[i].wide(x[i]) for i in others] for x in operands)
    made = in_stacks(lambda *xs: (fn(*xs),), [known[i] for i in others], *wide) if others else ([],)
    for i, x in zip(others, made[0], strict=True):
        results[i] = known[i].unwide(x)
    places = starts(*([rows] * len(members) for (rows, _, _), members in plain.items()))
    for ((rows, cols, _), members), where in zip(plain.items(), places, strict=True):
        shape = (len(members), rows, cols)
        whole = fn(*(jax.lax.reshape(jax.lax.concatenate([x[i] for i in members], 0), shape) for x in operands))
        whole = jax.lax.reshape(whole, (len(members) * rows, cols))
        for i, start in zip(members, where, strict=True):
            results[i] = part(whole, start, rows)
    return results
