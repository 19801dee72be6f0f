"""`train.summary`: layers, outputs, parameters, roles and FLOPs against counts by hand, for every kind of model."""

import html
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnn import cost, data, losses, models, train, tree

X, Y = np.zeros((32, 10), np.float32), np.zeros((32, 1), np.float32)
BATCH = {"x": X, "y": Y}
TOKENS = {"x": np.zeros((2, 8), np.int32), "y": np.zeros((2, 8), np.int32)}


def mlp():
    return train.supervised(models.MLP((64, 1)), losses.mse)


def gpt(**overrides):
    config = models.GPTConfig.preset("tiny", length=8, **overrides)
    return train.supervised(models.GPT(config), losses.cross_entropy)


def by_path(summary):
    return {layer.path: layer for layer in summary.layers}


def test_linen_layers_by_hand(count_compiles):
    with count_compiles() as seen:
        found = train.summary(mlp(), BATCH)
    assert seen.compiles == []
    layers = by_path(found)
    assert list(layers) == ["hidden_0", "head", ""]
    hidden, head, root = layers.values()
    assert (hidden.kind, hidden.output, hidden.parameters) == ("Dense", "float32[32, 64]", 10 * 64 + 64)
    assert (head.kind, head.output, head.parameters) == ("Dense", "float32[32, 1]", 65)
    assert set(hidden.roles) == {"matrix", "vector"}
    assert set(head.roles) == {"head", "vector"}
    # a product is 2 K N a row, a bias N, a relu N
    assert hidden.flops == 32 * (2 * 10 * 64 + 64)
    assert head.flops == 32 * (2 * 64 + 1)
    assert (root.kind, root.parameters, root.flops) == ("MLP", 0, 32 * 64)
    assert (found.parameters, found.nbytes, found.examples) == (769, 4 * 769, 32)
    assert found.flops == sum(layer.flops for layer in found.layers)
    assert found.step_flops > 2 * found.flops


def test_totals_are_those_of_cost_and_tree():
    task = gpt()
    found = train.summary(task, TOKENS)
    params, state = jax.eval_shape(lambda: task.init(jax.random.key(0), {**TOKENS, "index": jnp.arange(2)}))
    batch = {**TOKENS, "mask": np.ones(2, np.float32), "index": np.arange(2, dtype=np.int32)}
    assert found.flops == cost.of(task.predict, params, state, batch, compile=False).flops
    assert found.parameters == tree.size(params) == sum(layer.parameters for layer in found.layers)


def test_a_loop_and_a_scan_over_layers_count_the_same():
    loop, scan = train.summary(gpt(scan=False), TOKENS), train.summary(gpt(scan=True), TOKENS)
    assert loop.flops == scan.flops
    a, b = by_path(loop), by_path(scan)
    assert b["blocks"].kind == "Block x 2"
    assert (b["blocks/qkv"].kind, b["blocks/qkv"].calls) == ("Dense x 2", 1)
    assert b["blocks/qkv"].parameters == a["blocks_0/qkv"].parameters + a["blocks_1/qkv"].parameters
    assert b["blocks/qkv"].flops == a["blocks_0/qkv"].flops + a["blocks_1/qkv"].flops
    assert a["embed"].calls == 2  # tied: it reads tokens, and scores them
    assert a["embed"].roles == ("embedding",)


def test_layers_below_a_depth_count_for_the_one_above():
    whole, folded = train.summary(gpt(), TOKENS), train.summary(gpt(), TOKENS, depth=1)
    assert [layer.path for layer in folded.layers] == ["embed", "blocks_0", "blocks_1", "norm_out", ""]
    inside = [layer for layer in whole.layers if layer.path.split("/")[0] == "blocks_0"]
    block = by_path(folded)["blocks_0"]
    assert (block.kind, block.output) == ("Block", "float32[2, 8, 64]")
    assert block.parameters == sum(layer.parameters for layer in inside)
    assert block.flops == sum(layer.flops for layer in inside)
    assert set(block.roles) == {"matrix", "vector"}
    assert folded.flops == whole.flops


class Inner(nnx.Module):
    def __init__(self, width, rngs):
        self.dense = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.dense(x))


class Doubled(Inner):
    def __call__(self, x):
        return super().__call__(x) * 2


