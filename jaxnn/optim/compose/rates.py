"""One rate on every way through an optimizer: two turn the direction round twice, none never, and both climb."""

import itertools
from collections.abc import Mapping

import optax

from jaxnn.optim.compose.transformation import Transformation, walk


def descending(part: optax.GradientTransformation) -> list[str]:
    """The paths in `part` of what makes its updates point downhill: `scale_by_lr` and the like.

    What optax hides in closures is not found: an empty list means none that is known.
    """
    return [at for at, inner in _leaves(part) if isinstance(inner, Transformation) and inner.facts.get("descends")]


def climbing(part: optax.GradientTransformation) -> bool:
    """Whether the updates of `part` are known to point up the gradient: all of it is ours, and none of it descends."""
    known = all(isinstance(inner, Transformation) and not inner.facts.get("opaque") for _, inner in _leaves(part))
    return known and not descending(part)


def _leaves(part: optax.GradientTransformation) -> list[tuple[str, optax.GradientTransformation]]:
    return [(at, inner) for at, inner in walk(part) if not getattr(inner, "parts", None)]


def check_stages(where: str, parts: Mapping[str, optax.GradientTransformation]) -> None:
    """Refuses a chain with two rates, and one whose rate multiplies a decay that belongs after it.

    Raises:
        ValueError: Naming both.
    """
    found = [f"{name}.{at}".rstrip(".") for name, part in parts.items() for at in descending(part)[:1]]
    if len(found) > 1:
        raise ValueError(
            f"{where}: {found[0]!r} has a rate, and so has {found[1]!r}: each multiplies by minus its own, and the "
            "parameters would climb. Take the core for what is ready-made (optim.adam_core() for optim.adam(lr)), or "
            "leave the other rate out."
        )
    if found:
        rate = found[0]
        before = itertools.takewhile(lambda name: name != rate.partition(".")[0], parts)
        inside = {name: parts[name] for name in before if not _is_late(parts[name])}  # who is late comes after the rate
        late = [f"{name}.{at}" for name, part in inside.items() for at, inner in _leaves(part) if _is_late(inner)]
        if late:
            stage = late[0].partition(".")[0]
            raise ValueError(
                f"{where}: {late[0]!r} is to come after the rate, {rate!r}, and within {stage!r} it comes before: the "
                "rate turns its sign round, and with decay the parameters grow. Put it beside the rate, or take "
                'optim.decay(..., coupling="lr").'
            )


def _is_late(part: optax.GradientTransformation) -> bool:
    return isinstance(part, Transformation) and bool(part.facts.get("after_lr"))


def check_groups(
    where: str,
    parts: Mapping[str, optax.GradientTransformation],
    lr: Mapping[str, float],
    decay: Mapping[str, float],
) -> None:
    """Refuses groups of which some have a rate and others none, and multipliers of what they do not multiply.

    Args:
        where: What an error calls the groups.
        parts: Group -> its transformation.
        lr: Group -> multiplier of the rate.
        decay: Group -> multiplier of the decay.

    Raises:
        ValueError: Naming the groups.
    """
    rated = {name: at[0] for name, part in parts.items() if (at := descending(part))}
    bare = [name for name, part in parts.items() if climbing(part)]
    if rated and bare:
        name = next(iter(rated))
        raise ValueError(
            f"{where}: group {name!r} has a rate, {rated[name] or name!r}, and group {bare[0]!r} has none: with a rate "
            f"around both {name!r} would climb, without one {bare[0]!r}. Take cores in all groups "
            "(optim.adam_core() for optim.adam(lr)) and one optim.scale_by_lr in the optim.stages around them, or give "
            "each group a whole optimizer."
        )
    for name in rated:
        if lr[name] != 1.0:
            raise ValueError(
                f"{where}: group {name!r} has lr={lr[name]!r:.20}, which multiplies the rate of the optim.stages "
                "around the groups, and a rate of its own. Take its core, or put the factor into its own rate."
            )
    for name, part in parts.items():
        own = next(
            (inner.name for _, inner in walk(part) if isinstance(inner, Transformation) and _decays(inner)), None
        )
        if decay[name] != 1.0 and own is not None:
            raise ValueError(
                f"{where}: group {name!r} has decay={decay[name]!r:.20}, which multiplies stages that are optim.decay, "
                f"and the weight_decay of {own!r} is part of its rule. Put the factor into that."
            )


def _decays(part: Transformation) -> bool:
    """Whether decay is part of a rule, as in LAMB, and not a stage of its own."""
    hyper = part.hyper
    if hyper is None or "after_lr" in part.facts or "weight_decay" not in hyper.domains:
        return False
    return hyper.constants.get("weight_decay") != 0
