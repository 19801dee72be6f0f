"""Hyperparameters as state: float32 leaves that a step reads, whatever the parameters' dtype.

Because they are leaves, changing one recompiles nothing, a sweep over one is a `vmap`, and a checkpoint holds the value
that was in effect. A constant and a schedule are alike: the value in effect is in the state either way, and a value set
by hand holds until it is released.
"""

import dataclasses
import difflib
import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import tree
from jaxnn.typing import Array, PyTree, Schedule


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


def _places(state: PyTree) -> Iterator[tuple[str, Any]]:
    """Every node of an optimizer's state that holds hyperparameters, with its path: ours and optax's."""

    def is_node(x: Any) -> bool:
        return isinstance(x, Hypers) or _injected(x)

    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_node):
        if isinstance(node, Hypers):
            yield tree.path_name(path), node
        elif _injected(node):
            inner = tree.path_name(path)
            yield inner, node
            for below, deeper in _places(node.inner_state):
                yield f"{inner}/{below}", deeper


def _nodes(state: PyTree) -> Iterator[tuple[str, Hypers | Mapping[str, Any]]]:
    """The places of hyperparameters, with their path; of optax's, the mapping alone."""
    for path, node in _places(state):
        yield path, node if isinstance(node, Hypers) else node.hyperparams


def _injected(x: Any) -> bool:
    """Whether this is the state of `optax.inject_hyperparams`."""
    return hasattr(x, "hyperparams") and hasattr(x, "inner_state")


_WRAPPING = ("inner", "inner_state")
_SILENT = (*_WRAPPING, "stages", "groups", "hyper", "hyperparams", ".")


def short_path(path: str, silent: Sequence[str] = _SILENT) -> str:
    """A state path as people write it: `stages/precondition/groups/muon/hyper` is `precondition.muon`."""
    return ".".join(part for part in path.split("/") if part not in silent)


def named(state: PyTree) -> dict[str, tuple[str, str]]:
    """Every hyperparameter in a state by its full name: `precondition.adam.b2` -> (path of its node, "b2").

    Levels that only hold others are left out of a name, unless two names would then be one: `ema(ema(...))` has
    `decay` and `inner.decay`.
    """
    held = [
        (path, name)
        for path, node in _nodes(state)
        for name, value in (node.values if isinstance(node, Hypers) else node).items()
        if hasattr(value, "dtype") or isinstance(value, float)
    ]
    full: dict[tuple[str, str], str] = {}
    for silent in (_SILENT, [part for part in _SILENT if part not in _WRAPPING], ()):
        times = Counter(full.values())
        for path, name in held:
            if times[full.get((path, name), "")] != 1:
                full[path, name] = f"{short_path(path, silent)}.{name}".lstrip(".")
    return {name: at for at, name in full.items()}


