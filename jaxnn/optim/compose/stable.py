"""The dtype contract for what we did not write: a state's dtypes never change from step to step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn import tree
from jaxnn.optim.compose import probe
from jaxnn.optim.compose.scaling import full
from jaxnn.optim.compose.transformation import Transformation, check, label
from jaxnn.typing import Array, PyTree


def stable(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Any transformation, shown parameters and gradients in float32 at least, whose state keeps its dtypes.

    Many optimizers of optax change theirs after the first update of bfloat16 parameters, which compiles the step a
    second time and breaks scans; and `inject_hyperparams` rounds b2 = 0.999 to 1 there, which makes NaN. `stages` and
    `groups` do this to every part that is not ours; parameters in float32 pass untouched.

    Args:
        tx: Any optax gradient transformation; ours are given back as they are.

    Raises:
        TypeError: At init, if it fails so: naming the parameters.
        ValueError: Likewise; a tree in it (a mask, labels) of another structure than theirs.
    """
    inner = check("optim.stable", "tx", tx)
    if isinstance(inner, Transformation):
        return inner

    def init(params: PyTree) -> PyTree:
        try:
            state = inner.init(wide(params))
        except jax.errors.JAXTypeError:  # it looks at values, and is being traced
            raise
        except (TypeError, ValueError) as error:
            paths = list(tree.leaves_by_path(params))
            raise type(error)(
                f"optim.stable: {label(tx)} fails on the parameters {paths[:6]}{' ...' if len(paths) > 6 else ''}: "
                f"{_why(error)}"
            ) from error
        return jax.tree.map(_strong, state)

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
        new_updates, new = inner.update(wide(updates), state, None if params is None else wide(params), **extra)
        return new_updates, as_before(new, state)

    tried = functools.cache(lambda: probe.descends(optax.GradientTransformationExtraArgs(init, update)))
    return Transformation(init, update, name=label(tx), facts={"opaque": True, "tried": tried})


def _why(error: Exception) -> str:
    """An error in a line; of a tree that does not fit, where."""
    text = " ".join(str(error).split())
    if "pytree" not in text:
        return text
    _, _, keys = text.partition("symmetric difference on key sets is ")
    found = f"a tree in it (a mask, labels) differs in {keys}" if keys else text.rstrip(".")
    return f"{found}. Give one of their structure, or a function of the parameters."


def wide(values: PyTree) -> PyTree:
    """Floating leaves in float32 at least."""
    return jax.tree.map(lambda x: full(x) if jnp.issubdtype(x.dtype, np.inexact) else x, values)


def as_before(new: PyTree, old: PyTree) -> PyTree:
    """A state with the dtypes of the one before; unchanged where their structures differ."""
    if jax.tree.structure(new) != jax.tree.structure(old):
        return new
    return jax.tree.map(lambda n, o: _strong(n, jnp.result_type(o)), new, old)


def _strong(x: Any, dtype: Any = None) -> Array:
    """`x` as an array whose dtype no literal decides: a weak type would trace the next step anew."""
    array = jnp.asarray(x)
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):
        return array
    return jax.lax.convert_element_type(array, array.dtype if dtype is None else dtype)
