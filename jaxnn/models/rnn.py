"""Recurrent networks: simple, GRU and LSTM cells, and a layer that runs them over time, stacked and in both directions.

What a cell makes of its input does not depend on its state, so a layer computes it for all times in one product; only
the product with the state is left inside the scan. A padded position leaves the state as it is, in both directions: the
backward direction of a padded sequence therefore begins at its last real token, and nothing need be reversed or sorted.

Shape suffixes: B examples, T time, E input width, H state width, G gates.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxnn import rng, sharding
from jaxnn.models.given import check_array, check_rate, check_sizes, dropout_key
from jaxnn.models.layers import Dense, along_last, declare
from jaxnn.models.lstm_scan import How, lstm_scan
from jaxnn.models.products import matmul, operand_dtype
from jaxnn.tree import describe
from jaxnn.typing import Array

Carry = Any  # [B, H], or (h, c) of an LSTM
_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # within 1 / sqrt(H)


class Cell(nn.Module):
    """One step of a recurrence in two halves: `project` what comes in, then `step` the state.

    Attributes:
        features: H, the width of the state.
        matmul_dtype: Precision of the products' operands; see `products.matmul`.
    """

    features: int
    matmul_dtype: Any = None
    gates: ClassVar[int] = 1
    states: ClassVar[int] = 1  # vectors [B, H] that make a state

    def setup(self) -> None:
        """Declares the parameters: `input/kernel` [E, G H], `input/bias` [G H] and `hidden` [H, G H]."""
        check_sizes(type(self).__name__, {"features": self.features})
        self.input = Dense(
            self.gates * self.features,
            matmul_dtype=self.matmul_dtype,
            kernel_init=nn.initializers.glorot_uniform(),
            bias_init=self.bias_init,
        )
        shape = (self.features, self.gates * self.features)
        self.hidden = self.param("hidden", declare(_UNIFORM, "matrix"), shape, jnp.float32)

    @staticmethod
    def bias_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        """Initial biases [G H]: zeros."""
        return nn.initializers.zeros(key, shape, dtype)

    def project(self, x: Array) -> Array:
        """What the input [..., E] adds to the gates: [..., G H]."""
        return self.input(x)

    def recur(self, h: Array) -> Array:
        """What the state [B, H] adds to the gates: [B, G H]."""
        return matmul(h, self.hidden, self.matmul_dtype)

    def step(self, carry: Carry, gates: Array) -> Carry:
        """The next state, from this one and a time's projected input [B, G H]."""
        raise NotImplementedError

    def run(self, carry: Carry, gates: Array, valid: Array | None, backward: bool, unroll: int) -> tuple[Carry, Array]:
        """All of time: the last state, and outputs [T, B, H], 0 where not valid.

        Args:
            carry: The state before.
            gates: Projected inputs [T, B, G H].
            valid: bool [T, B]; None for all.
            backward: Whether time runs from the end.
            unroll: Steps a turn of the loop.
        """

        def step(carry: Carry, now: tuple[Array, Array | None]) -> tuple[Carry, Array]:
            gates, valid = now
            new = self.step(carry, gates)
            y = self.output(new)
            if valid is None:
                return new, y
            return _keep(valid, new, carry), jnp.where(valid[:, None], y, jnp.zeros((), y.dtype))

        return lax.scan(step, carry, (gates, valid), reverse=backward, unroll=unroll)

    def initial(self, batch: int, dtype: Any = jnp.float32) -> Carry:
        """The state before the first token: zeros [B, H]."""
        return jnp.zeros((batch, self.features), dtype)

    @staticmethod
    def output(carry: Carry) -> Array:
        """What a layer above sees of a state: [B, H]."""
        return carry

    def __call__(self, carry: Carry, x: Array) -> tuple[Carry, Array]:
        """One step by itself: state and input [B, E] to the next state and the output [B, H]."""
        carry = self.step(carry, self.project(x))
        return carry, self.output(carry)


class SimpleCell(Cell):
    """`h <- tanh(W x + U h + b)`.

    Source:
        Elman 1990, "Finding structure in time".
    """

    def step(self, carry: Carry, gates: Array) -> Carry:
        return jnp.tanh(gates + self.recur(carry))


