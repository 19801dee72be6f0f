"""LAMB and LARS: a layer's step is scaled to the size of its parameters. Thin over optax's trust ratio."""

import optax

from jaxnn.optim.algorithms.adam import adam_core
from jaxnn.optim.compose.scaling import decay, scale_by_lr
from jaxnn.optim.compose.select import Predicate, everything
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import Transformation
from jaxnn.typing import Schedule


def lamb(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-6,
    weight_decay: float | Schedule = 0.0,
    *,
    where: Predicate = everything,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """LAMB, ready to train with: Adam's direction plus decay, times ||x|| / ||u|| leaf by leaf (1 where either is 0).

    Args:
        lr: Rate an update, or schedule.
        b1: As in `adam_core`.
        b2: As in `adam_core`.
        eps: As in `adam_core`.
        weight_decay: Added before the ratio is taken.
        where: Which parameters decay.
        metrics: See `stages`.

    Source:
        You et al. 2020, arXiv:1904.00962, Algorithm 2, with phi the identity.
    """
    return stages(
        adam=adam_core(b1, b2, eps),
        decay=decay(weight_decay, where=where, coupling="lr"),
        trust=optax.scale_by_trust_ratio(),
        lr=scale_by_lr(lr),
        metrics=metrics,
    )


def lars(
    lr: float | Schedule,
    momentum: float = 0.9,
    weight_decay: float | Schedule = 0.0,
    trust: float = 1e-3,
    *,
    where: Predicate = everything,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """LARS, ready to train with: gradient plus decay, times trust ||x|| / ||u||, rate, then momentum.

    Args:
        lr: Rate an update, or schedule.
        momentum: Of the scaled steps.
        weight_decay: Added before the ratio is taken.
        trust: The ratio's coefficient.
        where: Which parameters decay.
        metrics: See `stages`.

    Source:
        You et al. 2017, arXiv:1708.03888, Algorithm 1.
    """
    return stages(
        decay=decay(weight_decay, where=where, coupling="lr"),
        trust=optax.scale_by_trust_ratio(trust_coefficient=trust),
        lr=scale_by_lr(lr),
        momentum=optax.trace(momentum),
        metrics=metrics,
    )
