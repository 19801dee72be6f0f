"""AdaGrad: the gradient over the root of the sum of all squares so far."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.optim.algorithms.adam import squared
from jaxnn.optim.compose.scaling import full, scale_by_lr
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import ELEMENTWISE, Transformation
from jaxnn.optim.hyper import NONNEGATIVE, Hyperparameters, Hypers, check_number
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule


class AdaGradState(NamedTuple):
    """The sum of squares, float32 at least."""

    hyper: Hypers
    nu: Params


def adagrad_core(eps: float | Schedule = 1e-10, *, initial: float = 0.0) -> Transformation:
    """AdaGrad's direction.

    nu <- nu + |g|^2
    u  <- g / (sqrt(nu) + eps)

    Args:
        eps: Added outside the root; >= 0.
        initial: Of `nu`, >= 0: torch starts at 0, Keras and optax at 0.1, which holds the first updates back.

    Raises:
        ValueError: If a hyperparameter is out of range.

    Source:
        Duchi et al. 2011, JMLR 12, the diagonal form of Figure 1.
    """
    hyper = Hyperparameters("optim.adagrad", eps=eps)
    start = check_number("optim.adagrad", "initial", initial, NONNEGATIVE)

    def init(params: Params) -> AdaGradState:
        return AdaGradState(hyper.init(), jax.tree.map(lambda p: jnp.full_like(full(p).real, start), params))

    def update(grads: PyTree, state: AdaGradState, params: PyTree = None, **extra: Any) -> tuple[PyTree, AdaGradState]:
        del params, extra
        h, hypers = hyper.at(state.hyper)
        nu = jax.tree.map(lambda g, v: v + squared(g, v), grads, state.nu)

        def direction(g: Array, v: Array) -> Array:
            # Where nothing was seen yet and eps is 0: 0 rather than 0/0.
            root = jnp.sqrt(v) + h.eps.astype(v.dtype)
            return full(g) / jnp.where(root > 0, root, 1)

        return jax.tree.map(direction, grads, nu), AdaGradState(hypers, nu)

    return Transformation(init, update, name="adagrad", hyper=hyper, facts=ELEMENTWISE)


@registered(1e-1, "Duchi et al. 2011, JMLR 12")
def adagrad(
    lr: float | Schedule,
    eps: float | Schedule = 1e-10,
    *,
    initial: float = 0.0,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """AdaGrad, ready to train with: `stages(adagrad=adagrad_core(...), lr=scale_by_lr(lr))`. See `adagrad_core`."""
    return stages(adagrad=adagrad_core(eps, initial=initial), lr=scale_by_lr(lr), metrics=metrics)
