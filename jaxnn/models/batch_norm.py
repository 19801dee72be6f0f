"""BatchNorm over the examples of all devices, or of groups of them.

Shape suffixes: B examples, C channels, G groups.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxnn import sharding, tree
from jaxnn.models.declared import along_last, declare
from jaxnn.typing import Array


class BatchNorm(nn.Module):
    """Normalises each channel by its mean and variance over the examples of the whole micro-batch, on all devices, or
    over those of each of some groups.

    Examples whose mask is 0 count in no statistic. The variance takes a second pass over centred values, because
    E[x^2] - E[x]^2 loses all its digits where the mean is large; that is a second small all-reduce. Running statistics
    live in "batch_stats": `running <- momentum * running + (1 - momentum) * batch`, the variance without Bessel's
    correction, and they stay as they are where no example counts.

    With `groups` above 1, the examples of a micro-batch in their order are cut into that many equal groups, each
    normalised by its own statistics ("ghost batches"); running statistics take the mean over the groups that have an
    example which counts. Groups lie within devices, so that nothing is sent but that mean, and the numbers are the same
    on any number of devices that divides the groups.

    Attributes:
        momentum: Share of the old statistics that an update keeps, in [0, 1]. (PyTorch's momentum is 1 minus this.)
        epsilon: Added to the variance.
        groups: How many; 1 for the whole micro-batch.

    Source:
        Ioffe and Szegedy 2015, arXiv:1502.03167; Hoffer et al. 2017, arXiv:1705.08741 (ghost batches).
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    groups: int = 1

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: If there are less than 1 groups.
        """
        if self.groups < 1:
            raise ValueError(
                f"layers.BatchNorm: groups={self.groups!r}. Tried: at least 1. Write 1 for the whole batch."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, *, train: bool = False) -> Array:
        """[B, ..., C] -> [B, ..., C], in the dtype of `x`.

        Args:
            x: Activations, example axis first, channels last.
            mask: [B], 1 for examples that count and 0 for padding; None counts all.
            train: Use the batch's statistics and update the running ones ("batch_stats" must then be mutable).

        Raises:
            ValueError: If the mask is not [B], or the groups do not divide over the devices or the examples over them.
        """
        channels = x.shape[-1]
        mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        whole = wide.shape
        if train and not self.is_initializing():
            weights = _weights(wide, mask)
            if self.groups == 1:
                m, v, count = _statistics(wide, weights)
                keep = jnp.where(count > 0, self.momentum, 1.0)
                seen = m, v
            else:
                wide, weights = (_grouped(a, self.groups) for a in (wide, weights))
                m, v, count = jax.vmap(_own_statistics)(wide, weights)  # [G, C]
                *seen, some = _mean_of_groups(m, v, count)
                keep = jnp.where(some > 0, self.momentum, 1.0)
            for running, batch in zip((mean, var), seen, strict=True):
                running.value = lax.stop_gradient(keep * running.value + (1 - keep) * batch).astype(running.value.dtype)
        else:
            m, v = mean.value, var.value
        scale = self.param("scale", declare(nn.initializers.ones, "vector"), (channels,), jnp.float32)
        bias = self.param("bias", declare(nn.initializers.zeros, "vector"), (channels,), jnp.float32)
        rate = lax.rsqrt(v + self.epsilon) * scale.astype(v.dtype)
        m, rate = (_over_examples(p, wide) if p.ndim > 1 else along_last(p, wide) for p in (m, rate))
        return ((wide - m) * rate + along_last(bias, wide)).reshape(whole).astype(x.dtype)


def _over_examples(p: Array, x: Array) -> Array:
    """A group's values `p` [G, C] in the rank and dtype of `x` [G, B / G, ..., C]."""
    return p.astype(x.dtype).reshape(p.shape[:1] + (1,) * (x.ndim - 2) + p.shape[1:])


def _weights(x: Array, mask: Array | None) -> Array:
    """The weight of each example of `x` [B, ..., C], as [B, 1, ..., 1]."""
    if mask is None:
        mask = jnp.ones(x.shape[:1], x.dtype)
    if mask.shape != x.shape[:1]:
        raise ValueError(
            f"layers.BatchNorm: mask {tree.describe(mask)} for x {tree.describe(x)}. Tried: one entry an example. "
            f"Write a mask of shape ({x.shape[0]},)."
        )
    return mask.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def _grouped(x: Array, groups: int) -> Array:
    """The examples [B, ...] that this device sees as its groups [G / devices, B / G, ...]."""
    devices = math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in sharding.manual_axes())
    if groups % devices:
        raise ValueError(
            f"layers.BatchNorm: groups={groups} do not divide over {devices} devices. Tried: whole groups on each. "
            f"Write groups as a multiple of {devices}, or 1 for statistics over all of them."
        )
    own = groups // devices
    if x.shape[0] % own:
        raise ValueError(
            f"layers.BatchNorm: {x.shape[0] * devices} examples do not divide over groups={groups}. Tried: equal "
            f"groups. Write a (micro-)batch that is a multiple of {groups}."
        )
    return x.reshape(own, x.shape[0] // own, *x.shape[1:])


def _statistics(x: Array, weights: Array, add: bool = True) -> tuple[Array, Array, Array]:
    """Mean [C], variance [C] and count of `x` [B, ..., C], of all devices or without `add` of this one's alone."""
    total = sharding.psum_manual if add else lambda sums: sums
    axes = tuple(range(x.ndim - 1))
    each = math.prod(x.shape[1:-1])
    # One all-reduce for the count and the sums.
    totals = jnp.append(jnp.sum(jnp.where(weights != 0, x, 0) * weights, axes), jnp.sum(weights) * each)
    totals = total(totals)
    count = totals[-1]
    divisor = jnp.where(count > 0, count, 1)
    mean = totals[:-1] / divisor
    squares = jnp.square(jnp.where(weights != 0, x - along_last(mean, x), 0)) * weights
    return mean, total(jnp.sum(squares, axes)) / divisor, count


def _own_statistics(x: Array, weights: Array) -> tuple[Array, Array, Array]:
    return _statistics(x, weights, add=False)


def _mean_of_groups(m: Array, v: Array, count: Array) -> tuple[Array, Array, Array]:
    """Means over the groups [G] of all devices that have an example, and how many these are."""
    some = (count > 0).astype(m.dtype)
    totals = jnp.append(jnp.sum(jnp.concatenate([m, v], axis=1) * some[:, None], axis=0), jnp.sum(some))
    totals = sharding.psum_manual(lax.stop_gradient(totals))
    means = totals[:-1] / jnp.where(totals[-1] > 0, totals[-1], 1)
    return means[: m.shape[1]], means[m.shape[1] :], totals[-1]
