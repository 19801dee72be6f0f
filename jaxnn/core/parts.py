"""Functions of whole parameters, given parts of them: what a strategy splits, each Linen module reads as it goes.

`sharding.reading` says how a part is made whole. A model's modules read their parameters one by one, so that those of
one layer can be gathered, used and let go; any other function of parameters is given all of them at its start.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from flax import linen as nn

from jaxnn import sharding, tree
from jaxnn.typing import Params

_patching = threading.RLock()  # a trace in which parameters are read may ask for what their modules declare


@contextlib.contextmanager
def patched_param(replacement: Callable[..., Any]) -> Iterator[None]:
    """While inside, `module.param(...)` is `replacement(original, module, ...)`, in this thread: others wait. Linen's
    interceptors do not see `param`, hence the wrap."""
    with _patching:
        original = nn.Module.param

        @functools.wraps(original)
        def param(self: nn.Module, name: str, init_fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return replacement(original, self, name, init_fn, *args, **kwargs)

        nn.Module.param = param
        try:
            yield
        finally:
            nn.Module.param = original


def _read_param(original: Callable[..., Any], self: nn.Module, name: str, init_fn: Any, *args: Any, **kw: Any) -> Any:
    if not self.has_variable("params", name):
        return original(self, name, init_fn, *args, **kw)
    # Linen would hold the part's shape against the initialiser's.
    return sharding.read("/".join((*self.path, name)), self.get_variable("params", name))


def reading_modules() -> contextlib.AbstractContextManager[None]:
    """While inside, Linen modules see whole parameters: each is made whole when its module reads it."""
    return patched_param(_read_param) if sharding.in_parts() else contextlib.nullcontext()


def read_all(params: Params) -> Params:
    """All parameters, made whole."""
    return tree.map_by_path(sharding.read, params) if sharding.in_parts() else params


def reads_parts(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function of parameters that makes them whole itself, as it goes."""
    setattr(fn, "reads_parts", True)  # noqa: B010
    return fn


def given_whole(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn(params, ...)`, given whole parameters where they are in parts and `fn` does not read them itself."""
    if getattr(fn, "reads_parts", False):
        return fn

    @functools.wraps(fn)
    def whole(params: Params, *args: Any) -> Any:
        if not sharding.in_parts():
            return fn(params, *args)
        params = read_all(params)
        with sharding.whole():
            return fn(params, *args)

    return whole
