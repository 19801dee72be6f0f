"""A task of which only low-rank adapters learn."""

import dataclasses

import jax

from jaxnn import rng
from jaxnn.core import Task
from jaxnn.core.init import init_variables
from jaxnn.core.parts import given_whole
from jaxnn.models.lora import LoRA, apply_lora, check_spec, init_lora
from jaxnn.train.checks import is_task
from jaxnn.typing import Array, Batch, HostArray, Loss, ModelState, Params, PyTree

BASE, ADAPTERS = "base", "lora"


def with_lora(task: Task, spec: LoRA) -> Task:
    """The task whose parameters are {"base": the task's, "lora": adapters}, and whose loss sees both as one.

    No gradient reaches the base: it is zero there. Keep it as it is by `optim.groups(lora=(optim.path("^lora/"), tx),
    base=(optim.otherwise, optim.frozen))`. `fit` wants `init_from={"base": params}`, or {} for one drawn at random.
    Checkpoints of a run leave the base out, and a resumed run takes it from `init_from` again.

    Args:
        task: What is learned, of any model family.
        spec: Which parameters get adapters.

    Raises:
        TypeError: If the task or the spec is none.
    """
    is_task("train.with_lora", task)
    check_spec(spec)
    loss, predict = given_whole(task.loss), given_whole(task.predict)

    def whole(params: Params) -> Params:
        return apply_lora(jax.lax.stop_gradient(params[BASE]), params[ADAPTERS], spec)

    def init(key: Array, batch: Batch) -> tuple[Params, ModelState]:
        params, model_state = task.init(key, batch)
        return {BASE: params, ADAPTERS: init_lora(rng.named_key(key, ADAPTERS), params, spec)}, model_state

    def begin(key: Array | HostArray, batch: Batch) -> tuple[Params, ModelState]:
        # As the task itself begins: by many small programs instead of one large one.
        params, model_state = init_variables(task, key, batch)
        make = jax.jit(lambda k, p: init_lora(rng.named_key(rng.wrap(k), ADAPTERS), p, spec))
        return {BASE: params, ADAPTERS: make(key, params)}, model_state

    def adapted_loss(params: Params, model_state: ModelState, batch: Batch, key: Array, train: bool) -> Loss:
        return loss(whole(params), model_state, batch, key, train)

    def adapted_predict(params: Params, model_state: ModelState, batch: Batch) -> PyTree:
        return predict(whole(params), model_state, batch)

    setattr(init, "begin", begin)  # noqa: B010
    setattr(adapted_loss, "weighs_mask", task.weighs_mask)  # noqa: B010
    return dataclasses.replace(
        task,
        init=init,
        loss=adapted_loss,
        predict=adapted_predict,
        module=None,
        about={**task.about, "adapters": f"{spec}"},
        frozen=lambda path: path.startswith(f"{BASE}/"),
    )
