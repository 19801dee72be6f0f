"""Train steps as one writes them by hand for each layout: jax and optax, nothing of a trainer.

What `benchmarks.parallel` measures the strategies against: the same model, mathematics, layout and donation. A state is
the pair (parameters, optimizer state), a step `(state, x, y) -> (state, mean loss)`; `loss(params, x, y)` is the mean
over the examples that it is given. No masks, no counters, no report: what our steps have of these is what is measured.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnn import sharding

AXIS = "data"
Step = Callable[..., Any]


def _axis(spec: P) -> int:
    """The axis that is split over the devices; -1 for none."""
    return next((i for i, entry in enumerate(spec) if entry == AXIS), -1)


def _update(tx: optax.GradientTransformation, grads: Any, state: Any) -> Any:
    params, opt_state = state
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def single(loss: Step, tx: optax.GradientTransformation) -> Step:
    """One device."""

    def step(state: Any, x: Any, y: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(state[0], x, y)
        return _update(tx, grads, state), value

    return jax.jit(step, donate_argnums=0)


def _averaging(loss: Step, tx: optax.GradientTransformation) -> Step:
    def step(state: Any, x: Any, y: Any) -> Any:
        value, grads = lax.pmean(jax.value_and_grad(loss)(state[0], x, y), AXIS)
        return _update(tx, grads, state), value

    return step


def replicate(loss: Step, tx: optax.GradientTransformation, mesh: Any) -> Step:
    """Everything but the batch on every device, the whole step in shard_map."""
    split, whole = P(AXIS), P()
    region = jax.shard_map(
        _averaging(loss, tx), mesh=mesh, in_specs=(whole, split, split), out_specs=whole, check_vma=False
    )
    return jax.jit(region, donate_argnums=0)


def pmap(loss: Step, tx: optax.GradientTransformation, devices: Any) -> Step:
    """The same by pmap; batches are [N, B / N, ...]."""
    return jax.pmap(
        _averaging(loss, tx),
        axis_name=AXIS,
        in_axes=(None, 0, 0),
        out_axes=None,
        donate_argnums=0,
        devices=devices,
    )


def zero(loss: Step, tx: optax.GradientTransformation, mesh: Any, stage: int, kept: Any, opt_specs: Any) -> Step:
    """ZeRO in shard_map: the update on a device's own share, which suits an elementwise optimizer.

    Args:
        loss: See above.
        tx: Elementwise.
        mesh: Of one axis.
        stage: 1, 2 or 3.
        kept: A tree of specs: each parameter's share.
        opt_specs: The optimizer state's.
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

    def local(state: Any, x: Any, y: Any) -> Any:
        params, opt_state = state

        def objective(parts: Any) -> Any:
            return loss(jax.tree.map(gather, parts, axes) if stage == 3 else parts, x, y) / n

        # As ours, it stores everything for the backward pass but gathered parameters.
        keep = lambda primitive, *_, **__: primitive.name != "all_gather"  # noqa: E731
        value, grads = jax.value_and_grad(jax.checkpoint(objective, policy=keep) if stage == 3 else objective)(params)
        flat, tree = jax.tree.flatten(grads)
        places = jax.tree.leaves(axes)
        summed = [i for i, axis in enumerate(places) if stage == 1 or axis < 0]
        value, together = lax.psum((value, [flat[i] for i in summed]), AXIS)
        for i, g in zip(summed, together):
            flat[i] = share(g, places[i]) if stage == 1 else g
        if stage == 2:
            for i, axis in enumerate(places):
                if axis >= 0:
                    flat[i] = lax.psum_scatter(flat[i], AXIS, scatter_dimension=axis, tiled=True)
        grads = jax.tree.unflatten(tree, flat)
        mine = params if stage == 3 else jax.tree.map(share, params, axes)
        mine, opt_state = _update(tx, grads, (mine, opt_state))
        return (mine if stage == 3 else jax.tree.map(gather, mine, axes), opt_state), value

    state_specs = (kept if stage == 3 else P(), opt_specs)
    region = jax.shard_map(
        local, mesh=mesh, in_specs=(state_specs, P(AXIS), P(AXIS)), out_specs=(state_specs, P()), check_vma=False
    )
    return jax.jit(region, donate_argnums=0)


def partitioned(
    loss: Step, tx: optax.GradientTransformation, mesh: Any, kept: Any, used: Any, opt_specs: Any, names: Any
) -> Step:
    """A jit with constraints: parameters are kept as `kept`, and laid out as `used` before the model reads them.

    Args:
        loss: See above.
        tx: Any.
        mesh: Of the axes that the specs name.
        kept: A tree of specs.
        used: Likewise.
        opt_specs: The optimizer state's.
        names: The model's axis names -> mesh axes.
    """

    def to(values: Any, specs: Any) -> Any:
        return jax.tree.map(lambda x, s: lax.with_sharding_constraint(x, NamedSharding(mesh, s)), values, specs)

    def step(state: Any, x: Any, y: Any) -> Any:
        def objective(params: Any) -> Any:
            with sharding.use(mesh, names):
                return loss(params, x, y)

        value, grads = jax.value_and_grad(objective)(to(state[0], used))
        params, opt_state = _update(tx, to(to(grads, used), kept), state)
        return (to(params, kept), to(opt_state, opt_specs)), value

    return jax.jit(step, donate_argnums=0, out_shardings=(None, NamedSharding(mesh, P())))


def mean_loss(module: Any, values: Step) -> Step:
    """The mean of `values(module(x), y)`."""
    return lambda params, x, y: jnp.mean(values(module.apply({"params": params}, x), y))
