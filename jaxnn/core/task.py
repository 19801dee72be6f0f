"""A task is what is learned: pure functions over plain pytrees, from a Linen module, an NNX module or bare
functions."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxnn import metrics as metrics_room, rng, tree
from jaxnn.core import display
from jaxnn.core.parts import given_whole, read_all, reading_modules, reads_parts
from jaxnn.core.precision import computes, follows
from jaxnn.typing import Array, Batch, Loss, Mean, ModelState, Params, PyTree

SKIPPED = "skipped_steps"  # of a row: how many were left out
REPORTED = ("loss", "grad_norm", "step", "epoch", "partial", SKIPPED)  # by fit itself
Values = Callable[[Any, Any], Any]  # (outputs, targets) -> values [B, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is learned. Every field is a pure function; make one by `supervised`, `from_nnx`, `from_functions` or by
    hand.

    Attributes:
        init: `init(key, batch) -> (params, model_state)`; traceable, `key` a typed key.
        loss: `loss(params, model_state, batch, key, train) -> Loss`, over the examples it is shown.
        predict: `predict(params, model_state, batch) -> outputs`, example axis first.
        metrics: How the host finishes a reported `Mean` by name; absent names divide.
        module: The Linen module behind it, if any; lets `core.init` run its initialisers one by one.
        about: What people are told of it: what it was made from, by name.
        frozen: Which parameters, by path, no step changes: checkpoints leave them out, and a resumed run takes them
            from where it began (`train.with_lora`).
    """

    init: Callable[[Array, Batch], tuple[Params, ModelState]]
    loss: Callable[[Params, ModelState, Batch, Array, bool], Loss]
    predict: Callable[[Params, ModelState, Batch], PyTree]
    metrics: Mapping[str, metrics_room.Metric] = dataclasses.field(default_factory=dict)
    module: nn.Module | None = None
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)
    frozen: Callable[[str], bool] | None = None

    @property
    def weighs_mask(self) -> bool:
        """Whether the loss is known to weigh 0 only where `mask` and the data's `weights` are: it was made here."""
        return getattr(self.loss, "weighs_mask", False)

    def __repr__(self) -> str:
        return display.task_text(self.about or self._functions())

    def _repr_html_(self) -> str:
        return display.task_html(self.about or self._functions())

    def _functions(self) -> dict[str, str]:
        return {name: display.name_of(getattr(self, name)) for name in ("init", "loss", "predict")}

    def finish(self, name: str, mean: Mean) -> Any:
        """The reported value of a summed mean: a float, or what the metric of that name makes of it."""
        metric = self.metrics.get(name)
        if metric is not None:
            return metric.finish(mean)
        if name == SKIPPED:
            return float(mean.sum)
        return float(mean.sum / mean.weight) if mean.weight else float("nan")


def _accepted(call: Callable[..., Any], names: tuple[str, ...]) -> set[str]:
    """Which of `names` the function takes as keywords."""
    parameters = inspect.signature(call).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return set(names)
    return {p.name for p in parameters if p.kind is not p.VAR_POSITIONAL} & set(names)


def _field(batch: Batch, name: str) -> Any:
    if name not in batch:
        raise ValueError(
            f"Task: the batch has no {name!r}; it has {sorted(batch)}. Name the arrays of the data so, or pass "
            "inputs=, targets=."
        )
    return batch[name]


def _per_example(values: Any, mask: Array) -> Any:
    if np.shape(values)[:1] != mask.shape:
        raise ValueError(
            f"Task: the loss gives {tree.describe(values)} for {mask.shape[0]} examples. Tried: [B, ...], one value "
            "an example or a token. Do not average inside: the step does, with masks and over devices. "
            "Write losses.mse, say."
        )
    return values


def _build(
    apply: Callable[..., tuple[PyTree, ModelState]],
    init: Callable[[Array, Batch], tuple[Params, ModelState]],
    loss: Values,
    metrics: Mapping[str, Any] | None,
    targets: str,
    penalty: Callable[[Params], Any] | None,
    about: dict[str, str],
    **extra: Any,
) -> Task:
    """The task of `apply(params, model_state, batch, key, train) -> (outputs, model_state)`."""
    lifted = {name: metrics_room.as_metric(m) for name, m in (metrics or {}).items()}
    for name in lifted:
        if name in REPORTED or name.startswith(("val_", "nonfinite")):
            raise ValueError(f"Task: a metric cannot be called {name!r}: fit reports that itself. Choose another name.")

    apply = computes(given_whole(apply), about["inputs"])

    @follows
    @reads_parts
    def task_loss(params: Params, model_state: ModelState, batch: Batch, key: Array, train: bool) -> Loss:
        outputs, new_state = apply(params, model_state, batch, key, train)
        target = _field(batch, targets)
        weights = example_weights(batch)
        mean = metrics_room.weighted(_per_example(loss(outputs, target), batch["mask"]), weights)
        extra_loss = penalty(read_all(params)) if penalty else jnp.zeros((), jnp.float32)
        sums = {name: m.sums(outputs, target, weights) for name, m in lifted.items()}
        return Loss(mean.sum, mean.weight, extra_loss, new_state, sums)

    # On the function, so that a task that replaces its loss does not have it.
    setattr(task_loss, "weighs_mask", True)  # noqa: B010

    @follows
    @reads_parts
    def predict(params: Params, model_state: ModelState, batch: Batch) -> PyTree:
        return apply(params, model_state, batch, None, False)[0]

    about |= {"loss": display.name_of(loss)}
    if lifted:
        about["metrics"] = ", ".join(lifted)
    if penalty:
        about["penalty"] = display.name_of(penalty)
    return Task(init, task_loss, predict, lifted, about=about | {"targets": targets}, **extra)


