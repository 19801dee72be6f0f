"""Every optimizer there is, by name: what the contract tests, the parity tests and the benchmarks run over.

A new optimizer is one file, in which `registered` marks its ready-made form, and one line in `optim/__init__.py`, which
imports it under the names that `optim.NAME` has.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import optax

Maker = Callable[..., optax.GradientTransformationExtraArgs]
Marked = TypeVar("Marked", bound=Maker)


class Entry(NamedTuple):
    """One optimizer.

    Attributes:
        make: `make(lr) -> transformation`, everything else at its default.
        lr: A rate at which it makes headway on small problems.
        source: Paper.
        needs: Extra arguments that its update needs: "value", "value_fn", "key".
    """

    make: Callable[[float], optax.GradientTransformationExtraArgs]
    lr: float
    source: str
    needs: tuple[str, ...] = ()


OPTIMIZERS: dict[str, Entry] = {}


def registered(
    lr: float, source: str, *, needs: tuple[str, ...] = (), name: str | None = None, make: Maker | None = None
) -> Callable[[Marked], Marked]:
    """Marks an optimizer as one of `OPTIMIZERS`; the function itself stays as it is.

        @registered(3e-3, "arXiv:2302.06675")
        def lion(lr, b1=0.9, b2=0.99, ...):

    Args:
        lr: As in `Entry`.
        source: As in `Entry`.
        needs: As in `Entry`.
        name: In `OPTIMIZERS`; None for the function's.
        make: `make(lr)`, where the function itself would not do: what wraps an optimizer needs one.

    Raises:
        ValueError: If there is one of that name.
    """

    def mark(fn: Marked) -> Marked:
        called = name or fn.__name__
        if called in OPTIMIZERS:
            raise ValueError(f"optim.registry: there are two optimizers {called!r}. Give `name`.")
        OPTIMIZERS[called] = Entry(make or fn, lr, source, needs)
        return fn

    return mark
