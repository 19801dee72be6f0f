"""Sharpness-aware minimization: the gradient is taken where the loss is worst nearby."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnn import tree
from jaxnn.optim.algorithms.adam import adam
from jaxnn.optim.compose.scaling import full, times
from jaxnn.optim.compose.transformation import Context, Transformation, apply_part
from jaxnn.optim.compose.wrapping import inner_of, wrap
from jaxnn.optim.hyper import NONNEGATIVE, Hyperparameters, Hypers
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule


class SAMState(NamedTuple):
    """The neighbourhood's radius, and the inner optimizer's state."""

    hyper: Hypers
    inner: PyTree


@registered(1e-2, "arXiv:2010.01412", needs=("value_fn",), make=lambda lr: sam(adam(lr)))
@registered(
    1e-2, "arXiv:2102.11600", needs=("value_fn",), name="asam", make=lambda lr: sam(adam(lr), 0.5, adaptive=True)
)
def sam(tx: optax.GradientTransformation, rho: float | Schedule = 0.05, *, adaptive: bool = False) -> Transformation:
    """Any optimizer on the gradient at x + e, the worst point within `rho` to first order.

    e = rho g / ||g||;  adaptive (ASAM): e = rho x^2 g / ||x g||, elementwise

    A second pass over the batch, by the `value_fn` that `fit` and `make_train_step` give. Gradients of complex leaves
    u + i v are d/du + i d/dv, the conjugates of what `jax.grad` gives.

    Args:
        tx: The whole optimizer, or a core.
        rho: Radius, >= 0; ASAM's is some ten times larger.
        adaptive: ASAM, which does not change when a layer is scaled.

    Raises:
        ValueError: At trace time, if `value_fn` or the parameters are missing.

    Source:
        Foret et al. 2021, arXiv:2010.01412, Algorithm 1; Kwon et al. 2021, arXiv:2102.11600, Algorithm 1.
    """
    inner = inner_of("optim.sam", tx)
    hyper = Hyperparameters("optim.sam", domains={"rho": NONNEGATIVE}, rho=rho)

    def init(params: Params) -> SAMState:
        return SAMState(hyper.init(), inner.init(params))

    def update(
        grads: PyTree,
        state: SAMState,
        params: PyTree = None,
        *,
        value_fn: Any = None,
        context: Context | None = None,
        **extra: Any,
    ) -> tuple[PyTree, SAMState]:
        if params is None or value_fn is None:
            raise ValueError(
                "optim.sam: update needs the parameters and the objective: "
                "tx.update(grads, state, params, value_fn=params_to_loss)."
            )
        h, hypers = hyper.at(state.hyper)
        grads = jax.tree.map(full, grads)
        scaled = jax.tree.map(lambda g, p: g * jnp.abs(full(p)), grads, params) if adaptive else grads
        factor = h.rho / jnp.maximum(tree.global_norm(scaled), jnp.finfo(jnp.float32).tiny)

        def worst(p: Array, g: Array) -> Array:
            step = times(factor, g * jnp.square(jnp.abs(full(p))) if adaptive else g)
            return (full(p) + step).astype(p.dtype)

        there = jax.grad(lambda p: jnp.real(value_fn(p)))(jax.tree.map(worst, params, grads))
        there = jax.tree.map(jnp.conj, there)  # of complex leaves, as `grads` are
        passed = extra | {"value_fn": value_fn, "grad": there}
        updates, new = apply_part(inner, there, state.inner, params, context or Context(), passed)
        return updates, SAMState(hypers, new)

    return wrap("sam", inner, init, update, "inner", hyper=hyper)
