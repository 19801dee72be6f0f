"""`chunked_step`: an optimizer's step as several small programs, for parameters in thousands of leaves."""

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend import core

from jaxnn.optim.compose import split
from jaxnn.optim.compose.apply import apply_updates
from jaxnn.optim.compose.transformation import check
from jaxnn.typing import PyTree


class Call(NamedTuple):
    """One program and where in the list of all values its arguments and results are."""

    program: Callable[..., Any]
    donated: tuple[int, ...]
    given: tuple[int, ...]
    common: tuple[int, ...]
    found: tuple[int, ...]


class Output(NamedTuple):
    """One result: where it is among all values, and whether to copy it; at -1, `copied` is the value itself."""

    at: int
    copied: Any


class Plan(NamedTuple):
    """A step for parameters of one structure."""

    given: Any  # the structure of (params, state, grads)
    types: list[Any]  # shape and dtype of every leaf given
    calls: list[Call]
    constants: list[Any]  # values after the leaves given
    size: int  # values in all
    outputs: list[Output]
    treedef: Any  # of the results
    programs: int  # distinct ones


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """The cyclic garbage collector off: passing over the equations, all alive, takes as long as making them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class ChunkedStep:
    """See `chunked_step`.

    Attributes:
        init: The optimizer's `init`.
    """

    def __init__(self, tx: optax.GradientTransformationExtraArgs, size: int, donate: bool):
        self.init = tx.init
        self._tx, self._size, self._donate = tx, size, donate
        self._plans: list[Plan] = []

    @property
    def programs(self) -> int:
        """How many distinct programs have been made."""
        return sum(plan.programs for plan in self._plans)

    def __call__(self, params: PyTree, state: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        """`(params, state)` after the update.

        Raises:
            ValueError: As the optimizer's `update`; or if it prints or calls back to Python.
        """
        leaves, treedef = jax.tree.flatten((params, state, grads))
        if any(issubclass(kind, jax.core.Tracer) for kind in set(map(type, leaves))):
            return self._whole(params, state, grads)  # it is part of a program already
        types = [(x.shape, x.dtype) for x in leaves]
        plan = next((plan for plan in self._plans if plan.given == treedef and plan.types == types), None)
        if plan is None:
            with _no_collection():
                plan = self._plan(params, state, grads, treedef, types)
            self._plans.append(plan)
        values: list[Any] = [*leaves, *plan.constants, *[None] * (plan.size - len(leaves) - len(plan.constants))]
        for call in plan.calls:
            donated, given, common = ([values[i] for i in where] for where in call[1:4])
            for i, value in zip(call.found, call.program(donated, given, common), strict=True):
                values[i] = value
        results = [
            (jnp.copy(values[at]) if copied else values[at]) if at >= 0 else jnp.copy(copied)
            for at, copied in plan.outputs
        ]
        return jax.tree.unflatten(plan.treedef, results)

    def _whole(self, params: PyTree, state: PyTree, grads: PyTree) -> tuple[PyTree, PyTree]:
        updates, state = self._tx.update(grads, state, params)
        return apply_updates(params, updates), state

    def _plan(self, params: PyTree, state: PyTree, grads: PyTree, given: Any, types: list[Any]) -> Plan:
        closed, shape = jax.make_jaxpr(self._whole, return_shape=True)(params, state, grads)
        if closed.effects:
            raise ValueError(
                f"optim.chunked_step: the update has effects, {sorted(map(str, closed.effects))}, whose order small "
                "programs would not keep. Leave out prints and callbacks, or jit the update as one program."
            )
        jaxpr = closed.jaxpr
        inputs = [*jaxpr.invars, *jaxpr.constvars]
        whose = split.owners(params, state, grads) + [split.COMMON] * len(jaxpr.constvars)
        owner = dict(zip(inputs, whose, strict=True))
        mine = len(jax.tree.leaves((params, state))) if self._donate else 0
        texts: split.Texts = {}
        eqns, same = split.merged(jaxpr.eqns, owner, texts)
        results = [v if isinstance(v, core.Literal) else same.get(v, v) for v in jaxpr.outvars]
        parts = split.parts(eqns, inputs, results, owner, set(jaxpr.invars[:mine]))
        slots = {v: i for i, v in enumerate(inputs)}
        for v in (v for members in parts for part in members for v in part.found):
            slots.setdefault(v, len(slots))
        made: dict[Any, Callable[..., Any]] = {}
        calls: list[Call] = []
        for members in parts:
            calls += self._calls(members, slots, made, texts)
        outputs: list[Output] = []
        seen = set(range(mine, len(types)))  # arrays that the caller keeps are not handed on
        for v, result in zip(results, jax.tree.leaves(shape), strict=True):
            if isinstance(v, core.Literal):
                outputs.append(Output(-1, jnp.asarray(v.val, result.dtype)))
            else:
                outputs.append(Output(slots[v], slots[v] in seen))
                seen.add(slots[v])
        treedef = jax.tree.structure(shape)
        return Plan(given, types, calls, list(closed.consts), len(slots), outputs, treedef, len(made))

    def _calls(
        self, members: list[split.Part], slots: dict[Any, int], made: dict[Any, Any], texts: split.Texts
    ) -> list[Call]:
        """The programs of one phase; `made` holds those that there are."""

        def at(variables: Iterable[Any]) -> tuple[int, ...]:
            return tuple(slots[v] for v in variables)

        numbers: dict[Any, int] = {}
        kinds = [numbers.setdefault(split.signature(part, texts), len(numbers)) for part in members]
        calls = []
        for group in split.grouped(kinds, self._size):
            chosen = [members[i] for i in group]
            common = tuple(dict.fromkeys(v for part in chosen for v in part.common))
            key = (id(members), tuple(kinds[i] for i in group))
            if key not in made:
                made[key] = _program(chosen, common)
            calls.append(
                Call(
                    made[key],
                    at(v for part in chosen for v in part.given[: part.donated]),
                    at(v for part in chosen for v in part.given[part.donated :]),
                    at(common),
                    at(v for part in chosen for v in part.found),
                )
            )
        return calls


def _program(parts: list[split.Part], common: tuple[Any, ...]) -> Callable[..., Any]:
    """One jitted function of several parts: `(donated, given, common) -> found`, each a list over all of them."""
    functions = [split.function(part) for part in parts]

    def run(donated: list[Any], given: list[Any], shared: list[Any]) -> list[Any]:
        known = dict(zip(common, shared, strict=True))
        first, second = iter(donated), iter(given)
        found: list[Any] = []
        for part, fn in zip(parts, functions, strict=True):
            own = [next(first) for _ in range(part.donated)]
            own += [next(second) for _ in range(len(part.given) - part.donated)]
            found += fn(*own, *(known[v] for v in part.common))
        return found

    return jax.jit(run, donate_argnums=0)


def chunked_step(tx: optax.GradientTransformation, size: int = 64, *, donate: bool = True) -> ChunkedStep:
    """An optimizer's step, `step(params, state, grads) -> (params, state)`, as programs of at most `size` leaves each.

    XLA's time to compile grows with the number of leaves; here equal leaves share one program, so that thousands of
    them compile in the time of some dozens. It is for loops that jit the gradient apart from the update. The state is
    that of `tx`, and the result that of its update in one program, to rounding. What all leaves have in common
    (counters, rates, a global norm) is computed once, in a program of its own. An optimizer that puts several
    parameters into one array gains nothing there: that part stays one program.

    Args:
        tx: Any optimizer.
        size: Leaves a program; >= 1. Fewer compile faster, more have less to dispatch.
        donate: Whether the parameters and the state given are overwritten, as by `donate_argnums`.

    Raises:
        TypeError: If `tx` is no gradient transformation, or `size` no whole number.
        ValueError: If `size` < 1; at the first step as the optimizer's `update`, or if it prints or calls Python.
    """
    where = "optim.chunked_step"
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(
            f"{where}: size is {size!r:.60}. Tried: leaves a program. Give a whole number, 64 for instance."
        )
    if size < 1:
        raise ValueError(f"{where}: size is {size}. Tried: leaves a program. Give at least 1.")
    return ChunkedStep(check(where, "tx", tx), size, donate)
