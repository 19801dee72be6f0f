"""What a train step does besides the gradient, as one frozen value: it is passed on, recorded, and compared."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

from jaxnn import optim, sharding
from jaxnn.core.parts import given_whole
from jaxnn.core.precision import Precision, by_name
from jaxnn.core.task import Task
from jaxnn.models import blocks
from jaxnn.optim.compose.skip import LossScaleState
from jaxnn.typing import Array, Batch, Loss, ModelState, Params, PyTree

REMAT = ("none", *blocks.POLICIES, "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """How a train step computes what it computes. All of these go together, under every strategy.

    Attributes:
        accumulate: Micro-batches a step: gradients are computed one after the other over this many equal parts of each
            device's examples, added in float32, and sent over devices once. The result is that of the whole batch; the
            memory for activations is a part's. BatchNorm's statistics are those of each part, over all devices.
        precision: "float32"; "bfloat16" and "float16" (what the model computes; float16 needs `optim.loss_scale`, see
            `optimizer`); "matmul_bf16" (the operands of matrix products alone, for CPU); or a `train.Precision`.
            Parameters, optimizer state, losses and sums are float32 under all.
        remat: What the backward pass computes anew rather than finds stored: "none"; of a model's repeated layers
            (`models.layer`), "block" (all but their inputs), "dots" (all but inputs and matrix products),
            "projections" (all but inputs and products with parameters); "full" (all of any model but its matrix
            products). On CPU memory falls only where layers are scanned (`GPTConfig(scan=True)`): elsewhere XLA:CPU
            computes equal things once, and stores them after all.
        nonfinite: What is done in a step whose loss or gradients are not finite: "stop" lets it happen, and `fit` stops
            at the row that tells; "skip" leaves it out: parameters, model state and optimizer are as if the batch had
            not been there, rows leave it out of every value and count it as "skipped_steps".
    """

    accumulate: int = 1
    precision: str | Precision = "float32"
    remat: str = "none"
    nonfinite: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            TypeError: If `accumulate` is no integer.
            ValueError: If it is below 1, or a name is unknown.
        """
        where = "train.Step"
        if isinstance(self.accumulate, bool) or not isinstance(self.accumulate, int):
            raise TypeError(f"{where}: accumulate={self.accumulate!r} is no whole number. It counts micro-batches.")
        if self.accumulate < 1:
            raise ValueError(f"{where}: accumulate={self.accumulate}. It counts micro-batches a step: at least 1.")
        by_name(self.precision, where)
        for name, known in (("remat", REMAT), ("nonfinite", ("stop", "skip"))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{where}: {name}={getattr(self, name)!r} is unknown. Tried: {', '.join(known)}. Write one of them."
                )

    @property
    def scaled(self) -> bool:
        """Whether the loss is differentiated times the optimizer's scale."""
        return by_name(self.precision).scaled

    def optimizer(self, tx: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimizer as these settings need it: with a loss scale under float16, else `tx` itself."""
        return optim.loss_scale(tx) if self.scaled else tx

    def facts(self) -> dict[str, Any]:
        """What of it is not the default, as JSON."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        if isinstance(self.precision, Precision):
            given["precision"] = dataclasses.asdict(self.precision)
        return given

    def loss_of(self, task: Task) -> Callable[..., Loss]:
        """The task's loss, its backward pass computing anew what `remat` says."""
        inner = given_whole(task.loss)
        if self.remat == "none":
            return inner

        def loss(params: Params, model_state: ModelState, batch: Batch, key: Array, train: bool) -> Loss:
            if self.remat == "full":
                kept = jax.checkpoint_policies.dots_saveable
                return jax.checkpoint(functools.partial(_given(inner), train), policy=kept)(
                    params, model_state, batch, key
                )
            with sharding.rematerializing(self.remat) as remat:
                found = inner(params, model_state, batch, key, train)
            if not remat.asked:
                raise ValueError(
                    f"train.Step: remat={self.remat!r} is for repeated layers, and the model has none. Tried: what it "
                    "wraps in models.layer. Wrap the layer that it repeats, or write remat='full'."
                )
            return found

        return loss


def _given(loss: Callable[..., Loss]) -> Callable[..., Loss]:
    return lambda train, *arguments: loss(*arguments, train)


PLAIN = Step()


def check_accumulates(batch_size: int, shards: int, settings: Step, where: str) -> None:
    """Refuses a batch of which no equal micro-batches can be made on every device; it divides over them already.

    Raises:
        ValueError: Naming the numbers.
    """
    own, k = batch_size // shards, settings.accumulate
    if own % k:
        fits = [n for n in range(1, own + 1) if own % n == 0]
        step = shards * k
        raise ValueError(
            f"{where}: accumulate={k} micro-batches do not divide {own} examples a device ({batch_size} over {shards})."
            f" Use a batch that is a multiple of {step}: {max(step, round(batch_size / step) * step)}, say; or one of "
            f"accumulate={fits}."
        )


def check_scales(opt_state: PyTree, settings: Step) -> None:
    """Refuses a loss scale that nothing is multiplied by, and a multiplication that nothing takes back.

    Raises:
        ValueError: Saying which.
    """
    count = len(_scales(opt_state))
    if settings.scaled and count != 1:
        raise ValueError(
            f"train.Step: precision={settings.precision!r} differentiates the loss times a scale, and the optimizer's "
            f"state has {count}. Tried: the state of optim.loss_scale. Write tx = step.optimizer(tx), once."
        )
    if count and not settings.scaled:
        raise ValueError(
            f"train.Step: the optimizer divides gradients by a loss scale, and precision={settings.precision!r} does "
            "not multiply by it. Write precision='float16', or take optim.loss_scale away."
        )


def _scales(opt_state: PyTree) -> list[LossScaleState]:
    is_scale = lambda x: isinstance(x, LossScaleState)  # noqa: E731
    return [x for x in jax.tree.leaves(opt_state, is_leaf=is_scale) if is_scale(x)]


def scale_of(opt_state: PyTree) -> Array:
    """The loss scale in an optimizer's state."""
    return _scales(opt_state)[0].scale
