"""Low-rank adapters (LoRA) for any model, as pure functions of its parameters.

A model knows nothing of them: it is applied to `apply_lora(params, adapters, spec)`. `train.with_lora` makes a task of
which only the adapters learn.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import rng, tree
from jaxnn.typing import Array, Params

WHERE = "models.lora"


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Which parameters get adapters, and of what size.

    Attributes:
        where: Regular expression; parameters in whose path it is found get one. All matrices of a GPT's blocks are
            "(qkv|attention_out|mlp_[a-z]+)/kernel$".
        rank: r, the inner width of an adapter's two matrices.
        alpha: The product of the two is scaled by alpha / rank.
    """

    where: str = r"(qkv|attention_out)/kernel$"
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: If the rank is below 1, alpha is not positive, or `where` is no regular expression.
        """
        numeric = isinstance(self.rank, int) and isinstance(self.alpha, (int, float))
        if not numeric or self.rank < 1 or not 0 < self.alpha < math.inf:
            raise ValueError(f"{WHERE}: {self}. Tried: rank >= 1 and alpha > 0. Write such values.")
        try:
            re.compile(self.where)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"{WHERE}: where={self.where!r} is no regular expression ({error}). Tried: re.search on paths. Write "
                f"r'qkv/kernel$', say."
            ) from error

    def hits(self, path: str) -> bool:
        """Whether the parameter at `path` gets an adapter."""
        return re.search(self.where, path) is not None


def _matrix(path: str, leaf: Any) -> tuple[tuple[int, ...], int, int]:
    """A parameter as matrices: (stacked axes, in, out). The window and channels of a convolution are its input."""
    shape = tuple(leaf.shape)
    if len(shape) < 2:
        raise ValueError(
            f"{WHERE}: leaf {path!r} {tree.describe(leaf)} has no rank to lower. Tried: matrices. Write a where that "
            f"leaves it out."
        )
    if len(shape) >= 4:
        lead, inner = shape[:-4], shape[-4] * shape[-3] * shape[-2]
    else:
        lead, inner = shape[:-2], shape[-2]
    return lead, inner, shape[-1]


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for path, value in flat.items():
        *parts, last = path.split("/")
        at = out
        for part in parts:
            at = at.setdefault(part, {})
        at[last] = value
    return out


def _pairs(adapters: Params) -> dict[str, dict[str, Array]]:
    """Adapters by the path of their parameter."""
    pairs: dict[str, dict[str, Array]] = {}
    for path, leaf in tree.leaves_by_path(adapters).items():
        of, _, name = path.rpartition("/")
        pairs.setdefault(of, {})[name] = leaf
    return pairs


def check_spec(spec: Any) -> None:
    """Refuses what is no `LoRA`.

    Raises:
        TypeError: Naming it.
    """
    if not isinstance(spec, LoRA):
        raise TypeError(f"{WHERE}: spec is {tree.describe(spec)}. Tried: a LoRA. Write models.LoRA(rank=8), say.")


def init_lora(key: Array, params: Params, spec: LoRA) -> Params:
    """Adapters that change nothing yet: at each path {"a": [..., in, r] normal, "b": [..., r, out] zeros}, float32.

    Args:
        key: Typed key; an adapter's values depend on it and on its path only.
        params: The model's parameters, or their shapes.
        spec: Which and how large.

    Raises:
        ValueError: If no parameter matches, one that does has rank below 2, or its both axes are shorter than the
            adapter's rank.
        TypeError: If the key or the spec is none.

    Source:
        Hu et al. 2022, arXiv:2106.09685.
    """
    check_spec(spec)
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"{WHERE}: key is {tree.describe(key)}. Tried: a typed key. Write jax.random.key(0).")
    found = {}
    leaves = tree.leaves_by_path(params)
    for path, leaf in leaves.items():
        if not spec.hits(path):
            continue
        lead, inner, outer = _matrix(path, leaf)
        if spec.rank > max(inner, outer):
            raise ValueError(
                f"{WHERE}: rank={spec.rank} for leaf {path!r} {tree.describe(leaf)}. Tried: at most {max(inner, outer)}"
                ", beyond which adapters only grow. Write a smaller rank."
            )
        a = jax.random.normal(rng.named_key(key, path), (*lead, inner, spec.rank), jnp.float32) * inner**-0.5
        found[path] = {"a": a, "b": jnp.zeros((*lead, spec.rank, outer), jnp.float32)}
    if not found:
        raise ValueError(
            f"{WHERE}: where={spec.where!r} is found in none of {list(leaves)[:6]}. Tried: re.search on the "
            f"{len(leaves)} paths. Write one that matches."
        )
    return _nested(found)


def _check_pairs(leaves: dict[str, Any], pairs: dict[str, dict[str, Array]], spec: LoRA) -> None:
    """Refuses adapters of no parameter, half ones, and ones of another shape or rank: the scale would be another's."""
    if unknown := pairs.keys() - leaves.keys():
        raise ValueError(
            f"{WHERE}: adapters for {sorted(unknown)[:3]}, which the parameters have not. Tried: the parameters they "
            f"were made for. Give those."
        )
    for path, pair in pairs.items():
        if pair.keys() != {"a", "b"}:
            raise ValueError(
                f"{WHERE}: the adapter of {path!r} has {sorted(pair)}. Tried: 'a' and 'b'. Give both, as init_lora "
                f"makes them."
            )
        lead, inner, outer = _matrix(path, leaves[path])
        got = tuple(pair["a"].shape), tuple(pair["b"].shape)
        if got != ((*lead, inner, spec.rank), (*lead, spec.rank, outer)):
            described = " and ".join(tree.describe(pair[name]) for name in "ab")
            raise ValueError(
                f"{WHERE}: the adapter of {path!r} is {described}. Tried: {[*lead, inner, spec.rank]} and "
                f"{[*lead, spec.rank, outer]}, for a parameter {list(leaves[path].shape)} by rank={spec.rank}. Give "
                f"the spec and the parameters that the adapters were made with."
            )


