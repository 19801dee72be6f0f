"""What a parameter is, said where it is made: an initializer with a role."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxnn import tree
from jaxnn.typing import Array

Initializer = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Declared:
    """An initializer that says what its parameter is; calls through to `init`.

    Attributes:
        init: `(key, shape, dtype) -> array`.
        role: What the parameter is; `role.stacked` counts leading axes that a scan over layers adds to this shape.
    """

    init: Initializer
    role: tree.Role

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The parameter's initial value."""
        return self.init(*args, **kwargs)


def declare(init: Initializer, role: str, stacked: int = 0) -> Declared:
    """An initializer with its parameter's role, for `Module.param`; read it as `declared.role`.

    Args:
        init: `(key, shape, dtype) -> array`.
        role: One of `tree.ROLES`.
        stacked: Leading axes of the stored parameter that only stack layers.

    Raises:
        ValueError: If the role is unknown.
    """
    if role not in tree.ROLES:
        raise ValueError(
            f"layers.declare: role {role!r} is unknown. Tried: {', '.join(tree.ROLES)}. Write one of them."
        )
    return Declared(init, tree.Role(role, stacked))


def along_last(p: Array, x: Array) -> Array:
    """A vector `p` [E] in the rank and dtype of `x` [..., E]: nothing here leans on implicit promotion of either."""
    return p.astype(x.dtype).reshape((1,) * (x.ndim - 1) + p.shape)
