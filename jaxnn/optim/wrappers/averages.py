"""Averages of the parameters, kept beside any optimizer and evaluated in their place."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnn.optim.algorithms.adam import adam
from jaxnn.optim.compose.evaluated import over
from jaxnn.optim.compose.scaling import full, times
from jaxnn.optim.compose.transformation import Context, Transformation, apply_part
from jaxnn.optim.compose.wrapping import inner_of, wrap
from jaxnn.optim.hyper import DECAY_RATE, NONNEGATIVE, SHARE, Hyperparameters, Hypers, check_whole
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule


class AverageState(NamedTuple):
    """The average of the parameters, float32, its weight so far, and the inner optimizer's state."""

    hyper: Hypers
    average: Params
    weight: Array
    inner: PyTree

    def eval_params(self, params: Params) -> Params:
        """The average; the parameters themselves while it holds none."""
        w = self.weight

        def one(a: Array, p: Array) -> Array:
            mean = times(1 / jnp.where(w > 0, w, 1), a)
            return jnp.where(w > 0, mean, full(p)).astype(p.dtype)

        return over(one, self.average, params)


def _after(where: str, params: PyTree, updates: PyTree) -> PyTree:
    """The parameters that the update leads to, float32."""
    if params is None:
        raise ValueError(f"{where}: update needs the parameters: tx.update(grads, state, params).")
    return jax.tree.map(lambda p, u: full(p) + full(u), params, updates)


def _averaging(name: str, tx: Any, hyper: Hyperparameters, shares: Any) -> Transformation:
    """`shares(h) -> (keep, add)`: average <- keep average + add x, weight <- keep weight + add."""
    inner = inner_of(f"optim.{name}", tx)

    def init(params: Params) -> AverageState:
        zeros = jax.tree.map(lambda p: jnp.zeros_like(full(p)), params)
        return AverageState(hyper.init(), zeros, jnp.zeros((), jnp.float32), inner.init(params))

    def update(
        grads: PyTree, state: AverageState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, AverageState]:
        updates, new = apply_part(inner, grads, state.inner, params, context or Context(), extra)
        h, hypers = hyper.at(state.hyper)
        keep, add = shares(h)
        after = _after(f"optim.{name}", params, updates)
        average = jax.tree.map(lambda a, x: times(keep, a) + times(add, x), state.average, after)
        return updates, AverageState(hypers, average, keep * state.weight + add, new)

    return wrap(name, inner, init, update, "inner", hyper=hyper)


@registered(1e-2, "Polyak & Juditsky 1992", make=lambda lr: ema(adam(lr)))
def ema(tx: optax.GradientTransformation, decay: float | Schedule = 0.999) -> Transformation:
    """An exponential average of the parameters beside any optimizer, corrected for its start.

    a <- decay a + (1 - decay) x;  evaluated at a / (1 - decay^t)

    Args:
        tx: The whole optimizer, its rate included.
        decay: In [0, 1).

    Source:
        Polyak & Juditsky 1992; correction as in arXiv:1412.6980, section 3.
    """
    hyper = Hyperparameters("optim.ema", domains={"decay": DECAY_RATE}, decay=decay)
    return _averaging("ema", tx, hyper, lambda h: (h.decay, 1 - h.decay))


@registered(1e-2, "arXiv:1803.05407", make=lambda lr: tail_average(adam(lr), 10))
def tail_average(tx: optax.GradientTransformation, start: int) -> Transformation:
    """The mean of the parameters after every update from number `start` (from 0) on; before it, the parameters.

    a <- a + x_t,  n <- n + 1  where t > start, x_t the parameters after update t = 1, 2, ...;  evaluated at a / n

    Args:
        tx: The whole optimizer, its rate included.
        start: >= 0. Hyperparameter `start`.

    Source:
        Polyak & Juditsky 1992; Izmailov et al. 2018 (SWA), arXiv:1803.05407.
    """
    hyper = Hyperparameters("optim.tail_average", domains={"start": NONNEGATIVE}, start=start)

    def shares(h: Any) -> tuple[Array, Array]:
        return jnp.ones((), jnp.float32), (h.count > h.start).astype(jnp.float32)

    return _averaging("tail_average", tx, hyper, shares)


class LookaheadState(NamedTuple):
    """The slow parameters, float32, and the inner optimizer's state."""

    hyper: Hypers
    slow: Params
    inner: PyTree

    def eval_params(self, params: Params) -> Params:
        """The slow parameters."""
        return over(lambda s, p: s.astype(p.dtype), self.slow, params)


@registered(1e-2, "arXiv:1907.08610", make=lambda lr: lookahead(adam(lr)))
def lookahead(tx: optax.GradientTransformation, k: int = 5, alpha: float | Schedule = 0.5) -> Transformation:
    """Slow parameters s that every `k` updates go `alpha` of the way to the fast ones x, which then start from there.

    x <- x + u, u the update of `tx`;  where k divides t:  s <- s + alpha (x - s),  x <- s;  evaluated at s

    Args:
        tx: The whole optimizer, its rate included; its own state goes on.
        k: Updates between, >= 1.
        alpha: Share of the way, in [0, 1].

    Raises:
        ValueError: If `k` or `alpha` is out of range.

    Source:
        Zhang et al. 2019, arXiv:1907.08610, Algorithm 1.
    """
    inner = inner_of("optim.lookahead", tx)
    k = check_whole("optim.lookahead", "k", k)
    hyper = Hyperparameters("optim.lookahead", domains={"alpha": SHARE}, alpha=alpha)

    def init(params: Params) -> LookaheadState:
        slow = jax.tree.map(lambda p: jnp.array(full(p), copy=True), params)
        return LookaheadState(hyper.init(), slow, inner.init(params))

    def update(
        grads: PyTree, state: LookaheadState, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, LookaheadState]:
        updates, new = apply_part(inner, grads, state.inner, params, context or Context(), extra)
        h, hypers = hyper.at(state.hyper)
        fast = _after("optim.lookahead", params, updates)
        due = hypers.count % k == 0
        share = jnp.where(due, h.alpha, 0.0)
        slow = jax.tree.map(lambda s, f: s + times(share, f - s), state.slow, fast)
        meet = due.astype(jnp.float32)
        moved = jax.tree.map(lambda f, s, p: f + times(meet, s - f) - full(p), fast, slow, params)
        return moved, LookaheadState(hypers, slow, new)

    return wrap("lookahead", inner, init, update, "inner", hyper=hyper)
