"""An update cut into small programs, of which equal ones are compiled once.

XLA's time to compile grows with the number of leaves, and it does not see that most of them are treated alike. The
update's jaxpr shows it: whatever reads only one parameter's leaves is that parameter's own, whatever reads several or
none is common to all. They alternate: common scalars, then leaves, then a norm over all of them, then leaves again.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core

from jaxnn import tree
from jaxnn.optim.compose.places import places
from jaxnn.typing import PyTree

COMMON = -1  # the owner of what belongs to no parameter
INPUT = -1  # the phase of what is given
Texts = dict[int, tuple[Any, str]]  # id of a parameter of an equation -> itself, and how it prints


@dataclasses.dataclass(frozen=True)
class Part:
    """Some equations: those of one parameter, or the common ones, of one phase.

    Attributes:
        eqns: In order.
        given: What they read of their own: the parameter's arrays.
        common: What they read of what is common to all.
        donated: How many of `given`, the first ones, may be overwritten.
        found: What of their results is read outside.
    """

    eqns: tuple[Any, ...]
    given: tuple[Any, ...]
    common: tuple[Any, ...]
    donated: int
    found: tuple[Any, ...]


def owners(params: PyTree, state: PyTree, grads: PyTree) -> list[int]:
    """Of every leaf of (params, state, grads), the number of the parameter that it belongs to, or `COMMON`."""
    number = {path: i for i, path in enumerate(tree.leaves_by_path(params))}
    of_state = [COMMON if place.param is None else number[place.param] for place in places(state, params)]
    return [*range(len(number)), *of_state, *range(len(jax.tree.leaves(grads)))]


def merged(eqns: Sequence[Any], owner: dict[Any, int], texts: Texts) -> tuple[list[Any], dict[Any, Any]]:
    """The equations, of equal common ones only the first; and the variables of the others -> those of the first.

    Every leaf's arithmetic converts and broadcasts the same scalars.
    """
    same: dict[Any, Any] = {}
    first: dict[Any, Any] = {}
    kept = []
    common = {v for v, mine in owner.items() if mine == COMMON}
    for eqn in eqns:
        read = [v if isinstance(v, core.Literal) else same.get(v, v) for v in eqn.invars]
        if same and any(a is not b for a, b in zip(read, eqn.invars)):
            eqn = eqn.replace(invars=read)
        if all(isinstance(v, core.Literal) or v in common for v in read):
            key = (
                eqn.primitive.name,
                _params(eqn.params, texts),
                tuple((str(v.val), _kind(v)) if isinstance(v, core.Literal) else v for v in read),
            )
            if key in first:
                same.update(zip(eqn.outvars, first[key], strict=True))
                continue
            first[key] = eqn.outvars
            common.update(eqn.outvars)
        kept.append(eqn)
    return kept, same


def phases(eqns: Sequence[Any], outvars: Sequence[Any], owner: dict[Any, int]) -> dict[tuple[int, int], list[Any]]:
    """(phase, owner) -> equations. Even phases are common, odd ones the parameters' own.

    Args:
        eqns: Of the whole update.
        outvars: Its results.
        owner: Of its inputs; those of the other variables are added.
    """
    phase = dict.fromkeys(owner, INPUT)
    placed: list[tuple[int, int]] = []
    for eqn in eqns:
        read = [v for v in eqn.invars if not isinstance(v, core.Literal)]
        whose = {owner[v] for v in read} - {COMMON}
        # A sum of the leaves' sums, one after the other, stays what is common to all.
        summing = all(v.aval.ndim == 0 for v in read) and any(owner[v] == COMMON and phase[v] > 0 for v in read)
        if len(whose) == 1 and not summing:
            mine = whose.pop()
            at = max(1, *(phase[v] + (owner[v] == COMMON) for v in read))
        else:
            mine = COMMON
            at = max([0, *(phase[v] + (owner[v] != COMMON) for v in read)])
        placed.append((at, mine))
        owner.update(dict.fromkeys(eqn.outvars, mine))
        phase.update(dict.fromkeys(eqn.outvars, at))
    # As late as possible: what only a later phase reads need not be kept for it.
    wanted: dict[Any, int] = {v: phase[v] for v in outvars if not isinstance(v, core.Literal)}
    for i in reversed(range(len(placed))):
        at, mine = placed[i]
        eqn = eqns[i]
        if mine != COMMON:
            at = min((wanted[v] for v in eqn.outvars if v in wanted), default=at)
            placed[i] = (at, mine)
        for v in eqn.invars:
            if not isinstance(v, core.Literal) and owner[v] != COMMON:
                latest = at if mine != COMMON else at - 1
                wanted[v] = min(latest, wanted.get(v, latest))
    found: dict[tuple[int, int], list[Any]] = collections.defaultdict(list)
    for where, eqn in zip(placed, eqns, strict=True):
        found[where].append(eqn)
    return found


def parts(
    eqns: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], owner: dict[Any, int], donatable: set[Any]
) -> list[list[Part]]:
    """The update as phases in order.

    Args:
        eqns: Of the whole update.
        inputs: Its variables.
        outputs: Its results.
        owner: Of the inputs; those of the other variables are added.
        donatable: Inputs that may be overwritten.
    """
    by_phase = phases(eqns, outputs, owner)
    filled = {eqn.outvars[0]: eqn for eqn in by_phase.get((0, COMMON), ()) if _fills(eqn)}
    for (_, mine), own in by_phase.items():
        if mine != COMMON:  # an array of one number is made where it is read
            own[:0] = [filled[v] for v in dict.fromkeys(_read(own)) if v in filled]
    order = {v: i for i, v in enumerate(inputs)}
    place = {v: i for i, v in enumerate(outputs) if not isinstance(v, core.Literal)}
    last: dict[Any, int] = {}  # the phase in which a variable is read last
    outside = set(place)
    for phase, mine in sorted(by_phase):
        own = by_phase[phase, mine]
        read = _read(own)
        last.update(dict.fromkeys(read, phase))
        outside |= set(read) - {v for eqn in own for v in eqn.outvars}
    result: dict[int, list[Part]] = {}
    for (phase, mine), own in sorted(by_phase.items(), key=lambda item: item[0]):
        inner = dict.fromkeys(v for eqn in own for v in eqn.outvars)  # in order: equal parts must look so
        read = [v for v in dict.fromkeys(_read(own)) if v not in inner]
        found = sorted((v for v in inner if v in outside), key=lambda v: place.get(v, len(place)))
        if mine != COMMON:
            found = [v for v in found if v not in filled]
        given = [v for v in read if mine != COMMON and owner[v] != COMMON]
        given.sort(key=lambda v: order.get(v, len(order)))
        room = collections.Counter(_kind(v) for v in found)
        give = []
        for v in given:
            if v in donatable and v not in place and last[v] == phase and room[_kind(v)] > 0:
                room[_kind(v)] -= 1
                give.append(v)
        held = [v for v in given if v not in give]
        common = tuple(v for v in read if v not in given)
        result.setdefault(phase, []).append(Part(tuple(own), (*give, *held), common, len(give), tuple(found)))
    return list(result.values())


def _read(eqns: Sequence[Any]) -> list[Any]:
    return [v for eqn in eqns for v in eqn.invars if not isinstance(v, core.Literal)]


def _fills(eqn: Any) -> bool:
    """Whether this makes an array out of one number."""
    return eqn.primitive.name == "broadcast_in_dim" and all(v.aval.ndim == 0 for v in eqn.invars[:1])


def _kind(v: Any) -> tuple[Any, ...]:
    return v.aval.shape, v.aval.dtype


def signature(part: Part, texts: Texts) -> tuple[Any, ...]:
    """What two parts have in common that the same program computes, each from its own arrays."""
    local: dict[Any, Any] = {v: (i, _kind(v)) for i, v in enumerate(part.given)}
    local.update((v, ("common", v)) for v in part.common)
    lines = []
    for eqn in part.eqns:
        read = tuple((str(v.val), _kind(v)) if isinstance(v, core.Literal) else local[v] for v in eqn.invars)
        lines.append((eqn.primitive.name, _params(eqn.params, texts), read))
        for v in eqn.outvars:
            local[v] = (len(local), _kind(v))
    return part.donated, tuple(lines), tuple(local[v] for v in part.found)


def _params(params: dict[str, Any], texts: Texts) -> tuple[Any, ...]:
    """An equation's parameters as something to compare; programs inside it by their text and constants."""

    def one(value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if id(value) not in texts:
            consts = tuple(id(c) for c in value.consts) if isinstance(value, core.ClosedJaxpr) else ()
            texts[id(value)] = (value, f"{value} {consts}")  # holds the value, so that its id stays its own
        return texts[id(value)][1]

    return tuple((name, one(value)) for name, value in params.items())


def function(part: Part) -> Callable[..., list[Any]]:
    """The part as `(*given, *common) -> found`."""

    def run(*values: Any) -> list[Any]:
        env = dict(zip((*part.given, *part.common), values, strict=True))
        evaluate(part.eqns, env)
        return [env[v] for v in part.found]

    return run


def evaluate(eqns: Sequence[Any], env: dict[Any, Any]) -> None:
    """Computes equations in order; `env` has the value of each variable that they read, and is given the results."""
    for eqn in eqns:
        args = [v.val if isinstance(v, core.Literal) else env[v] for v in eqn.invars]
        out = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(eqn.params))
        env.update(zip(eqn.outvars, out if eqn.primitive.multiple_results else [out], strict=True))


def cut(count: int, size: int) -> list[int]:
    """`count` as sizes of chunks, at most `size` each: all equal where a divisor of at least half of `size` makes
    them so."""
    if count <= size:
        return [count]
    even = next((n for n in range(size, size // 2, -1) if count % n == 0), size)
    return [even] * (count // even) + ([count % even] if count % even else [])


def grouped(kinds: Sequence[int], size: int) -> list[list[int]]:
    """Which parts go into one program: lists of their numbers. Parts of one kind together, small remainders mixed."""
    members: dict[int, list[int]] = collections.defaultdict(list)
    for i, kind in enumerate(kinds):
        members[kind].append(i)
    whole: list[list[int]] = []
    rest: list[int] = []
    for numbers in members.values():
        start = 0
        for n in cut(len(numbers), size):
            chunk, start = numbers[start : start + n], start + n
            if 2 * n >= size:
                whole.append(chunk)
            else:
                rest += chunk
    return whole + [rest[i : i + size] for i in range(0, len(rest), size)]
