"""One rate on every way through an optimizer: two turn the direction round twice, none never, and both climb."""

import itertools
from collections.abc import Mapping

import optax

from jaxnn.optim.compose.transformation import Transformation, label, walk

CORES = "(optim.adam_core() for optim.adam(lr), optax.scale_by_adam() for optax.adam(lr))"
ON_PURPOSE = (
    " To climb on purpose, say so: "
    'optim.stateless(lambda u, p: jax.tree.map(jnp.negative, u), "climb", descends=False).'
)


def descending(part: optax.GradientTransformation, *, tried: bool = False) -> list[str]:
    """The paths in `part` of what makes its updates point downhill: `scale_by_lr` and the like.

    Args:
        part: Any transformation.
        tried: Whether what optax hides in closures is tried on a gradient (`probe.descends`, once); it is not found
            otherwise. An empty list means none that is known.
    """
    return [at for at, inner in _leaves(part) if isinstance(inner, Transformation) and _descends(inner, tried)]


def _descends(part: Transformation, tried: bool) -> bool:
    return bool(part.facts.get("descends")) or (tried and "tried" in part.facts and part.facts["tried"]())


def climbing(part: optax.GradientTransformation) -> bool:
    """Whether the updates of `part` are known to point up the gradient: all of it is ours, and none of it descends."""
    known = all(isinstance(inner, Transformation) and not inner.facts.get("opaque") for _, inner in _leaves(part))
    return known and not descending(part)


def _leaves(part: optax.GradientTransformation) -> list[tuple[str, optax.GradientTransformation]]:
    return [(at, inner) for at, inner in walk(part) if not getattr(inner, "parts", None)]


def _hidden(parts: Mapping[str, optax.GradientTransformation]) -> bool:
    """Whether a trial could tell of two rates what facts do not: there is a part that tells nothing, and another."""
    leaves = [inner for part in parts.values() for _, inner in _leaves(part)]
    return len(leaves) > 1 and any(isinstance(p, Transformation) and "tried" in p.facts for p in leaves)


def _rate(path: str, part: optax.GradientTransformation) -> str:
    """What has a rate, and how that is known."""
    hidden = isinstance(part, Transformation) and part.facts.get("opaque")
    return f"{path!r} ({label(part)}: tried on a gradient, its updates point down it)" if hidden else repr(path)


def check_stages(where: str, parts: Mapping[str, optax.GradientTransformation], *, tried: bool = False) -> None:
    """Refuses a chain with two rates, and one whose rate multiplies a decay that belongs after it.

    Args:
        where: What an error calls the chain.
        parts: Stage -> its transformation.
        tried: As of `descending`.

    Raises:
        ValueError: Naming both.
    """
    if tried and not _hidden(parts):
        return
    found = {
        f"{name}.{at}".rstrip("."): dict(_leaves(part))[at]
        for name, part in parts.items()
        for at in descending(part, tried=tried)[:1]
    }
    if len(found) > 1:
        first, second = [_rate(at, inner) for at, inner in found.items()][:2]
        raise ValueError(
            f"{where}: {first} has a rate, and so has {second}: each multiplies by minus its own, and the parameters "
            f"would climb. Take the core for what is ready-made {CORES}, or leave the other rate out."
            f"{ON_PURPOSE if tried else ''}"
        )
    if found and not tried:
        rate = next(iter(found))
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
    *,
    tried: bool = False,
) -> None:
    """Refuses groups of which some have a rate and others none, and multipliers of what they do not multiply.

    Args:
        where: What an error calls the groups.
        parts: Group -> its transformation.
        lr: Group -> multiplier of the rate.
        decay: Group -> multiplier of the decay.
        tried: As of `descending`.

    Raises:
        ValueError: Naming the groups.
    """
    if tried and not _hidden(parts) and all(m == 1.0 for m in lr.values()):
        return
    rated = {name: at[0] for name, part in parts.items() if (at := descending(part, tried=tried))}
    bare = [name for name, part in parts.items() if climbing(part)]
    if rated and bare:
        name = next(iter(rated))
        inner = dict(_leaves(parts[name]))[rated[name]]
        raise ValueError(
            f"{where}: group {name!r} has a rate, {_rate(rated[name] or name, inner)}, and group {bare[0]!r} has none: "
            f"with a rate around both {name!r} would climb, without one {bare[0]!r}. Take cores in all groups {CORES} "
            "and one optim.scale_by_lr in the optim.stages around them, or give each group a whole optimizer."
            f"{ON_PURPOSE if tried else ''}"
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
