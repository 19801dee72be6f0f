"""bfloat16 parameters that move: stochastic rounding, and float32 master copies.

Both give float32 updates chosen so that the caller's `p + u`, rounded to nearest, is the intended bfloat16 value:
`fit`, `optim.apply_updates` and `optax.apply_updates` all land on it, and nothing else need know.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn.optim.compose import layers, select
from jaxnn.optim.compose.scaling import full
from jaxnn.optim.compose.transformation import Context, Transformation, apply_part
from jaxnn.optim.compose.wrapping import inner_of, wrap
from jaxnn.optim.hyper import check_whole
from jaxnn.typing import Array, PyTree


def hash_bits(shape: tuple[int, ...], *words: Any) -> Array:
    """uint32 random bits by position: an integer hash of each element's index and `words`.

    They depend on the position in a layer only, so neither on how the array is sharded nor on whether layers are rows
    of one; and being elementwise they cost no memory of their own.

    Args:
        shape: Shape.
        words: Integers or uint32 scalars: seed, step; or arrays of leading axes, an entry a layer: `layers.numbers`.
            Those axes do not count for an element's index.

    Source:
        The mixing function is lowbias32 of C. Wellons' hash-prospector.
    """
    key = jnp.zeros((), jnp.uint32)
    for word in words:
        key = _mix(key ^ (jnp.asarray(word).astype(jnp.uint32) + np.uint32(0x9E3779B9)))
    return _mix(_index(shape[key.ndim :]) ^ jnp.expand_dims(key, tuple(range(key.ndim, len(shape)))))


def dither(shape: tuple[int, ...], step: Any, salt: int) -> Array:
    """uint32 bits by position and step, spread evenly over the steps at each place, as if drawn over the places.

    What should go up in a fraction f of its steps does so f n times in n steps, give or take one or two: the error of a
    slow average stays near that of one rounding. Independent bits would let it wander with the root of their number.
    Over the places they are hashed: a regular pattern of errors in a matrix would be one of low rank, which adds up in
    its products. As `hash_bits`, they do not depend on how the array is sharded.

    Args:
        shape: Shape.
        step: Integer scalar.
        salt: Of the array: its number among others.

    Source:
        Additive recurrences of badly approximable numbers (Weyl 1916; the root of 3).
    """
    places = _mix(_index(shape) + np.uint32(salt * 0x9E3779B9 & 0xFFFFFFFF))
    return places + jnp.asarray(step).astype(jnp.uint32) * np.uint32(0xBB67AE85)


def _index(shape: tuple[int, ...]) -> Array:
    """Each element's position in the flattened array, uint32."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis, n in enumerate(shape):
        index = index * np.uint32(n) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return index


def _mix(x: Array) -> Array:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def round_stochastically(x: Array, bits: Array) -> Array:
    """float32 -> bfloat16: up or down with the probability that makes the expectation `x`; infinities and NaN stay.

    Args:
        x: float32.
        bits: uint32 of its shape, uniform.

    Source:
        Zamirai et al. 2020, arXiv:2010.06192.
    """
    raw = jax.lax.bitcast_convert_type(x, jnp.uint32) + (bits & np.uint32(0xFFFF))
    up = jax.lax.bitcast_convert_type((raw >> np.uint32(16)).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), up, x.astype(jnp.bfloat16))


class StochasticRoundingState(NamedTuple):
    """State of `stochastic_rounding`.

    Attributes:
        count: int32 scalar, updates done: the random bits depend on it.
        inner: The wrapped optimizer's.
    """

    count: Array
    inner: PyTree


