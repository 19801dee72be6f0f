"""What everything in this room is: an optax gradient transformation that also knows what it is made of.

optax's type is two functions, which say nothing of themselves. Summaries, specs, migrations and checks need to know the
parts, so ours carries them beside the functions; it is still optax's type, and goes wherever that goes.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self, cast

import jax
import optax

from jaxnn import tree
from jaxnn.optim.compose.fits import checked_init, checked_update
from jaxnn.optim.hyper import Domain, Hyperparameters
from jaxnn.typing import Array, PyTree, Schedule


class Context(NamedTuple):
    """What `stages` tells its parts about the others.

    Attributes:
        lr: The rate in effect in this update, float32 scalar; None where no stage has one.
        lr_peak: The largest rate of its schedule; the rate itself where it is constant.
        lr_multipliers: Tree like the parameters of floats; None where every one is 1.
        decay_multipliers: Likewise.
        norm: Leaves whose global norm is known, and the norm; see `known_norm`.
    """

    lr: Array | None = None
    lr_peak: Array | float | None = None
    lr_multipliers: PyTree = None
    decay_multipliers: PyTree = None
    norm: tuple[tuple[Any, ...], Array] | None = None


KINDS = ("lr", "decay")  # of multipliers


def products(left: PyTree, right: PyTree) -> PyTree:
    """Multipliers of multipliers, leaf by leaf; None is 1 everywhere.

    The product of the same two numbers is one array, so that leaves still show whether they share one.
    """
    if left is None or right is None:
        return right if left is None else left
    made: dict[tuple[int, int], Array] = {}

    def one(a: Array, b: Array) -> Array:
        if (id(a), id(b)) not in made:
            made[id(a), id(b)] = a * b
        return made[id(a), id(b)]

    return jax.tree.map(one, left, right)


def multiplied(context: Context, kind: str, multipliers: PyTree) -> Context:
    """A context with further multipliers of "lr" or "decay", a tree like the parameters or None."""
    name = f"{kind}_multipliers"
    return context._replace(**{name: products(getattr(context, name), multipliers)})


def shared_multiplier(where: str, what: str, kind: str, found: Mapping[str, Any]) -> Any:
    """The multiplier that leaves share which are one array to an optimizer; None of none.

    Args:
        where: The wrapper that joins them: `optim.flat`.
        what: What it makes of them: "vector".
        kind: "lr" or "decay".
        found: Path -> multiplier.

    Raises:
        ValueError: Naming two leaves that differ.
    """
    first = next(iter(found.items()), None)
    if first is None:
        return None
    other = next((path for path, m in found.items() if m is not first[1]), None)
    if other is not None:
        raise ValueError(
            f"{where}: one {what} has one multiplier of its {kind}, and {first[0]!r} and {other!r} are of groups with "
            f"multipliers of their own. Put {where.rpartition('.')[2]} inside each group: "
            f"optim.groups(NAME=(predicate, {where}(...)), ...)."
        )
    return first[1]


# Each element of the update and of the state depends on the same element of the gradients, of the state before and,
# where it reads them, of the parameters, and on sums over all of them, whatever array they are in: one vector of all
# leaves is to it what the leaves are. `optim.flat` asks.
ELEMENTWISE: Mapping[str, Any] = {"elementwise": True}
READS_PARAMS: Mapping[str, Any] = {"reads_params": True}


class Transformation(optax.GradientTransformationExtraArgs):
    """An optax gradient transformation with a name, its parts, and its hyperparameters.

    Attributes:
        init: `init(params) -> state`, of arrays of its own, each once. Refuses leaves that cannot be trained.
        update: `update(updates, state, params=None, **extra) -> (updates, state)`. Refuses gradients and states that
            do not fit.
        unchecked: `update` for who has checked already.
        name: What summaries and errors call it.
        parts: The transformations that it is made of, by name.
        hyper: Its own hyperparameters, or None.
        wants_context: Whether `update` takes `context`.
        facts: What else composition may ask of it.
    """

    unchecked: Callable[..., tuple[Any, Any]]
    name: str
    parts: Mapping[str, optax.GradientTransformation]
    hyper: Hyperparameters | None
    wants_context: bool
    facts: Mapping[str, Any]

    def __new__(
        cls,
        init: Callable[[Any], Any],
        update: Callable[..., tuple[Any, Any]],
        *,
        name: str,
        parts: Mapping[str, optax.GradientTransformation] | None = None,
        hyper: Hyperparameters | None = None,
        wants_context: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> Self:
        where = name if name.startswith("optax") else f"optim.{name}"
        self = super().__new__(cls, cast(Any, checked_init(where, init)), checked_update(where, init, update))
        self.unchecked = update
        self.name, self.parts, self.hyper = name, dict(parts or {}), hyper
        self.wants_context, self.facts = wants_context, dict(facts or {})
        return self

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.parts.items())})"


def known_norm(updates: PyTree, context: Context | None) -> Array:
    """The global norm of `updates`: the one that is known already, where it is of these very arrays."""
    if context is not None and context.norm is not None:
        of, norm = context.norm
        leaves = jax.tree.leaves(updates)
        if len(of) == len(leaves) and all(a is b for a, b in zip(of, leaves)):
            return norm
    return tree.global_norm(updates)


def apply_part(
    part: optax.GradientTransformation,
    updates: PyTree,
    state: PyTree,
    params: PyTree,
    context: Context,
    extra: Mapping[str, Any],
) -> tuple[PyTree, PyTree]:
    """One part's update; it is given the context if it asks for it, and extra arguments if it takes any."""
    if isinstance(part, Transformation):
        told = {"context": context} if part.wants_context else {}
        return part.unchecked(updates, state, params, **told, **extra)
    return optax.with_extra_args_support(part).update(updates, state, params, **extra)