class GRUCell(Cell):
    """`h <- (1 - z) n + z h`, with gates r, z in the order r, z, n and `n = tanh(W x + b + r (U h + b_n))`.

    The reset gate multiplies what the state adds, not the state, as in cuDNN and PyTorch: the products of all three
    gates are then one. Hence the second bias, `hidden_bias` [H].

    Source:
        Cho et al. 2014, arXiv:1406.1078, in the form of its version 1.
    """

    gates: ClassVar[int] = 3

    def setup(self) -> None:
        super().setup()
        zeros = declare(nn.initializers.zeros, "vector")
        self.hidden_bias = self.param("hidden_bias", zeros, (self.features,), jnp.float32)

    def step(self, carry: Carry, gates: Array) -> Carry:
        x_r, x_z, x_n = jnp.split(gates, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(self.recur(carry), 3, axis=-1)
        z = nn.sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + nn.sigmoid(x_r + h_r) * (h_n + along_last(self.hidden_bias, h_n)))
        return n + z * (carry - n)


class LSTMCell(Cell):
    """`c <- f c + i g`, `h <- o tanh(c)`; the state is (h, c), the gates' order i, f, g, o. Forget biases begin at 1.

    Over time it has a backward pass of its own (`lstm_scan`), so a layer has a reverse-mode derivative only.

    Source:
        Hochreiter and Schmidhuber 1997; forget gates: Gers et al. 2000; their bias: Jozefowicz et al. 2015.
    """

    gates: ClassVar[int] = 4
    states: ClassVar[int] = 2

    @staticmethod
    def bias_init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        """Initial biases [4 H]: 1 for the forget gates, else 0."""
        size = shape[0] // 4
        place = lax.iota(jnp.int32, shape[0])
        return ((place >= size) & (place < 2 * size)).astype(dtype)

    def step(self, carry: Carry, gates: Array) -> Carry:
        h, c = carry
        i, f, g, o = jnp.split(gates + self.recur(h), 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        return nn.sigmoid(o) * jnp.tanh(c), c

    def run(self, carry: Carry, gates: Array, valid: Array | None, backward: bool, unroll: int) -> tuple[Carry, Array]:
        if any(getattr(type(self), name) is not getattr(LSTMCell, name) for name in ("step", "recur", "output")):
            return super().run(carry, gates, valid, backward, unroll)
        # Here, as the backward pass is traced when what is in force now no longer is.
        dtype = operand_dtype(self.matmul_dtype, gates, "matmul")
        last, y = lstm_scan(How(dtype, backward, unroll), self.hidden, gates, carry, valid)
        return last, y if valid is None else jnp.where(valid[..., None], y, jnp.zeros((), y.dtype))

    def initial(self, batch: int, dtype: Any = jnp.float32) -> Carry:
        return super().initial(batch, dtype), super().initial(batch, dtype)

    @staticmethod
    def output(carry: Carry) -> Array:
        return carry[0]


def valid_positions(lengths: Array | None, valid: Array | None, batch: int, time: int, where: str) -> Array | None:
    """Which positions count, bool [B, T], from lengths [B] or a mask [B, T]; None for all.

    Raises:
        ValueError: If both are given, or a shape does not fit.
    """
    if lengths is not None and valid is not None:
        raise ValueError(f"models.{where}: lengths and valid are both given. Tried: one of them. Drop one.")
    if lengths is not None:
        check_array(where, "lengths", lengths, "[B]")
        if lengths.shape != (batch,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
            raise ValueError(
                f"models.{where}: lengths {describe(lengths)} for {batch} examples of {time} positions. Tried: [B], "
                "integers. Write one length an example."
            )
        return jnp.arange(time)[None, :] < lengths[:, None]
    if valid is not None:
        check_array(where, "valid", valid, "[B, T]")
    if valid is not None and valid.shape != (batch, time):
        raise ValueError(
            f"models.{where}: valid {describe(valid)} for {batch} examples of {time} positions. Tried: [B, T]. "
            "Write one entry a position, tokens != pad."
        )
    return None if valid is None else valid.astype(bool)


def _keep(valid: Array, new: Carry, old: Carry) -> Carry:
    return jax.tree.map(lambda a, b: jnp.where(valid[:, None], a, b), new, old)


class Recurrent(nn.Module):
    """A cell over time, one layer in one direction; `Stack` puts several together.

    Attributes:
        cell: The cell, not bound: `LSTMCell(64)`.
        backward: Whether time runs from the end.
        unroll: Steps a turn of the loop: the compiler sees them together.
    """

    cell: Cell
    backward: bool = False
    unroll: int = 1

    @nn.compact
    def __call__(self, x: Array, valid: Array | None = None, carry: Carry | None = None) -> tuple[Array, Carry]:
        """[B, T, E] -> outputs [B, T, H], 0 where not valid, and the state after the last valid position."""
        cell = self.cell
        # Linen gives a submodule its parameters when it is called: outside of the scan. Time comes first before the
        # projection, which is wider than what it projects: less is transposed, and the kernel's gradient is a product
        # of matrices as they lie.
        gates = cell.project(jnp.swapaxes(x, 0, 1))
        carry = cell.initial(x.shape[0], gates.dtype) if carry is None else carry
        if self.is_initializing():
            return jnp.zeros((*x.shape[:2], cell.features), gates.dtype), carry
        steps = None if valid is None else jnp.swapaxes(valid, 0, 1)

        carry, y = cell.run(carry, gates, steps, self.backward, self.unroll)
        return jnp.swapaxes(y, 0, 1), carry


# How parameters are split over the devices that share a layer (`parallel.tensor`): not at all, as a recurrence reads
# its whole state at every step, so that splitting it would send something at every step. What is around it may be.
RULES: Mapping[str, P] = {"": P()}


class RNN(nn.Module):
    """A stack of recurrent layers over [B, T, E], in one direction or in both; parameters `forward_0/cell/...`.

    `RNN(LSTMCell(128), layers=2, bidirectional=True)`. Both directions' outputs lie side by side, and each layer reads
    both of the layer below.

    Attributes:
        cell: The cell of every layer, not bound.
        layers: Stacked layers.
        bidirectional: Whether a second recurrence runs from the end.
        dropout: Rate on what a layer gives to the next, while training; needs rngs={"dropout": key}.
        unroll: Steps a turn of the loop.

    Source:
        Schuster and Paliwal 1997, "Bidirectional recurrent neural networks".
    """

    cell: Cell
    layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    unroll: int = 1

    @nn.compact
    def __call__(
        self,
        x: Array,
        lengths: Array | None = None,
        *,
        valid: Array | None = None,
        carry: Any = None,
        train: bool = False,
    ) -> tuple[Array, list[list[Carry]]]:
        """Outputs [B, T, H], or [B, T, 2 H] in both directions, and the last states.

        Args:
            x: Floats [B, T, E].
            lengths: Integers [B]: positions from there on are padding, which never changes a state and gives 0.
            valid: Which positions count, bool [B, T], in place of lengths.
            carry: States to begin with, as returned; zeros where None. A backward direction begins at the end.
            train: Whether to drop out.

        Returns:
            Outputs, and the state after the last valid position of each layer and direction: `carry[layer][direction]`.

        Raises:
            ValueError: If a shape or a setting does not fit.
            TypeError: If `x` is no array, or the cell none.
        """
        check_array("RNN", "x", x, "[B, T, E]")
        if x.ndim != 3 or not x.shape[-1]:
            raise ValueError(f"models.RNN: x is {describe(x)}. Tried: [B, T, E]. Write x[None] for one sequence.")
        check_sizes("RNN", {"layers": self.layers, "unroll": self.unroll})
        check_rate("RNN", "dropout", self.dropout)
        if not isinstance(self.cell, Cell):
            raise TypeError(
                f"models.RNN: cell is {describe(self.cell)}. Tried: a cell. Write models.LSTMCell(64), say."
            )
        ways = ("forward", "backward") if self.bidirectional else ("forward",)
        if carry is not None and [len(c) for c in carry] != [len(ways)] * self.layers:
            raise ValueError(
                f"models.RNN: carry has {[len(c) for c in carry]} states by layer. Tried: {len(ways)} for each of "
                f"{self.layers}. Give what an RNN of this shape returned."
            )
        valid = valid_positions(lengths, valid, x.shape[0], x.shape[1], "RNN")
        key = dropout_key("RNN", self) if train and self.dropout and self.layers > 1 else None
        states: list[list[Carry]] = []
        for i in range(self.layers):
            if i and key is not None:
                x = rng.dropout(jax.random.fold_in(key, i), x, self.dropout)
            ends = []
            for j, way in enumerate(ways):
                run = Recurrent(self.cell.clone(name=None), j == 1, self.unroll, name=f"{way}_{i}")
                ends.append(run(x, valid, None if carry is None else carry[i][j]))
            x = jnp.concatenate([y for y, _ in ends], axis=-1)
            x = sharding.constrain(x, "batch", "time", "embed")
            states.append([end for _, end in ends])
        return x, states
