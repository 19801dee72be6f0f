"""Lion: the sign of an interpolated momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.optim.compose.scaling import decay, full, scale_by_lr, times
from jaxnn.optim.compose.select import Predicate, everything
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import ELEMENTWISE, Transformation
from jaxnn.optim.hyper import Hyperparameters, Hypers
from jaxnn.optim.registry import registered
from jaxnn.typing import Params, PyTree, Schedule


class LionState(NamedTuple):
    """The momentum, float32."""

    hyper: Hypers
    mu: Params


def lion_core(b1: float | Schedule = 0.9, b2: float | Schedule = 0.99) -> Transformation:
    """Lion's direction.

    u  <- sign(b1 mu + (1 - b1) g)
    mu <- b2 mu + (1 - b2) g

    Args:
        b1: Weight of the momentum in the update, in [0, 1).
        b2: Decay rate of the momentum, in [0, 1).

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Chen et al. 2023, arXiv:2302.06675, Program 1.
    """
    hyper = Hyperparameters("optim.lion", b1=b1, b2=b2)

    def init(params: Params) -> LionState:
        return LionState(hyper.init(), jax.tree.map(lambda p: jnp.zeros_like(full(p)), params))

    def update(grads: PyTree, state: LionState, params: PyTree = None, **extra: Any) -> tuple[PyTree, LionState]:
        del params, extra
        h, hypers = hyper.at(state.hyper)

        def mixed(b: Any) -> PyTree:
            return jax.tree.map(lambda g, m: times(b, m) + times(1 - b, g.astype(m.dtype)), grads, state.mu)

        return jax.tree.map(jnp.sign, mixed(h.b1)), LionState(hypers, mixed(h.b2))

    return Transformation(init, update, name="lion", hyper=hyper, facts=ELEMENTWISE)


@registered(3e-3, "arXiv:2302.06675")
def lion(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.99,
    weight_decay: float | Schedule = 0.0,
    *,
    where: Predicate = everything,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """Lion, ready to train with; rates are 3 to 10 times smaller than AdamW's, decay as much larger.

    Args:
        lr: Rate an update, or schedule.
        b1: As in `lion_core`.
        b2: As in `lion_core`.
        weight_decay: Coupled to the rate.
        where: Which parameters decay.
        metrics: See `stages`.
    """
    shrink = decay(weight_decay, where=where, coupling="lr")
    return stages(lion=lion_core(b1, b2), decay=shrink, lr=scale_by_lr(lr), metrics=metrics)
