"""Where each leaf of an optimizer's state lies on a mesh: from abstract init, for any optimizer."""

import math
from collections.abc import Mapping

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
        param_specs: Tree like `params` of specs or `NamedSharding`s; None where the parameters are replicated.
        zero_axis: Mesh axis over which state is split besides; None leaves the parameters' layout.
        mesh: The mesh, or axis name -> size; needed with `zero_axis`. By default the mesh in force.

    Returns:
        A tree like the state of `PartitionSpec`s.

    Raises:
        ValueError: If `param_specs` has other leaves than `params`, a spec more entries than its parameter has axes,
            or the mesh has no such axis.

    Source:
        Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO, stage 1).
    """
    where = "optim.state_specs"
    sizes = _sizes(where, zero_axis, mesh)
    known = _param_specs(where, params, param_specs)
    shapes = {path: np.shape(leaf) for path, leaf in tree.leaves_by_path(params).items()}
    state, _ = abstract_init(tx, params)
    specs = [_spec(place, shapes, known, zero_axis, sizes) for place in places(state, params)]
    return jax.tree.unflatten(jax.tree.structure(state), specs)


def shard_shape(shape: tuple[int, ...], spec: PartitionSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """What one device holds of an array, its largest part where it does not divide."""
    entries = padded(spec, len(shape))
    return tuple(math.ceil(n / math.prod(sizes.get(a, 1) for a in axes_of(e))) for n, e in zip(shape, entries))


def axis_sizes(mesh: Mesh | Mapping[str, int] | None) -> dict[str, int]:
    """Axis name -> size: of the mesh, or of the one in force."""
    if isinstance(mesh, Mapping):
        return dict(mesh)
    return dict((jax.sharding.get_abstract_mesh() if mesh is None else mesh).shape)


def _sizes(where: str, zero_axis: str | None, mesh: Mesh | Mapping[str, int] | None) -> dict[str, int]:
    sizes = axis_sizes(mesh)
    if zero_axis is not None and zero_axis not in sizes:
        raise ValueError(
            f"{where}: zero_axis is {zero_axis!r}, and the mesh has {list(sizes) or 'no axis'}. Give mesh=, or an axis "
            "that it has."
        )
    return sizes


def _param_specs(where: str, params: PyTree, param_specs: PyTree) -> dict[str, PartitionSpec]:
    paths = tree.leaves_by_path(params)
    if param_specs is None:
        return dict.fromkeys(paths, PartitionSpec())
    is_spec = lambda x: x is None or isinstance(x, PartitionSpec | NamedSharding)  # noqa: E731
    given = {
        tree.path_name(path): leaf.spec if isinstance(leaf, NamedSharding) else leaf or PartitionSpec()
        for path, leaf in jax.tree_util.tree_leaves_with_path(param_specs, is_leaf=is_spec)
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
