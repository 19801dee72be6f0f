"""The stages that scale: clipping by the global norm, the rate, and weight decay with its coupling said aloud."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.optim.compose import select
from jaxnn.optim.compose.transformation import ELEMENTWISE, READS_PARAMS, Context, Transformation, known_norm
from jaxnn.optim.hyper import Hyperparameters, Hypers
from jaxnn.typing import Array, PyTree, Schedule


def full(x: Array) -> Array:
    """`x` in the precision in which updates are computed: float32 at least, complex where it is."""
    dtype = np.promote_types(x.dtype, np.float32)
    return x if x.dtype == dtype else x.astype(dtype)


def times(scalar: Array, x: Array) -> Array:
    """`scalar * x` in x's dtype, without promoting it."""
    # Over thousands of leaves, equations that do nothing take time to trace, and so does jnp's promotion.
    return jax.lax.mul(scalar if scalar.dtype == x.dtype else scalar.astype(x.dtype), x)


class ClipState(NamedTuple):
    """State of `clip_by_global_norm`: its bound, and the factor of the last update (1 where nothing was clipped)."""

    hyper: Hypers
    factor: Array


def clip_by_global_norm(max_norm: float | Schedule) -> Transformation:
    """Scales updates so that their global L2 norm is at most `max_norm`.

    u <- u * min(1, max_norm / ||u||), the norm over all leaves in float32. Before `groups` it stays global, whatever
    the groups are. One scalar factor: it costs a pass to read the updates and, fused into what follows, no other.

    Args:
        max_norm: Bound, in gradient units; > 0. Hyperparameter `max_norm`.

    Raises:
        ValueError: If `max_norm` <= 0.

    Source:
        Pascanu et al. 2013, arXiv:1211.5063, Algorithm 1.
    """
    hyper = Hyperparameters("optim.clip_by_global_norm", max_norm=max_norm)

    def init(params: PyTree) -> ClipState:
        del params
        return ClipState(hyper.init(), jnp.ones((), jnp.float32))

    def update(
        updates: PyTree, state: ClipState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, ClipState]:
        del params, extra
        h, hypers = hyper.at(state.hyper)
        norm = known_norm(updates, context)
        # max(norm, bound) rather than a select: no division by 0, and a norm that is not finite stays visible.
        factor = h.max_norm / jnp.maximum(norm, h.max_norm)
        return jax.tree.map(lambda u: times(factor, u), updates), ClipState(hypers, factor)

    facts = {"clip_factor": lambda state: state.factor, **ELEMENTWISE}
    return Transformation(init, update, name="clip_by_global_norm", hyper=hyper, wants_context=True, facts=facts)


class ScaleByLrState(NamedTuple):
    """State of `scale_by_lr`: the rate."""

    hyper: Hypers


def scale_by_lr(lr: float | Schedule) -> Transformation:
    """Multiplies by minus the rate: u <- -lr u, times the group's multiplier where `groups` gave it one.

    Args:
        lr: Rate an update, or schedule (update number from 0 -> rate); >= 0. Hyperparameter `lr`; of a schedule also
            `lr_multiplier`, which scales all of it: the one to sweep.

    Raises:
        ValueError: If the rate is negative.
    """
    hyper = Hyperparameters("optim.scale_by_lr", lr=lr)

    def init(params: PyTree) -> ScaleByLrState:
        del params
        return ScaleByLrState(hyper.init())

    def update(
        updates: PyTree, state: ScaleByLrState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, ScaleByLrState]:
        del params, extra
        h, hypers = hyper.at(state.hyper)
        multipliers = context.lr_multipliers if context is not None else None
        if multipliers is None:
            down = -h.lr
            return jax.tree.map(lambda u: times(down, u), updates), ScaleByLrState(hypers)
        scaled = jax.tree.map(lambda u, m: times(-h.lr * m, u), updates, multipliers)
        return scaled, ScaleByLrState(hypers)

    def in_effect(state: ScaleByLrState) -> tuple[Array, Any]:
        h = hyper.at(state.hyper)[0]
        if not callable(lr):
            return h.lr, h.lr
        peak = getattr(lr, "peak", None)
        return h.lr, None if peak is None else peak * h.lr_multiplier

    facts = {"lr_in_effect": in_effect, "descends": True, **ELEMENTWISE}
    return Transformation(init, update, name="scale_by_lr", hyper=hyper, wants_context=True, facts=facts)


Coupling = Literal["lr", "schedule", "none"]


class DecayState(NamedTuple):
    """State of `decay`: the strength."""

    hyper: Hypers


