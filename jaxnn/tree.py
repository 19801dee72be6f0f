"""Pytrees by path: names for leaves, norms, and labels by path, role or logical rank.

A leaf's path is its keys joined by "/": `blocks_0/attention/qkv/kernel`. Paths are what checkpoints, errors, tables and
optimizer groups call a leaf, so they are made in one place.
"""

import contextlib
import contextvars
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.typing import Array, PyTree


def key_name(key: Any) -> str:
    """One path entry as text: a dict key, an attribute's name or a sequence index."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def path_name(path: tuple[Any, ...]) -> str:
    """A jax key path as text, entries joined by "/"; the root of a bare leaf is "."."""
    return "/".join(key_name(k) for k in path) or "."


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of `tree` by path, in flattening order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_by_path(fn: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """`jax.tree.map` whose function is given the leaf's path first."""
    return jax.tree_util.tree_map_with_path(lambda path, *xs: fn(path_name(path), *xs), tree, *rest)


def describe(leaf: Any) -> str:
    """A leaf in an error message: `float32[12, 1152]`."""
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is None or dtype is None:
        return f"{type(leaf).__name__} {leaf!r:.60}"
    return f"{dtype}[{', '.join(map(str, shape))}]"


def global_norm(tree: PyTree) -> Array:
    """The L2 norm over all leaves, accumulated in float32 (complex leaves by modulus)."""

    def square(x: Array) -> Array:
        # A product of a vector with itself: several times faster on CPU than a sum of squares.
        flat = x.astype(np.promote_types(x.dtype, np.float32)).reshape(-1)
        return jnp.vdot(flat, flat).real.astype(jnp.float32)

    return jnp.sqrt(sum(map(square, jax.tree.leaves(tree)), start=jnp.zeros((), jnp.float32)))


def size(tree: PyTree) -> int:
    """Number of elements in all leaves."""
    return sum(int(x.size) for x in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
    """Bytes of all leaves, of arrays or of shapes."""
    return sum(int(x.size) * x.dtype.itemsize for x in jax.tree.leaves(tree))


class Role(NamedTuple):
    """What a parameter is, as its module declared it.

    Attributes:
        name: "matrix", "embedding", "head", "vector" or "conv".
        stacked: Leading axes that only stack layers (1 under a scan over layers); logical rank is `ndim - stacked`.
    """

    name: str
    stacked: int = 0


ROLES = ("matrix", "embedding", "head", "vector", "conv")


def guess_role(path: str, leaf: Any) -> Role:
    """The role of a parameter whose module declared none, from its rank and its name."""
    rank = len(leaf.shape)
    name = path.rsplit("/", 1)[-1]
    if rank < 2:
        return Role("vector")
    if "embed" in name:
        return Role("embedding")
    if rank == 2:
        return Role("head" if re.search(r"(^|/)(lm_)?head(/|$)", path) else "matrix")
    return Role("conv") if rank >= 3 and name == "kernel" else Role("matrix", rank - 2)


def roles(params: PyTree, declared: Mapping[str, Role] | None = None) -> PyTree:
    """A tree like `params` of `Role`s: the declared one where there is one, else a guess."""
    declared = declared or {}
    return map_by_path(lambda path, leaf: declared.get(path) or guess_role(path, leaf), params)


def labels(params: PyTree, rules: Mapping[str, Callable[[str, Any], bool]], otherwise: str | None = None) -> PyTree:
    """A tree like `params` of group names, for `optax.partition`: the one rule that a leaf matches.

    Args:
        params: Parameters, or their shapes.
        rules: Group name -> predicate of (path, leaf).
        otherwise: The group of leaves that no rule matches.

    Raises:
        ValueError: If a leaf matches no rule and there is no `otherwise`, or matches two.
    """

    def label(path: str, leaf: Any) -> str:
        hits = [name for name, rule in rules.items() if rule(path, leaf)]
        if len(hits) > 1:
            raise ValueError(
                f"tree.labels: leaf {path!r} {describe(leaf)} matches {hits}. Make the rules exclude each other."
            )
        if not hits and otherwise is None:
            raise ValueError(
                f"tree.labels: leaf {path!r} {describe(leaf)} matches no rule. Tried: {list(rules)}. "
                "Add otherwise=NAME."
            )
        return hits[0] if hits else str(otherwise)

    return map_by_path(label, params)


def differences(left: PyTree, right: PyTree) -> Iterator[str]:
    """Where two trees differ in structure, shape or dtype: one readable line a leaf."""
    a, b = leaves_by_path(left), leaves_by_path(right)
    for path in sorted(a.keys() | b.keys()):
        if path not in b:
            yield f"{path}: {describe(a[path])} is only in the first"
        elif path not in a:
            yield f"{path}: {describe(b[path])} is only in the second"
        elif describe(a[path]) != describe(b[path]):
            yield f"{path}: {describe(a[path])} against {describe(b[path])}"


Declared = Callable[[], Mapping[str, Role]]
_declared: contextvars.ContextVar[Declared] = contextvars.ContextVar("jaxnn_roles", default=dict)


@contextlib.contextmanager
def declaring(roles: Declared) -> Iterator[None]:
    """While inside, `declared_roles` gives `roles()`: what a task's modules declared, for optimizers to group by.

    It is called at most once, and only if something asks: finding the roles traces the model's initialisers.
    """
    token = _declared.set(functools.cache(roles))
    try:
        yield
    finally:
        _declared.reset(token)


def declared_roles() -> Mapping[str, Role]:
    """The roles by path that are in force; {} where nothing declared any."""
    return _declared.get()()


@functools.lru_cache(maxsize=64)
def _by_tail(params: tuple[str, ...]) -> tuple[frozenset[tuple[str, ...]], dict[str, list[int]]]:
    """Parameter paths; and by their last part how long they are, longest first."""
    paths = frozenset(tuple(path.split("/")) for path in params)
    lengths: dict[str, set[int]] = {}
    for parts in paths:
        lengths.setdefault(parts[-1], set()).add(len(parts))
    return paths, {tail: sorted(sizes, reverse=True) for tail, sizes in lengths.items()}


def find_param(parts: tuple[str, ...], params: tuple[str, ...]) -> tuple[int, int] | None:
    """Where in a path a parameter's path stands: the rightmost, then the longest; [start, end), or None."""
    paths, lengths = _by_tail(params)
    for end in range(len(parts), 0, -1):
        for size in lengths.get(parts[end - 1], ()):
            if end >= size and parts[end - size : end] in paths:
                return end - size, end
    return None
