"""Logical axis names: a model says what an axis means, the strategy says where it goes.

`constrain(x, "batch", "time", "embed")` is a no-op until a strategy installs rules for a mesh, so that models run
unchanged on one device, inside a manual region, and partitioned by XLA. In the same way a strategy that keeps
parameters in parts says how a part is made whole (`reading`), and the settings of a step say what a layer's backward
pass computes anew (`rematerializing`); models read both through `models.blocks.layer`.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

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


def constraining() -> bool:
    """Whether `constrain` lays axes out over devices: merging two of them may then cost communication."""
    return _rules.get() is not None and not manual_axes()


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
    used: set[str] = set()
    entries: list[str | tuple[str, ...] | None] = []
    for name in names:
        axes = rules.get(name) if name else None
        mesh_axes = (axes,) if isinstance(axes, str) else axes or ()
        entries.append(axes if used.isdisjoint(mesh_axes) else None)  # the first axis of two that want the same
        used.update(mesh_axes)
    spec = PartitionSpec(*entries)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


# ---- specs


def axes_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a spec."""
    if entry is None:
        return ()
    return tuple(entry) if isinstance(entry, tuple) else (str(entry),)


def padded(spec: PartitionSpec, rank: int) -> tuple[Any, ...]:
    """The entries of a spec, one an axis."""
    return (*spec, *(None,) * (rank - len(spec)))


def trimmed(entries: Sequence[Any]) -> PartitionSpec:
    """The spec of these entries."""
    kept = list(entries)
    while kept and kept[-1] is None:
        kept.pop()
    return PartitionSpec(*kept)


def split_largest(
    shape: tuple[int, ...], spec: PartitionSpec, axis: str, size: int, *, skip: int = 0, min_size: int = 0
) -> PartitionSpec:
    """`spec` with the mesh axis on the largest free axis of `shape` that divides; `spec` where none does.

    Args:
        shape: Of the array.
        spec: What is settled already.
        axis: The mesh axis.
        size: Its size.
        skip: Leading axes to leave alone: a loop over layers takes slices of them.
        min_size: Arrays with fewer elements, those of a layer, stay whole along `axis`.
    """
    entries = list(padded(spec, len(shape)))
    taken = any(axis in axes_of(entry) for entry in entries)
    free = [i for i, e in enumerate(entries) if e is None and i >= skip and shape[i] and shape[i] % size == 0]
    if taken or not free or math.prod(shape[skip:]) < min_size:
        return spec
    entries[max(free, key=lambda i: shape[i])] = axis
    return trimmed(entries)


def following(shape: tuple[int, ...], owner: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec | None:
    """The spec of an array that has its owner's shape, or that and further leading axes, which stay whole; else
    None."""
    extra = len(shape) - len(owner)
    if extra < 0 or shape[extra:] != owner:
        return None
    return trimmed((*(None,) * extra, *padded(spec, len(owner))))


# ---- parameters in parts


@dataclasses.dataclass(frozen=True)
class Reading:
    """How parameters that a strategy keeps in parts are read while a loss is traced.

    Attributes:
        whole: `whole(path, part)` gives the parameter that the model is to see. Differentiable: the cotangent of a part
            is a part of the gradient, added over the devices.
        anchor: What the layer being traced was given; its parameters are not read before it is there.
        change: What is done to a whole parameter before the model sees it: a cast, say.
    """

    whole: Callable[[str, Array], Array]
    anchor: Array | None = None
    change: Callable[[Array], Array] | None = None


_reading: contextvars.ContextVar[Reading | None] = contextvars.ContextVar("jaxnn_reading", default=None)
_remat: contextvars.ContextVar["Remat | None"] = contextvars.ContextVar("jaxnn_remat", default=None)


@contextlib.contextmanager
def reading(whole: Callable[[str, Array], Array]) -> Iterator[None]:
    """While tracing inside, parameters are parts, and `whole(path, part)` gives the parameter."""
    token = _reading.set(Reading(whole))
    try:
        yield
    finally:
        _reading.reset(token)


def in_parts() -> bool:
    """Whether the parameters that are seen here are parts."""
    return _reading.get() is not None


def read(path: str, part: Array) -> Array:
    """The parameter behind a part; the part itself where parameters are whole."""
    current = _reading.get()
    if current is None:
        return part
    if current.anchor is not None:
        # Or every layer's parameters may be gathered at once, before the first layer runs.
        part, _ = jax.lax.optimization_barrier((part, current.anchor))
    found = current.whole(path, part)
    return found if current.change is None else current.change(found)


@contextlib.contextmanager
def changing(change: Callable[[Array], Array]) -> Iterator[None]:
    """While tracing inside, what `read` gives went through `change` first; nothing where parameters are whole."""
    current = _reading.get()
    if current is None:
        yield
        return
    token = _reading.set(dataclasses.replace(current, change=change))
    try:
        yield
    finally:
        _reading.reset(token)


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """While tracing inside, parameters are whole: what was in parts has been read."""
    token = _reading.set(None)
    try:
        yield
    finally:
        _reading.reset(token)


@contextlib.contextmanager
def entering(x: Array) -> Iterator[None]:
    """While tracing inside, a layer is computed whose input is `x`."""
    current = _reading.get()
    if current is None:
        yield
        return
    token = _reading.set(dataclasses.replace(current, anchor=jax.lax.stop_gradient(x)))
    try:
        yield
    finally:
        _reading.reset(token)


@dataclasses.dataclass
class Remat:
    """What layers compute anew in their backward pass.

    Attributes:
        policy: By name; None where everything is kept.
        asked: Whether a layer has asked for it.
    """

    policy: str | None
    asked: bool = False


@contextlib.contextmanager
def rematerializing(policy: str | None) -> Iterator[Remat]:
    """While tracing inside, layers compute anew in the backward pass what `policy` says; see `models.blocks.layer`.

    What it gives says afterwards whether there was such a layer.
    """
    remat = Remat(policy)
    token = _remat.set(remat)
    try:
        yield remat
    finally:
        _remat.reset(token)


def remat_policy() -> str | None:
    """The policy in force, by name; None where everything is kept."""
    remat = _remat.get()
    if remat is None:
        return None
    remat.asked = True
    return remat.policy
