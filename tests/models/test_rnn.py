"""Recurrent layers against torch.nn (frozen fixtures), padding that changes nothing, and states carried on."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import rng, tree
from jaxnn.models import RNN, GRUCell, LSTMCell, SimpleCell, products
from jaxnn.models.lstm_scan import How, lstm_scan

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "translation"
CELLS = {"simple": SimpleCell, "gru": GRUCell, "lstm": LSTMCell}


def fixture(name):
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays}


def from_torch(f, kind, name):
    """torch's two biases are one here, but for the part of a GRU's that the reset gate multiplies."""
    params = {}
    for i in range(2):
        for way, suffix in (("forward", ""), ("backward", "_reverse")):
            x, h, bx, bh = (f[f"{kind}/{n}_l{i}{suffix}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            both = bx + bh
            cell = {"input": {"kernel": x.T, "bias": both}, "hidden": h.T}
            if name == "gru":
                cell["input"]["bias"] = np.concatenate([both[:6], bx[6:]])
                cell["hidden_bias"] = bh[6:]
            params[f"{way}_{i}"] = {"cell": cell}
    return params


@pytest.mark.parametrize("name", CELLS)
def test_outputs_states_and_gradients_are_torchs(name):
    f = fixture(name)
    net = RNN(CELLS[name](3), layers=2, bidirectional=True)

    def run(params, x):
        y, states = net.apply({"params": params}, x, f["in/lengths"])
        # torch's order: layer by layer, forward then backward; h and c apart
        flat = [jnp.stack(s) for s in zip(*(end if isinstance(end, tuple) else (end,) for p in states for end in p))]
        states = jnp.stack(flat)
        return jnp.sum(y * f["in/cotangent"]) + jnp.sum(states * f["in/ends"]), (y, states)

    params = from_torch(f, "w", name)
    (_, (y, states)), (grads, dx) = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(params, f["in/x"])
    np.testing.assert_allclose(y, f["out/y"], atol=1e-5)
    np.testing.assert_allclose(states, f["out/states"], atol=1e-5)
    np.testing.assert_allclose(dx, f["g/x"], atol=1e-4)
    wanted = from_torch(f, "g", name)
    for path, want in tree.leaves_by_path(wanted).items():
        got = tree.leaves_by_path(grads)[path]
        if path.endswith("input/bias"):  # the sum of two biases has the gradient of each
            want = want.copy()
            want[: 6 if name == "gru" else None] /= 2
        np.testing.assert_allclose(got, want, atol=1e-4, err_msg=path)


class WrittenOut(LSTMCell):
    """A step of its own, which the general scan runs."""

    def step(self, carry, gates):
        return super().step(carry, gates)


@pytest.mark.parametrize("narrow", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_lstms_backward_pass_is_that_of_the_scan(narrow):
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (2, 5, 3))
    carry = [[tuple(jax.random.normal(k, (2, 4)) for k in keys[1:3])] * 2]
    valid = jnp.asarray([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]], bool)
    nets = [RNN(cell(4), bidirectional=True) for cell in (LSTMCell, WrittenOut)]
    params = nets[0].init(keys[3], x)["params"]

    def grads(net):
        def objective(params, x, carry):
            y, ends = net.apply({"params": params}, x, valid=valid, carry=carry)
            return jnp.sum(y**2) + sum(jnp.sum(jnp.cos(e)) for e in jax.tree.leaves(ends))

        with products.operands(jnp.bfloat16 if narrow else jnp.float32):
            return jax.jit(jax.grad(objective, (0, 1, 2)))(params, x, carry)

    own, scan = (tree.leaves_by_path(grads(net)) for net in nets)
    assert own.keys() == scan.keys()
    for path, want in scan.items():
        assert own[path].dtype == want.dtype
        np.testing.assert_allclose(own[path], want, atol=0.05 if narrow else 1e-5, err_msg=path)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_a_gate_that_is_nearly_closed_is_not_shut(dtype):
    """Neither its value nor its gradient is 0 where a logistic function's is not."""
    entering = jnp.asarray([[[-8.0, 0.0, 0.5, 0.0]]], dtype)  # i, f, g, o of one state
    none = (jnp.zeros((1, 1), dtype),) * 2
    last = lambda gates: lstm_scan(How(None, False, 1), jnp.zeros((1, 4)), gates, none, None)[0][1][0, 0]  # noqa: E731
    value, grads = jax.value_and_grad(last)(entering)
    wanted = jax.nn.sigmoid(-8.0) * jnp.tanh(0.5)
    np.testing.assert_allclose(np.float32(value), wanted, rtol=1e-2)
    np.testing.assert_allclose(np.float32(grads[0, 0, 0]), wanted, rtol=2e-2)


