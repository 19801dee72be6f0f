"""What an architecture's file is: one table of tensor names and our parameters' paths, used in both directions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from jaxnn.models.weights.claims import Claims
from jaxnn.typing import HostArray

Arrays = Sequence[HostArray]


class Transform(NamedTuple):
    """How tensors become a parameter and back: reshapes, transposes and cuts only, so that the round trip is exact.

    Attributes:
        join: The parameter, from the tensors of an entry in their order.
        split: The tensors, from the parameter.
    """

    join: Callable[[Arrays], HostArray]
    split: Callable[[HostArray], Arrays]


class Entry(NamedTuple):
    """A parameter and the tensors that it is made of.

    Attributes:
        ours: The parameter's path. "{i}" stands for the number of a layer; under a scan the layers are stacked.
        theirs: Names of the tensors, with "{i}" in them where the path has it.
        transform: From one to the other.
    """

    ours: str
    theirs: tuple[str, ...]
    transform: Transform


class Architecture(NamedTuple):
    """A family of models that others' files hold; one file beside this one defines it.

    Attributes:
        kind: `model_type` in config.json.
        module: The module's class here.
        fits: `fits(module)`: whether a module of that class is of this family, where several share the class.
        read: `read(config, names) -> module`, from config.json and the tensors' names; refuses what we cannot compute.
        write: `write(module) -> config`, its inverse, "architectures" included; refuses what the files cannot say.
        entries: `entries(module) -> table`: every parameter of the module once.
        layers: `layers(module) -> (how many, whether they are stacked)`.
        claims: `claims(module)`: the layers and sizes that config.json said, which the tensors must show.
        prefix: What tensors' names begin with in the table ("bert."); files of the bare model leave it out.
        bare: `bare(module)`: whether this one's file is such.
        other: `other(module) -> names` of tensors of other heads over the same model, which loading leaves out.
        twins: `twins(module) -> {name: name}` of tensors that some files hold a second time.
        noise: Endings of names that hold no weights: position numbers, masks.
        renamed: Endings that older files have, and today's.
    """

    kind: str
    module: type[nn.Module]
    fits: Callable[[Any], bool]
    read: Callable[[Mapping[str, Any], frozenset[str]], nn.Module]
    write: Callable[[Any], dict[str, Any]]
    entries: Callable[[Any], list[Entry]]
    layers: Callable[[Any], tuple[int, bool]]
    claims: Callable[[Any], Claims]
    prefix: str
    bare: Callable[[Any], bool]
    other: Callable[[Any], set[str]] = lambda _: set()
    twins: Callable[[Any], dict[str, str]] = lambda _: {}
    noise: tuple[str, ...] = ()
    renamed: Mapping[str, str] = {}


SAME = Transform(lambda xs: xs[0], lambda x: [x])
TRANSPOSED = Transform(lambda xs: xs[0].T, lambda x: [x.T])  # torch's Linear keeps [out, in], our kernels are [in, out]


def heads_apart(heads: int) -> Transform:
    """q, k and v [out, in] (or biases [out]) as our kernel [in, 3 out], a head's three side by side (`gpt.Block`)."""

    def join(xs: Arrays) -> HostArray:
        parts = [x.reshape(heads, -1, *x.shape[1:]) for x in xs]  # [H, D, in]
        stacked = np.stack(parts, axis=1)  # [H, 3, D, in]
        return stacked.reshape(-1, *xs[0].shape[1:]).T

    def split(x: HostArray) -> Arrays:
        parts = x.T.reshape(heads, 3, -1, *x.shape[:-1])
        return [parts[:, i].reshape(-1, *x.shape[:-1]) for i in range(3)]

    return Transform(join, split)


def heads_inside(heads: int) -> Transform:
    """One tensor [in, 3 out] of all queries, all keys, all values (or a bias [3 out]) as our kernel of that shape."""

    def join(xs: Arrays) -> HostArray:
        (x,) = xs
        return np.swapaxes(x.reshape(*x.shape[:-1], 3, heads, -1), -3, -2).reshape(x.shape)

    def split(x: HostArray) -> Arrays:
        return [np.swapaxes(x.reshape(*x.shape[:-1], heads, 3, -1), -3, -2).reshape(x.shape)]

    return Transform(join, split)


def linear(ours: str, theirs: str, transform: Transform = TRANSPOSED) -> list[Entry]:
    """The entries of a dense layer: `kernel` and `bias`."""
    return [
        Entry(f"{ours}/kernel", (f"{theirs}.weight",), transform),
        Entry(f"{ours}/bias", (f"{theirs}.bias",), SAME),
    ]


def norm(ours: str, theirs: str) -> list[Entry]:
    """The entries of a LayerNorm."""
    return [Entry(f"{ours}/scale", (f"{theirs}.weight",), SAME), Entry(f"{ours}/bias", (f"{theirs}.bias",), SAME)]


def expect(where: str, config: Mapping[str, Any], **values: Any) -> None:
    """Refuses a config.json whose field has another value than the only one that we compute; absent ones pass.

    Raises:
        ValueError: Naming the field.
    """
    for name, value in values.items():
        if config.get(name, value) != value:
            raise ValueError(
                f"models.load: config.json of a {where} has {name}={config[name]!r:.80}. Tried: {value!r}, the only "
                f"one that our model computes. Use a model that has it."
            )


def choose(where: str, config: Mapping[str, Any], name: str, choices: Mapping[str, str], default: str) -> str:
    """Our word for a choice in config.json.

    Raises:
        ValueError: If we have none.
    """
    value = config.get(name, default)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"models.load: config.json of a {where} has {name}={value!r:.80}. Tried: {', '.join(choices)}. Use a model "
            f"that has one of them."
        )
    return choices[value]


def _wrong(where: str, name: str, value: Any, wanted: str) -> ValueError:
    return ValueError(
        f"models.load: config.json of a {where} has {name}={value!r:.80}. Tried: {wanted}. Give the model's own "
        f"config.json."
    )


def need(where: str, config: Mapping[str, Any], *names: str) -> list[int]:
    """Sizes that config.json must have.

    Raises:
        ValueError: If one is missing or no integer in [1, 2**31).
    """
    found = []
    for name in names:
        value = config.get(name)
        if type(value) is not int or not 1 <= value < 2**31:
            raise _wrong(where, name, value, "a size")
        found.append(value)
    return found


def count(where: str, config: Mapping[str, Any], name: str, default: int) -> int:
    """A whole number that config.json may have: a size or a token's id; `default` where it is absent or null.

    Raises:
        ValueError: If it is no integer in [0, 2**31).
    """
    value = default if config.get(name) is None else config[name]
    if type(value) is not int or not 0 <= value < 2**31:
        raise _wrong(where, name, value, "a whole number of at least 0")
    return value


def number(where: str, config: Mapping[str, Any], name: str, default: float) -> float:
    """A real number that config.json may have; `default` where it is absent or null.

    Raises:
        ValueError: If it is none, or not finite.
    """
    value = default if config.get(name) is None else config[name]
    if type(value) not in (int, float) or not abs(value) < 1e300:
        raise _wrong(where, name, value, "a number")
    return float(value)
