"""The precision of a step, as one value: what is computed in which dtype. Parameters, optimizer state, losses and sums
are float32 under all of them.

`in_precision(task, precision)` is the same task computed so; the step, `fit` and `evaluate` know nothing else of it.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxnn import sharding
from jaxnn.models import products
from jaxnn.typing import Array, Batch, Loss, ModelState, Params, PyTree

if TYPE_CHECKING:
    from jaxnn.core.task import Task

NOT_INPUTS = ("mask", "index", "weights")  # of a batch: these are not computed with in the model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """What a step computes in which dtype.

    Attributes:
        compute: What parameters and floating inputs are cast to before the model sees them; None for as they are.
        products: What the operands of matrix products are cast to, the rest staying float32; None for as they are.
            Serves the models of `jaxnn.models`, and others that compute by `models.products`.
        scaled: Whether the loss is differentiated times a scale that the optimizer adapts (`optim.loss_scale`), so that
            small gradients do not vanish in float16.
    """

    compute: str | None = None
    products: str | None = None
    scaled: bool = False

    def __post_init__(self) -> None:
        """Checks the dtypes.

        Raises:
            ValueError: If one is no floating dtype.
        """
        for name in ("compute", "products"):
            value = getattr(self, name)
            if value is not None and value not in ("bfloat16", "float16", "float32"):
                raise ValueError(
                    f"train.Precision: {name}={value!r} is no precision. Tried: bfloat16, float16, float32. Write one "
                    "of them, or None."
                )


PRECISIONS: Mapping[str, Precision] = {
    "float32": Precision(),
    "bfloat16": Precision(compute="bfloat16"),
    "float16": Precision(compute="float16", scaled=True),
    "matmul_bf16": Precision(products="bfloat16"),
}


def by_name(precision: str | Precision, where: str = "train.Step") -> Precision:
    """The precision of that name, or the one that is given.

    Raises:
        ValueError: If there is no such; lists those that there are.
    """
    if isinstance(precision, Precision):
        return precision
    if precision not in PRECISIONS:
        raise ValueError(
            f"{where}: precision={precision!r} is unknown. Tried: {', '.join(PRECISIONS)}. Write one of them, or a "
            "train.Precision(...)."
        )
    return PRECISIONS[precision]


_compute: contextvars.ContextVar[Any] = contextvars.ContextVar("jaxnn_compute", default=None)


@contextlib.contextmanager
def _computing(dtype: Any) -> Iterator[None]:
    """While tracing inside, what `computes` marks computes in `dtype`."""
    token = _compute.set(dtype)
    try:
        yield
    finally:
        _compute.reset(token)


def cast(values: PyTree, dtype: Any) -> PyTree:
    """The values with their floating leaves in `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, values)


def like(values: PyTree, old: PyTree) -> PyTree:
    """The values in the dtypes of `old`, which is of the same structure."""
    return jax.tree.map(lambda x, o: x.astype(o.dtype), values, old)


def widened(values: PyTree) -> PyTree:
    """The values with leaves of less than float32 widened to it."""
    narrow = lambda x: jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4  # noqa: E731
    return jax.tree.map(lambda x: x.astype(jnp.float32) if narrow(x) else x, values)


def _cast_inputs(batch: Batch, names: tuple[str, ...] | None, dtype: Any) -> Batch:
    """The batch with `names` cast; with all that may be inputs where None."""
    own = lambda name: name in names if names is not None else name not in NOT_INPUTS  # noqa: E731
    return {name: cast(x, dtype) if own(name) else x for name, x in batch.items()}


def computes(apply: Callable[..., Any], inputs: str) -> Callable[..., tuple[PyTree, ModelState]]:
    """A model's `apply(params, model_state, batch, key, train) -> (outputs, model_state)`, in the precision in force.

    Parameters and `batch[inputs]` are cast, the outputs widened to float32; the model state keeps its dtypes.
    """

    @functools.wraps(apply)
    def computed(params: Params, model_state: ModelState, batch: Batch, key: Any, train: bool) -> Any:
        dtype = _compute.get()
        if dtype is None:
            return apply(params, model_state, batch, key, train)
        narrow = functools.partial(cast, dtype=dtype)
        with sharding.changing(narrow):
            outputs, state = apply(
                params if sharding.in_parts() else narrow(params),
                model_state,
                _cast_inputs(batch, (inputs,), dtype),
                key,
                train,
            )
        return widened(outputs), like(state, model_state)

    return computed


def follows(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function of a task that computes in the precision in force itself."""
    setattr(fn, "follows_precision", True)  # noqa: B010
    return fn


def in_precision(task: "Task", precision: str | Precision) -> "Task":
    """The task, computed in a precision: its loss and its predictions.

    A task that was made by `supervised`, `from_nnx` or `from_functions` casts what goes into its model, and computes
    its loss, metrics and penalty in float32. One that was made by hand is given everything narrow.

    Args:
        task: What is learned.
        precision: "float32", "bfloat16", "float16", "matmul_bf16" or a `Precision`.

    Raises:
        ValueError: If the precision is unknown; while tracing, if only products are to be narrow and the model has none
            of `models.products`.
    """
    precision = by_name(precision)
    if precision == Precision() or getattr(task.loss, "precision", None) == precision:
        return task
    return _in_precision(task, precision)


@functools.lru_cache(maxsize=32)  # programs are kept by task
def _in_precision(task: "Task", precision: Precision) -> "Task":
    def under(fn: Callable[..., Any], generic: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        def run(*arguments: Any) -> Any:
            inner = fn if precision.compute is None or getattr(fn, "follows_precision", False) else generic
            with _computing(precision.compute and jnp.dtype(precision.compute)):
                if precision.products is None:
                    return inner(*arguments)
                with products.operands(jnp.dtype(precision.products)) as found:
                    given = inner(*arguments)
            if not found:
                raise ValueError(
                    "train.Step: precision narrows the operands of matrix products, and the model computes none by "
                    "jaxnn.models (Dense, Conv, attention; or models.products.matmul). Tried: products="
                    f"{precision.products!r}. Build the model of these, or write precision='bfloat16'."
                )
            return given

        setattr(run, "precision", precision)  # noqa: B010
        return run

    def narrow(params: Params, batch: Batch) -> tuple[Params, Batch]:
        return cast(params, precision.compute), _cast_inputs(batch, None, precision.compute)

    def loss(params: Params, model_state: ModelState, batch: Batch, key: Array, train: bool) -> Loss:
        params, batch = narrow(params, batch)
        found = task.loss(params, model_state, batch, key, train)
        total, weight, penalty = widened(jax.tree.map(jnp.asarray, tuple(found[:3])))
        return Loss(total, weight, penalty, like(found.model_state, model_state), widened(found.sums))

    def predict(params: Params, model_state: ModelState, batch: Batch) -> PyTree:
        params, batch = narrow(params, batch)
        return widened(task.predict(params, model_state, batch))

    return dataclasses.replace(task, loss=under(task.loss, loss), predict=under(task.predict, predict))
