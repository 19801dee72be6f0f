"""The layers that a deep model repeats: where the backward pass may compute anew, and where parameters are gathered.

A model wraps the module that it repeats once, `layer(Block)(config, name="blocks_0")(x, ...)`; parameters and values
are those of `Block`. What it does depends on what is in force while tracing, and is nothing by default.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from jaxnn import sharding
from jaxnn.typing import Array

_POLICIES = jax.checkpoint_policies

# What the backward pass finds stored, by name; the rest of a layer is computed anew.
POLICIES: dict[str, Callable[..., Any]] = {
    "block": _POLICIES.nothing_saveable,  # the layer's inputs
    "dots": _POLICIES.dots_saveable,  # also the results of matrix products
    "projections": _POLICIES.dots_with_no_batch_dims_saveable,  # of products with parameters, so not attention's scores
}


# What lies between a part of a parameter and a product that reads it. Of activations, these are cheap to do again.
_READING = frozenset(
    ("all_gather", "sharding_constraint", "optimization_barrier", "convert_element_type", "reshape", "transpose")
)


def _all_but_parameters(primitive: Any, *_: Any, **__: Any) -> bool:
    """Stores everything but gathered parameters; whatever is stored on the way to them would keep them."""
    return primitive.name not in _READING


def check_remat(name: str | None, where: str) -> None:
    """Refuses the name of a policy that there is not.

    Raises:
        ValueError: Listing those that there are.
    """
    if name is not None and name not in POLICIES:
        raise ValueError(
            f"{where}: remat={name!r} is unknown. Tried: {', '.join(POLICIES)}. Write one of them, or None."
        )


@functools.cache
def _anchored(module: type[nn.Module]) -> type[nn.Module]:
    """The same module, whose parameters are not gathered before its input is there."""

    class Layer(module):
        def __call__(self, x: Array, *args: Any, **keywords: Any) -> Any:
            with sharding.entering(x):
                return super().__call__(x, *args, **keywords)

    return Layer


def layer(module: type[nn.Module]) -> Any:
    """The class of a repeated layer, as what is in force wants it; `module` itself by default.

    Under a rematerialisation policy its backward pass computes anew what the policy does not store. Where parameters
    are kept in parts, they are gathered when the layer starts, forward and backward, and not kept in between.

    Args:
        module: A Linen module whose `__call__` takes activations first; other arguments may be arrays, numbers or None.
    """
    policy = sharding.remat_policy()
    check_remat(policy, "models.layer")
    if not sharding.in_parts():
        return module if policy is None else nn.remat(module, policy=POLICIES[policy])
    return nn.remat(_anchored(module), policy=POLICIES[policy] if policy else _all_but_parameters)
