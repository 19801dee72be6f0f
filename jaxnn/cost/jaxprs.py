"""Reading jaxprs: the ones inside an equation, which equations matter to the result, and where they were written."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax.extend.core as jex
from jax.extend import source_info_util

Mask = tuple[bool, ...]


def bare(jaxpr: Any) -> Any:
    """The jaxpr inside a closed one; on jax 0.12 the two are one class."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def is_jaxpr(value: Any) -> bool:
    """Whether `value` is a jaxpr, closed or not."""
    return isinstance(value, (jex.Jaxpr, jex.ClosedJaxpr))


def inner(params: dict[str, Any]) -> Iterator[Any]:
    """Every jaxpr that an equation's parameters hold, in tuples and dicts too."""
    stack = list(reversed(list(params.values())))
    while stack:
        value = stack.pop()
        if is_jaxpr(value):
            yield bare(value)
        elif isinstance(value, (tuple, list)):
            stack.extend(reversed(value))
        elif isinstance(value, dict):
            stack.extend(reversed(list(value.values())))


def is_literal(atom: Any) -> bool:
    """Whether an equation's operand is a constant written in place."""
    return isinstance(atom, jex.Literal)


# Their one jaxpr takes the equation's operands and gives its results, one to one.
CALLS = frozenset({
    "call", "closed_call", "composite", "compute_on", "core_call", "custom_jvp_call", "eval_jaxpr", "jit", "pjit",
    "remat2", "shard_map", "xla_metadata_call",
})  # fmt: skip


def called(eqn: Any) -> Any | None:
    """The jaxpr that an equation calls once, operand for operand, or None."""
    name = eqn.primitive.name
    if name == "custom_linear_solve":
        return bare(eqn.params["jaxprs"].solve)
    if name in CALLS or name.startswith(("custom_vjp_call", "custom_vmap_call", "custom_partitioning")):
        for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call"):
            if is_jaxpr(eqn.params.get(key)):
                return bare(eqn.params[key])
    return None


def live(jaxpr: Any, out: Sequence[bool]) -> tuple[dict[int, Mask], Mask]:
    """What a jaxpr needs to compute its live results.

    XLA drops the rest (the loss of `jax.grad`, say), so counting it would overstate the work.

    Args:
        jaxpr: A bare jaxpr.
        out: Which of its results are used.

    Returns:
        Index of each live equation -> which of its results are used, and which of the jaxpr's inputs are read.
    """
    needed = {id(v) for v, used in zip(jaxpr.outvars, out, strict=True) if used and not is_literal(v)}
    masks: dict[int, Mask] = {}
    for index in range(len(jaxpr.eqns) - 1, -1, -1):
        eqn = jaxpr.eqns[index]
        mask = tuple(id(v) in needed for v in eqn.outvars)
        if not any(mask) and not eqn.effects:
            continue
        masks[index] = mask
        reads = _reads(eqn, mask)
        needed.update(id(v) for v, read in zip(eqn.invars, reads, strict=True) if read and not is_literal(v))
    return masks, tuple(id(v) in needed for v in jaxpr.invars)


def _reads(eqn: Any, mask: Mask) -> Mask:
    """Which operands an equation reads for the results in `mask`."""
    everything = (True,) * len(eqn.invars)
    if (body := called(eqn)) is not None and not eqn.effects:
        if len(body.invars) == len(eqn.invars) and len(body.outvars) == len(mask):
            return live(body, mask)[1]
    elif eqn.primitive.name == "cond":
        reads = [live(bare(b), mask)[1] for b in eqn.params["branches"]]
        return (True, *map(any, zip(*reads, strict=True)))
    elif eqn.primitive.name == "while" and not eqn.effects:
        return while_mask(eqn, mask)[1]
    elif eqn.primitive.name == "scan" and not eqn.effects:
        return loop_mask(bare(eqn.params["jaxpr"]), mask, carries(eqn))[1]
    return everything


def carries(eqn: Any) -> tuple[int, int]:
    """(constants, carries) of a scan, from the ranks: what is scanned over loses an axis inside, carries keep theirs.

    The parameters that say so differ between versions of jax.
    """
    body = bare(eqn.params["jaxpr"])

    def whole(outer: Sequence[Any], inside: Sequence[Any]) -> int:
        return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in zip(outer, inside, strict=True))

    carry = whole(eqn.outvars, body.outvars)
    return whole(eqn.invars, body.invars) - carry, carry


def loop_mask(body: Any, mask: Mask, sizes: tuple[int, int]) -> tuple[Mask, Mask]:
    """(results of the body that matter, operands that are read): a carry matters if it is used or feeds one that is."""
    consts, carry = sizes
    out = tuple(mask)
    while True:
        reads = live(body, out)[1]
        fed = tuple(a or b for a, b in zip(out[:carry], reads[consts : consts + carry], strict=True)) + out[carry:]
        if fed == out:
            return out, reads
        out = fed


def while_mask(eqn: Any, mask: Mask) -> tuple[Mask, Mask]:
    """The same for a while loop, whose condition reads carries too."""
    p = eqn.params
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    tested = live(bare(p["cond_jaxpr"]), (True,))[1]
    matters = tuple(a or b for a, b in zip(mask, tested[n_cond:], strict=True))
    out, reads = loop_mask(bare(p["body_jaxpr"]), matters, (n_body, len(mask)))
    carried = tuple(a or b for a, b in zip(out, reads[n_body:], strict=True))
    return out, tested[:n_cond] + reads[:n_body] + carried


def stack_of(eqn: Any) -> str:
    """The name scopes an equation was traced in, relative to its jaxpr."""
    return str(eqn.source_info.name_stack)


def frames(eqn: Any, limit: int = 40) -> list[str]:
    """Where an equation was written, "file:line (function)", outermost first, jax's own frames left out."""
    text = source_info_util.summarize(eqn.source_info, limit)
    return [] if text in ("", "unknown") else text.splitlines()


def sites(eqn: Any) -> tuple[str, str]:
    """The innermost line of an equation that isn't in an installed package, and the innermost one; "" for none."""
    lines = frames(eqn)
    own = [line for line in lines if "site-packages" not in line and "dist-packages" not in line]
    return (own or lines or [""])[-1], (lines or [""])[-1]


def place(eqn: Any) -> str:
    """`sites` in short, for notes: "step.py:12"; "?" for none."""
    return short(sites(eqn)[0]) or "?"


def short(line: str) -> str:
    """`/a/b/step.py:12:8 (f)` as `step.py:12`."""
    path, line_number, *_ = [*line.split(" (", 1)[0].split(":"), ""]
    return f"{pathlib.PurePath(path).name}:{line_number}" if line_number else path