def check(where: str, name: str, part: Any) -> optax.GradientTransformationExtraArgs:
    """A part as a transformation that takes extra arguments.

    Raises:
        TypeError: If it is no optax gradient transformation.
    """
    if not isinstance(part, optax.GradientTransformation):
        hint = " It is a function: call it." if callable(part) else ""
        raise TypeError(
            f"{where}: {name!r} must be an optax gradient transformation, got {type(part).__name__} {part!r:.60}.{hint}"
        )
    return optax.with_extra_args_support(part)


def label(part: optax.GradientTransformation) -> str:
    """What a part is called in tables: its name, or for optax's where its function was made."""
    if isinstance(part, Transformation):
        return part.name
    inner = getattr(part.init, "__qualname__", "").split(".")[0]
    return f"optax.{inner}" if inner else "optax"


def walk(part: optax.GradientTransformation, path: str = "") -> Iterator[tuple[str, optax.GradientTransformation]]:
    """Every part at any depth with its dotted path, outermost first."""
    yield path, part
    if isinstance(part, Transformation):
        for name, inner in part.parts.items():
            yield from walk(inner, f"{path}.{name}" if path and name else path or name)


def asks(tx: optax.GradientTransformation, kind: str) -> bool:
    """Whether a part at any depth may ask for the groups' multipliers of "lr" or "decay"."""
    fact = {"lr": "lr_in_effect", "decay": "after_lr"}[kind]
    return any(isinstance(part, Transformation) and fact in part.facts for _, part in walk(tx))


def schedules_of(tx: optax.GradientTransformation) -> dict[str, Schedule]:
    """The schedules in a transformation by full name: `lr.lr`; what optax hides in closures is not found."""
    return {name: schedule for name, schedule, _ in _scheduled(tx)}


def schedule_domains(tx: optax.GradientTransformation) -> dict[str, Domain]:
    """Where the values of `schedules_of(tx)` make sense, by the same names: `value in domain`."""
    return {name: domain for name, _, domain in _scheduled(tx)}


def _scheduled(tx: optax.GradientTransformation) -> Iterator[tuple[str, Schedule, Domain]]:
    for path, part in walk(tx):
        if isinstance(part, Transformation) and part.hyper is not None:
            for name, schedule in part.hyper.schedules.items():
                yield f"{path}.{name}".lstrip("."), schedule, part.hyper.domains[name]