def decay(
    weight_decay: float | Schedule,
    *,
    where: select.Predicate = select.everything,
    coupling: Coupling = "lr",
    cautious: bool = False,
) -> Transformation:
    """Decoupled weight decay, with what it is multiplied by said aloud.

    | coupling | parameters shrink by | as in |
    |---|---|---|
    | "lr" | lr(t) * weight_decay | torch and optax AdamW |
    | "schedule" | lr(t) / max lr * weight_decay | Loshchilov & Hutter, independent of the rate's height |
    | "none" | weight_decay | fully decoupled |

    In `stages` its place does not matter to the last two: they apply after the rate. In `optax.chain`, put "lr" before
    the rate and "none" after it.

    Args:
        weight_decay: Strength; >= 0. Hyperparameter `weight_decay`.
        where: Which parameters decay.
        coupling: See above.
        cautious: Decay only the elements that the update shrinks anyway, where u x > 0 of a direction u (Chen et al.
            2025, arXiv:2510.12402).

    Raises:
        ValueError: If the strength is negative or the coupling unknown; at trace time, if "schedule" finds no rate.

    Source:
        Loshchilov & Hutter 2019, arXiv:1711.05101, Algorithm 2.
    """
    hyper = Hyperparameters("optim.decay", weight_decay=weight_decay)
    if coupling not in ("lr", "schedule", "none"):
        raise ValueError(f'optim.decay: coupling is {coupling!r}. Give "lr", "schedule" or "none".')
    select.check("optim.decay: where", where)

    def init(params: PyTree) -> DecayState:
        select.check_masks("optim.decay: where", where, params)
        return DecayState(hyper.init())

    def update(
        updates: PyTree, state: DecayState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, DecayState]:
        del extra
        if params is None:
            raise ValueError("optim.decay: update needs the parameters: tx.update(grads, state, params).")
        h, hypers = hyper.at(state.hyper)
        amount = h.weight_decay
        if coupling == "schedule":
            amount = amount * _share_of_peak(context)
        multipliers = context.decay_multipliers if context is not None else None
        sign = 1 if coupling == "lr" else -1
        signed = sign * amount

        def one(leaf: select.Leaf, u: Array, p: Array, m: Any = None) -> Array:
            if not where(leaf):
                return u
            shrunk = times(signed if m is None else signed * m, full(p))
            shrunk = shrunk if shrunk.dtype == u.dtype else shrunk.astype(u.dtype)
            if cautious:
                shrunk = jnp.where((sign * u * jnp.conj(full(p)).astype(u.dtype)).real > 0, shrunk, 0)
            return jax.lax.add(u, shrunk)

        rest = () if multipliers is None else (multipliers,)
        return jax.tree.map(one, select.leaves(params), updates, params, *rest), DecayState(hypers)

    facts = {"after_lr": coupling != "lr", **READS_PARAMS, **(ELEMENTWISE if where is select.everything else {})}
    return Transformation(init, update, name="decay", hyper=hyper, wants_context=True, facts=facts)


def _share_of_peak(context: Context | None) -> Array:
    """lr(t) / max lr."""
    if context is None or context.lr is None:
        raise ValueError(
            'optim.decay: coupling="schedule" needs a rate beside it. Put decay and scale_by_lr into one optim.stages.'
        )
    if context.lr_peak is None:
        raise ValueError(
            'optim.decay: coupling="schedule" needs the largest rate of the schedule, and this one has no `peak`. '
            "Use one of optim that has (optim.cosine, ...), or set `peak` on yours."
        )
    peak = jnp.asarray(context.lr_peak, jnp.float32)
    return jnp.where(peak > 0, context.lr / jnp.where(peak > 0, peak, 1), 0)


def stateless(fn: Callable[[PyTree, PyTree], PyTree], name: str, *, descends: bool | None = None) -> Transformation:
    """A stage without state: `fn(updates, params) -> updates`.

    Args:
        fn: What it does.
        name: What summaries and errors call it.
        descends: Whether it turns the direction downhill, as a rate does; None where that is not known.
    """
    facts = {"opaque": True} if descends is None else {"descends": descends}

    def update(updates: PyTree, state: tuple[()], params: PyTree = None, **extra: Any) -> tuple[PyTree, tuple[()]]:
        del extra
        return fn(updates, params), state

    return Transformation(lambda params: (), update, name=name, facts=facts)


def _still(updates: PyTree, state: tuple[()], params: PyTree = None, **extra: Any) -> tuple[PyTree, tuple[()]]:
    del params, extra
    return jax.tree.map(jnp.zeros_like, updates), state


frozen = Transformation(lambda params: (), _still, name="frozen", facts={"opaque": True, "frozen": True})
