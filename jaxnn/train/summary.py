"""What a task's model is made of: layers with their outputs, parameters, roles and FLOPs, from shapes alone.

The model is traced on a batch's shapes, and each layer that is called is written down: Linen's modules by their paths,
NNX's by where they hang in the module that is called. The FLOPs are those of `jaxnn.cost`, sorted to layers by the name
scopes around each operation. A model of bare functions has no layers; its parameters are listed as they are grouped,
and operations under `jax.named_scope("encoder")` count for the group "encoder".
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxnn import cost, tree
from jaxnn.core import Task, roles
from jaxnn.core.display import size
from jaxnn.core.state import abstract, complete
from jaxnn.cost.result import quantity
from jaxnn.report import html_table, text_table
from jaxnn.train import checks
from jaxnn.train.layers import Calls, describe, recording
from jaxnn.typing import Batch

WHERE = "train.summary"
HEADERS = ("layer", "kind", "output", "parameters", "role", "FLOPs")
RIGHT = ("FLOPs",)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer by itself, without the layers inside it.

    Attributes:
        path: Where it is in the model, "blocks_0/qkv"; "" for the model.
        kind: Its class; "parameters" where bare functions hold them.
        output: What it gives for the batch, "float32[32, 64]"; "" where it is not called.
        parameters: How many it has.
        roles: What they are, see `tree.ROLES`.
        flops: Of its own operations, forwards, for the whole batch; NaN where they could not be counted.
        calls: How often it is called.
    """

    path: str
    kind: str
    output: str
    parameters: int
    roles: tuple[str, ...]
    flops: float
    calls: int = 1


@dataclasses.dataclass(frozen=True)
class Summary:
    """A table of layers: print it, or show it in a notebook.

    Attributes:
        name: The model.
        layers: In the order of their calls; parameters and FLOPs add up to the totals.
        parameters: How many in all.
        nbytes: Their bytes.
        model_state: Elements of the model's other variables (BatchNorm's statistics).
        examples: In the batch.
        flops: Forwards, for the batch; NaN where they could not be counted.
        step_flops: Of loss and gradients, for the batch; NaN likewise. The optimizer's are not in it.
        note: Why something could not be counted, "" where everything was.
    """

    name: str
    layers: tuple[Layer, ...]
    parameters: int
    nbytes: int
    model_state: int
    examples: int
    flops: float
    step_flops: float
    note: str = ""

    def __repr__(self) -> str:
        return f"{self.name}\n{text_table(self._rows(), HEADERS, RIGHT)}\n{self._totals()}"

    def _repr_html_(self) -> str:
        return html_table(self._rows(), HEADERS, self.name, self._totals(), RIGHT)

    def _rows(self) -> list[tuple[Any, ...]]:
        rows = []
        for layer in self.layers:
            kind = layer.kind + (f", {layer.calls} calls" if layer.calls > 1 else "")
            named = layer.path or "(the rest)"
            rows.append((named, kind, layer.output, layer.parameters, ", ".join(layer.roles), _flops(layer.flops)))
        return [*rows, ("total", "", "", self.parameters, "", _flops(self.flops))]

    def _totals(self) -> str:
        held = f"{self.parameters:,} parameters, {size(self.nbytes)}"
        if self.model_state:
            held += f"; {self.model_state:,} elements of model state"
        lines = [held]
        if not math.isnan(self.flops):
            per = quantity(self.flops / self.examples)
            lines.append(f"a batch of {self.examples}: {quantity(self.flops)} FLOPs forwards, {per} an example")
            if not math.isnan(self.step_flops):
                lines[-1] += f"; {quantity(self.step_flops)} with loss and gradients"
        return "\n".join([*lines, *([self.note] if self.note else [])])


def summary(task: Task, batch: Batch, *, depth: int | None = None) -> Summary:
    """The layers of a task's model, for a batch of these shapes. Computes no array and compiles nothing.

    Args:
        task: What is learned.
        batch: Arrays, or their shapes, with a leading example axis; as training will give them. Without the targets,
            loss and gradients are not counted.
        depth: How deep layers are listed, 1 for the model's own layers; what is below counts for the layer above.
            None for all.

    Returns:
        What `print` shows as a table, and a notebook as well.

    Raises:
        TypeError: If `task` is no task, or `batch` no mapping of arrays.
        ValueError: If the model does not accept the batch.
    """
    checks.is_task(WHERE, task)
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"{WHERE}: the batch must be a dict of arrays, got {checks.given(batch)}. "
            'Write {"x": x[:32], "y": y[:32]}, or source.take(np.arange(32)).'
        )
    if depth is not None:
        depth = checks.whole(WHERE, "depth", depth, 1, "Write depth=1 for the model's own layers.")
    batch = abstract(complete({k: v if hasattr(v, "dtype") else np.asarray(v) for k, v in batch.items()}))
    params, model_state = checks.init_shapes(WHERE, task, batch)
    with recording() as calls:
        outputs = checks.call(
            WHERE, "the model", batch, lambda p, s, b: task.predict(p, s, b), params, model_state, batch
        )
    flops, note = _forward_flops(task, params, model_state, batch, calls)
    step_flops, why = _step_flops(task, params, model_state, batch)
    layers = _layers(task, batch, params, outputs, calls, flops)
    if depth is not None:
        layers = _folded(layers, depth)
    total = sum(flops.values()) if flops is not None else math.nan
    name = calls.name or task.about.get("apply", "") or "bare functions"
    examples = batch["mask"].shape[0]
    notes = "\n".join(filter(None, (note, why)))
    parameters, nbytes = tree.size(params), tree.nbytes(params)
    return Summary(name, tuple(layers), parameters, nbytes, tree.size(model_state), examples, total, step_flops, notes)


