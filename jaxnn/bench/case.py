"""A case: a function, its arguments and what becomes of them from one call to the next.

The arguments that a case makes are kept and never handed to the program where it donates: each block of calls begins
from a fresh copy, so that every arm does the same work on the same values however long it runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax

from jaxnn import rng, tree
from jaxnn.bench import guards
from jaxnn.typing import Array

Donate = Literal["thread"] | int | tuple[int, ...] | None


@dataclass(frozen=True)
class Case:
    """One program to measure.

    Attributes:
        name: What the results call it.
        function: Traceable; bench compiles it itself, so it need not be jitted, and must not donate.
        args: The positional arguments as a tuple of pytrees of `jax.Array`s, or a function of a typed random key that
            makes it.
        donate: None: nothing is donated. "thread": the outputs become the arguments of the next call, and those
            arguments are donated: all of the output where it matches the first argument, else each leading output that
            has the structure of the argument in its place (`step(state, batch) -> (state, sums)`; from the second
            place on, bare arrays are not taken for threaded). Numbers: these arguments are donated, and every call is
            given fresh copies of them.
    """

    name: str
    function: Callable[..., Any]
    args: tuple | Callable[[Array], tuple] = ()
    donate: Donate = None

    def make_args(self, seed: int = 0) -> tuple:
        """The arguments, checked.

        Raises:
            TypeError: If they are no tuple.
            BenchError: If a leaf is not an array on the device.
        """
        args = self.args(rng.wrap(rng.seed_key(seed))) if callable(self.args) else self.args
        guards.check_arguments(self.name, args)
        return args


class Flow(NamedTuple):
    """Where a call's outputs go.

    Attributes:
        donated: Argument numbers that are donated.
        threaded: How many leading outputs become the arguments of the next call; 0 for none.
        whole: The output as a whole is the next first argument.
    """

    donated: tuple[int, ...] = ()
    threaded: int = 0
    whole: bool = False

    def following(self, args: tuple, out: Any) -> tuple:
        """The arguments of the call after the one that was given `args` and returned `out`."""
        if self.whole:
            return (out, *args[1:])
        return (*out[: self.threaded], *args[self.threaded :])


def flow(case: Case, args: tuple, out: Any) -> Flow:
    """How `case` threads and donates, from its arguments and the shapes of its outputs.

    Raises:
        BenchError: If an output that should be threaded differs from its argument, naming the leaf; or an argument
            number does not exist.
    """
    if case.donate is None:
        return Flow()
    if case.donate != "thread":
        numbers = (case.donate,) if isinstance(case.donate, int) else tuple(case.donate)
        wrong = [n for n in numbers if not isinstance(n, int) or not 0 <= n < len(args)]
        if wrong:
            raise guards.BenchError(
                f"bench: {case.name}: donate={case.donate!r} names arguments {wrong}, but there are {len(args)}. "
                "Write argument numbers from 0."
            )
        return Flow(donated=numbers)
    if not args:
        raise guards.BenchError(f"bench: {case.name}: donate='thread' needs an argument to thread. There is none.")
    structure = jax.tree.structure
    if structure(out) == structure(args[0]):
        _check_threaded(case.name, "the output", args[0], out, 0)
        return Flow((0,), 1, True)
    count = 0
    if isinstance(out, tuple):
        for index, (argument, output) in enumerate(zip(args, out, strict=False)):
            bare = index > 0 and jax.tree.structure(argument) == jax.tree.structure(0)
            if bare or structure(argument) != structure(output):
                break
            _check_threaded(case.name, f"output {index}", argument, output, index)
            count += 1
    if not count:
        first = out[0] if isinstance(out, tuple) and out else out
        lines = list(tree.differences(args[0], first)) or ["the containers differ"]
        raise guards.BenchError(
            f"bench: {case.name}: donate='thread', but no output has the structure of the first argument: "
            f"{'; '.join(lines[:3])} (first is args[0], second the output). "
            "Return the next value of each donated argument first, in the arguments' order."
        )
    return Flow(tuple(range(count)), count)


def _check_threaded(name: str, what: str, argument: Any, output: Any, index: int) -> None:
    lines = [line for line in tree.differences(argument, output) if guards.on("donation")]
    if lines:
        raise guards.BenchError(
            f"bench: {name}: donate='thread', but {what} is not like args[{index}]: {'; '.join(lines[:3])} (argument "
            "against output). The second call would not be the first program; keep shapes and dtypes."
        )


def copies(args: tuple, numbers: tuple[int, ...]) -> tuple:
    """`args` with those of these numbers copied into new buffers, ready. Compiles nothing."""
    fresh = tuple(jax.device_put(a, may_alias=False) if i in numbers else a for i, a in enumerate(args))
    return jax.block_until_ready(fresh)
