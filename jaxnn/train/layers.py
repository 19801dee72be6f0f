"""Which layers a model calls while it is traced, and under which name scopes their operations lie."""

import contextlib
import dataclasses
import functools
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
from flax import linen as nn

from jaxnn import tree


@dataclasses.dataclass
class Call:
    """A layer's class, what it gave when it was first called, and how often it was."""

    kind: str
    module: Any = dataclasses.field(repr=False)
    output: str = ""
    count: int = 1


@dataclasses.dataclass
class Calls:
    """The layers that a model called.

    Attributes:
        by_path: By path in the model, in the order in which their first calls began; "" is the model itself.
        roots: Name scopes of the models themselves; paths are counted from there.
        active: Paths of the layers whose calls have begun and not ended.
    """

    by_path: dict[str, Call] = dataclasses.field(default_factory=dict)
    roots: list[str] = dataclasses.field(default_factory=list)
    active: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """The class of the model, or of several that bare functions call; "" for none."""
        return ", ".join(dict.fromkeys(self.roots))

    def owner(self, scopes: str, groups: Collection[str]) -> str:
        """The path of the layer (or of the group of parameters) that an operation under these scopes belongs to."""
        parts = [part.split(".")[0] for part in scopes.split("/")]
        starts = [i for i, part in enumerate(parts) if part in self.roots]
        inside = parts[starts[-1] + 1 :] if starts else parts
        for length in range(len(inside), 0, -1):
            path = "/".join(inside[:length])
            if path in self.by_path or (not starts and path in groups):
                return path
        return ""

    def holder(self, path: str, otherwise: str) -> str:
        """The path of the layer that a parameter belongs to: the nearest one above it."""
        above = path
        while above:
            above = above.rpartition("/")[0]
            if above in self.by_path:
                return above
        return otherwise

    def add(self, path: str, module: Any) -> Call:
        """Writes down a call that begins."""
        call = self.by_path.setdefault(path, Call(type(module).__name__, module, count=0))
        # Another object at the same path is the body of a scan that is traced once more, not another call.
        call.count += call.module is module
        return call


@contextlib.contextmanager
def recording() -> Iterator[Calls]:
    """While inside, what this thread traces is written down, and NNX's modules name their scopes as Linen's do."""
    calls = Calls()
    with nn.intercept_methods(functools.partial(_linen, calls)), _nnx(calls):
        yield calls


def _linen(calls: Calls, run: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    module, name = context.module, context.method_name
    path = "/".join(module.path)
    inner = name == "setup" or (name.startswith("_") and name != "__call__")
    if inner or calls.active[-1:] == [path]:  # the latter: a method that the layer calls of itself
        return run(*args, **kwargs)
    if not path:
        calls.roots.append(module.name or type(module).__name__)
    call = calls.add(path, module)
    calls.active.append(path)
    try:
        outputs = run(*args, **kwargs)
    finally:
        calls.active.pop()
    call.output = call.output or describe(outputs)
    return outputs


@contextlib.contextmanager
def _nnx(calls: Calls) -> Iterator[None]:
    """NNX has no hook around calls: the classes' `__call__` is replaced for the time being, for this thread."""
    nnx: Any = sys.modules.get("flax.nnx")
    if nnx is None:  # then no module is one of its
        yield
        return
    thread, stack, paths = threading.get_ident(), [], {}

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call_module(self: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread or (stack and stack[-1] is self):  # the latter: super().__call__
                return original(self, *args, **kwargs)
            if not stack:
                paths.clear()
                paths.update({id(m): "/".join(map(str, p)) for p, m in nnx.iter_graph(self)})
                calls.roots.append(type(self).__name__)
            path = paths.get(id(self))
            if path is None:  # made on the fly
                return original(self, *args, **kwargs)
            call = calls.add(path, self)
            stack.append(self)
            try:
                # The whole path, from the root's name: a module may be called by another than the one that holds it.
                with jax.named_scope("/".join(filter(None, (calls.roots[-1], path)))):
                    outputs = original(self, *args, **kwargs)
            finally:
                stack.pop()
            call.output = call.output or describe(outputs)
            return outputs

        return call_module

    replaced = [(kind, kind.__dict__["__call__"]) for kind in _subclasses(nnx.Module) if "__call__" in kind.__dict__]
    try:
        for kind, original in replaced:
            setattr(kind, "__call__", wrap(original))  # noqa: B010
        yield
    finally:
        for kind, original in replaced:
            setattr(kind, "__call__", original)  # noqa: B010


def _subclasses(kind: type) -> set[type]:
    found = set(kind.__subclasses__())
    return found.union(*map(_subclasses, found))


def describe(outputs: Any) -> str:
    """What a layer gives: an array's dtype and shape, or a few of them."""
    leaves = [tree.describe(leaf) for leaf in jax.tree.leaves(outputs) if hasattr(leaf, "shape")]
    return ", ".join(leaves[:3]) + (f", {len(leaves) - 3} more" if len(leaves) > 3 else "")
