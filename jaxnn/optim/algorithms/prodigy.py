"""Prodigy: Adam that estimates its own rate from how far the parameters have come."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.optim.algorithms.adam import real_zeros, squared, zeros
from jaxnn.optim.compose.scaling import full, times
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import Transformation
from jaxnn.optim.hyper import POSITIVE, Hyperparameters, Hypers
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule


class ProdigyState(NamedTuple):
    """Adam's moments of d g, the sum `s`, the first parameters; the estimate `d`, its maximum, the numerator."""

    hyper: Hypers
    mu: Params
    nu: Params
    s: Params
    start: Params
    d: Array
    d_max: Array
    numerator: Array


def prodigy_core(
    lr: float | Schedule = 1.0,
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-8,
    weight_decay: float | Schedule = 0.0,
    d_coef: float | Schedule = 1.0,
    *,
    d0: float = 1e-6,
    bias_correction: bool = False,
) -> Transformation:
    """Prodigy's update; the rate is in it, because the estimate depends on it.

    dlr <- d lr [sqrt(1 - b2^t) / (1 - b1^t)]
    r  <- sqrt(b2) r + (d / d0) dlr <g, x_0 - x>,  s <- sqrt(b2) s + (d / d0) dlr g
    mu <- b1 mu + (1 - b1) d g,  nu <- b2 nu + (1 - b2) d^2 |g|^2
    d  <- max(d, d_coef r / ||s||_1)
    u  <- -dlr mu / (sqrt(nu) + d eps) - dlr weight_decay x

    Args:
        lr: Multiplies the estimate: 1, or a schedule with a peak of 1.
        b1: Decay rate of `mu`.
        b2: Decay rate of `nu`.
        eps: >= 0.
        weight_decay: Decoupled, times dlr.
        d_coef: Multiplies the estimate's growth; > 0.
        d0: The first estimate.
        bias_correction: Whether dlr has Adam's correction.

    Raises:
        ValueError: If a hyperparameter is out of range; at trace time, if the parameters are not given.

    Source:
        Mishchenko & Defazio 2024, arXiv:2306.06101, Algorithm 4, as the authors' package runs it.
    """
    if not d0 > 0:
        raise ValueError(f"optim.prodigy: d0 is {d0}. Give a number > 0.")
    hyper = Hyperparameters(
        "optim.prodigy",
        domains={"d_coef": POSITIVE},
        lr=lr,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        d_coef=d_coef,
    )

    def init(params: Params) -> ProdigyState:
        d = jnp.asarray(d0, jnp.float32)
        start = jax.tree.map(lambda p: jnp.array(full(p), copy=True), params)
        return ProdigyState(
            hyper.init(), zeros(params), real_zeros(params), zeros(params), start, d, d, jnp.zeros((), jnp.float32)
        )

    def update(grads: PyTree, state: ProdigyState, params: PyTree = None, **extra: Any) -> tuple[PyTree, ProdigyState]:
        del extra
        if params is None:
            raise ValueError("optim.prodigy: update needs the parameters: tx.update(grads, state, params).")
        h, hypers = hyper.at(state.hyper)
        d, b3 = state.d, jnp.sqrt(h.b2)
        correction = jnp.sqrt(1 - h.b2**h.count) / (1 - h.b1**h.count) if bias_correction else 1.0
        dlr = d * h.lr * correction
        grads = jax.tree.map(full, grads)
        inner = jax.tree.map(
            lambda g, x0, x: jnp.vdot(g, x0 - full(x)).real.astype(jnp.float32), grads, state.start, params
        )
        numerator = b3 * state.numerator + d / d0 * dlr * sum(jax.tree.leaves(inner), start=jnp.zeros((), jnp.float32))
        s = jax.tree.map(lambda s, g: times(b3, s) + times(d / d0 * dlr, g), state.s, grads)
        mu = jax.tree.map(lambda m, g: times(h.b1, m) + times(d * (1 - h.b1), g), state.mu, grads)
        nu = jax.tree.map(lambda v, g: times(h.b2, v) + times(d * d * (1 - h.b2), squared(g, v)), state.nu, grads)
        absolute = [jnp.sum(jnp.abs(x)).astype(jnp.float32) for x in jax.tree.leaves(s)]
        norm = sum(absolute, start=jnp.zeros((), jnp.float32))
        estimate = jnp.where(norm > 0, h.d_coef * numerator / jnp.where(norm > 0, norm, 1), d)
        first = d == jnp.asarray(d0, jnp.float32)
        grown = jnp.where(first, jnp.maximum(d, estimate), d)
        d_max = jnp.maximum(state.d_max, estimate)
        grown = jnp.where(norm > 0, jnp.maximum(grown, d_max), d)

        def step(m: Array, v: Array, x: Array) -> Array:
            root = jnp.sqrt(v) + (grown * h.eps).astype(v.dtype)
            return -times(dlr, m / root) - times(dlr * h.weight_decay, full(x))

        out = jax.tree.map(step, mu, nu, params)
        return out, ProdigyState(hypers, mu, nu, s, state.start, grown, d_max, numerator)

    return Transformation(init, update, name="prodigy", hyper=hyper, facts={"descends": True})


@registered(1.0, "arXiv:2306.06101")
def prodigy(
    lr: float | Schedule = 1.0,
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-8,
    weight_decay: float | Schedule = 0.0,
    d_coef: float | Schedule = 1.0,
    *,
    d0: float = 1e-6,
    bias_correction: bool = False,
    metrics: tuple[str, ...] = (),
) -> Transformation:
    """Prodigy, ready to train with. See `prodigy_core`; `optim.get(state, "d")` is the estimate."""
    core = prodigy_core(lr, b1, b2, eps, weight_decay, d_coef, d0=d0, bias_correction=bias_correction)
    return stages(prodigy=core, metrics=metrics)
