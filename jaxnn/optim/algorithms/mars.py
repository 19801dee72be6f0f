"""MARS: gradients corrected by their change before any other optimizer sees them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnn.optim.algorithms.adam import adam_core
from jaxnn.optim.compose import select
from jaxnn.optim.compose.matrices import layer_norm
from jaxnn.optim.compose.scaling import decay, full, scale_by_lr, times
from jaxnn.optim.compose.select import Predicate, everything
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import Context, Transformation, apply_part, label
from jaxnn.optim.compose.wrapping import inner_of, wrap
from jaxnn.optim.hyper import NONNEGATIVE, POSITIVE, Hyperparameters, Hypers
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule


class MarsState(NamedTuple):
    """The last gradients, float32, and the inner optimizer's state."""

    hyper: Hypers
    last: Params
    inner: PyTree


def mars_core(
    tx: optax.GradientTransformation,
    gamma: float | Schedule = 0.025,
    b1: float | Schedule | None = None,
    max_norm: float | Schedule = 1.0,
) -> Transformation:
    """Any optimizer on variance-reduced gradients; `gamma` 0 leaves it as it is, but for the clip.

    c <- g + gamma b1 / (1 - b1) (g - g_last), g itself at the first update
    c <- c min(1, max_norm / ||c||), layer by layer

    The approximate form: g_last is the last batch's gradient, and costs no second pass.

    Args:
        tx: What is given c.
        gamma: Strength; >= 0.
        b1: Decay rate of the momentum of `tx`, in [0, 1); None reads the hyperparameter `b1` of `tx`, so that there is
            but one to set.
        max_norm: Bound of a layer's corrected gradient; > 0.

    Raises:
        ValueError: If a hyperparameter is out of range, or `tx` has no `b1` to be read.

    Source:
        Yuan et al. 2024, arXiv:2411.10438, Algorithms 1 and 2.
    """
    inner = inner_of("optim.mars", tx)
    domains = {"gamma": NONNEGATIVE, "max_norm": POSITIVE}
    own: dict[str, Any] = {} if b1 is None else {"b1": b1}
    hyper = Hyperparameters("optim.mars", domains=domains, gamma=gamma, max_norm=max_norm, **own)
    theirs = inner.hyper if isinstance(inner, Transformation) else None
    if b1 is None and (theirs is None or "b1" not in theirs.domains):
        raise ValueError(
            f"optim.mars: {label(inner)} has no hyperparameter b1 of its own. Give mars_core(tx, b1=0.95)."
        )

    def init(params: Params) -> MarsState:
        return MarsState(hyper.init(), jax.tree.map(lambda p: jnp.zeros_like(full(p)), params), inner.init(params))

    def update(
        grads: PyTree, state: MarsState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, MarsState]:
        h, hypers = hyper.at(state.hyper)
        grads = jax.tree.map(full, grads)
        keep = h.b1 if theirs is None or b1 is not None else theirs.at(state.inner.hyper)[0].b1
        strength = jnp.where(h.count > 1, h.gamma * keep / (1 - keep), 0)

        def corrected(leaf: select.Leaf, g: Array, last: Array) -> Array:
            c = g + times(strength, g - last)
            bound = h.max_norm.astype(c.real.dtype)
            return (bound / jnp.maximum(layer_norm(leaf, c), bound)).astype(c.dtype) * c

        ahead = jax.tree.map(corrected, select.leaves(grads), grads, state.last)
        updates, new = apply_part(inner, ahead, state.inner, params, context or Context(), extra)
        return updates, MarsState(hypers, grads, new)

    return wrap("mars", inner, init, update, "inner", hyper=hyper)


@registered(1e-2, "arXiv:2411.10438")
def mars(
    lr: float | Schedule,
    b1: float | Schedule = 0.95,
    b2: float | Schedule = 0.99,
    eps: float | Schedule = 1e-8,
    weight_decay: float | Schedule = 0.0,
    gamma: float | Schedule = 0.025,
    *,
    where: Predicate = everything,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """MARS-AdamW, ready to train with; decay coupled to the rate. See `mars_core`."""
    core = mars_core(adam_core(b1, b2, eps), gamma)
    return stages(mars=core, decay=decay(weight_decay, where=where), lr=scale_by_lr(lr), metrics=metrics)