def _resolve(state: PyTree, name: str, where: str) -> list[tuple[str, str]]:
    """The nodes that `name` means: a full name, or its last parts where they are unambiguous."""
    known = named(state)
    if name in known:
        return [known[name]]
    hits = [full for full in known if full.endswith(f".{name}")]
    if len(hits) == 1:
        return [known[hits[0]]]
    if hits:
        raise ValueError(f"{where}: {name!r} could be any of {hits}. Write one of them.")
    close = difflib.get_close_matches(name, {full.rsplit(".", 1)[-1] for full in known} | set(known), 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{where}: no hyperparameter {name!r}. There are {sorted(known) or 'none'}.{hint}")


def hyper(state: PyTree) -> dict[str, Array]:
    """The hyperparameters in an optimizer's state, in effect: by last name where it is the only one, else by full name.

    Reads the states of `jaxnn.optim` and of `optax.inject_hyperparams`, at any depth. Float32 scalars (a leading
    axis under `vmap`).
    """
    known = named(state)
    last = [full.rsplit(".", 1)[-1] for full in known]
    nodes = dict(_nodes(state))
    found = {}
    for full, (path, name) in known.items():
        node = nodes[path]
        value = node.values[name] if isinstance(node, Hypers) else node[name]
        found[name if last.count(name) == 1 else full] = value
    return found


def constants(state: PyTree) -> dict[str, Array]:
    """Those of `hyper(state)` that no schedule moves, by the same names."""
    nodes = dict(_places(state))

    def moved(path: str, name: str) -> bool:
        node = nodes[path]
        return name in (node.held if isinstance(node, Hypers) else getattr(node, "hyperparams_states", {}))

    known = named(state)
    full = {name.rsplit(".", 1)[-1]: name for name in known} | {name: name for name in known}
    return {name: value for name, value in hyper(state).items() if not moved(*known[full[name]])}


def set_hyper(state: PyTree, /, **values: float | Array | None) -> PyTree:
    """The state with other hyperparameters: nothing else changes, and a jitted step does not compile again.

    A value set over a schedule holds until it is released by `name=None`, from when the schedule applies again.
    Names are those of `hyper(state)`; full ones are passed as `**{"precondition.adam.b2": 0.99}`. May be traced.

    Args:
        state: An optimizer's state, or anything that holds one.
        values: Numbers, or arrays of the shape that the leaf has (a member each under `vmap`).

    Raises:
        TypeError: If a value is no number.
        ValueError: If a name is unknown or ambiguous, a value outside its domain or misshapen, or a constant released.
    """
    where = "optim.set_hyper"
    wanted = wanted_values(state, values, where)

    def is_node(x: Any) -> bool:
        return isinstance(x, Hypers) or _injected(x)

    def visit(prefix: str, node: Any) -> Any:
        def one(path: tuple[Any, ...], x: Any) -> Any:
            here = tree.path_name(path)
            full = here if not prefix else f"{prefix}/{here}"
            mine = {name: value for (at, name), value in wanted.items() if at == full}
            if isinstance(x, Hypers):
                return _with_values(x, mine, where) if mine else x
            if _injected(x):
                old = dict(x.hyperparams)
                new = {n: _like(where, n, v, old[n]) for n, v in mine.items()}
                return x._replace(hyperparams=old | new, inner_state=visit(full, x.inner_state))
            return x

        return jax.tree_util.tree_map_with_path(one, node, is_leaf=is_node)

    return visit("", state)


def wanted_values(state: PyTree, values: Mapping[str, Any], where: str) -> dict[tuple[str, str], Any]:
    """(path of its node, name) -> the value that is to be set there, for names as `set_hyper` takes them.

    Raises:
        TypeError: If a value is no number.
        ValueError: If a name is unknown or ambiguous, or a value outside its domain; traced values are not looked at.
    """
    nodes = dict(_nodes(state))
    wanted: dict[tuple[str, str], Any] = {}
    for name, value in values.items():
        for path, last in _resolve(state, name, where):
            node = nodes[path]
            domain = node.domains.of(last) if isinstance(node, Hypers) else DOMAINS.get(last)
            if value is not None and not isinstance(value, jax.core.Tracer):
                for member in [value] if np.ndim(value) == 0 else np.asarray(value).ravel():
                    check_number(where, name, member, domain)
            wanted[path, last] = value
    return wanted


def _like(where: str, name: str, value: Any, leaf: Any) -> Array:
    """`value` as the leaf is: its shape, dtype and sharding."""
    if value is None:
        raise ValueError(f"{where}: {name} is a constant: no schedule takes it back. Give a number.")
    if np.shape(value) not in ((), np.shape(leaf)):
        raise ValueError(f"{where}: {name} has shape {np.shape(value)} for a leaf of shape {np.shape(leaf)}.")
    new = jnp.broadcast_to(jnp.asarray(value, leaf.dtype), np.shape(leaf))
    if isinstance(leaf, jax.core.Tracer) or isinstance(new, jax.core.Tracer) or not isinstance(leaf, jax.Array):
        return new
    # Only where the leaf is bound to its place: else the step would compile again for a state that is.
    return jax.device_put(new, leaf.sharding) if leaf.committed else new


def _with_values(node: Hypers, new: Mapping[str, Any], where: str) -> Hypers:
    values, held = dict(node.values), dict(node.held)
    for name, value in new.items():
        if value is None and name in held:
            held[name] = _like(where, name, False, held[name])
            continue
        values[name] = _like(where, name, value, values[name])
        if name in held:
            held[name] = _like(where, name, True, held[name])
    return node._replace(values=values, held=held)
