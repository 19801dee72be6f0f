"""L-BFGS: curvature from the last steps. Thin over optax, whose two-loop recursion and line searches are right."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnn.optim.compose.scaling import scale_by_lr, stateless
from jaxnn.optim.compose.stable import stable
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import Transformation
from jaxnn.optim.hyper import check_whole
from jaxnn.optim.registry import registered
from jaxnn.typing import Params, PyTree, Schedule


class LBFGSState(NamedTuple):
    """optax's: the last parameters, gradient, and `memory` differences of both with their inner products."""

    inner: PyTree


def lbfgs_core(memory: int = 10) -> Transformation:
    """The direction of L-BFGS: g times an estimate of the inverse Hessian from the last `memory` steps.

    s_i = x_{i+1} - x_i,  y_i = g_{i+1} - g_i,  rho_i = 1 / (y_i's_i)
    q <- g;  from the newest pair to the oldest:  a_i <- rho_i s_i'q,  q <- q - a_i y_i
    u <- (s'y / y'y of the newest pair) q;  from the oldest to the newest:  u <- u + (a_i - rho_i y_i'u) s_i

    At the first update, which remembers no pair, u <- g / max(||g||, 1).
    Products run over all leaves that it is given. The batch must be the same one from update to update, or nearly so.

    Args:
        memory: Steps remembered, >= 1: 2 * memory + 2 copies of the parameters.

    Raises:
        ValueError: If `memory` is below 1; at trace time, if the parameters are not given.

    Source:
        Liu & Nocedal 1989; Nocedal & Wright 2006, Algorithm 7.4, equations 7.16 to 7.20. optax.scale_by_lbfgs.
    """
    memory = check_whole("optim.lbfgs", "memory", memory)
    inner = stable(optax.scale_by_lbfgs(memory_size=memory))

    def init(params: Params) -> LBFGSState:
        return LBFGSState(inner.init(params))

    def update(grads: PyTree, state: LBFGSState, params: PyTree = None, **extra: Any) -> tuple[PyTree, LBFGSState]:
        if params is None:
            raise ValueError("optim.lbfgs: update needs the parameters: tx.update(grads, state, params).")
        updates, new = inner.update(grads, state.inner, params, **extra)
        return updates, LBFGSState(new)

    return Transformation(init, update, name="lbfgs")


@registered(1.0, "Liu & Nocedal 1989", needs=("value", "value_fn"), make=lambda lr: lbfgs())
def lbfgs(
    lr: float | Schedule | None = None, memory: int = 10, *, linesearch_steps: int = 20, metrics: tuple[str, ...] = ()
) -> Transformation:
    """L-BFGS, ready to train with; meant for full batches.

    x <- x - t u,  u as in `lbfgs_core`;  t is `lr`, or found so that the strong Wolfe conditions hold:
    f(x - t u) <= f(x) - 1e-4 t g'u  and  |g(x - t u)'u| <= 0.9 |g'u|

    Args:
        lr: A fixed rate or schedule; None finds the step by a zoom line search on the batch, which needs `value`,
            `grad` and `value_fn` (`fit` gives them). In `optim.groups` it searches along its own leaves, the others as
            they are: two groups that search may go too far together.
        memory: As in `lbfgs_core`.
        linesearch_steps: At most, an update; >= 1.
        metrics: See `stages`.

    Raises:
        ValueError: If `memory` or `linesearch_steps` is below 1; at trace time, if the line search is not given what it
            needs.

    Source:
        Liu & Nocedal 1989; Nocedal & Wright 2006, Algorithms 7.4, 3.5, 3.6. optax.scale_by_zoom_linesearch.
    """
    core = lbfgs_core(memory)
    if lr is not None:
        return stages(lbfgs=core, lr=scale_by_lr(lr), metrics=metrics)
    most = check_whole("optim.lbfgs", "linesearch_steps", linesearch_steps)
    down = stateless(lambda updates, params: jax.tree.map(jnp.negative, updates), "descend", descends=True)
    return stages(lbfgs=core, descend=down, search=_search(most), metrics=metrics)


def _search(most: int) -> Transformation:
    """A line search, optax's, that says what it needs."""
    inner = stable(optax.scale_by_zoom_linesearch(max_linesearch_steps=most, initial_guess_strategy="one"))

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
        missing = [name for name in ("value", "grad", "value_fn") if extra.get(name) is None]
        if params is None or missing:
            raise ValueError(
                f"optim.lbfgs: the line search needs {', '.join([*(['params'] if params is None else []), *missing])}. "
                "Write tx.update(grads, state, params, value=loss, grad=grads, value_fn=loss_fn), as train.fit does; "
                "or give a rate, optim.lbfgs(1.0), with which there is no search."
            )
        return inner.update(updates, state, params, **extra)

    return Transformation(inner.init, update, name="zoom_linesearch")
