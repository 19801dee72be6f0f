"""Parameters to evaluate with, where they are not those that are trained: averages and the like."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxnn.typing import Array, Params, PyTree


def eval_params(state: PyTree, params: Params) -> Params:
    """The parameters to evaluate, sample and export with.

    Averaging optimizers (`ema`, `tail_average`, `lookahead`, schedule-free) train at one point and are judged at
    another, which their state knows. Of several around each other, the outermost counts; in `groups`, each for its own
    leaves. Without any, `params` itself. `train.evaluate` and `train.predict` use it.

    Args:
        state: An optimizer's state.
        params: The trained parameters.
    """
    is_node = lambda x: hasattr(x, "eval_params")  # noqa: E731
    for node in jax.tree.leaves(state, is_leaf=is_node):
        if is_node(node):
            params = node.eval_params(params)
    return params


def over(fn: Callable[..., Array], own: PyTree, params: Params, *rest: PyTree) -> Params:
    """A tree like `params`: `fn(a, p, ...)` where `own` has a leaf, `p` where it has another group's place."""
    masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731

    def one(a: Any, p: Any, *more: Any) -> Any:
        return p if masked(a) else fn(a, p, *more)

    return jax.tree.map(one, own, params, *rest, is_leaf=masked)