def test_what_stands_in_padding_changes_nothing_in_either_direction():
    net = RNN(GRUCell(3), bidirectional=True)
    x = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    variables = jax.jit(net.init)(jax.random.key(0), x)
    lengths = np.array([5, 3])
    run = jax.jit(lambda x, lengths: net.apply(variables, x, lengths))
    y, ends = run(x, lengths)
    spoilt = x.copy()
    spoilt[1, 3:] = 1e6
    for a, b in zip(jax.tree.leaves(run(spoilt, lengths)), jax.tree.leaves((y, ends))):
        np.testing.assert_array_equal(a, b)
    assert not np.any(y[1, 3:])
    assert np.all(np.any(y[1, :3], axis=-1))
    alone, alone_ends = jax.jit(net.apply)(variables, x[1:, :3])
    np.testing.assert_allclose(y[1, :3], alone[0], atol=1e-6)
    np.testing.assert_allclose(ends[0][1][1], alone_ends[0][1][0], atol=1e-6)
    masked, _ = jax.jit(net.apply)(variables, x, valid=np.arange(5) < lengths[:, None])
    np.testing.assert_allclose(masked, y, atol=1e-6)


def test_a_sequence_in_two_pieces_is_the_sequence():
    net = RNN(LSTMCell(3), layers=2)
    x = np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32)
    variables = jax.jit(net.init)(jax.random.key(0), x)
    run = jax.jit(net.apply)
    y, ends = run(variables, x)
    first, carry = run(variables, x[:, :2])
    second, last = run(variables, x[:, 2:], carry=carry)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), y, atol=1e-6)
    for a, b in zip(jax.tree.leaves(last), jax.tree.leaves(ends)):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_cell_by_itself_is_one_step_of_the_layer():
    cell = LSTMCell(3)
    x = np.random.default_rng(0).normal(size=(2, 1, 4)).astype(np.float32)
    carry = (jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    params = jax.jit(cell.init)(jax.random.key(0), carry, x[:, 0])["params"]
    (_, c), y = cell.apply({"params": params}, carry, x[:, 0])
    layer = RNN(LSTMCell(3)).apply({"params": {"forward_0": {"cell": params}}}, x)
    np.testing.assert_allclose(layer[0][:, 0], y, atol=1e-6)
    np.testing.assert_allclose(layer[1][0][0][1], c, atol=1e-6)
    np.testing.assert_array_equal(params["input"]["bias"][3:6], 1)  # forget gates begin open


class Forgetful(LSTMCell):
    """What the state adds is of a subclass's own."""

    def recur(self, h):
        return 0.5 * super().recur(h)


class Inside(LSTMCell):
    """A layer above sees the other half of the state."""

    @staticmethod
    def output(carry):
        return carry[1]


@pytest.mark.parametrize("cell", [Forgetful(3), Inside(3)])
def test_a_layer_does_what_a_subclass_of_the_lstm_says(cell):
    net = RNN(cell)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    params = net.init(jax.random.key(0), x)["params"]
    y, _ = net.apply({"params": params}, x)
    carry = cell.initial(2)
    for t in range(3):
        carry, out = cell.apply({"params": params["forward_0"]["cell"]}, carry, x[:, t])
        np.testing.assert_allclose(y[:, t], out, atol=1e-6)


def test_dropout_tells_examples_apart_by_their_number_and_spares_the_first_layer():
    net = RNN(SimpleCell(8), layers=2, dropout=0.5)
    x = np.ones((3, 4, 5), np.float32)
    variables = jax.jit(net.init)(jax.random.key(0), x)
    key = {"dropout": jax.random.key(1)}
    with rng.examples(jnp.array([7, 8, 7])):
        y, _ = net.apply(variables, x, train=True, rngs=key)
    np.testing.assert_array_equal(y[0], y[2])
    assert np.any(y[0] != y[1])
    shallow = RNN(SimpleCell(8), dropout=0.5)
    one = jax.jit(shallow.init)(jax.random.key(0), x)
    np.testing.assert_array_equal(shallow.apply(one, x, train=True)[0], shallow.apply(one, x)[0])


def test_roles_are_declared():
    from jaxnn.models.layers import Declared

    seen = {}
    real = GRUCell.param

    def param(self, name, init, *args, **kwargs):
        seen["/".join((*self.path, name))] = init.role.name if isinstance(init, Declared) else None
        return real(self, name, init, *args, **kwargs)

    patch = pytest.MonkeyPatch()
    patch.setattr("flax.linen.Module.param", param)
    RNN(GRUCell(2)).init(jax.random.key(0), np.zeros((1, 1, 2), np.float32))
    patch.undo()
    assert seen["forward_0/cell/hidden"] == "matrix"
    assert seen["forward_0/cell/input/bias"] == seen["forward_0/cell/hidden_bias"] == "vector"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: RNN(GRUCell(2)).init(jax.random.key(0), x[0]), r"models.RNN: x is float32\[4, 3\]"),
        (lambda x: RNN(GRUCell(0)).init(jax.random.key(0), x), "features=0"),
        (lambda x: RNN(GRUCell(2), layers=0).init(jax.random.key(0), x), "layers=0"),
        (lambda x: RNN(GRUCell(2)).init(jax.random.key(0), x, np.array([1])), "lengths"),
        (lambda x: RNN(GRUCell(2)).init(jax.random.key(0), x, valid=np.ones((2, 3))), "valid"),
        (lambda x: RNN(GRUCell(2)).init(jax.random.key(0), x, carry=[]), "carry"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call(np.zeros((2, 4, 3), np.float32))
