"""Whether a transformation that does not tell has a rate of its own: tried on a gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn.typing import PyTree

STEPS = 4  # the first of a warm-up has a rate of 0
PARAMS = {"kernel": np.array([[0.5, -0.3], [0.2, 0.9], [-0.7, 0.4]], np.float32)}
GRADS = {"kernel": np.array([[1.0, 0.6], [-0.8, 1.3], [0.9, -1.1]], np.float32)}


def descends(tx: optax.GradientTransformation) -> bool:
    """Whether updates are seen to point down the gradient, as those of a whole optimizer do and those of a core do not.

    Four updates of one small matrix by one gradient, and by minus it. Half the difference of the two, in which neither
    decay nor noise is left, is held against the gradient: every update must point down it, or be 0. False where it is
    minus the gradient itself, a sign that somebody turned, and where the trial fails: masks for other parameters,
    arguments that a trial has not, rates that are traced. So True is to be relied on, and False says little.

    Args:
        tx: Any; its state must keep its dtypes, as `stable` makes it.
    """
    inner = optax.with_extra_args_support(tx)

    def path(sign: Any, params: PyTree) -> PyTree:
        signed = jax.tree.map(lambda g: sign * g, GRADS)

        def step(state: PyTree, _: None) -> tuple[PyTree, PyTree]:
            updates, state = inner.update(signed, state, params, value=jnp.ones(()))
            return state, updates

        return jax.lax.scan(step, inner.init(params), None, length=STEPS)[1]

    try:
        with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
            signs = jnp.asarray([1, -1], jnp.float32)
            both = jax.jit(jax.vmap(path, (0, None)))(signs, PARAMS)["kernel"]
            odd = (np.asarray(both[0]) - np.asarray(both[1])) / 2
    except Exception:  # somebody else's code, on parameters that are not its own
        return False
    along = np.sum(odd * GRADS["kernel"], (1, 2))
    return bool((along <= 0).all() and (along < 0).any() and (odd != -GRADS["kernel"]).any())
