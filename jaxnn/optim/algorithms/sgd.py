"""Stochastic gradient descent: plain, with momentum, with Nesterov's."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.optim.compose.scaling import full, scale_by_lr, times
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import ELEMENTWISE, Transformation
from jaxnn.optim.hyper import SHARE, Hyperparameters, Hypers
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule


class SGDState(NamedTuple):
    """The momentum, float32 at least; None without."""

    hyper: Hypers
    mu: Params | None


def sgd_core(
    momentum: float | Schedule | None = None, dampening: float | Schedule = 0.0, *, nesterov: bool = False
) -> Transformation:
    """The direction of SGD.

    mu_1 = g_1;  mu <- momentum mu + (1 - dampening) g
    u <- mu, or with Nesterov's g + momentum mu

    The momentum is a sum, as in torch and the literature, and not a mean: at 0.9 a constant gradient moves ten times as
    far an update as without.

    Args:
        momentum: In [0, 1); None keeps no state. At 0 the direction is plain, and the state is there to raise it.
        dampening: In [0, 1]; as in torch it does not apply to the first update.
        nesterov: Look ahead by one update.

    Raises:
        ValueError: If a hyperparameter is out of range, or Nesterov's or dampening is asked for without momentum.

    Source:
        Polyak 1964; Nesterov 1983; in this form Sutskever et al. 2013 (ICML), and torch.optim.SGD.
    """
    where = "optim.sgd"
    if momentum is None:
        if nesterov or callable(dampening) or dampening != 0:
            raise ValueError(f"{where}: nesterov and dampening act on momentum, which is None. Give momentum=0.9, say.")
        hyper = Hyperparameters(where)
    else:
        hyper = Hyperparameters(where, domains={"dampening": SHARE}, momentum=momentum, dampening=dampening)

    def init(params: Params) -> SGDState:
        mu = None if momentum is None else jax.tree.map(lambda p: jnp.zeros_like(full(p)), params)
        return SGDState(hyper.init(), mu)

    def update(grads: PyTree, state: SGDState, params: PyTree = None, **extra: Any) -> tuple[PyTree, SGDState]:
        del params, extra
        h, hypers = hyper.at(state.hyper)
        grads = jax.tree.map(full, grads)
        if momentum is None:
            return grads, SGDState(hypers, None)
        weight = jnp.where(h.count == 1, 1.0, 1 - h.dampening)

        def gathered(g: Array, m: Array) -> Array:
            return times(h.momentum, m) + times(weight, g.astype(m.dtype))

        mu = jax.tree.map(gathered, grads, state.mu)
        updates = mu
        if nesterov:
            updates = jax.tree.map(lambda g, m: g.astype(m.dtype) + times(h.momentum, m), grads, mu)
        return updates, SGDState(hypers, mu)

    return Transformation(init, update, name="sgd", hyper=hyper, facts=ELEMENTWISE)


@registered(1e-3, "Sutskever et al. 2013", make=lambda lr: sgd(lr, 0.9, nesterov=True))
def sgd(
    lr: float | Schedule,
    momentum: float | Schedule | None = None,
    dampening: float | Schedule = 0.0,
    *,
    nesterov: bool = False,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """SGD, ready to train with: `stages(sgd=sgd_core(...), lr=scale_by_lr(lr))`. See `sgd_core`."""
    return stages(sgd=sgd_core(momentum, dampening, nesterov=nesterov), lr=scale_by_lr(lr), metrics=metrics)
