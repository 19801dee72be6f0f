"""`stages`: a chain whose parts have names, so that state has stable paths and parts can know of each other."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnn.optim.compose.measures import BY_LEAVES, Metrics, Seen, check_choices, measure
from jaxnn.optim.compose.rates import check_stages
from jaxnn.optim.compose.stable import stable
from jaxnn.optim.compose.transformation import (
    ELEMENTWISE,
    KINDS,
    READS_PARAMS,
    Context,
    Transformation,
    apply_part,
    check,
    multiplied,
    products,
)
from jaxnn.typing import PyTree


class StagesState(NamedTuple):
    """State of `stages`: each stage's own by name, and the chosen metrics."""

    stages: dict[str, PyTree]
    metrics: Metrics


def stages(*, metrics: Sequence[str] = (), **named: optax.GradientTransformation) -> Transformation:
    """Applies named transformations in order; state is keyed by their names.

    Adding, removing or renaming a stage leaves the other stages' state where it was (`optim.migrate` carries it over).
    Weight decay that is not coupled to the rate applies after it, wherever it is written.

    Args:
        metrics: What `optim.metrics(state)` will give: any of "lr", "norms", "layer_norms", "group_norms", "clip".
        named: Name -> any optax gradient transformation.

    Raises:
        TypeError: If a stage is no gradient transformation.
        ValueError: If there is no stage, two have a rate, a decay inside a stage before the rate is of a coupling that
            comes after it, or a metric is unknown; at init, if there are two rates of which optax hides one, as far as
            a trial tells (docs/optim.md, 3); at init and trace time, if a metric has no stage to measure.
    """
    where = "optim.stages"
    if not named:
        raise ValueError(f"{where}: no stage. Write optim.stages(adam=optim.adam_core(), lr=optim.scale_by_lr(1e-3)).")
    parts = {name: stable(check(where, name, tx)) for name, tx in named.items()}
    check_stages(where, parts)
    chosen = check_choices(where, metrics)
    last = [n for n, part in parts.items() if isinstance(part, Transformation) and part.facts.get("after_lr")]
    order = [name for name in parts if name not in last] + last

    known = {name: part.facts if isinstance(part, Transformation) else {} for name, part in parts.items()}
    multiplying = {name: facts["multipliers"] for name, facts in known.items() if "multipliers" in facts}

    def told_of(states: Mapping[str, PyTree], like: PyTree, found: Context) -> tuple[Context, dict[str, Context]]:
        """What the parts are told; and what those with multipliers, who know their own, are told of the others'."""
        for name, facts in known.items():
            if "lr_in_effect" in facts:
                rate, peak = facts["lr_in_effect"](states[name])
                found = found._replace(lr=rate, lr_peak=peak)
        trees = {name: [fact(states[name], like, kind) for kind in KINDS] for name, fact in multiplying.items()}

        def by(names: Sequence[str]) -> Context:
            told = found
            for name in names:
                for kind, tree in zip(KINDS, trees[name], strict=True):
                    told = multiplied(told, kind, tree)
            return told

        return by(list(trees)), {name: by([other for other in trees if other != name]) for name in trees}

    def run(
        updates: PyTree, states: Mapping[str, PyTree], params: PyTree, outer: Context, extra: Mapping[str, Any]
    ) -> Any:
        told, others = told_of(states, updates if params is None else params, outer)
        grads, new = updates, {}
        for name in order:
            updates, new[name] = apply_part(parts[name], updates, states[name], params, others.get(name, told), extra)
        return updates, new, measure(chosen, Seen(grads, updates, params, parts, new, told))

    def init(params: PyTree) -> StagesState:
        check_stages(where, parts, tried=True)  # not before: a trial starts the backend
        states = {name: part.init(params) for name, part in parts.items()}
        values: dict[str, Any] = {}
        if chosen:  # which names there are depends on the parameters
            asked = {"value": jnp.zeros(()), "value_fn": lambda p, **_: jnp.zeros(())}
            # What is asked of the stages around is there in an update; of them the metric "lr" must not show any rate.
            rate = None if "lr" in chosen else jnp.ones((), jnp.float32)
            outer = Context(lr=rate, lr_peak=rate)
            shapes = jax.eval_shape(lambda p, s: run(p, s, p, outer, asked | {"grad": p})[2], params, states)
            values = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.values.items()}
        return StagesState(states, Metrics(values))

    def update(
        updates: PyTree, state: StagesState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, StagesState]:
        new_updates, states, values = run(updates, state.stages, params, context or Context(), extra)
        return new_updates, StagesState(states, values)

    def multipliers(state: StagesState, params: PyTree, kind: str) -> PyTree:
        """Of all groups inside, for the rate and the decay around."""
        trees = (fact(state.stages[name], params, kind) for name, fact in multiplying.items())
        return functools.reduce(products, trees)

    facts: dict[str, Any] = {"multipliers": multipliers} if multiplying else {}
    for name, own in known.items():  # one at most
        if "lr_in_effect" in own:
            facts["lr_in_effect"] = lambda state, n=name, fact=own["lr_in_effect"]: fact(state.stages[n])
    if all(own.get("elementwise") for own in known.values()) and not set(chosen) & BY_LEAVES:
        facts |= ELEMENTWISE
    if "norms" in chosen or any(own.get("reads_params") for own in known.values()):
        facts |= READS_PARAMS
    return Transformation(init, update, name="stages", parts=parts, wants_context=True, facts=facts)
