"""Hyperparameters as state: float32 leaves that a step reads, whatever the parameters' dtype.

Because they are leaves, changing one recompiles nothing, a sweep over one is a `vmap`, and a checkpoint holds the value
that was in effect. A constant and a schedule are alike: the value in effect is in the state either way, and a value set
by hand holds until it is released.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.typing import Array, Schedule


@dataclasses.dataclass(frozen=True)
class Domain:
    """The interval in which a hyperparameter makes sense."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        if math.isinf(self.low) and math.isinf(self.high):
            return "a finite number"
        if math.isinf(self.high):
            return f"a number {'>' if self.low_open else '>='} {self.low:g}"
        return f"a number in {'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"


ANY = Domain()
NONNEGATIVE = Domain(low=0)
POSITIVE = Domain(low=0, low_open=True)
DECAY_RATE = Domain(low=0, high=1, high_open=True)  # of an exponential average
SHARE = Domain(low=0, high=1)

MULTIPLIER = "lr_multiplier"  # scales a scheduled rate as a whole

# What the field's names mean everywhere; other names take any finite number unless the algorithm says more.
DOMAINS: dict[str, Domain] = {
    "lr": NONNEGATIVE,
    MULTIPLIER: NONNEGATIVE,
    "b1": DECAY_RATE,
    "b2": DECAY_RATE,
    "b3": DECAY_RATE,
    "momentum": DECAY_RATE,
    "decay": DECAY_RATE,
    "eps": NONNEGATIVE,
    "weight_decay": NONNEGATIVE,
    "max_norm": POSITIVE,
}


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Domains:
    """The domains of a stage's hyperparameters, by name: a part of its state without leaves. Made by `domains_of`.

    They are in the state so that a value set later is held to what the algorithm was built for. Equal ones are the same
    object: a jitted step compares them in every call.
    """

    by_name: tuple[tuple[str, Domain], ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return domains_of, (self.by_name,)

    def __repr__(self) -> str:
        return f"Domains({', '.join(f'{name}: {domain}' for name, domain in self.by_name)})"

    def of(self, name: str) -> Domain:
        """The domain of `name`."""
        return dict(self.by_name)[name]


@functools.cache
def domains_of(by_name: tuple[tuple[str, Domain], ...]) -> Domains:
    """The one object for these domains."""
    return Domains(by_name)


class Hypers(NamedTuple):
    """The hyperparameters of one stage, and how often it was applied.

    Attributes:
        count: int32 scalar, updates done.
        values: Name -> float32 scalar in effect: of the last update, and of the next unless a schedule moves it.
        held: Name -> bool scalar, for scheduled ones only: set by hand, so that the schedule does not apply.
        domains: Name -> the interval in which a value makes sense; no leaf.
    """

    count: Any
    values: dict[str, Any]
    held: dict[str, Any]
    domains: Domains


class InEffect(dict[str, Array]):
    """The values of one update, by attribute: `h.lr`; and `h.count`, the number of this update, from 1 (float32)."""

    def __getattr__(self, name: str) -> Array:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def check_number(where: str, name: str, value: Any, domain: Domain | None = None) -> float:
    """A hyperparameter's value as a float.

    Raises:
        TypeError: If it is no number, or a traced one.
        ValueError: If it is outside its domain.
    """
    domain = domain or DOMAINS.get(name, ANY)
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{where}: {name} is traced, and an optimizer is built of numbers, which are checked. Build it with one, "
            "and set the other in its state: optim.set_hyper(tx.init(params), NAME=value), which may be traced."
        )
    if isinstance(value, (bool, str, bytes)) or np.ndim(value) != 0 or not hasattr(value, "__float__"):
        raise TypeError(f"{where}: {name} must be a number or a schedule (step -> number), got {value!r:.60}.")
    number = float(value)
    if number not in domain:
        raise ValueError(f"{where}: {name} is {number:g}. Give {domain}.")
    return number


def check_whole(where: str, name: str, value: Any, least: int = 1) -> int:
    """A setting that counts something, and is no hyperparameter: it shapes the program.

    Raises:
        ValueError: If it is no whole number, or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{where}: {name} is {value!r:.60}. Give a whole number, {least} or more.")
    return int(value)


class Hyperparameters:
    """The hyperparameters that one stage was built with: constants and schedules, checked.

    Args:
        where: What an error calls the stage: "optim.adam".
        domains: Domains of names that `DOMAINS` does not know.
        given: Name -> number, or schedule (update number, from 0 -> number). A scheduled "lr" brings another one,
            "lr_multiplier", which scales all of it.

    Raises:
        TypeError: If a value is neither.
        ValueError: If a value is outside its domain; for a schedule, its first one.
    """

    def __init__(self, where: str, /, domains: Mapping[str, Domain] | None = None, **given: Any):
        self.where = where
        self.domains = {name: (domains or {}).get(name) or DOMAINS.get(name, ANY) for name in given}
        self.schedules: dict[str, Schedule] = {}
        self.constants: dict[str, float] = {}
        for name, value in given.items():
            if callable(value):
                try:
                    with jax.ensure_compile_time_eval():  # an optimizer may be made inside a function that is traced
                        first = value(0)
                except Exception as error:
                    raise ValueError(f"{where}: the schedule of {name} fails at step 0: {error}") from error
                check_number(where, f"the schedule of {name} at step 0", first, self.domains[name])
                self.schedules[name] = value
                if name == "lr":  # the one to sweep where the rate follows a schedule
                    self.constants[MULTIPLIER] = 1.0
                    self.domains[MULTIPLIER] = self.domains["lr"]
            else:
                self.constants[name] = check_number(where, name, value, self.domains[name])

    def init(self) -> Hypers:
        """The first state: constants, and schedules at step 0."""
        values = {name: jnp.asarray(value, jnp.float32) for name, value in self.constants.items()}
        values |= {name: _scalar(schedule(jnp.zeros((), jnp.int32))) for name, schedule in self.schedules.items()}
        held = {name: jnp.zeros((), bool) for name in self.schedules}
        return Hypers(jnp.zeros((), jnp.int32), values, held, domains_of(tuple(self.domains.items())))

    def at(self, hypers: Hypers) -> tuple[InEffect, Hypers]:
        """The values for the next update, and the state after it. Traceable."""
        values = dict(hypers.values)
        for name, schedule in self.schedules.items():
            value = _scalar(schedule(hypers.count))
            if name == "lr":
                value = value * values[MULTIPLIER]
            values[name] = jnp.where(hypers.held[name], values[name], value)
        count = hypers.count + 1
        return InEffect(values | {"count": count.astype(jnp.float32)}), hypers._replace(count=count, values=values)


def _scalar(value: Any) -> Array:
    return jax.lax.convert_element_type(jnp.asarray(value), jnp.float32)
