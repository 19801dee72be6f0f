"""Logical axis names: a model says what an axis means, the strategy says where it goes.

`constrain(x, "batch", "time", "embed")` is a no-op until a strategy installs rules for a mesh, so that models run
unchanged on one device, inside a manual region, and partitioned by XLA.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnn.typing import Array

Rules = Mapping[str, str | tuple[str, ...] | None]  # logical axis -> mesh axes
_rules: contextvars.ContextVar[tuple[Mesh, Rules] | None] = contextvars.ContextVar("jaxnn_rules", default=None)


@contextlib.contextmanager
def use(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """While tracing inside, `constrain` places logical axes on `mesh` by `rules`."""
    token = _rules.set((mesh, rules))
    try:
        yield
    finally:
        _rules.reset(token)


def manual_axes() -> tuple[str, ...]:
    """Mesh axes over which the code being traced sees one shard: inside shard_map and pmap; () elsewhere."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def psum_manual(x: Array) -> Array:
    """The sum of `x` over the devices of the enclosing manual region; `x` itself where there is none.

    Where XLA partitions the program, a plain sum is already global; this makes the same expression global in shard_map
    and pmap too.
    """
    axes = manual_axes()
    return jax.lax.psum(x, axes) if axes else x


def constrain(x: Array, *names: str | None) -> Array:
    """Names the axes of `x`; a sharding constraint where rules are in force, else `x` itself.

    Raises:
        ValueError: If the number of names is not the rank of `x`.
    """
    if len(names) != x.ndim:
        raise ValueError(
            f"sharding.constrain: {len(names)} names {names} for shape {x.shape}. Name every axis, None for a free one."
        )
    current = _rules.get()
    if current is None or manual_axes():
        return x
    mesh, rules = current
    spec = PartitionSpec(*(rules.get(n) if n else None for n in names))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
