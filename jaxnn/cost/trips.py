"""How often a while loop runs, where its jaxpr says so: a counter that starts, steps and stops at known integers."""

import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jaxnn.cost import jaxprs

_FOLD = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "max": max, "min": min}
_SAME = frozenset(("convert_element_type", "copy", "stop_gradient", "pcast", "pvary"))
# counter OP bound -> the same with the operands exchanged.
_MIRROR = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le", "ne": "ne"}


def known(atom: Any, values: dict[int, int]) -> int | None:
    """The integer that an operand is known to be, or None."""
    if not jaxprs.is_literal(atom):
        return values.get(id(atom))
    return int(atom.val) if _is_whole(atom.aval) else None


def _is_whole(aval: Any) -> bool:
    """Whether a value is a scalar integer. A typed key is a scalar, too, and of a dtype that has no kind."""
    shape, dtype = getattr(aval, "shape", None), getattr(aval, "dtype", None)
    return shape == () and dtype is not None and jnp.issubdtype(dtype, jnp.integer)


def fold(eqn: Any, values: dict[int, int]) -> None:
    """Record the value of a scalar integer equation whose operands are known."""
    if len(eqn.outvars) != 1 or not _is_whole(eqn.outvars[0].aval):
        return
    operands = [n for v in eqn.invars if (n := known(v, values)) is not None]
    if len(operands) != len(eqn.invars):
        return
    name = eqn.primitive.name
    if name in _SAME:
        values[id(eqn.outvars[0])] = operands[0]
    elif name in _FOLD:
        values[id(eqn.outvars[0])] = _FOLD[name](*operands)


def of_while(eqn: Any, values: dict[int, int]) -> int | None:
    """Iterations of a `while` equation, or None where they depend on data."""
    p = eqn.params
    cond, body = jaxprs.bare(p["cond_jaxpr"]), jaxprs.bare(p["body_jaxpr"])
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    initial = [known(v, values) for v in eqn.invars[n_cond + n_body :]]
    compare = _defined(cond, cond.outvars[0])
    if compare is None or compare.primitive.name not in _MIRROR:
        return None
    left, right = (_operand(cond, v) for v in compare.invars)
    consts = [known(v, values) for v in eqn.invars[:n_cond]]

    def fixed(atom: Any) -> int | None:
        """The value of an operand that no iteration changes."""
        if (place := _index(cond.invars, atom)) is None:
            return known(atom, {})
        if place < n_cond:
            return consts[place]
        carry = place - n_cond
        return initial[carry] if body.outvars[carry] is body.invars[n_body + carry] else None

    for counter, other, name in (
        (left, right, compare.primitive.name),
        (right, left, _MIRROR[compare.primitive.name]),
    ):
        place, bound = _index(cond.invars, counter), fixed(other)
        if place is None or place < n_cond or bound is None:
            continue
        carry = place - n_cond
        step, start = _step(body, n_body, carry), initial[carry]
        if step and start is not None:
            return count(start, bound, step, name)
    return None


def count(start: int, bound: int, step: int, name: str) -> int | None:
    """Iterations of `i = start; while i NAME bound: i += step`; None where that would not end."""
    if name == "ne":
        distance, left = divmod(bound - start, step)
        return distance if distance >= 0 and not left else None
    if name in ("gt", "ge"):
        start, bound, step = -start, -bound, -step
    last = bound + (name in ("le", "ge"))
    if start >= last:
        return 0
    return None if step <= 0 else -(-(last - start) // step)


def _index(variables: Sequence[Any], atom: Any) -> int | None:
    return next((i for i, v in enumerate(variables) if v is atom), None)


def _defined(jaxpr: Any, variable: Any) -> Any | None:
    return next((e for e in jaxpr.eqns if any(v is variable for v in e.outvars)), None)


def _operand(jaxpr: Any, atom: Any) -> Any:
    """An operand behind casts and copies."""
    while not jaxprs.is_literal(atom) and (eqn := _defined(jaxpr, atom)) and eqn.primitive.name in _SAME:
        atom = eqn.invars[0]
    return atom


def _step(body: Any, n_consts: int, carry: int) -> int | None:
    """What each iteration adds to a carry, where that is a constant."""
    eqn = _defined(body, body.outvars[carry])
    if eqn is None or eqn.primitive.name not in ("add", "sub"):
        return None
    left, right = eqn.invars
    counter = body.invars[n_consts + carry]
    if left is counter and (step := known(right, {})) is not None:
        return -step if eqn.primitive.name == "sub" else step
    if right is counter and eqn.primitive.name == "add":
        return known(left, {})
    return None