def _forward_flops(
    task: Task, params: Any, model_state: Any, batch: Batch, calls: Calls
) -> tuple[dict[str, float] | None, str]:
    """FLOPs of a prediction by layer, or None and why they cannot be counted."""
    groups = {group for path in tree.leaves_by_path(params) if (group := _group(path))}
    try:
        with recording():
            lines = cost.by_source(lambda p, s, b: task.predict(p, s, b), params, model_state, batch)
    except Exception as error:  # a statistic: what a new primitive does to the count must not hide the layers
        return None, f"FLOPs could not be counted: {checks.reason(error)}"
    found: dict[str, float] = {}
    for line in lines:
        owner = calls.owner(line.layer, groups)
        found[owner] = found.get(owner, 0.0) + line.flops
    return found, ""


def _step_flops(task: Task, params: Any, model_state: Any, batch: Batch) -> tuple[float, str]:
    def objective(p: Any, s: Any, b: Batch, seed: Any) -> Any:
        loss = task.loss(p, s, b, jax.random.wrap_key_data(seed, impl="threefry2x32"), True)
        return loss.total + jax.lax.stop_gradient(loss.weight) * loss.penalty

    seed = jax.ShapeDtypeStruct((2,), np.uint32)
    try:
        return cost.of(jax.value_and_grad(objective), params, model_state, batch, seed, compile=False).flops, ""
    except Exception as error:  # as above; most often a batch without its targets
        told = str(error).splitlines()[0].rpartition("which says: ")[2].partition(". Give the arguments of")[0]
        return math.nan, f"Loss and gradients are not counted: {told}"


def _layers(
    task: Task, batch: Batch, params: Any, outputs: Any, calls: Calls, flops: Mapping[str, float] | None
) -> list[Layer]:
    """Every layer that was called, in order, then the groups of parameters that belong to none."""
    declared: dict[str, tree.Role] = {}
    # Inside a trace: outside, the key that is made on the way would compile a program.
    jax.eval_shape(lambda: declared.update(roles(task, batch)))
    held: dict[str, list[tuple[str, Any]]] = {}
    for path, leaf in tree.leaves_by_path(params).items():
        held.setdefault(calls.holder(path, _group(path) or path), []).append((path, leaf))
    stacks = {path: leaf.shape[0] for path, leaf in tree.leaves_by_path(params).items() if _stacked(declared, path)}
    rows = []
    for path, call in calls.by_path.items():
        times = next((n for held_path, n in stacks.items() if path and held_path.startswith(f"{path}/")), None)
        rows.append((path, call.kind + (f" x {times}" if times else ""), call.output, call.count))
    rows += [(path, "parameters", "", 1) for path in held if path not in calls.by_path]
    if "" not in calls.by_path:
        rows.append(("", "function", describe(outputs), 1))
    layers = []
    for path, kind, output, count in rows:
        own = held.get(path, [])
        named = dict.fromkeys((declared.get(p) or tree.guess_role(p, leaf)).name for p, leaf in own)
        number = sum(math.prod(leaf.shape) for _, leaf in own)
        work = math.nan if flops is None else flops.get(path, 0.0)
        layers.append(Layer(path, kind, output, number, tuple(named), work, count))
    return sorted(layers, key=lambda layer: layer.path == "")


def _stacked(declared: Mapping[str, tree.Role], path: str) -> bool:
    return path in declared and declared[path].stacked > 0


def _group(path: str) -> str:
    """The path above a parameter's, "" where there is none."""
    return path.rpartition("/")[0]


def _folded(layers: list[Layer], depth: int) -> list[Layer]:
    """Layers below `depth` added to the one above them."""
    kept: dict[str, Layer] = {}
    for layer in sorted(layers, key=lambda each: each.path.count("/")):
        path = "/".join(layer.path.split("/")[:depth])
        if path not in kept:
            kept[path] = layer if path == layer.path else dataclasses.replace(layer, path=path, kind="", output="")
            continue
        above = kept[path]
        named = tuple(dict.fromkeys((*above.roles, *layer.roles)))
        parameters, work = above.parameters + layer.parameters, above.flops + layer.flops
        kept[path] = dataclasses.replace(above, parameters=parameters, roles=named, flops=work)
    order = dict.fromkeys("/".join(layer.path.split("/")[:depth]) for layer in layers)
    return [kept[path] for path in order]


def _flops(value: float) -> str:
    return "?" if math.isnan(value) else quantity(value) if value else "0"
