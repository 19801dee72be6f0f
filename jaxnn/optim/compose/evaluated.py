"""Parameters to evaluate with, where they are not those that are trained: averages and the like."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from jaxnn import tree
from jaxnn.optim.compose.fits import differing
from jaxnn.typing import Array, Params, PyTree


def eval_params(state: PyTree, params: Params) -> Params:
    """The parameters to evaluate, sample and export with.

    Averaging optimizers (`ema`, `tail_average`, `lookahead`, schedule-free) train at one point and are judged at
    another, which their state knows. Of several around each other, the outermost counts; in `groups`, each for its own
    leaves. Without any, `params` itself. `train.evaluate` and `train.predict` use it.

    Args:
        state: An optimizer's state.
        params: The trained parameters.

    Raises:
        ValueError: If the state averages other parameters.
    """
    for node in jax.tree.leaves(state, is_leaf=averages):
        if averages(node):
            params = node.eval_params(params)
    return params


def averages(node: Any) -> bool:
    """Whether a node of a state knows parameters to evaluate."""
    return hasattr(node, "eval_params")


def over(fn: Callable[[Array, Array], Array], own: PyTree, params: Params) -> Params:
    """A tree like `params`: `fn(a, p)` where `own` has a leaf, `p` where it has another group's place.

    Raises:
        ValueError: If `own` is of other parameters, naming leaves.
    """
    like = tree.leaves_by_path(params)
    nodes = jax.tree_util.tree_leaves_with_path(own, is_leaf=_masked)
    found = {path: like.get(path, ()) if _masked(a) else a for keys, a in nodes for path in [tree.path_name(keys)]}
    if {path: np.shape(x) for path, x in found.items()} != {path: np.shape(x) for path, x in like.items()}:
        raise ValueError(
            f"optim.eval_params: the state averages others than these parameters (first against second): "
            f"{differing(found, like)}. Give the parameters that were trained with it."
        )
    return jax.tree.map(lambda a, p: p if _masked(a) else fn(a, p), own, params, is_leaf=_masked)


def _masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)
