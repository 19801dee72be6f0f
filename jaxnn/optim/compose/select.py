"""Which parameters: predicates by role, path and logical rank, that combine with &, | and ~ and print as they are
written.

A parameter's role and its stacked axes are what its module declared (`tree.declared`, which `fit` puts in force), and
where none did, a guess from rank and name.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from jaxnn import tree
from jaxnn.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What a predicate sees of a parameter.

    Attributes:
        path: `blocks_0/attention/qkv/kernel`.
        shape: With its stacked axes.
        role: Its role and the number of its stacked axes.
        declared: Whether its module said so; else it is a guess.
    """

    path: str
    shape: tuple[int, ...]
    role: tree.Role
    declared: bool

    @property
    def ndim(self) -> int:
        """Logical rank: without the axes that only stack layers."""
        return len(self.shape) - self.role.stacked


@dataclasses.dataclass(frozen=True)
class Predicate:
    """A test of a parameter that prints as it was written.

    Attributes:
        test: `test(leaf) -> bool`.
        text: How it was written.
        masks: Of each mask in it, the paths for which it has an entry.
    """

    test: Callable[[Leaf], bool]
    text: str
    masks: tuple[frozenset[str], ...] = ()

    def __call__(self, leaf: Leaf) -> bool:
        return bool(self.test(leaf))

    def __and__(self, other: "Predicate") -> "Predicate":
        check("optim", other)
        both = self.masks + other.masks
        return Predicate(lambda leaf: self(leaf) and other(leaf), f"({self.text} & {other.text})", both)

    def __or__(self, other: "Predicate") -> "Predicate":
        check("optim", other)
        both = self.masks + other.masks
        return Predicate(lambda leaf: self(leaf) or other(leaf), f"({self.text} | {other.text})", both)

    def __invert__(self) -> "Predicate":
        return Predicate(lambda leaf: not self(leaf), f"~{self.text}", self.masks)

    def __repr__(self) -> str:
        return self.text


def role(*names: str) -> Predicate:
    """Parameters of one of these roles: "matrix", "embedding", "head", "vector", "conv".

    Raises:
        ValueError: If a name is none of them.
    """
    unknown = [name for name in names if name not in tree.ROLES]
    if unknown or not names:
        raise ValueError(f"optim.role: {unknown or 'no name'} is no role. There are {list(tree.ROLES)}.")
    return Predicate(lambda leaf: leaf.role.name in names, f"role({', '.join(map(repr, names))})")


def path(pattern: str) -> Predicate:
    """Parameters in whose path the regular expression is found: `path(r"attention/.*kernel$")`.

    Raises:
        ValueError: If the expression does not compile.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"optim.path: {pattern!r} is no regular expression: {error}.") from error
    return Predicate(lambda leaf: compiled.search(leaf.path) is not None, f"path({pattern!r})")


def ndim(*ranks: int) -> Predicate:
    """Parameters of one of these logical ranks (axes that only stack layers do not count).

    Raises:
        ValueError: If one is no whole number, or there is none.
    """
    wrong = [rank for rank in ranks if isinstance(rank, bool) or not isinstance(rank, int) or rank < 0]
    if wrong or not ranks:
        raise ValueError(f"optim.ndim: {f'{wrong[0]!r} is no rank' if wrong else 'no rank'}. Give whole numbers >= 0.")
    return Predicate(lambda leaf: leaf.ndim in ranks, f"ndim({', '.join(map(str, ranks))})")


def by_mask(mask: PyTree) -> Predicate:
    """Parameters for which a tree of bools, of their structure, says True.

    Raises:
        TypeError: If a leaf of the mask is no bool.
        ValueError: At init, if a parameter has no entry in the mask, or an entry no parameter.
    """
    entries = tree.leaves_by_path(mask)
    for name, value in entries.items():
        if not isinstance(value, bool):
            raise TypeError(f"optim.by_mask: entry {name!r} is {value!r:.60}. Give a tree of bools.")

    paths = frozenset(entries)

    def test(leaf: Leaf) -> bool:
        _check_entry("optim.by_mask", leaf, paths)
        return entries[leaf.path]

    return Predicate(test, f"by_mask({sum(entries.values())} of {len(entries)})", (paths,))


def _check_entry(where: str, leaf: Leaf, mask: frozenset[str]) -> None:
    if leaf.path not in mask:
        raise ValueError(
            f"{where}: leaf {leaf.path!r} {leaf.shape} has no entry in the mask, which has {_listed(sorted(mask))}. "
            "Give a mask of the parameters' structure."
        )


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(paths[:6]) + (f" and {len(paths) - 6} more" if len(paths) > 6 else "") or "none"


otherwise = Predicate(lambda leaf: False, "otherwise")  # the group of what no other group matches
everything = Predicate(lambda leaf: True, "everything")


def leaves(params: PyTree) -> PyTree:
    """A tree like `params` of `Leaf`s."""
    declared = tree.declared_roles()

    def one(name: str, x: Any) -> Leaf:
        known = declared.get(name)
        return Leaf(name, tuple(x.shape), known or tree.guess_role(name, x), known is not None)

    return tree.map_by_path(one, params)


def check_masks(where: str, predicate: Predicate, params: PyTree) -> None:
    """Refuses a predicate with a mask of another structure than the parameters'.

    Raises:
        ValueError: Naming entries without a parameter, or a parameter without an entry.
    """
    if not predicate.masks:
        return
    # Inside a group the other groups' parameters are `optax.MaskedNode()`; a mask of all parameters fits there too.
    nodes = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    known = [tree.path_name(path) for path, _ in nodes]
    for mask in predicate.masks:
        extra = sorted(mask - set(known))
        if extra:
            raise ValueError(
                f"{where}: {predicate!r} has entries for {_listed(extra)}, and the parameters are {_listed(known)}. "
                "Give a mask of the parameters' structure."
            )
        for leaf in jax.tree.leaves(leaves(params)):
            _check_entry(f"{where}: {predicate!r}", leaf, mask)


def check(where: str, predicate: Any) -> Predicate:
    """The predicate itself.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(predicate, Predicate):
        raise TypeError(
            f'{where}: {predicate!r:.60} is no predicate. Write optim.role("matrix"), optim.path(r"regex"), '
            "optim.ndim(2) or optim.otherwise."
        )
    return predicate
