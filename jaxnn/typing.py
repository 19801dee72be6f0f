"""The types that every room shares; the contracts themselves are in the docstrings of the rooms that own them.

Shape suffixes used across the code: B global or local examples, T time, E embedding, H heads, D head width,
K steps in a dispatch, N devices.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array
HostArray = np.ndarray
PyTree = Any
Params = PyTree
ModelState = PyTree
Batch = Mapping[str, Any]  # arrays with a leading example axis; reserved: "mask" [B], "index" [B]
Schedule = Callable[[Any], Any]  # step -> value


class Mean(NamedTuple):
    """A mergeable mean: two of them add up leaf by leaf, and `sum / weight` is the mean over both.

    `sum` may have any shape (a confusion matrix is one); `weight` is a scalar.
    """

    sum: Any
    weight: Any


Sums = Mapping[str, Mean]


class Loss(NamedTuple):
    """What a task's loss gives for the examples it was shown, before any division.

    The objective is (sum of `total`) / (sum of `weight`) + `penalty`, the sums over all examples of all devices and
    micro-batches. `weight` must not depend on the parameters.

    Attributes:
        total: Scalar, the sum of the weighted losses.
        weight: Scalar, the sum of the weights.
        penalty: Scalar, what does not depend on the examples (L2 of the parameters, say); 0.0 where there is none.
        model_state: The next model state (BatchNorm statistics), or the one given.
        sums: What to report: name -> `Mean`, added over micro-batches and devices.
    """

    total: Any
    weight: Any
    penalty: Any
    model_state: ModelState
    sums: Sums


class Source(Protocol):
    """A data set that gives any of its examples by number. Pure: the same index gives the same bytes, always."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def take(self, index: HostArray) -> dict[str, HostArray]:
        """The examples `index` [B] (int64, each in [0, len)), as host arrays with leading axis B, freshly allocated."""
        ...

    def resident(self) -> "Resident | None":
        """The whole data set in a form that a device can index inside a jitted program, or None where it cannot."""
        ...


class Resident(NamedTuple):
    """A data set as device arrays plus the pure function that takes examples out of them.

    Attributes:
        arrays: Pytree of NumPy arrays; placed on the device once.
        take: `take(arrays, index) -> dict`, traceable; `index` [B] int32, every entry valid.
            Gives the same values as the source's `take`.
    """

    arrays: PyTree
    take: Callable[[PyTree, Any], dict[str, Any]]


class Strategy(Protocol):
    """Where the arrays of a run live and how a step is spread over devices. A frozen value; see `jaxnn.parallel`."""

    @property
    def devices(self) -> tuple[jax.Device, ...]:
        """The devices, in mesh order."""
        ...

    @property
    def shards(self) -> int:
        """Into how many parts a batch is split: its size must be a multiple."""
        ...

    def put_state(self, state: PyTree) -> PyTree:
        """Places a state as the step wants it, copying: the argument's buffers are never donated."""
        ...

    def put_batch(self, batch: PyTree, axis: int = 0) -> PyTree:
        """Places host arrays in global view whose `axis` is the example axis."""
        ...

    @property
    def part(self) -> tuple[int, int]:
        """(index, count): which of how many equal contiguous slices of a global batch this process reads."""
        ...

    def put_part(self, batch: PyTree) -> PyTree:
        """Places this process's part of a batch; all processes together give the global batch."""
        ...

    def put_rows(self, rows: HostArray) -> Any:
        """Places the example ids [K, B] of a chunk."""
        ...

    def put_shared(self, arrays: PyTree) -> PyTree:
        """Places arrays that every device reads whole (a resident data set)."""
        ...

    def make_step(
        self, grad_fn: Callable[..., Any], update_fn: Callable[..., Any], value_fn: Callable[..., Any]
    ) -> Callable:
        """A traceable `step(state, batch) -> (state, sums)`; goes inside the loop of a chunk."""
        ...

    def traceable(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """`step` in a form that `jax.eval_shape` can trace on global batch shapes."""
        ...

    def compile(self, chunk: Callable[..., Any]) -> Callable[..., Any]:
        """Jits `chunk(state, shared, rows, k) -> (state, report)`; donates `state`."""
        ...

    def compile_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Jits `step(state, batch) -> (state, sums)`; donates `state`."""
        ...

    def compile_sums(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Jits `fn(params, model_state, batch, key) -> sums`, added over the devices."""
        ...

    def compile_map(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Jits `fn(params, model_state, batch) -> outputs`, example axis first in every leaf."""
        ...