def example_weights(batch: Batch) -> Array:
    """The weights of a batch's values: `mask` [B], times `weights` [B, ...] where the data has them. float32."""
    mask = jnp.asarray(batch["mask"], jnp.float32)
    if "weights" not in batch:
        return mask
    weights = jnp.asarray(batch["weights"], jnp.float32)
    return weights * mask.reshape(mask.shape + (1,) * (weights.ndim - 1))


_KEYWORDS = ("mask", "segment", "position", "types", "places")  # arrays of a batch that modules take by name


def supervised(
    module: nn.Module,
    loss: Values,
    metrics: Mapping[str, Any] | None = None,
    *,
    inputs: str = "x",
    targets: str = "y",
    penalty: Callable[[Params], Any] | None = None,
) -> Task:
    """A task from a Linen module: `loss(module(batch[inputs]), batch[targets])`, averaged over the examples.

    The module is called as `module(x)`, with those of the keywords `train`, `mask`, `segment`, `position`, `types`,
    `places` that its `__call__` takes. Collections other than "params" (BatchNorm's statistics) become the model
    state. Random layers get the rng "dropout", folded by data step, and `rng.dropout` tells examples apart by their
    global index.

    Args:
        module: A Linen module, not bound.
        loss: `(outputs, targets) -> values [B, ...]`, one a value (see `jaxnn.losses`).
        metrics: Name -> function like `loss`, or a `metrics.Metric`.
        inputs: The batch's key of the input.
        targets: The batch's key of the target.
        penalty: `params -> scalar` added to the objective once (L2, say).

    Raises:
        TypeError: If `module` is not a Linen module or `loss` is not callable.
        ValueError: At trace time, if outputs and targets do not fit each other.
    """
    if not isinstance(module, nn.Module):
        given = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise TypeError(
            f"train.supervised: expected a flax.linen.Module, got {given}. "
            "For an NNX module write train.from_nnx(make, loss=...); for functions train.from_functions(init, "
            "apply, loss=...)."
        )
    if not callable(loss):
        raise TypeError(
            f"train.supervised: loss must be a function (outputs, targets) -> values, got {loss!r}. Try losses.mse."
        )
    accepted = _accepted(type(module).__call__, ("train", *_KEYWORDS))

    def call_arguments(batch: Batch, train: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        keywords: dict[str, Any] = {k: batch[k] for k in _KEYWORDS if k in accepted and k in batch}
        if "train" in accepted:
            keywords["train"] = train
        return (_field(batch, inputs),), keywords

    def init(key: Array, batch: Batch) -> tuple[Params, ModelState]:
        arguments, keywords = call_arguments(batch, False)
        variables = dict(nn.meta.unbox(module.init({"params": key, "dropout": key}, *arguments, **keywords)))
        return variables.pop("params", {}), variables

    @reads_parts
    def apply(
        params: Params, model_state: ModelState, batch: Batch, key: Any, train: bool
    ) -> tuple[PyTree, ModelState]:
        arguments, keywords = call_arguments(batch, train)
        mutable = sorted(model_state) if train else False
        rngs = {"dropout": key} if train else None
        with rng.examples(batch["index"]), reading_modules():
            result = module.apply({"params": params, **model_state}, *arguments, rngs=rngs, mutable=mutable, **keywords)
        return (result[0], dict(result[1])) if mutable else (result[0] if mutable == [] else result, model_state)

    about = {"model": display.module_text(module), "inputs": inputs}
    return _build(apply, init, loss, metrics, targets, penalty, about, module=module)


def from_functions(
    init: Callable[[Array, Any], Params],
    apply: Callable[[Params, Any], PyTree],
    loss: Values,
    metrics: Mapping[str, Any] | None = None,
    *,
    inputs: str = "x",
    targets: str = "y",
    penalty: Callable[[Params], Any] | None = None,
) -> Task:
    """A task from two bare functions.

    Args:
        init: `(key, x) -> params`, `key` a typed key, `x` [B, ...].
        apply: `(params, x) -> outputs` [B, ...]; it may also take keywords `key` (typed, in training) and `train`.
        loss: `(outputs, targets) -> values [B, ...]`.
        metrics: As in `supervised`.
        inputs: The batch's key of the input.
        targets: The batch's key of the target.
        penalty: `params -> scalar` added to the objective once.
    """
    for name, f in (("init", init), ("apply", apply), ("loss", loss)):
        if not callable(f):
            raise TypeError(f"train.from_functions: {name} must be a function, got {f!r}.")
    accepted = _accepted(apply, ("key", "train"))

    def call(params: Params, model_state: ModelState, batch: Batch, key: Any, train: bool) -> tuple[PyTree, ModelState]:
        keywords = {k: v for k, v in (("key", key), ("train", train)) if k in accepted}
        with rng.examples(batch["index"]):
            return apply(params, _field(batch, inputs), **keywords), model_state

    def init_task(key: Array, batch: Batch) -> tuple[Params, ModelState]:
        return init(key, _field(batch, inputs)), {}

    about = {"init": display.name_of(init), "apply": display.name_of(apply), "inputs": inputs}
    return _build(call, init_task, loss, metrics, targets, penalty, about)


def from_nnx(
    make: Callable[[Any], Any],
    loss: Values,
    metrics: Mapping[str, Any] | None = None,
    *,
    inputs: str = "x",
    targets: str = "y",
    penalty: Callable[[Params], Any] | None = None,
) -> Task:
    """A task from a function that makes an NNX module: `make(rngs) -> module`, called as `module(x)`.

    The module is split once into a graph and plain dicts, and merged inside the trace, so that a step costs no Python
    walk over objects. Parameters are its `nnx.Param`s; its other variables (BatchNorm's statistics) are the model
    state; its random streams are derived from the step's key.

    Args:
        make: Takes `nnx.Rngs`, gives a module; pure.
        loss: `(outputs, targets) -> values [B, ...]`.
        metrics: As in `supervised`.
        inputs: The batch's key of the input.
        targets: The batch's key of the target.
        penalty: `params -> scalar` added to the objective once.

    Raises:
        TypeError: If `make` does not give an NNX module.
    """
    from flax import nnx

    if isinstance(make, nnx.Module) or not callable(make):
        raise TypeError(
            f"train.from_nnx: make must be a function of nnx.Rngs that gives a module, got {type(make).__name__}. "
            "Write train.from_nnx(lambda rngs: Model(rngs=rngs), ...), so that it can be made anew for every seed."
        )

    def split(key: Array) -> tuple[Any, ...]:
        module = make(nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise TypeError(
                f"train.from_nnx: make(rngs) gave {type(module).__name__}, not an nnx.Module. Return the module."
            )
        graph, params, streams, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
        # Shapes only: the arrays belong to the trace, and kept past its end they would be leaked tracers.
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, streams, rest))
        holder.append((graph, *shapes, type(module).__name__))
        return nnx.to_pure_dict(params), nnx.to_pure_dict(rest), nnx.to_pure_dict(streams)

    holder: list[tuple[Any, ...]] = []
    # The key is made inside: outside of a trace, making one compiles a program.
    shapes = jax.eval_shape(lambda: split(jax.random.key(0, impl="threefry2x32")))
    graph, params_template, streams_template, rest_template, name = holder[0]
    stream_shapes = shapes[2]

    def fill(template: Any, values: PyTree) -> Any:
        state = jax.tree.map(lambda x: x, template)
        nnx.replace_by_pure_dict(state, values)
        return state

    def streams(key: Array | None) -> PyTree:
        base = key if key is not None else jax.random.key(0, impl="threefry2x32")

        def one(path: str, leaf: Any) -> Any:
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return rng.named_key(base, path)
            return jnp.zeros(leaf.shape, leaf.dtype)

        return tree.map_by_path(one, stream_shapes)

    def init(key: Array, batch: Batch) -> tuple[Params, ModelState]:
        del batch
        params, rest, _ = split(key)
        holder.pop()
        return params, rest

    def apply(
        params: Params, model_state: ModelState, batch: Batch, key: Any, train: bool
    ) -> tuple[PyTree, ModelState]:
        module = nnx.merge(
            graph, fill(params_template, params), fill(streams_template, streams(key)), fill(rest_template, model_state)
        )
        if not train:
            module.eval()
            return module(_field(batch, inputs)), model_state
        module.train()
        outputs = module(_field(batch, inputs))
        rest: Any = nnx.split(module, nnx.Param, nnx.RngState, ...)[3]
        return outputs, nnx.to_pure_dict(rest)

    about = {"model": f"{name} (NNX)", "inputs": inputs}
    return _build(apply, init, loss, metrics, targets, penalty, about)
