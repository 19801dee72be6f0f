"""Three changes to Adam's second moment or momentum: AMSGrad, NAdam, RAdam, in the forms that torch runs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnn.optim.algorithms.adam import AdamState, moments, real_zeros, zeros
from jaxnn.optim.compose.scaling import scale_by_lr, times
from jaxnn.optim.compose.stages import stages
from jaxnn.optim.compose.transformation import ELEMENTWISE, Transformation
from jaxnn.optim.hyper import NONNEGATIVE, Hyperparameters, Hypers
from jaxnn.optim.registry import registered
from jaxnn.typing import Array, Params, PyTree, Schedule


class AMSGradState(NamedTuple):
    """Adam's moments, and the largest second moment so far; float32."""

    hyper: Hypers
    mu: Params
    nu: Params
    nu_max: Params


def amsgrad_core(
    b1: float | Schedule = 0.9, b2: float | Schedule = 0.999, eps: float | Schedule = 1e-8
) -> Transformation:
    """Adam whose second moment never shrinks.

    nu_max <- max(nu_max, nu)
    u <- (mu / (1 - b1^t)) / (sqrt(nu_max / (1 - b2^t)) + eps)

    Args:
        b1: As in `adam_core`.
        b2: As in `adam_core`.
        eps: As in `adam_core`.

    Source:
        Reddi et al. 2018, arXiv:1904.09237, Algorithm 2, with Adam's bias correction (torch). optax corrects `nu`
        before it takes the maximum.
    """
    hyper = Hyperparameters("optim.amsgrad", b1=b1, b2=b2, eps=eps)

    def init(params: Params) -> AMSGradState:
        return AMSGradState(hyper.init(), zeros(params), real_zeros(params), real_zeros(params))

    def update(grads: PyTree, state: AMSGradState, params: PyTree = None, **extra: Any) -> tuple[PyTree, AMSGradState]:
        del params, extra
        h, hypers = hyper.at(state.hyper)
        mu, nu = moments(grads, state, h.b1, h.b2)
        largest = jax.tree.map(jnp.maximum, state.nu_max, nu)
        c1, c2 = 1 - h.b1**h.count, 1 - h.b2**h.count
        out = jax.tree.map(
            lambda m, v: times(1 / c1, m) / (times(1 / jnp.sqrt(c2), jnp.sqrt(v)) + h.eps.astype(v.dtype)), mu, largest
        )
        return out, AMSGradState(hypers, mu, nu, largest)

    return Transformation(init, update, name="amsgrad", hyper=hyper, facts=ELEMENTWISE)


class NAdamState(NamedTuple):
    """Adam's moments, float32, and the product of the momentum's schedule so far."""

    hyper: Hypers
    mu: Params
    nu: Params
    product: Array


def nadam_core(
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-8,
    momentum_decay: float | Schedule = 4e-3,
) -> Transformation:
    """Adam with Nesterov's momentum, whose weight warms up.

    b_t <- b1 (1 - 0.96^(t momentum_decay) / 2), P_t <- product of b_1 .. b_t
    u <- (b_(t+1) mu / (1 - P_(t+1)) + (1 - b_t) g / (1 - P_t)) / (sqrt(nu / (1 - b2^t)) + eps)

    Args:
        b1: As in `adam_core`.
        b2: As in `adam_core`.
        eps: As in `adam_core`.
        momentum_decay: How fast the momentum's weight rises to `b1`; >= 0.

    Source:
        Dozat 2016, "Incorporating Nesterov Momentum into Adam", in torch's form. optax's nadam has no schedule.
    """
    domains = {"momentum_decay": NONNEGATIVE}
    hyper = Hyperparameters("optim.nadam", domains=domains, b1=b1, b2=b2, eps=eps, momentum_decay=momentum_decay)

    def init(params: Params) -> NAdamState:
        return NAdamState(hyper.init(), zeros(params), real_zeros(params), jnp.ones((), jnp.float32))

    def update(grads: PyTree, state: NAdamState, params: PyTree = None, **extra: Any) -> tuple[PyTree, NAdamState]:
        del params, extra
        h, hypers = hyper.at(state.hyper)
        mu, nu = moments(grads, state, h.b1, h.b2)

        def weight(t: Array) -> Array:
            return h.b1 * (1 - 0.5 * 0.96 ** (t * h.momentum_decay))

        now, ahead = weight(h.count), weight(h.count + 1)
        product = state.product * now
        c2 = 1 - h.b2**h.count

        def direction(g: Array, m: Array, v: Array) -> Array:
            top = times(ahead / (1 - product * ahead), m) + times((1 - now) / (1 - product), g.astype(m.dtype))
            return top / (jnp.sqrt(times(1 / c2, v)) + h.eps.astype(v.dtype))

        return jax.tree.map(direction, grads, mu, nu), NAdamState(hypers, mu, nu, product)

    return Transformation(init, update, name="nadam", hyper=hyper, facts=ELEMENTWISE)