def stochastic_rounding(tx: optax.GradientTransformation, seed: int = 0) -> Transformation:
    """Rounds bfloat16 parameters up or down at random, so that their expected step is the whole update.

    Rounded to nearest, a parameter ignores every update below half its spacing, 0.2 to 0.4 % of its size: late in a
    run that is all of them. Parameters of other dtypes are updated as without. Costs no memory. Resumable: the bits are
    a hash of (seed, count, layer, position), the same under every sharding and in a model's loop and scan layouts.

    Args:
        tx: The whole optimizer, rate included.
        seed: Of the random bits, a whole number >= 0.

    Raises:
        ValueError: If `seed` is none; at trace time, if the parameters are not given.

    Source:
        Zamirai et al. 2020, arXiv:2010.06192; Gupta et al. 2015, arXiv:1502.02551.
    """
    where = "optim.stochastic_rounding"
    inner = inner_of(where, tx)
    word = np.uint32(check_whole(where, "seed", seed, 0) & 0xFFFFFFFF)

    def init(params: PyTree) -> StochasticRoundingState:
        return StochasticRoundingState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, *, context: Context | None = None, **extra: Any
    ) -> tuple[PyTree, StochasticRoundingState]:
        _need(where, params)
        updates, new = apply_part(inner, updates, state.inner, params, context or Context(), extra)
        known = jax.tree.leaves(select.leaves(params))
        numbers = jax.tree.unflatten(jax.tree.structure(params), layers.numbers(known))

        def one(p: Array, u: Array, n: np.ndarray) -> Array:
            if p.dtype != jnp.bfloat16:
                return u
            target = p.astype(jnp.float32) + u.astype(jnp.float32)
            return step_to(round_stochastically(target, hash_bits(p.shape, word, state.count, n)), p)

        return jax.tree.map(one, params, updates, numbers), StochasticRoundingState(state.count + 1, new)

    return wrap("stochastic_rounding", inner, init, update, facts={"draws": True})


def step_to(target: Array, p: Array) -> Array:
    """The update u for which `p + u`, in float32 and rounded to p's dtype, is `target`.

    The difference of two bfloat16 numbers may need more bits than float32 has; its error is 2^-16 of their spacing at
    most, which the rounding to nearest removes.
    """
    return full(target) - full(p)


class MasterWeightsState(NamedTuple):
    """State of `master_weights`.

    Attributes:
        master: float32 copies of the parameters that have fewer bits; `optax.MaskedNode()` for the others.
        inner: The wrapped optimizer's, of the copies.
    """

    master: PyTree
    inner: PyTree


def master_weights(tx: optax.GradientTransformation) -> Transformation:
    """Keeps a float32 copy of bfloat16 and float16 parameters, updates that, and gives its rounding to the model.

    Four bytes a parameter; what float32 parameters would have become is kept exactly. The copy is the truth: a
    parameter that is changed from outside returns to it at the next update. `optim.get(state, "master")` reads it.

    Args:
        tx: The whole optimizer, rate included. It sees the copies in place of the parameters.

    Source:
        Micikevicius et al. 2018, arXiv:1710.03740, section 3.1.
    """
    where = "optim.master_weights"
    inner = inner_of(where, tx)

    def copies(params: PyTree) -> PyTree:
        # A copy that is needed only; `+ 0` of a float32 parameter would be stored twice.
        return jax.tree.map(lambda p: full(p) if _narrow(p) else optax.MaskedNode(), params)

    def seen(params: PyTree, master: PyTree) -> PyTree:
        return jax.tree.map(lambda p, m: m if _narrow(p) else p, params, master)

    def init(params: PyTree) -> MasterWeightsState:
        master = copies(params)
        return MasterWeightsState(master, inner.init(seen(params, master)))

    def update(
        updates: PyTree,
        state: MasterWeightsState,
        params: PyTree = None,
        *,
        context: Context | None = None,
        **extra: Any,
    ) -> tuple[PyTree, MasterWeightsState]:
        _need(where, params)
        wide = seen(params, state.master)
        updates, new = apply_part(inner, updates, state.inner, wide, context or Context(), extra)
        moved = jax.tree.map(
            lambda p, m, u: m + u.astype(m.dtype) if _narrow(p) else optax.MaskedNode(), params, wide, updates
        )
        given = jax.tree.map(lambda p, m, u: step_to(m.astype(p.dtype), p) if _narrow(p) else u, params, moved, updates)
        return given, MasterWeightsState(moved, new)

    return wrap("master_weights", inner, init, update)


def _narrow(p: Array) -> bool:
    """Whether float32 holds more of `p`."""
    return full(p).dtype != p.dtype


def _need(where: str, params: PyTree) -> None:
    if params is None:
        raise ValueError(f"{where}: update needs the parameters: tx.update(grads, state, params).")
