"""Where the leaves of an optimizer's state belong: which stage, which group, which parameter, and what they are called.

Optimizers keep trees like the parameters, so a leaf's path in the state contains its parameter's: `stages/adam/mu/` +
`blocks_0/kernel`. Summaries, specs, storage dtypes, migration and batching all read it off there, for optax's states as
for ours, and so none of them needs an optimizer to say anything of itself.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn import tree
from jaxnn.optim.compose.groups import GroupsState
from jaxnn.optim.compose.measures import Metrics
from jaxnn.optim.compose.stages import StagesState
from jaxnn.optim.hyper import Hypers
from jaxnn.typing import PyTree


class Place(NamedTuple):
    """One leaf of a state.

    Attributes:
        path: Its whole path: `stages/adam/mu/blocks_0/kernel`.
        leaf: The leaf, or its shape.
        stage: `adam`, dotted where stages are nested; "" outside of any.
        group: `muon`, dotted likewise; "" outside of any.
        owner: The innermost state that holds it, counters and hyperparameters aside: `AdamState`.
        inside: Its path inside the owner, down to the parameter's: `mu`, or `hyper/count`.
        param: The parameter's path, or None where it belongs to none or to all: `blocks_0/kernel`.
        rest: What follows the parameter's path: `codes`; "" where nothing does.
        scalar: Whether it is a hyperparameter, a counter of one, or a metric.
    """

    path: str
    leaf: Any
    stage: str
    group: str
    owner: str
    inside: str
    param: str | None
    rest: str
    scalar: bool

    @property
    def remembers(self) -> bool:
        """Whether it holds something of the parameters: of one of them, or of all in one array (`flat`)."""
        return not self.scalar and (self.param is not None or np.ndim(self.leaf) > 0)


def places(state: PyTree, params: PyTree) -> Iterator[Place]:
    """Every leaf of a state, in flattening order. Works on arrays and on shapes.

    Args:
        state: Any optimizer's state.
        params: The parameters that it belongs to, or their shapes.
    """
    names = tuple(tree.leaves_by_path(params))
    bare = names == (".",)
    shape = np.shape(jax.tree.leaves(params)[0]) if bare else ()
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state):
        parts = tuple(tree.key_name(key) for key in keys)
        holders = _holders(state, keys)
        scalar = any(
            isinstance(node, (Hypers, Metrics)) or (hasattr(node, "hyperparams") and parts[i] == "hyperparams")
            for i, node in enumerate(holders)
        )
        found = None if scalar or bare else tree.find_param(parts, names)
        before = found[0] if found else len(holders) - 1
        owners = [i for i, x in enumerate(holders[: before + 1]) if hasattr(x, "_fields") and not isinstance(x, Hypers)]
        start = owners[-1] if owners else 0
        owner = type(holders[start]).__name__ if owners else ""
        if found:
            inside, rest = parts[start : found[0]], parts[found[1] :]
            param = "/".join(parts[found[0] : found[1]])
        else:
            inside, rest = parts[start:], ()
            belongs = bare and not scalar and np.shape(leaf)[-len(shape) or None :] == shape
            param = "." if belongs else None
        stage = ".".join(_entries(holders, parts, StagesState, "stages"))
        group = ".".join(_entries(holders, parts, GroupsState, "groups"))
        yield Place(
            tree.path_name(keys), leaf, stage, group, owner, "/".join(inside), param, "/".join(rest), bool(scalar)
        )


def _holders(state: PyTree, keys: tuple[Any, ...]) -> list[Any]:
    """The nodes on the way to a leaf; node i is what the first i keys lead to."""
    nodes = [state]
    for key in keys[:-1]:
        nodes.append(child(nodes[-1], key))
    return nodes


def _entries(holders: list[Any], parts: tuple[str, ...], kind: type, field: str) -> Iterator[str]:
    """The names on the way that are entries of `field` of a `kind`."""
    for i, node in enumerate(holders):
        if isinstance(node, kind) and parts[i] == field:
            yield parts[i + 1]


def child(node: Any, key: Any) -> Any:
    """What a jax key leads to."""
    if hasattr(key, "idx"):
        return node[key.idx]
    if hasattr(key, "name"):
        return getattr(node, key.name)
    if isinstance(node, Mapping):
        return node[key.key]
    return jax.tree_util.default_registry.flatten_one_level(node)[0][key.key]  # flattened by number


def abstract_init(tx: optax.GradientTransformation, params: PyTree) -> tuple[PyTree, str]:
    """The shapes of a new state and how they were found: "traced", or "computed" where `init` cannot be traced.

    Tracing computes nothing. An optimizer whose `init` looks at values is run once instead, on zeros in host memory.
    """
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(np.shape(p), p.dtype), params)
    try:
        return jax.eval_shape(tx.init, shapes), "traced"
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            state = tx.init(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), state), "computed"
