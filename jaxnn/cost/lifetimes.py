"""How long results live in a compiled program, read from the order of its instructions."""

from typing import Any

from jaxnn.cost import hlo

_SAME = frozenset(("bitcast", "get-tuple-element", "tuple", "optimization-barrier", "all-gather-done"))  # no new buffer


def gathered_alive(program: Any) -> int:
    """The most bytes of gathered arrays, results of all-gathers, that live at one time on a device.

    An array lives from its gather to the last instruction that reads it; loops and calls add what lives inside of them.
    What is computed from a gathered array is not one: a copy kept in a loop's stack shows in `memory` alone.

    Args:
        program: A `jax.stages.Compiled`, or its `as_text()`; its instructions are in the order in which they run.
    """
    module = hlo.parse(program if isinstance(program, str) else program.as_text())
    known: dict[str, int] = {}

    def most(computation: str) -> int:
        if computation not in known:
            instructions = module.computations.get(computation, [])
            place = {instruction.name: i for i, instruction in enumerate(instructions)}
            holds: dict[str, set[int]] = {}  # name -> gathers whose buffers it is
            last: dict[int, int] = {}
            for i, instruction in enumerate(instructions):
                read = {g for name in instruction.operand_names for g in holds.get(name, ())}
                for gather in read:
                    last[gather] = i
                if instruction.opcode in ("all-gather", "all-gather-start"):
                    holds[instruction.name] = {i}
                    last[i] = i
                elif instruction.opcode in _SAME:
                    holds[instruction.name] = read
                if instruction.root:
                    for gather in holds.get(instruction.name, ()):
                        last[gather] = len(instructions)
            inside = [max((most(name) for name in _called(instruction)), default=0) for instruction in instructions]
            sizes = {gather: _result(instructions[gather]) for gather in last}
            known[computation] = max(
                (
                    sum(size for gather, size in sizes.items() if gather <= i <= last[gather]) + inside[i]
                    for i in range(len(place))
                ),
                default=0,
            )
        return known[computation]

    return most(module.entry)


def _called(instruction: hlo.Instruction) -> list[str]:
    """Computations that run while the instruction does."""
    loop = [name for key in ("body", "condition") if (name := instruction.computation(key))]
    return [*instruction.computations(), *instruction.branches(), *loop]


def _result(instruction: hlo.Instruction) -> int:
    """Bytes of what an all-gather gives; the type of an asynchronous one has its operand too."""
    whole = hlo.nbytes(instruction.type)
    return whole if instruction.opcode == "all-gather" else whole - hlo.nbytes(instruction.operands)