class Net(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Inner(10, rngs), Doubled(10, rngs)])
        self.norm = nnx.BatchNorm(10, rngs=rngs)
        self.head = nnx.Linear(10, 1, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def test_nnx_layers_by_hand(count_compiles):
    task = train.from_nnx(lambda rngs: Net(rngs), losses.mse)
    calls = {kind: kind.__call__ for kind in (Net, Inner, Doubled, nnx.Linear)}
    with count_compiles() as seen:
        found = train.summary(task, BATCH)
    assert seen.compiles == []
    assert {kind: kind.__call__ for kind in calls} == calls  # put back
    layers = by_path(found)
    assert list(layers) == ["blocks/0", "blocks/0/dense", "blocks/1", "blocks/1/dense", "norm", "head", ""]
    dense = layers["blocks/1/dense"]
    assert (dense.kind, dense.output, dense.parameters) == ("Linear", "float32[32, 10]", 110)
    assert dense.flops == 32 * (2 * 10 * 10 + 10)
    assert layers["blocks/0"].flops == 32 * 10  # its relu
    assert layers["blocks/1"].flops == 2 * 32 * 10  # and the doubling
    assert layers["blocks/1"].calls == 1  # super().__call__ is no second one
    assert found.model_state == 20
    assert found.name == "Net"
    assert found.flops == sum(layer.flops for layer in found.layers)


def test_nnx_classes_are_put_back_when_the_model_fails():
    class Fails(Net):
        def __call__(self, x):
            raise RuntimeError("no")

    call = Fails.__call__
    with pytest.raises(ValueError, match=r"train\.summary: the model fails on a batch of .*RuntimeError: no"):
        train.summary(train.from_nnx(lambda rngs: Fails(rngs), losses.mse), BATCH)
    assert Fails.__call__ is call


def test_bare_functions_list_their_parameters_as_they_are_grouped():
    def init(key, x):
        return {"encoder": {"w": jnp.zeros((10, 3)), "b": jnp.zeros(3)}, "out": jnp.zeros((3, 1))}

    def apply(params, x):
        with jax.named_scope("encoder"):
            h = x @ params["encoder"]["w"] + params["encoder"]["b"]
        return h @ params["out"]

    found = train.summary(train.from_functions(init, apply, losses.mse), BATCH)
    layers = by_path(found)
    assert found.name == "apply"
    assert list(layers) == ["encoder", "out", ""]
    assert (layers["encoder"].kind, layers["encoder"].parameters) == ("parameters", 33)
    assert layers["encoder"].flops == 32 * (2 * 10 * 3 + 3)
    assert layers[""].output == "float32[32, 1]"
    assert layers[""].flops == 32 * 2 * 3


def test_a_linen_module_inside_bare_functions_is_found():
    module = models.MLP((4, 1))
    task = train.from_functions(
        lambda key, x: module.init(key, x)["params"], lambda p, x: module.apply({"params": p}, x), losses.mse
    )
    assert [layer.path for layer in train.summary(task, BATCH).layers] == ["hidden_0", "head", ""]


def test_methods_that_a_layer_calls_of_itself_are_no_second_call():
    class Two(nn.Module):
        def setup(self):
            self.a, self.b = nn.Dense(3), nn.Dense(2)

        def encode(self, x):
            return self.a(x)

        def __call__(self, x):
            return self.b(self.encode(x))

    layers = by_path(train.summary(train.supervised(Two(), losses.mse), {"x": X, "y": np.zeros((32, 2), np.float32)}))
    assert {path: layer.calls for path, layer in layers.items()} == {"a": 1, "b": 1, "": 1}
    assert layers["a"].flops == 32 * (2 * 10 * 3 + 3)


def test_without_targets_the_model_is_shown_and_the_gap_is_named():
    found = train.summary(mlp(), {"x": X})
    assert found.flops > 0
    assert math.isnan(found.step_flops)
    assert "Loss and gradients are not counted: Task: the batch has no 'y'" in repr(found)


def test_shapes_will_do_and_a_count_that_fails_hides_no_layer(monkeypatch):
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), BATCH)
    assert repr(train.summary(mlp(), shapes)) == repr(train.summary(mlp(), BATCH))

    def fail(*_, **__):
        raise KeyError("new_primitive")

    monkeypatch.setattr(cost, "by_source", fail)
    found = train.summary(mlp(), BATCH)
    assert found.parameters == 769
    assert "FLOPs could not be counted: KeyError: 'new_primitive'" in repr(found)
    assert re.search(r"hidden_0 .* \?$", repr(found), re.M)


def test_the_table_as_text_and_as_html():
    lines = repr(train.summary(mlp(), BATCH)).splitlines()
    assert lines[0] == "MLP"
    assert lines[1].split() == ["layer", "kind", "output", "parameters", "role", "FLOPs"]
    assert lines[3].split() == ["hidden_0", "Dense", "float32[32,", "64]", "704", "vector,", "matrix", "43.01", "k"]
    assert lines[6].split() == ["total", "769", "49.18", "k"]
    assert lines[7] == "769 parameters, 3.08 kB"
    assert re.fullmatch(r"a batch of 32: 49\.18 k FLOPs forwards, 1\.537 k an example; \S+ k with .*", lines[8])
    page = train.summary(mlp(), BATCH)._repr_html_()
    cells = [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page)]
    assert cells[:6] == ["hidden_0", "Dense", "float32[32, 64]", "704", "vector, matrix", "43.01 k"]


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"train\.summary: the first argument must be a Task, got MLP"):
        train.summary(models.MLP((1,)), BATCH)
    with pytest.raises(TypeError, match=r"train\.summary: the batch must be a dict of arrays, got Arrays\. Write"):
        train.summary(mlp(), data.Arrays(X, Y))
    with pytest.raises(ValueError, match=r"same leading example axis"):
        train.summary(mlp(), {"x": X, "y": Y[:3]})
    with pytest.raises(ValueError, match=r"train\.summary: depth must be at least 1, got 0"):
        train.summary(mlp(), BATCH, depth=0)
    with pytest.raises(ValueError, match=r"layers\.Conv: x is float32\[32, 10\]"):
        train.summary(train.supervised(models.CNN(), losses.cross_entropy), BATCH)
