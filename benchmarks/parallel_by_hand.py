"""Train steps as one writes them by hand for each layout: jax and optax, nothing of a trainer.

What `benchmarks.parallel` measures the strategies against: the same model, mathematics, layout, memory and donation,
and the same job. A batch has a mask, since the last one of an epoch is ragged; a step adds the masked losses and their
weight over the devices, divides the gradients once and gives both sums. A state is the pair (parameters, optimizer
state), a step `(state, x, y, mask) -> (state, (total, weight))`; `loss(params, x, y, mask)` is the pair of the examples
that it is given. What ours has beyond that is measured: counters of steps and of batches, a loss that may be given
example by example, and whatever a layer of software costs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec as P

from jaxnn import sharding

AXIS = "data"
Step = Callable[..., Any]


def _axis(spec: P) -> int:
    """The axis that is split over the devices; -1 for none."""
    return next((i for i, entry in enumerate(spec) if entry == AXIS), -1)


def _gradients(loss: Step, params: Any, *batch: Any) -> Any:
    """((total, weight), gradients of the total)."""
    return jax.value_and_grad(loss, has_aux=True)(params, *batch)


def _update(tx: optax.GradientTransformation, grads: Any, weight: Any, state: Any) -> Any:
    params, opt_state = state
    share = 1 / weight
    updates, opt_state = tx.update(jax.tree.map(lambda g: g * share, grads), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _reading(loss: Step, whole: Callable[[Any, Any], Any], specs: Any, again: Any) -> Step:
    """`loss` of parameters that `whole(part, spec)` makes of their parts; anew for the backward pass where `again` is.

    So do ours with the layers that a model repeats, since two layers' parameters are all that a device is to hold at a
    time; everything else is stored.
    """
    making = ("all_gather", "sharding_constraint")

    def made(parts: Any, now: bool) -> Any:
        return jax.tree.map(lambda x, spec, a: whole(x, spec) if a == now else x, parts, specs, again)

    @functools.partial(jax.checkpoint, policy=lambda primitive, *_, **__: primitive.name not in making)
    def layers(parts: Any, *batch: Any) -> Any:
        return loss(made(parts, True), *batch)

    inner = layers if any(jax.tree.leaves(again)) else loss
    return lambda parts, *batch: inner(made(parts, False), *batch)


def single(loss: Step, tx: optax.GradientTransformation) -> Step:
    """One device."""

    def step(state: Any, *batch: Any) -> Any:
        sums, grads = _gradients(loss, state[0], *batch)
        return _update(tx, grads, sums[1], state), sums

    return jax.jit(step, donate_argnums=0)


def _adding(loss: Step, tx: optax.GradientTransformation) -> Step:
    def step(state: Any, *batch: Any) -> Any:
        sums, grads = lax.psum(_gradients(loss, state[0], *batch), AXIS)
        return _update(tx, grads, sums[1], state), sums

    return step


def replicate(loss: Step, tx: optax.GradientTransformation, mesh: Any) -> Step:
    """Everything but the batch on every device, the whole step in shard_map."""
    split, whole = P(AXIS), P()
    region = jax.shard_map(
        _adding(loss, tx), mesh=mesh, in_specs=(whole, split, split, split), out_specs=whole, check_vma=False
    )
    return jax.jit(region, donate_argnums=0)


def pmap(loss: Step, tx: optax.GradientTransformation, devices: Any) -> Step:
    """The same by pmap; batches are [N, B / N, ...]."""
    return jax.pmap(
        _adding(loss, tx),
        axis_name=AXIS,
        in_axes=(None, 0, 0, 0),
        out_axes=None,
        donate_argnums=0,
        devices=devices,
    )


def zero(
    loss: Step, tx: optax.GradientTransformation, mesh: Any, stage: int, kept: Any, opt_specs: Any, again: Any
) -> Step:
    """ZeRO in shard_map: the update on a device's own share, which suits an elementwise optimizer.

    Args:
        loss: See above.
        tx: Elementwise.
        mesh: Of one axis.
        stage: 1, 2 or 3.
        kept: A tree of specs: each parameter's share.
        opt_specs: The optimizer state's.
        again: A tree of bools: which parameters stage 3 gathers again for the backward pass.
    """
    axes = jax.tree.map(_axis, kept, is_leaf=lambda x: isinstance(x, P))
    n = mesh.size

    def share(x: Any, axis: int) -> Any:
        if axis < 0:
            return x
        size = x.shape[axis] // n
        return lax.dynamic_slice_in_dim(x, lax.axis_index(AXIS) * size, size, axis)

    def gather(x: Any, axis: int) -> Any:
        return x if axis < 0 else lax.all_gather(x, AXIS, axis=axis, tiled=True)

    def local(state: Any, *batch: Any) -> Any:
        params, opt_state = state
        reading = _reading(loss, gather, axes, again) if stage == 3 else loss
        sums, grads = _gradients(reading, params, *batch)
        flat, tree = jax.tree.flatten(grads)
        places = jax.tree.leaves(axes)
        summed = [i for i, axis in enumerate(places) if stage == 1 or axis < 0]
        sums, together = lax.psum((sums, [flat[i] for i in summed]), AXIS)
        for i, g in zip(summed, together):
            flat[i] = share(g, places[i]) if stage == 1 else g
        if stage == 2:
            for i, axis in enumerate(places):
                if axis >= 0:
                    flat[i] = lax.psum_scatter(flat[i], AXIS, scatter_dimension=axis, tiled=True)
        grads = jax.tree.unflatten(tree, flat)
        mine = params if stage == 3 else jax.tree.map(share, params, axes)
        mine, opt_state = _update(tx, grads, sums[1], (mine, opt_state))
        return (mine if stage == 3 else jax.tree.map(gather, mine, axes), opt_state), sums

    state_specs = (kept if stage == 3 else P(), opt_specs)
    split = P(AXIS)
    region = jax.shard_map(
        local, mesh=mesh, in_specs=(state_specs, split, split, split), out_specs=(state_specs, P()), check_vma=False
    )
    return jax.jit(region, donate_argnums=0)


def partitioned(
    loss: Step,
    tx: optax.GradientTransformation,
    mesh: Any,
    kept: Any,
    used: Any,
    opt_specs: Any,
    again: Any,
    names: Any,
) -> Step:
    """A jit with constraints: parameters are kept as `kept`, and laid out as `used` where the model reads them.

    Args:
        loss: See above.
        tx: Any.
        mesh: Of the axes that the specs name.
        kept: A tree of specs.
        used: Likewise.
        opt_specs: The optimizer state's.
        again: A tree of bools: which parameters are laid out again for the backward pass.
        names: The model's axis names -> mesh axes.
    """

    def one(x: Any, spec: P) -> Any:
        return lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    def to(values: Any, specs: Any) -> Any:
        return jax.tree.map(one, values, specs)

    reading = _reading(loss, one, used, again)

    def objective(*arguments: Any) -> Any:
        with sharding.use(mesh, names):
            return reading(*arguments)

    def step(state: Any, *batch: Any) -> Any:
        sums, grads = _gradients(objective, state[0], *batch)
        params, opt_state = _update(tx, to(to(grads, used), kept), sums[1], state)
        return (to(params, kept), to(opt_state, opt_specs)), sums

    return jax.jit(step, donate_argnums=0, out_shardings=(None, NamedSharding(mesh, P())))


def masked_loss(module: Any, values: Step) -> Step:
    """The sum of `values(module(x), y)` over examples that count, and how many values these are."""

    def loss(params: Any, x: Any, y: Any, mask: Any) -> Any:
        found = values(module.apply({"params": params}, x), y)
        weights = jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (found.ndim - 1)), found.shape)
        return jnp.sum(found * weights), jnp.sum(weights)

    return loss
