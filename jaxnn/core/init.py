"""Parameters from initialisers: one small program a (initialiser, shape), not one large one a model.

A Linen model's initialisers are captured while its shapes are computed, and each is given a key of its own from the
path of its parameter. Those of small parameters are evaluated on the host (`core.host`); of the others each distinct
(initialiser, shape) is compiled once. Layers that differ only by their number share programs, so the time to initialise
does not grow with depth, and a loop over layers (`blocks_3/...`) and a scan over them (`blocks/...`, stacked) get the
same values. Constant initialisers compile nothing.

Members of an `nn.vmap` are layers too: each gets a key of its own, whatever its `split_rngs`. A model whose
parameters cannot all be captured is initialised by `jit(task.init)`.
"""

import contextlib
import functools
import math
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxnn import rng, tree
from jaxnn.core import host
from jaxnn.core.parts import patched_param
from jaxnn.core.task import Task
from jaxnn.typing import Array, Batch, HostArray, ModelState, Params, PyTree


def strong(value: PyTree) -> PyTree:
    """The same values without weak types, which would make the second call of a step compile again."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), value)


class Captured(NamedTuple):
    """One call of `Module.param`: its initialiser, bound to its arguments, and the role that it declares."""

    make: Callable[[Array], Any]
    role: tree.Role | None


@contextlib.contextmanager
def _capturing() -> Iterator[dict[str, Captured]]:
    """Records every `nn.Module.param` call by parameter path."""
    record: dict[str, Captured] = {}

    def param(original: Callable[..., Any], self: nn.Module, name: str, init_fn: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = {key: value for key, value in kwargs.items() if key != "unbox"}
        record["/".join((*self.path, name))] = Captured(
            lambda key: nn.meta.unbox(init_fn(key, *args, **arguments)), getattr(init_fn, "role", None)
        )
        return original(self, name, init_fn, *args, **kwargs)

    with patched_param(param):
        yield record


def parameter_key(path: str, stacked: bool = False) -> tuple[int, tuple[int, ...], int]:
    """What a parameter's key is folded from: a hash of its path, the layer numbers in it, and where the layer goes.

    Numbers are taken out of the hash, so that layers share programs: `a_3/b` is hashed as `a_#/b`. A stacked
    parameter's layer takes the place of the number that its first unnumbered part lacks, as in the loop over the same
    layers: `stages_1/blocks/kernel` becomes `stages_#/blocks_#/kernel`, numbers (1, layer), place 1.
    """
    numbers: list[int] = []
    parts = []
    place = -1
    for part in path.split("/"):
        match = re.fullmatch(r"(.+)_(\d+)", part)
        if match:
            numbers.append(int(match[2]))
            parts.append(f"{match[1]}_#")
        elif stacked and place < 0:
            place = len(numbers)
            numbers.append(0)
            parts.append(f"{part}_#")
        else:
            parts.append(part)
    return zlib.crc32("/".join(parts).encode()), tuple(numbers), place


def _constant(jaxpr: Any) -> Any | None:
    """The value that an initialiser fills its array with, where its program is only that; else None."""
    eqns = jaxpr.jaxpr.eqns
    if len(eqns) != 1 or eqns[0].primitive.name != "broadcast_in_dim" or jaxpr.jaxpr.outvars != eqns[0].outvars:
        return None
    value = getattr(eqns[0].invars[0], "val", None)
    return value if value is not None and np.ndim(value) == 0 else None


# A layer's parameter up to this size is initialised on the host, whatever else the model has: some 10 ms, where a
# program takes half a second to compile.
HOST_ELEMENTS = 2**18


def _on_host(jaxpr: Any, shape: Any, key: Any, name: int, numbers: tuple[int, ...], layers: int, place: int) -> Any:
    """The parameter's value by NumPy, or None where it is large or its initialiser has parts that NumPy does not do."""
    size = math.prod(shape.shape[1:] if layers else shape.shape)
    if size > HOST_ELEMENTS or isinstance(key, jax.core.Tracer):
        return None
    first = host.fold_in(np.asarray(key), name)

    def one(numbers: tuple[int, ...]) -> np.ndarray:
        return host.evaluate(jaxpr, functools.reduce(host.fold_in, numbers, first))[0]

    try:
        if not layers:
            return one(numbers)
        return np.stack([one((*numbers[:place], layer, *numbers[place + 1 :])) for layer in range(layers)])
    except host.Unknown:
        return None


_programs: dict[tuple[Any, ...], Callable[..., Any]] = {}


