"""Where each leaf of an optimizer's state lies on a mesh: from abstract init, for any optimizer."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnn import tree
from jaxnn.optim.compose.places import Place, abstract_init, places
from jaxnn.sharding import axes_of, following, padded, split_largest
from jaxnn.typing import PyTree


def state_specs(
    tx: optax.GradientTransformation,
    params: PyTree,
    param_specs: PyTree = None,
    zero_axis: str | None = None,
    mesh: Mesh | Mapping[str, int] | None = None,
) -> PyTree:
    """A `PartitionSpec` for every leaf of `tx.init(params)`, which is not run: only its shapes are asked for.

    A leaf of its parameter's shape takes the parameter's spec, and one with further leading axes (a memory of past
    steps) keeps those whole. With `zero_axis`, the largest axis left free that divides is split over that mesh axis as
    well, so that each device keeps its share of the moments (ZeRO). Factored and blocked leaves (rows, columns, 8-bit
    codes) are split along their largest axis that divides. Scalars are replicated.

    Args:
        tx: Any optimizer, of ours or of optax.
        params: Parameters, or their shapes.
        param_specs: Tree like `params` of specs or `NamedSharding`s; by default what the parameters' own
            `NamedSharding`s say, and replicated where they have none.
        zero_axis: Mesh axis over which state is split besides; None leaves the parameters' layout.
        mesh: The mesh, or axis name -> size; needed with `zero_axis`. By default that of the `NamedSharding`s of
            `param_specs`, else of `params`, else the mesh in force (`jax.set_mesh`).

    Returns:
        A tree like the state of `PartitionSpec`s.

    Raises:
        ValueError: If `param_specs` has other leaves than `params`, a spec more entries than its parameter has axes,
            no mesh is known or several, or it has no such axis.

    Source:
        Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO, stage 1).
    """
    where = "optim.state_specs"
    sizes = {} if zero_axis is None else axis_sizes(where, mesh, ("param_specs", param_specs), ("params", params))
    if zero_axis is not None and zero_axis not in sizes:
        raise ValueError(f"{where}: zero_axis is {zero_axis!r}, and {unknown_axis(sizes, 'param_specs')}")
    known = _param_specs(where, params, param_specs)
    shapes = {path: np.shape(leaf) for path, leaf in tree.leaves_by_path(params).items()}
    state, _ = abstract_init(tx, params)
    specs = [_spec(place, shapes, known, zero_axis, sizes) for place in places(state, params)]
    return jax.tree.unflatten(jax.tree.structure(state), specs)


def shard_shape(shape: tuple[int, ...], spec: PartitionSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """What one device holds of an array, its largest part where it does not divide."""
    entries = padded(spec, len(shape))
    return tuple(math.ceil(n / math.prod(sizes.get(a, 1) for a in axes_of(e))) for n, e in zip(shape, entries))


def axis_sizes(where: str, mesh: Mesh | Mapping[str, int] | None, *trees: tuple[str, PyTree]) -> dict[str, int]:
    """Axis name -> size: of the mesh; else of the first tree's that has `NamedSharding`s; else of the one in force.

    Args:
        where: What an error calls the caller.
        mesh: The mesh, or its sizes, or None.
        trees: What it calls a tree, and the tree: of shardings, or of arrays or shapes that have one.

    Raises:
        ValueError: If the shardings of one tree are on meshes of different sizes, naming two leaves.
    """
    if mesh is not None:
        return dict(mesh if isinstance(mesh, Mapping) else mesh.shape)
    for name, values in trees:
        found = {
            path: dict(sharding.mesh.shape)
            for path, leaf in tree.leaves_by_path(values).items()
            if (sharding := _sharding(leaf)) is not None and sharding.mesh.shape
        }
        first = next(iter(found), None)
        if first is None:
            continue
        other = next((path for path, sizes in found.items() if sizes != found[first]), None)
        if other is not None:
            raise ValueError(
                f"{where}: of {name}, {other!r} is on the mesh {found[other]} and {first!r} on {found[first]}. Give "
                "mesh=, or put all on one."
            )
        return found[first]
    return dict(jax.sharding.get_abstract_mesh().shape)


def unknown_axis(sizes: Mapping[str, int], specs: str) -> str:
    """The end of an error: what is known of the mesh instead of an axis that is asked for, and what to give."""
    ways = f"mesh=, {specs} of NamedShardings, or parameters that lie on a mesh, or call under jax.set_mesh(mesh)"
    return f"the mesh has {list(sizes)}. Give an axis that it has." if sizes else f"no mesh is known. Give {ways}."


def _sharding(leaf: object) -> NamedSharding | None:
    """What a leaf is or has of a named sharding."""
    found = leaf if isinstance(leaf, NamedSharding) else getattr(leaf, "sharding", None)
    return found if isinstance(found, NamedSharding) else None


def _param_specs(where: str, params: PyTree, param_specs: PyTree) -> dict[str, PartitionSpec]:
    paths = tree.leaves_by_path(params)
    if param_specs is None:
        shardings = {path: _sharding(leaf) for path, leaf in paths.items()}
        return {path: PartitionSpec() if s is None else s.spec for path, s in shardings.items()}
    given = {
        tree.path_name(path): spec_of(leaf) or PartitionSpec()
        for path, leaf in jax.tree_util.tree_leaves_with_path(param_specs, is_leaf=_is_spec)
    }
    if given.keys() != paths.keys():
        off = sorted(given.keys() ^ paths.keys())
        raise ValueError(f"{where}: param_specs and params differ in {off[:4]}. Give a spec for every parameter.")
    for path, spec in given.items():
        if not isinstance(spec, PartitionSpec) or len(spec) > len(np.shape(paths[path])):
            raise ValueError(
                f"{where}: {spec!r:.60} is no spec for leaf {path!r} {tree.describe(paths[path])}. Give a spec "
                "with at most an entry an axis."
            )
    return given


def _is_spec(x: object) -> bool:
    return x is None or isinstance(x, PartitionSpec | NamedSharding)


def spec_of(leaf: object) -> Any:
    """A `NamedSharding`'s spec; what is none as it is."""
    return leaf.spec if isinstance(leaf, NamedSharding) else leaf


def _spec(
    place: Place,
    shapes: Mapping[str, tuple[int, ...]],
    known: Mapping[str, PartitionSpec],
    zero_axis: str | None,
    sizes: Mapping[str, int],
) -> PartitionSpec:
    shape, spec = np.shape(place.leaf), None
    if place.param is not None:
        spec = following(shape, shapes[place.param], known[place.param])
    spec = PartitionSpec() if spec is None else spec
    return spec if zero_axis is None else split_largest(shape, spec, zero_axis, sizes[zero_axis])
