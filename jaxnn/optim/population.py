"""Populations: hyperparameters that differ from member to member of one vmapped run."""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.optim.compose.hyper_access import set_hyper, wanted_values
from jaxnn.optim.hyper import ANY, MULTIPLIER, NONNEGATIVE, check_number
from jaxnn.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Population:
    """What differs between the members of a run; make one by `grid` or `members`.

    Attributes:
        values: Hyperparameter name, as in `optim.hyper` -> its value in each member.
    """

    values: dict[str, tuple[float, ...]]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __getitem__(self, member: int) -> dict[str, float]:
        """One member's hyperparameters."""
        return {name: values[member] for name, values in self.values.items()}

    def label(self, member: int) -> str:
        """One member's hyperparameters as text: `lr=0.001, b2=0.99`."""
        return ", ".join(f"{name}={value:g}" for name, value in self[member].items())

    def spread(self, opt_state: PyTree) -> PyTree:
        """The states of all members from that of one: leaves with a leading axis [members], hyperparameters set.

        Raises:
            ValueError: If a name is unknown to the optimizer's state, or ambiguous, or a value outside its domain.
        """
        wanted_values(opt_state, {name: np.asarray(values) for name, values in self.values.items()}, "optim.Population")
        columns = {name: jnp.asarray(values, jnp.float32) for name, values in self.values.items()}
        return jax.vmap(lambda own: set_hyper(opt_state, **own))(columns)


def members(**values: Sequence[float]) -> Population:
    """Members side by side: `members(lr=[1e-3, 1e-2], b2=[0.99, 0.95])` are two.

    Raises:
        ValueError: If there is none, or the lengths differ.
        TypeError: If a value is no number.
    """
    columns = {name: tuple(_numbers("optim.members", name, column)) for name, column in values.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if not lengths or len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(
            f"optim.members: {lengths or 'no hyperparameter'}. Give each the same number of values, 1 or more."
        )
    return Population(columns)


def grid(**axes: Sequence[float]) -> Population:
    """Every combination, the last name fastest: `grid(lr=[1e-3, 1e-2], b2=[0.95, 0.99])` has four members.

    Raises:
        ValueError: If there is none, or an axis is empty.
        TypeError: If a value is no number.
    """
    checked = {name: _numbers("optim.grid", name, axis) for name, axis in axes.items()}
    if not checked or not all(checked.values()):
        raise ValueError(f"optim.grid: {axes or 'no hyperparameter'}. Give each name one value or more.")
    rows = list(itertools.product(*checked.values()))
    return Population({name: tuple(row[i] for row in rows) for i, name in enumerate(checked)})


def _numbers(where: str, name: str, values: Sequence[float]) -> list[float]:
    if np.ndim(values) != 1:
        raise TypeError(
            f"{where}: {name} must be a sequence of numbers, got {values!r:.60}. Write {name}=[1e-3, 1e-2]."
        )
    # A rate is one everywhere; of other names the optimizer knows the domain, which `spread` sees.
    domain = NONNEGATIVE if name.rsplit(".", 1)[-1] in ("lr", MULTIPLIER) else ANY
    return [check_number(where, name, value, domain) for value in values]