def apply_lora(params: Params, adapters: Params, spec: LoRA) -> Params:
    """Parameters with `alpha / r * a @ b` added where there is an adapter; differentiable in both.

    Raises:
        ValueError: If an adapter belongs to no parameter, is half of one, or is of another shape or rank than the
            parameter and the spec say.
        TypeError: If the spec is none.
    """
    check_spec(spec)
    pairs = _pairs(adapters)
    _check_pairs(tree.leaves_by_path(params), pairs, spec)

    def one(path: str, leaf: Any) -> Any:
        if path not in pairs:
            return leaf
        change = jnp.matmul(pairs[path]["a"], pairs[path]["b"]) * (spec.alpha / spec.rank)
        return leaf + change.reshape(leaf.shape).astype(leaf.dtype)

    return tree.map_by_path(one, params)


def merge_lora(params: Params, adapters: Params, spec: LoRA) -> tuple[Params, dict[str, Any]]:
    """Parameters with the adapters in them, which cost nothing more when used, and what `unmerge_lora` needs.

    A sum of floats cannot be undone to the byte, so what it replaces is kept: the arrays themselves, not copies.

    Returns:
        The merged parameters, and the replaced ones by path.
    """
    merged = jax.jit(lambda p, a: apply_lora(p, a, spec))(params, adapters)
    paths = _pairs(adapters).keys()
    kept = {path: leaf for path, leaf in tree.leaves_by_path(params).items() if path in paths}
    merged_leaves = tree.leaves_by_path(merged)
    return tree.map_by_path(lambda path, leaf: merged_leaves[path] if path in paths else leaf, params), kept


def unmerge_lora(merged: Params, kept: dict[str, Any]) -> Params:
    """The parameters before `merge_lora`, to the byte.

    Raises:
        ValueError: If `kept` belongs to other parameters.
        TypeError: If it is no mapping.
    """
    if not isinstance(kept, Mapping):
        raise TypeError(f"{WHERE}: kept is {tree.describe(kept)}. Tried: what merge_lora gave second. Give that.")
    if unknown := kept.keys() - tree.leaves_by_path(merged).keys():
        raise ValueError(
            f"{WHERE}: kept has {sorted(unknown)[:3]}, which the parameters have not. Tried: what merge_lora gave with "
            f"them. Give that."
        )
    for path, leaf in tree.leaves_by_path(merged).items():
        if path in kept and np.shape(kept[path]) != np.shape(leaf):
            raise ValueError(
                f"{WHERE}: kept has {tree.describe(kept[path])} for {path!r} {tree.describe(leaf)}. Tried: what "
                "merge_lora gave with them. Give that."
            )
    return tree.map_by_path(lambda path, leaf: kept.get(path, leaf), merged)
