"""What the layers of a model do at some parameters: gradients, updates, activations and units, in forward order."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.core import tracers

from jaxnn import rng, tree
from jaxnn.core import State, Task
from jaxnn.core.state import abstract
from jaxnn.core.step import make_grad_fn, make_value_fn
from jaxnn.train.layers import recording
from jaxnn.typing import Array, Batch, PyTree

WEIGHTS = ("matrix", "conv", "head")  # roles whose last axis are units; an embedding's rows may be unused
TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class Weight:
    """A matrix or a kernel, and what a step does to it.

    Attributes:
        role: See `tree.ROLES`.
        gradient: Root of the mean square of its gradient.
        size: The same of itself.
        update: The same of the optimizer's update.
        units: Along its last axis, times the layers it stacks.
        dead: How many of them no example's output depends on.
        same: Whether all units that there are of a layer have the same weights.
    """

    role: str
    gradient: float
    size: float
    update: float
    units: int
    dead: int
    same: bool

    @property
    def ratio(self) -> float:
        """Update over parameter."""
        return self.update / max(self.size, TINY)


@dataclasses.dataclass(frozen=True)
class Layers:
    """A model's layers at some parameters.

    Attributes:
        weights: By path, in forward order where the model's calls tell it.
        ordered: Whether they do.
        outputs: Root of the mean square of what each Linen layer gives, by path, in forward order.
        first_input: The layer that sees the data first, its kind, and the root of the mean square, mean and spread of
            what it sees; None where there is no such Linen layer, or the data are no floating-point numbers.
        gradient_norm: Of all gradients of the objective, as `fit` reports it.
        parameter_norm: Of all parameters.
        loss: The objective on the batch.
    """

    weights: Mapping[str, Weight]
    ordered: bool
    outputs: Mapping[str, float]
    first_input: tuple[str, str, float, float, float] | None
    gradient_norm: float
    parameter_norm: float
    loss: float

    @property
    def median_ratio(self) -> float:
        """Update over parameter, the median over weights that are not 0."""
        found = [weight.ratio for weight in self.weights.values() if weight.size > 0]
        return float(np.median(found)) if found else 0.0


def _rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(jnp.abs(x).astype(jnp.float32))))


def _inexact(x: Any) -> bool:
    return hasattr(x, "dtype") and bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _watching(found: dict[str, Any]) -> Callable[..., Any]:
    """An interceptor that keeps what Linen layers see and give, of calls that are not inside a scan."""
    base = tracers.current_trace()

    def watch(run: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        inexact = [x for x in args if _inexact(x)]
        here = tracers.current_trace() == base and context.method_name == "__call__" and module.path
        given = run(*args, **kwargs)
        path = "/".join(module.path)
        if here and inexact and "input" not in found and module.has_variable("params", _any_parameter(module)):
            x = inexact[0]
            found["input"] = (_rms(x), jnp.mean(x), jnp.std(x))
            found["kind"] = (path, type(module).__name__)
        if here and _inexact(given):
            found.setdefault("outputs", {})[path] = _rms(given)
        return given

    return watch


def _any_parameter(module: nn.Module) -> str:
    """The name of a parameter of the layer itself, "" for none."""
    held = module.variables.get("params", {})
    return next((name for name, leaf in held.items() if hasattr(leaf, "dtype")), "")


def _units(leaf: Array, stacked: int) -> Array:
    """For each unit (and stacked layer) the largest absolute value of its weights."""
    axes = tuple(range(stacked, leaf.ndim - 1))
    return jnp.max(jnp.abs(leaf), axis=axes) if axes else jnp.abs(leaf)


def _same(leaf: Array, stacked: int) -> Array:
    """Whether units have the same weights, up to rounding; of a single unit it says nothing."""
    spread = jnp.max(leaf, axis=-1) - jnp.min(leaf, axis=-1)
    return jnp.max(spread) <= 1e-5 * jnp.max(jnp.abs(leaf))


def measure(
    task: Task,
    tx: optax.GradientTransformation,
    state: State,
    batch: Batch,
    examples: Batch,
    declared: Mapping[str, tree.Role],
) -> Layers:
    """Gradients and updates of `state` on the batch; activations, and which units answer, on the examples.

    Whether a unit is dead is asked of a random projection of the outputs, not of the loss: where examples are fitted
    perfectly nothing has a gradient. A unit is dead if its weights' gradient is exactly 0 over all examples.
    """
    leaves = tree.leaves_by_path(state.params)
    named = {path: declared.get(path) or tree.guess_role(path, leaf) for path, leaf in leaves.items()}
    weights = {path: role for path, role in named.items() if role.name in WEIGHTS}
    grad_fn, value_fn = make_grad_fn(task), make_value_fn(task, train=True)
    transform = optax.with_extra_args_support(tx)
    kinds: list[Any] = []

    def look(state: State, batch: Batch, examples: Batch) -> dict[str, Any]:
        key = rng.step_key(state.key, state.data_step)
        grads, sums, _ = grad_fn(state.params, state.model_state, batch, key)
        inverse = 1 / jnp.maximum(sums["loss"].weight, TINY)
        grads = jax.tree.map(lambda g: g * inverse.astype(g.dtype), grads)
        loss = sums["loss"].sum * inverse

        def value(params: PyTree, aux: Any = None) -> Array:
            mean = value_fn(params, state.model_state, batch, key)["loss"]
            return mean.sum / jnp.maximum(mean.weight, TINY)

        updates, _ = transform.update(
            grads, state.opt_state, state.params, value=loss, grad=grads, value_fn=value, aux=sums
        )
        seen: dict[str, Any] = {}

        def projected(params: PyTree) -> Any:
            with nn.intercept_methods(_watching(seen)):
                outputs = task.predict(params, state.model_state, examples)
            seen["kept"] = {k: seen.pop(k) for k in ("input", "outputs") if k in seen}
            kinds.append(seen.pop("kind", None))
            total = jnp.zeros((), jnp.float32)
            for i, leaf in enumerate(jax.tree.leaves(outputs)):
                if jnp.issubdtype(leaf.dtype, jnp.floating):
                    weight = jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
                    total += jnp.sum(leaf.astype(jnp.float32) * weight)
            return total, seen.pop("kept")

        answers, kept = jax.grad(projected, has_aux=True)(state.params)
        flat = {
            k: tree.leaves_by_path(v)
            for k, v in {"p": state.params, "g": grads, "u": updates, "answers": answers}.items()
        }
        each = {
            path: {
                "gradient": _rms(flat["g"][path]),
                "size": _rms(flat["p"][path]),
                "update": _rms(flat["u"][path]),
                "dead": jnp.sum(_units(flat["answers"][path], role.stacked) == 0),
                "same": _same(flat["p"][path], role.stacked),
            }
            for path, role in weights.items()
        }
        norms = (tree.global_norm(grads), tree.global_norm(state.params), loss)
        return {"each": each, "norms": norms, **kept}

    out = jax.device_get(jax.jit(look)(state, batch, examples))
    shapes = tree.leaves_by_path(abstract(state.params))
    order = _forward_order(task, state, examples, list(weights))
    found = {}
    for path in order or weights:
        role, facts = weights[path], out["each"][path]
        units = shapes[path].shape[-1] * int(np.prod(shapes[path].shape[: role.stacked]))
        same = bool(facts["same"]) and shapes[path].shape[-1] > 1
        values = {name: float(facts[name]) for name in ("gradient", "size", "update")}
        found[path] = Weight(role.name, **values, units=units, dead=int(facts["dead"]), same=same)
    seen = None
    if kinds and kinds[0] and "input" in out:
        (layer, kind), (rms, mean, spread) = kinds[0], map(float, out["input"])
        seen = (layer, kind, rms, mean, spread)
    outputs = {path: float(value) for path, value in out.get("outputs", {}).items()}
    called = [path for path in _called(task, state, examples) if path in outputs]
    return Layers(found, bool(order), {path: outputs[path] for path in called}, seen, *map(float, out["norms"]))


def _called(task: Task, state: State, examples: Batch) -> list[str]:
    """Paths of the layers in the order in which their calls begin; [] of bare functions."""
    with recording() as calls:
        jax.eval_shape(
            lambda p, s, b: task.predict(p, s, b), *abstract((state.params, state.model_state)), abstract(examples)
        )
    return list(calls.by_path)


def _forward_order(task: Task, state: State, examples: Batch, paths: list[str]) -> list[str]:
    """The weights in the order in which their layers are called; [] where the calls do not tell."""
    place = {path: i for i, path in enumerate(_called(task, state, examples))}
    if not all(path.rpartition("/")[0] in place for path in paths):
        return []
    return sorted(paths, key=lambda path: place[path.rpartition("/")[0]])