def _program(captured: Captured, jaxpr: Any, numbers: int, stacked: int, place: int) -> Callable[..., Any]:
    """The compiled initialiser `(raw key, hash, numbers) -> array`, shared by text of its jaxpr."""

    def one(raw: Array, name: Array, ids: Array) -> Any:
        key = jax.random.fold_in(rng.wrap(raw), name)
        for i in range(ids.shape[0]):
            key = jax.random.fold_in(key, ids[i])
        return strong(captured.make(key))

    def stack(raw: Array, name: Array, ids: Array) -> Any:
        layers = jnp.arange(stacked, dtype=jnp.uint32)
        return jax.vmap(lambda layer: one(raw, name, ids.at[place].set(layer)))(layers)

    cache_key = (str(jaxpr), tuple(np.asarray(c).tobytes() for c in jaxpr.consts), numbers, stacked, place)
    if cache_key not in _programs:
        _programs[cache_key] = jax.jit(stack if stacked else one)
    return _programs[cache_key]


class Described(NamedTuple):
    """A Linen model's variables before they exist: shapes, initialisers and roles by parameter path."""

    params: Params
    model_state: ModelState
    captured: dict[str, Captured]

    def roles(self) -> dict[str, tree.Role]:
        """The declared role of each parameter that declares one; stacked axes are counted from the shapes."""
        shapes = tree.leaves_by_path(self.params)
        found = {}
        for path, captured in self.captured.items():
            if captured.role is not None and path in shapes:
                inner = jax.eval_shape(captured.make, jax.random.key(0))
                found[path] = captured.role._replace(stacked=len(shapes[path].shape) - len(inner.shape))
        return found


def describe(task: Task, batch: Batch) -> Described:
    """The shapes of a task's variables, and where the task has a Linen module, its initialisers and roles.
    Compiles nothing."""
    key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))
    with _capturing() as record:
        # A function of its own: eval_shape would answer for one that was traced before from its cache, and capture
        # nothing.
        params, model_state = jax.eval_shape(lambda k, b: task.init(k, b), key, batch)
    return Described(params, model_state, record)


def roles(task: Task, batch: Batch) -> dict[str, tree.Role]:
    """The roles that the task's module declares for its parameters, by path; {} for tasks that declare none."""
    return describe(task, batch).roles()


def _captured_params(described: Described, key: Array | HostArray) -> Params | None:
    """The parameters from the captured initialisers, or None where not every one was captured as it is."""
    shapes = tree.leaves_by_path(described.params)
    if set(shapes) != set(described.captured):
        return None
    values: dict[str, Any] = {}
    abstract_key = jax.eval_shape(lambda: jax.random.key(0, impl="threefry2x32"))  # making one compiles a program
    for path, shape in shapes.items():
        captured = described.captured[path]
        try:
            jaxpr, inner = jax.make_jaxpr(captured.make, return_shape=True)(abstract_key)
        except jax.errors.UnexpectedTracerError:  # the initialiser looks at the data
            return None
        if any(isinstance(value, jax.core.Tracer) for value in jaxpr.consts):  # the same, under another trace
            return None
        stacked = len(shape.shape) - len(getattr(inner, "shape", shape.shape))
        if not hasattr(inner, "shape") or stacked not in (0, 1) or shape.shape[stacked:] != inner.shape:
            return None
        if (value := _constant(jaxpr)) is not None:
            values[path] = np.full(shape.shape, value, shape.dtype)
            continue
        name, numbers, place = parameter_key(path, stacked > 0)
        layers = shape.shape[0] if stacked else 0
        value = _on_host(jaxpr, shape, key, name, numbers, layers, place)
        if value is not None:
            values[path] = value
            continue
        program = _program(captured, jaxpr, len(numbers), layers, place)
        values[path] = program(key, np.uint32(name), np.asarray(numbers, np.uint32))
    return tree.map_by_path(lambda path, _: values[path], described.params)


def init_variables(task: Task, key: Array | HostArray, batch: Batch) -> tuple[Params, ModelState]:
    """The first parameters and model state of a task; `key` is raw uint32[2] key data.

    The values depend on the key and the paths and shapes of the parameters alone: not on devices, nor on the number of
    other parameters.
    """
    begin = getattr(task.init, "begin", None)
    if begin is not None:  # one that calls this function for a part
        return begin(key, batch)
    if task.module is not None:
        described = describe(task, batch)
        params = _captured_params(described, key)
        if params is not None:
            if not jax.tree.leaves(described.model_state):
                return params, described.model_state
            return params, jax.jit(lambda k, b: strong(task.init(rng.wrap(k), b)[1]))(key, batch)
    return jax.jit(lambda k, b: strong(task.init(rng.wrap(k), b)))(key, batch)
