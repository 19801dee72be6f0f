"""The train step: gradients of a sum, added over devices, divided once.

Writing T_s and w_s for the total and the weight of shard s, W for the sum of all w_s and P for the penalty, the
objective is (sum of T_s) / W + P. The scalar that each shard differentiates is T_s + stop_gradient(w_s) P; the sum of
its gradients over shards is W times the objective's, whatever the raggedness of the masks, and one division in the
update gives the exact gradient. Means are never averaged.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxnn import tree
from jaxnn.core import finite
from jaxnn.core.init import roles
from jaxnn.core.parts import given_whole
from jaxnn.core.state import State, abstract, check_same, complete, reported
from jaxnn.core.task import Task
from jaxnn.optim import apply_updates
from jaxnn.typing import Array, Batch, Loss, Mean, ModelState, Params, PyTree, Resident, Strategy, Sums


def _objective(loss: Loss) -> tuple[Array, dict[str, Mean]]:
    """The scalar to differentiate and the sums to report, `loss` among them."""
    weight = jax.lax.stop_gradient(loss.weight)
    # Weights are float32 also where the loss is float64.
    scalar = loss.total + jnp.asarray(weight, loss.total.dtype) * jnp.asarray(loss.penalty, loss.total.dtype)
    return scalar, {"loss": Mean(scalar, weight), **loss.sums}


def make_grad_fn(task: Task, *, debug: bool = False) -> Callable[..., tuple[PyTree, Sums, ModelState]]:
    """`grad_fn(params, model_state, batch, key) -> (grads, sums, model_state)` over the caller's examples; never
    divides."""

    task_loss = given_whole(task.loss)

    def grad_fn(params: Params, model_state: ModelState, batch: Batch, key: Array) -> tuple[PyTree, Sums, ModelState]:
        def objective(p: Params) -> tuple[Array, tuple[dict[str, Mean], ModelState]]:
            with finite.layers() if debug else contextlib.nullcontext({}) as layers:
                loss = task_loss(p, model_state, batch, key, True)
            scalar, sums = _objective(loss)
            return scalar, (sums | layers, loss.model_state)

        grads, (sums, new_state) = jax.grad(objective, has_aux=True)(params)
        if debug:
            sums = sums | finite.counts("params", params) | finite.counts("grads", grads)
        return grads, sums, new_state

    return grad_fn


def make_value_fn(task: Task, *, train: bool) -> Callable[..., Sums]:
    """`value_fn(params, model_state, batch, key) -> sums` without gradients: for line searches, and for evaluation."""

    task_loss = given_whole(task.loss)

    def value_fn(params: Params, model_state: ModelState, batch: Batch, key: Array) -> Sums:
        return _objective(task_loss(params, model_state, batch, key, train))[1]

    return value_fn


def make_update_fn(
    tx: optax.GradientTransformation, *, grad_norm: bool, never_empty: bool = False
) -> Callable[..., tuple[State, Sums]]:
    """`update_fn(state, grads, sums, model_state, value_fn) -> (state, sums)` on global views.

    Divides the summed gradients by the summed weight, once. A total weight of 0 changes nothing but `data_step`. The
    optimizer is given `value` (the objective), `value_fn` (parameters to objective on this batch) and `aux` (the sums).
    With `grad_norm` the global norm of the gradients is reported; it keeps XLA from fusing a gradient's product with
    the update, which costs SGD on a small network 45 % of a step on CPU. With `never_empty` the total weight is taken
    to be positive, which saves Adam on a small network 17 %: XLA keeps the old state beside the new one otherwise.
    """
    transform = optax.with_extra_args_support(tx)

    def update_fn(
        state: State, grads: PyTree, sums: Sums, model_state: ModelState, value_fn: Callable[[Params], Array]
    ) -> tuple[State, Sums]:
        loss = sums["loss"]
        some = loss.weight > 0
        # float64 where it is enabled: a float32 reciprocal would cost float64 gradients half their digits.
        inverse = jnp.where(some, 1 / jnp.where(some, loss.weight, 1).astype(float), 0)
        grads = jax.tree.map(lambda g: g * inverse.astype(g.dtype), grads)
        updates, opt_state = transform.update(
            grads,
            state.opt_state,
            state.params,
            value=loss.sum * inverse.astype(loss.sum.dtype),
            grad=grads,
            value_fn=value_fn,
            aux=sums,
        )
        params = apply_updates(state.params, updates)

        def keep(new: PyTree, old: PyTree) -> PyTree:
            return new if never_empty else jax.tree.map(lambda n, o: jnp.where(some, n, o), new, old)

        one = jnp.ones((), jnp.float32)
        own = {name: Mean(jnp.asarray(value, jnp.float32), one) for name, value in reported(opt_state).items()}
        report = {**sums, **({"grad_norm": Mean(tree.global_norm(grads), one)} if grad_norm else {}), **own}
        new = State(
            step=state.step + some.astype(jnp.int32),
            data_step=state.data_step + 1,
            params=keep(params, state.params),
            model_state=keep(model_state, state.model_state),
            opt_state=keep(opt_state, state.opt_state),
            key=state.key,
        )
        return new, report

    return update_fn


def make_step(
    task: Task,
    tx: optax.GradientTransformation,
    strategy: Strategy,
    *,
    grad_norm: bool = False,
    debug: bool = False,
    never_empty: bool = False,
) -> Callable[..., Any]:
    """The traceable step `(state, batch) -> (state, sums)` under a strategy; goes inside a jitted program or loop.

    `never_empty` promises that every batch has a positive total weight; see `make_update_fn`.
    """
    update_fn = make_update_fn(tx, grad_norm=grad_norm, never_empty=never_empty)
    inner = strategy.make_step(make_grad_fn(task, debug=debug), update_fn, make_value_fn(task, train=True))

    def step(state: State, batch: Batch) -> tuple[State, Sums]:
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
        grad_norm: Also report the global norm of the gradients.
        debug: Also report the number of non-finite elements of each parameter and gradient, and of what
            goes into and comes out of each Linen layer.

    Raises:
        TypeError: If the step would change the state's shapes or dtypes.
        ValueError: If the batch does not divide over the devices.
    """
    inner = make_step(task, tx, strategy, grad_norm=grad_norm, debug=debug)

    def step(state: State, batch: Batch) -> tuple[State, Sums]:
        return inner(state, blank_padding(batch))

    compiled = strategy.compile_step(step)
    checked: list[bool] = []

    def train_step(state: State, batch: Batch) -> tuple[State, Sums]:
        batch = complete(batch)
        check_divides(batch["mask"].shape[0], strategy, "train.make_train_step")
        if not checked:
            check_step(trace_step(step, state, batch, strategy), state)
            checked.append(True)
        return compiled(state, strategy.put_batch(batch))

    return train_step


def check_divides(batch_size: int, strategy: Strategy, where: str) -> None:
    """Refuses a global batch that is not a multiple of the parts that the strategy splits it into.

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
MAX_STEPS = 4096
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