def rectification(b2: Array, count: Array, least: float = 5) -> tuple[Array, Array]:
    """RAdam's variance rectification at update `count`: whether the variance is tractable, which is rho > `least`, and
    the factor (arXiv:1908.03265, equations 4 to 6).

    rho = rho_inf - 2 t b2^t / (1 - b2^t),  rho_inf = 2 / (1 - b2) - 1

    As written, that takes two numbers of size rho_inf from each other to find one of size t: in float32 the first
    factor is off by 0.5 % at b2 = 0.999, by half at 0.9999. It is also t - t f(t h) + f(h), where f(z) = coth(z) - 1/z
    and h = -log(b2) / 2, of which nothing cancels while t h is small.
    """
    h = -jnp.log1p(b2 - 1) / 2
    most = (1 + b2) / (1 - b2)
    early = count - count * _langevin(count * h)
    late = 1 / h - 2 * count / jnp.expm1(2 * count * h)
    rho = jnp.where(count * h < 0.5, early, late) + _langevin(h)
    top = (rho - 4) * (rho - 2) * most
    bottom = (most - 4) * (most - 2) * rho
    return rho > least, jnp.sqrt(jnp.maximum(top / bottom, 0))


def _langevin(z: Array) -> Array:
    """coth(z) - 1/z for z >= 0: below 0.5 by its series, to 1e-8 of its value."""
    w = jnp.square(jnp.minimum(z, 0.5))
    series = z * (1 / 3 - w * (1 / 45 - w * (2 / 945 - w * (1 / 4725 - w * (2 / 93555)))))
    return jnp.where(z < 0.5, series, 1 / jnp.tanh(z) - 1 / z)


def radam_core(
    b1: float | Schedule = 0.9, b2: float | Schedule = 0.999, eps: float | Schedule = 1e-8
) -> Transformation:
    """Adam that is SGD with momentum until its second moment can be trusted.

    u <- r_t (mu / (1 - b1^t)) / (sqrt(nu / (1 - b2^t)) + eps / sqrt(1 - b2^t))   where rho_t > 5
    u <- mu / (1 - b1^t)                                                          before

    Args:
        b1: As in `adam_core`.
        b2: As in `adam_core`; r_t and rho_t follow from it.
        eps: Added outside the root, before the correction, as in torch.

    Source:
        Liu et al. 2020, arXiv:1908.03265, Algorithm 2.
    """
    hyper = Hyperparameters("optim.radam", b1=b1, b2=b2, eps=eps)

    def init(params: Params) -> AdamState:
        return AdamState(hyper.init(), zeros(params), real_zeros(params))

    def update(grads: PyTree, state: AdamState, params: PyTree = None, **extra: Any) -> tuple[PyTree, AdamState]:
        del params, extra
        h, hypers = hyper.at(state.hyper)
        mu, nu = moments(grads, state, h.b1, h.b2)
        c1, root = 1 - h.b1**h.count, jnp.sqrt(1 - h.b2**h.count)
        trusted, factor = rectification(h.b2, h.count)

        def direction(m: Array, v: Array) -> Array:
            mean = times(1 / c1, m)
            return jnp.where(trusted, times(factor * root, mean) / (jnp.sqrt(v) + h.eps.astype(v.dtype)), mean)

        return jax.tree.map(direction, mu, nu), AdamState(hypers, mu, nu)

    return Transformation(init, update, name="radam", hyper=hyper, facts=ELEMENTWISE)


@registered(1e-2, "arXiv:1904.09237")
def amsgrad(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-8,
    *,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """AMSGrad, ready to train with. See `amsgrad_core`."""
    return stages(amsgrad=amsgrad_core(b1, b2, eps), lr=scale_by_lr(lr), metrics=metrics)


@registered(1e-2, "Dozat 2016")
def nadam(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-8,
    momentum_decay: float | Schedule = 4e-3,
    *,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """NAdam, ready to train with. See `nadam_core`."""
    return stages(nadam=nadam_core(b1, b2, eps, momentum_decay), lr=scale_by_lr(lr), metrics=metrics)


@registered(3e-2, "arXiv:1908.03265")
def radam(
    lr: float | Schedule,
    b1: float | Schedule = 0.9,
    b2: float | Schedule = 0.999,
    eps: float | Schedule = 1e-8,
    *,
    metrics: tuple[str, ...] = ("lr",),
) -> Transformation:
    """RAdam, ready to train with. See `radam_core`."""
    return stages(radam=radam_core(b1, b2, eps), lr=scale_by_lr(lr), metrics=metrics)
