"""What a transformation does not tell, tried on small parameters: whether it has a rate, whether it knows layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn import tree
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


def sees_stacks(tx: optax.GradientTransformation) -> bool:
    """Whether a stack of two layers is seen to be updated otherwise than the two: by its rank, its norm, or with noise.

    Two updates of a matrix and a vector, stacked and apart. False where the trial fails, as for `descends`.

    Args:
        tx: Any; its state must keep its dtypes, as `stable` makes it.
    """
    inner = optax.with_extra_args_support(tx)
    one = {"kernel": PARAMS["kernel"], "bias": PARAMS["kernel"][:, 0]}
    slope = {"kernel": GRADS["kernel"], "bias": GRADS["kernel"][:, 1]}

    def times(values: PyTree, factor: float) -> PyTree:
        return jax.tree.map(lambda x: np.float32(factor) * x, values)

    def path(grads: PyTree, params: PyTree) -> PyTree:
        def step(state: PyTree, _: None) -> tuple[PyTree, PyTree]:
            updates, state = inner.update(grads, state, params, value=jnp.ones(()))
            return state, updates

        return jax.lax.scan(step, inner.init(params), None, length=2)[1]

    def stack(trees: list[PyTree], axis: int = 0) -> PyTree:
        return {"layer": jax.tree.map(lambda *xs: jnp.stack(xs, axis), *trees)}

    grads, params = [times(slope, 3.0), times(slope, 0.2)], [times(one, 1.0), times(one, 5.0)]
    roles = {"layer/kernel": tree.Role("matrix", 1), "layer/bias": tree.Role("vector", 1)}
    try:
        with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
            apart = jax.jit(path)(*({f"layer_{i}": x for i, x in enumerate(xs)} for xs in (grads, params)))
            expected = stack([apart["layer_0"], apart["layer_1"]], 1)
            with tree.declaring(lambda: roles):
                found = jax.jit(path)(stack(grads), stack(params))
            pairs = [
                (np.asarray(a), np.asarray(b)) for a, b in zip(*map(jax.tree.leaves, (expected, found)), strict=True)
            ]
    except Exception:  # somebody else's code, on parameters that are not its own
        return False
    return any(np.abs(a - b).max() > 1e-3 * np.abs(a).max() for a, b in pairs)
