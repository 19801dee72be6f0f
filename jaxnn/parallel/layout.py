"""Which axis of an array is split over which mesh axis: a pure function of shapes, declared roles and rules.

Nothing here looks at values or devices, so that a step being traced, a checkpoint being read and a
table of bytes agree.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from jaxnn import tree
from jaxnn.sharding import axes_of, following, padded, split_largest, trimmed
from jaxnn.typing import Params, PyTree

# Below this many elements a leaf stays whole: its collective would cost more than its memory. GPT-2's leaves of this
# kind, norms and biases, are 0.1 % of it.
MIN_SIZE = 1024


def stacked_axes(path: str) -> int:
    """How many leading axes of the parameter only stack layers, as its module declared."""
    role = tree.declared_roles().get(path)
    return role.stacked if role is not None else 0


def split_params(params: Params, base: Mapping[str, P], axis: str, size: int, min_size: int) -> dict[str, P]:
    """By path, the spec of each parameter: `base`, and `axis` on the largest free axis that divides."""
    return {
        path: split_largest(np.shape(leaf), base.get(path, P()), axis, size, skip=stacked_axes(path), min_size=min_size)
        if size > 1
        else base.get(path, P())
        for path, leaf in tree.leaves_by_path(params).items()
    }


def state_specs(state: Any, specs: Mapping[str, P], moments: Mapping[str, P], mesh: Mesh, min_size: int) -> Any:
    """A state of specs: parameters as `specs` says, what the optimizer keeps of each as `moments` says, the rest whole.

    A leaf of the optimizer's that has its parameter's shape, or that and further leading axes, takes its parameter's
    spec. A factored one (rows, columns, 8-bit codes) of a parameter that is split is split along its own largest axis.

    Args:
        state: A `core.State`, or its shapes.
        specs: By path, of the parameters.
        moments: By path, of the gradients and moments.
        mesh: Its first axis splits factored leaves.
        min_size: Smaller ones stay whole.
    """
    shapes = {path: np.shape(leaf) for path, leaf in tree.leaves_by_path(state.params).items()}
    names = tuple(shapes)
    axis = mesh.axis_names[0]

    def of_moment(keys: tuple[Any, ...], leaf: Any) -> P:
        shape = np.shape(leaf)
        parts = tuple(tree.key_name(key) for key in keys)
        found = tree.find_param(parts, names)
        path = "/".join(parts[found[0] : found[1]]) if found else "." if names == (".",) else None
        if path is None or not shape:
            return P()
        if (spec := following(shape, shapes[path], moments[path])) is not None:
            return spec
        if not any(axis in axes_of(entry) for entry in moments[path]):
            return P()
        return split_largest(shape, P(), axis, mesh.shape[axis], min_size=min_size)

    whole = lambda part: jax.tree.map(lambda _: P(), part)  # noqa: E731
    return state._replace(
        step=P(),
        data_step=P(),
        params=tree.map_by_path(lambda path, _: specs[path], state.params),
        model_state=whole(state.model_state),
        opt_state=jax.tree_util.tree_map_with_path(of_moment, state.opt_state),
        key=P(),
    )


def shardings(mesh: Mesh, specs: PyTree) -> PyTree:
    """The same tree of `NamedSharding`s."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def _matches(pattern: str, path: str, role: str) -> bool:
    """Whether a rule's key is the role, `role:matrix`, or a regular expression found in the path."""
    return pattern == f"role:{role}" if pattern.startswith("role:") else re.search(pattern, path) is not None


def matched(params: Params, rules: Mapping[str, P], mesh: Mesh, where: str) -> dict[str, P]:
    """By path, the spec of the first rule that matches each parameter.

    Args:
        params: Parameters, or their shapes.
        rules: `role:NAME`, or a regular expression to find in the path -> spec of the parameter's own axes; axes that
            stack layers are left whole.
        mesh: Has the axes that the specs name.
        where: For errors.

    Raises:
        ValueError: If no rule matches a leaf, a spec has more entries than the leaf has axes or names an axis that the
            mesh has not, or an axis does not divide.
    """
    declared = tree.declared_roles()
    found: dict[str, P] = {}
    for path, leaf in tree.leaves_by_path(params).items():
        shape, stacked = np.shape(leaf), stacked_axes(path)
        role = (declared.get(path) or tree.guess_role(path, leaf)).name
        spec = next((spec for pattern, spec in rules.items() if _matches(pattern, path, role)), None)
        if spec is None:
            raise ValueError(
                f"{where}: no rule matches leaf {path!r} {shape} (role {role}). Tried: {', '.join(rules) or 'none'}. "
                f"Add {path!r}: PartitionSpec(...), or 'role:{role}': PartitionSpec() to keep such leaves whole."
            )
        if len(spec) > len(shape) - stacked:
            raise ValueError(
                f"{where}: {spec} has {len(spec)} entries for leaf {path!r} {shape}"
                f"{f', of whose axes {stacked} stack layers' if stacked else ''}. Give at most one an axis."
            )
        entries = (*(None,) * stacked, *padded(spec, len(shape) - stacked))
        for n, entry in zip(shape, entries):
            unknown = [axis for axis in axes_of(entry) if axis not in mesh.shape]
            if unknown:
                raise ValueError(
                    f"{where}: the rule for leaf {path!r} names the mesh axis {unknown[0]!r}. Tried: "
                    f"{', '.join(mesh.axis_names)}. Write one of them."
                )
            ways = math.prod(mesh.shape[axis] for axis in axes_of(entry))
            if n % ways:
                raise ValueError(
                    f"{where}: leaf {path!r} {shape} does not divide by its rule {spec}: {n} over {ways} devices of "
                    f"{entry!r}. Choose a size that is a multiple of {ways}, fewer devices along {entry!r}, or a rule "
                    "that keeps this axis whole."
                )
        found[path] = trimmed(entries)
    return found
