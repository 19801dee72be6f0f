"""What is not finite in a step, by name and in forward order: the sums that `fit(debug=True)` adds."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import tracers

from jaxnn import tree
from jaxnn.typing import Array, Mean, PyTree

LEAVES = "nonfinite/"  # what follows is a kind and a path; sums of this prefix are counts, and no reported values
LAYERS = f"{LEAVES}layers/"  # then a number in forward order, and "0003:inputs/PATH" or "0003:outputs/PATH"


def _count(value: Array) -> Array:
    """How many elements are not finite, float32."""
    return jnp.sum(~jnp.isfinite(value)).astype(jnp.float32)


def everywhere(values: PyTree) -> Array:
    """Whether all floating elements of all leaves are finite: bool scalar."""
    floats = [x for x in jax.tree.leaves(values) if jnp.issubdtype(x.dtype, jnp.inexact)]
    found = jnp.ones((), bool)
    for x in floats:
        found = found & jnp.all(jnp.isfinite(x))
    return found


def counts(kind: str, values: PyTree) -> dict[str, Mean]:
    """The number of non-finite elements of each leaf, by kind and path."""
    one = jnp.ones((), jnp.float32)
    return {f"{LEAVES}{kind}/{path}": Mean(_count(x), one) for path, x in tree.leaves_by_path(values).items()}


@contextlib.contextmanager
def layers() -> Iterator[dict[str, Mean]]:
    """While inside, what goes into and comes out of the Linen layers that this thread traces is counted as in `counts`.

    In forward order, a layer's outputs after those of the layers in it. Inputs tell what happens between layers, and
    the model's own the data. What is called inside of a scan, a checkpoint or a branch cannot leave it: what it gives
    is the next layer's inputs.
    """
    found: dict[str, Mean] = {}
    base = tracers.current_trace()
    active: list[str] = []

    def add(what: str, values: PyTree) -> None:
        arrays = [x for x in jax.tree.leaves(values) if hasattr(x, "dtype")]
        inexact = [x for x in arrays if jnp.issubdtype(x.dtype, jnp.inexact)]
        if inexact and tracers.current_trace() == base:
            total = sum(map(_count, inexact), start=jnp.zeros((), jnp.float32))
            found[f"{LAYERS}{len(found):04d}:{what}"] = Mean(total, jnp.ones((), jnp.float32))

    def count(run: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        path, name = "/".join(context.module.path), context.method_name
        inner = name == "setup" or (name.startswith("_") and name != "__call__")
        if inner or active[-1:] == [path]:  # the latter: a method that the layer calls of itself
            return run(*args, **kwargs)
        called = path or type(context.module).__name__
        add(f"inputs/{called}", (args, kwargs))
        active.append(path)
        try:
            given = run(*args, **kwargs)
        finally:
            active.pop()
        add(f"outputs/{called}", given)
        return given

    with nn.intercept_methods(count):
        yield found
