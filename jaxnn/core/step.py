"""The train step: gradients of a sum, added over devices, divided once.

Writing T_s and w_s for the total and the weight of shard s, W for the sum of all w_s and P for the penalty, the
objective is (sum of T_s) / W + P. The scalar that each shard differentiates is T_s + stop_gradient(w_s) P; the sum of
its gradients over shards is W times the objective's, whatever the raggedness of the masks, and one division in the
update gives the exact gradient. Means are never averaged.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxnn import sharding, tree
from jaxnn.core import finite, micro
from jaxnn.core.init import roles
from jaxnn.core.precision import in_precision
from jaxnn.core.settings import PLAIN, Step, check_accumulates, check_scales, scale_of
from jaxnn.core.state import State, abstract, check_same, complete, reported
from jaxnn.core.task import SKIPPED, Task
from jaxnn.optim import apply_updates
from jaxnn.typing import Array, Batch, Loss, Mean, ModelState, Params, PyTree, Resident, Strategy, Sums


def _objective(loss: Loss) -> tuple[Array, dict[str, Mean]]:
    """The scalar to differentiate and the sums to report, `loss` among them."""
    weight = jax.lax.stop_gradient(loss.weight)
    # Weights are float32 also where the loss is float64.
    scalar = loss.total + jnp.asarray(weight, loss.total.dtype) * jnp.asarray(loss.penalty, loss.total.dtype)
    return scalar, {"loss": Mean(scalar, weight), **loss.sums}


class Carried(NamedTuple):
    """What a scaled step has in place of a model state, on its way to the examples.

    Attributes:
        model_state: That of the task.
        scale: What the loss is multiplied by, float32 scalar.
    """

    model_state: ModelState
    scale: Array


def make_grad_fn(
    task: Task, settings: Step = PLAIN, *, debug: bool = False
) -> Callable[..., tuple[PyTree, Sums, ModelState]]:
    """`grad_fn(params, model_state, batch, key) -> (grads, sums, model_state)` over the caller's examples; never
    divides. Of complex parameters u + i v they are d/du + i d/dv, as optimizers want them. Under a loss scale it takes
    `Carried` for the model state, and the gradients are times the scale."""

    task_loss = settings.loss_of(in_precision(task, settings.precision))

    def of(
        params: Params, model_state: ModelState, batch: Batch, key: Array, scale: Array | None
    ) -> tuple[PyTree, Sums, ModelState]:
        def objective(p: Params) -> tuple[Array, tuple[dict[str, Mean], ModelState]]:
            with finite.layers() if debug else contextlib.nullcontext({}) as layers:
                loss = task_loss(p, model_state, batch, key, True)
            scalar, sums = _objective(loss)
            if scale is not None:
                # Of the mean, or many examples would overflow what one does not.
                scalar = scalar * (scale / _divisor(sums["loss"].weight)).astype(scalar.dtype)
            return scalar, (sums | layers, loss.model_state)

        grads, (sums, new_state) = jax.grad(objective, has_aux=True)(params)
        grads = jax.tree.map(lambda g: jnp.conj(g) if jnp.iscomplexobj(g) else g, grads)  # what descends
        if scale is not None:
            grads = jax.tree.map(lambda g: g * _divisor(sums["loss"].weight).astype(g.dtype), grads)
        if debug:
            sums = sums | finite.counts("params", params) | finite.counts("grads", grads)
        return grads, sums, new_state

    def grad_fn(params: Params, model_state: ModelState, batch: Batch, key: Array) -> tuple[PyTree, Sums, ModelState]:
        scale = None
        if settings.scaled:
            model_state, scale = model_state
        part = lambda state, rows: of(params, state, rows, key, scale)  # noqa: E731
        return micro.add_up(part, params, model_state, batch, settings.accumulate)

    return grad_fn


def _divisor(weight: Array) -> Array:
    """The weight that a scaled loss is divided by, and its gradients multiplied by."""
    if sharding.in_parts():  # gradients leave the backward pass added over devices: all must divide by the same
        weight = sharding.psum_manual(weight)
    return jnp.where(weight > 0, weight, 1)


def make_value_fn(task: Task, settings: Step = PLAIN, *, train: bool) -> Callable[..., Sums]:
    """`value_fn(params, model_state, batch, key) -> sums` without gradients: for line searches, and for evaluation."""

    task_loss = settings.loss_of(in_precision(task, settings.precision))

    def value_fn(params: Params, model_state: ModelState, batch: Batch, key: Array) -> Sums:
        def part(state: ModelState, rows: Batch) -> tuple[tuple[()], Sums, ModelState]:
            loss = task_loss(params, state, rows, key, train)
            return (), _objective(loss)[1], loss.model_state

        state = model_state.model_state if settings.scaled else model_state
        return micro.add_up(part, (), state, batch, settings.accumulate)[1]

    return value_fn


def make_update_fn(
    tx: optax.GradientTransformation, settings: Step = PLAIN, *, grad_norm: bool, never_empty: bool = False
) -> Callable[..., tuple[State, Sums]]:
    """`update_fn(state, grads, sums, model_state, value_fn) -> (state, sums)` on global views.

    Divides the summed gradients by the summed weight, once. A total weight of 0 changes nothing but `data_step`. The
    optimizer is given `value` (the objective), `value_fn` (parameters to objective on this batch) and `aux` (the sums).
    With `grad_norm` the global norm of the gradients is reported; it keeps XLA from fusing a gradient's product with
    the update, which costs SGD on a small network 45 % of a step on CPU. With `never_empty` the total weight is taken
    to be positive, which saves Adam on a small network 17 %: XLA keeps the old state beside the new one otherwise.

    A step to be skipped is told by the loss, the gradients and the model state of all devices together, so that all
    decide alike. The optimizer is then given zeros, and what it makes of them is dropped. Where it adapts a loss scale,
    it is given what overflowed, and only its state is kept.
    """
    transform = optax.with_extra_args_support(tx)
    skips, scaled = settings.nonfinite == "skip", settings.scaled

    def update_fn(
        state: State, grads: PyTree, sums: Sums, model_state: ModelState, value_fn: Callable[[Params], Array]
    ) -> tuple[State, Sums]:
        loss = sums["loss"]
        some = loss.weight > 0
        # float64 where it is enabled: a float32 reciprocal would cost float64 gradients half their digits.
        inverse = jnp.where(some, 1 / jnp.where(some, loss.weight, 1).astype(float), 0)
        grads = jax.tree.map(lambda g: g * inverse.astype(g.dtype), grads)
        old_state, plain, done, adapts = state.model_state, grads, some, some
        if scaled:
            old_state, scale = state.model_state
            plain = jax.tree.map(lambda g: g * (1 / scale).astype(g.dtype), grads)
        if skips or scaled:
            sound = finite.everywhere((loss, model_state))
            done = some & sound & finite.everywhere(grads)
            adapts = (some & sound if skips else some) if scaled else done
            plain = _or_zero(done, plain)
            grads = grads if scaled else plain
        updates, opt_state = transform.update(
            grads,
            state.opt_state,
            state.params,
            value=loss.sum * inverse.astype(loss.sum.dtype),
            grad=plain,
            value_fn=value_fn,
            aux=sums,
        )
        params = apply_updates(state.params, updates)

        def keep(new: PyTree, old: PyTree, moves: Array) -> PyTree:
            if never_empty and moves is some:
                return new
            return jax.tree.map(lambda n, o: jnp.where(moves, n, o), new, old)

        one = jnp.ones((), jnp.float32)
        new_opt_state = keep(opt_state, state.opt_state, adapts)
        told = opt_state if adapts is some else new_opt_state
        own = {name: Mean(jnp.asarray(value, jnp.float32), one) for name, value in reported(told).items()}
        report = {**sums, **({"grad_norm": Mean(tree.global_norm(plain), one)} if grad_norm else {})}
        if skips:
            report = _or_zero(done, report)
        elif scaled and grad_norm:
            report["grad_norm"] = _or_zero(done, report["grad_norm"])
        if skips or scaled:
            own[SKIPPED] = Mean((some & ~done).astype(jnp.float32), one)
        new = State(
            step=state.step + done.astype(jnp.int32),
            # One, whatever the weight, but not before it is there: an addition that waits for nothing is one more thing
            # for XLA:CPU's executor to begin with, and may hand others to more threads: 9 % of a small step.
            data_step=state.data_step + (some | ~some).astype(jnp.int32),
            params=keep(params, state.params, done),
            model_state=keep(model_state, old_state, done),
            opt_state=new_opt_state,
            key=state.key,
        )
        return new, {**report, **own}

    return update_fn


def _or_zero(good: Array, values: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.where(good, x, jnp.zeros_like(x)), values)


def make_step(
    task: Task,
    tx: optax.GradientTransformation,
    strategy: Strategy,
    settings: Step = PLAIN,
    *,
    grad_norm: bool = False,
    debug: bool = False,
    never_empty: bool = False,
) -> Callable[..., Any]:
    """The traceable step `(state, batch) -> (state, sums)` under a strategy; goes inside a jitted program or loop.

    `never_empty` promises that every batch has a positive total weight; see `make_update_fn`.
    """
    update_fn = make_update_fn(tx, settings, grad_norm=grad_norm, never_empty=never_empty)
    grad_fn, value_fn = make_grad_fn(task, settings, debug=debug), make_value_fn(task, settings, train=True)
    inner = strategy.make_step(grad_fn, update_fn, value_fn)

    def step(state: State, batch: Batch) -> tuple[State, Sums]:
        check_scales(state.opt_state, settings)
        if settings.scaled:
            state = state._replace(model_state=Carried(state.model_state, scale_of(state.opt_state)))
        with tree.declaring(lambda: roles(task, batch)):
            return inner(state, batch)

    return step


def blank_padding(batch: Batch) -> dict[str, Array]:
    """The batch with its floating values 0 where `mask` is: a NaN there would reach the gradients as 0 x NaN.

    Batches that `fit` builds need no such care: their padding is a copy of a real example.
    """

    def blank(name: str, x: Array) -> Array:
        if name in ("mask", "index") or not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return jnp.where(batch["mask"].reshape((-1,) + (1,) * (x.ndim - 1)) != 0, x, jnp.zeros((), x.dtype))

    return {name: blank(name, x) for name, x in batch.items()}


def make_train_step(
    task: Task,
    tx: optax.GradientTransformation,
    *,
    strategy: Strategy,
    step: Step = PLAIN,
    grad_norm: bool = False,
    debug: bool = False,
) -> Callable[[State, Batch], tuple[State, Sums]]:
    """The jitted step `(state, batch) -> (state, sums)`; donates `state`. Compiles once.

    `batch` is a dict of arrays in global view with a leading example axis (a multiple of the strategy's devices);
    `mask` and `index` are added where missing. `sums` maps names to `Mean(sum, weight)`; "loss" is the objective's.

    Args:
        task: What is learned.
        tx: An optax gradient transformation.
        strategy: How the step is spread over devices.
        step: Gradient accumulation, precision, rematerialisation, and what is done where something is not finite.
        grad_norm: Also report the global norm of the gradients.
        debug: Also report the number of non-finite elements of each parameter and gradient, and of what
            goes into and comes out of each Linen layer.

    Raises:
        TypeError: If the step would change the state's shapes or dtypes.
        ValueError: If the batch does not divide over the devices, or there into micro-batches.
    """
    settings = step
    inner = make_step(task, tx, strategy, settings, grad_norm=grad_norm, debug=debug)

    def blanked(state: State, batch: Batch) -> tuple[State, Sums]:
        return inner(state, blank_padding(batch))

    compiled = strategy.compile_step(blanked)
    checked: list[bool] = []

    def train_step(state: State, batch: Batch) -> tuple[State, Sums]:
        batch = complete(batch)
        check_divides(batch["mask"].shape[0], strategy, "train.make_train_step", settings)
        if not checked:
            check_step(trace_step(blanked, state, batch, strategy), state)
            checked.append(True)
        return compiled(state, strategy.put_batch(batch))

    return train_step


def check_divides(batch_size: int, strategy: Strategy, where: str, settings: Step = PLAIN) -> None:
    """Refuses a global batch that is not a multiple of the parts that the strategy splits it into, or of which a part
    does not divide into micro-batches.

    Raises:
        ValueError: Naming both numbers.
    """
    n = strategy.shards
    parts = "devices" if n == len(strategy.devices) else "groups of devices"
    if batch_size % n:
        near = max(n, round(batch_size / n) * n)
        raise ValueError(
            f"{where}: a global batch of {batch_size} examples does not divide over {n} {parts}. "
            f"Use a multiple of {n}: {near}, say."
        )
    check_accumulates(batch_size, n, settings, where)


def trace_step(step: Callable[..., Any], state: State, batch: Batch, strategy: Strategy) -> Any:
    """The step traced on global shapes, a `jax.stages.Traced`. Compiles nothing."""
    return jax.jit(strategy.traceable(step)).trace(abstract(state), abstract(batch))


def check_step(traced: Any, state: State) -> Sums:
    """Checks that a traced step keeps the state; gives the shapes of the sums.

    Raises:
        TypeError: If it changes the state's structure, shapes or dtypes; names the leaves.
    """
    out_state, sums = traced.out_info
    check_same(abstract(state), out_state, "train step")
    return sums


# ---- many steps a dispatch

MAX_IDS = 65536  # int32 example ids in one dispatch's index buffer: 256 KiB
MAX_STEPS = 16384
MAX_REPORT_BYTES = 16 * 2**20


def dispatch_steps(batch_size: int, sums: Sums) -> int:
    """K_max: how many steps one dispatch may run, from the sizes of its index and report buffers; a power of two.

    It is a property of the compiled program: fixed for a run, recorded with it, and kept on resume.
    """
    report = max(1, tree.nbytes(sums))
    bound = min(MAX_STEPS, max(1, MAX_IDS // batch_size), max(1, MAX_REPORT_BYTES // report))
    return 2 ** int(math.log2(bound))


def take_rows(resident: Resident, arrays: PyTree, rows: Array) -> dict[str, Any]:
    """The batch of example ids `rows` [B] int32, of which -1 is padding: examples, `mask` and `index`. Traceable."""
    index = jnp.maximum(rows, 0)
    return {**resident.take(arrays, index), "mask": (rows >= 0).astype(jnp.float32), "index": index}


def make_chunk(step: Callable[..., Any], resident: Resident, sums: Sums, k_max: int) -> Callable[..., Any]:
    """`chunk(state, arrays, rows, k) -> (state, report)`: `k` <= `k_max` steps over example ids `rows` [k_max, B].

    One program with a traced step count runs every chunk, so that how a run is cut into chunks never changes a bit.
    `report` has each sum with a leading axis of k_max steps; entries from `k` on are 0.
    """

    def chunk(state: State, arrays: PyTree, rows: Array, k: Array) -> tuple[State, Sums]:
        def body(i: Array, carry: tuple[State, Sums]) -> tuple[State, Sums]:
            state, report = carry
            ids = jax.lax.dynamic_index_in_dim(rows, i, keepdims=False)
            state, new = step(state, take_rows(resident, arrays, ids))
            return state, jax.tree.map(lambda r, s: jax.lax.dynamic_update_index_in_dim(r, s, i, 0), report, new)

        report = jax.tree.map(lambda s: jnp.zeros((k_max, *s.shape), s.dtype), sums)
        return jax.lax.fori_loop(0, k, body, (state, report))

    return chunk
