"""First parameters: values that depend on the seed and on each parameter's own path and shape, and programs that do not
grow with the depth of the model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import core, losses, models, parallel, rng, tree
from jaxnn.core import init as core_init
from jaxnn.core.state import complete

BATCH = complete({"x": np.ones((8, 6), np.float32), "y": np.ones((8, 3), np.float32)})
TOKENS = complete({"x": np.ones((8, 4), np.int32), "y": np.ones((8, 4), np.int32)})


@pytest.fixture(autouse=True, params=["host", "compiled"])
def place(request, monkeypatch):
    """Every test twice: small parameters on the host, and all of them by compiled programs."""
    if request.param == "compiled":
        monkeypatch.setattr(core_init, "HOST_ELEMENTS", 0)
    return request.param


def params_of(module, batch=BATCH, seed=0):
    return jax.device_get(core_init.init_variables(core.supervised(module, losses.mse), rng.seed_key(seed), batch)[0])


def gpt(layers, scan, **other):
    config = models.GPTConfig(vocab=11, length=4, layers=layers, heads=2, width=8, mlp_ratio=2, scan=scan, **other)
    return models.GPT(config)


def same(one, other):
    ours, theirs = tree.leaves_by_path(one), tree.leaves_by_path(other)
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        assert leaf.tobytes() == np.asarray(theirs[path]).tobytes(), path


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    module = models.MLP((5, 3))
    one = params_of(module)
    same(one, params_of(module))
    other = params_of(module, seed=1)
    assert np.all(one["hidden_0"]["kernel"] != other["hidden_0"]["kernel"])


@pytest.mark.parametrize("make", [parallel.replicate, parallel.pmap], ids=lambda make: make.__name__)
def test_every_strategy_begins_alike(make, devices8):
    task, tx = core.supervised(models.MLP((5, 3)), losses.mse), optax.adam(1e-3)
    one = core.init_state(task, tx, BATCH, seed=4, strategy=parallel.single(devices8[3]))
    same(jax.device_get(one), jax.device_get(core.init_state(task, tx, BATCH, seed=4, strategy=make())))


def test_a_parameter_does_not_depend_on_the_others():
    small, large = params_of(models.MLP((5, 4, 3))), params_of(models.MLP((5, 4, 7, 3)))
    same(small["hidden_0"], large["hidden_0"])
    same(small["hidden_1"], large["hidden_1"])
    shallow, deep = params_of(gpt(1, False), TOKENS), params_of(gpt(3, False), TOKENS)
    same(shallow["embed"], deep["embed"])
    same(shallow["blocks_0"]["qkv"], deep["blocks_0"]["qkv"])


def test_layers_differ_from_each_other():
    params = params_of(gpt(3, False), TOKENS)
    kernels = [params[f"blocks_{i}"]["qkv"]["kernel"] for i in range(3)]
    assert len({k.tobytes() for k in kernels}) == 3
    wide = params_of(models.MLP((6, 6, 6, 6)))  # one program and one shape, three layers
    assert len({wide[name]["kernel"].tobytes() for name in wide}) == 4


def test_loop_and_scan_begin_alike():
    loop, scan = params_of(gpt(3, False, bias=True), TOKENS), params_of(gpt(3, True, bias=True), TOKENS)
    same(models.gpt.stack_layers(loop), scan)


def test_a_second_model_compiles_nothing_and_depth_costs_nothing(count_compiles):
    core_init._programs.clear()
    params_of(gpt(1, False), TOKENS)
    with count_compiles() as two:
        params_of(gpt(2, False), TOKENS)
    with count_compiles() as many:
        params_of(gpt(9, False), TOKENS)
    # Residual branches are scaled by depth: their initialisers are new constants, two shapes of them.
    assert len(two.compiles) <= 2
    assert len(many.compiles) <= 2
    with count_compiles() as again:
        params_of(gpt(9, False), TOKENS)
    assert again.compiles == []


def test_constant_initialisers_compile_nothing(count_compiles):
    class Constants(nn.Module):
        @nn.compact
        def __call__(self, x):
            a = self.param("zeros", nn.initializers.zeros, (6, 2))
            b = self.param("ones", nn.initializers.ones, (2,))
            c = self.param("third", nn.initializers.constant(1 / 3), (2,), jnp.bfloat16)
            return x @ a + b + c.astype(jnp.float32)

    with count_compiles() as seen:
        params = params_of(Constants())
    assert seen.compiles == []
    np.testing.assert_array_equal(params["zeros"], np.zeros((6, 2), np.float32))
    np.testing.assert_array_equal(params["ones"], np.ones(2, np.float32))
    assert params["third"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(params["third"], np.full(2, 1 / 3, jnp.bfloat16))


def test_declared_roles_are_read():
    task = core.supervised(gpt(2, False, tied=False, positions="learned"), losses.cross_entropy)
    roles = core.roles(task, TOKENS)
    assert roles["embed/embedding"] == tree.Role("embedding")
    assert roles["position_embed"] == tree.Role("embedding")
    assert roles["head/kernel"] == tree.Role("head")
    assert roles["blocks_1/qkv/kernel"] == tree.Role("matrix")
    assert roles["blocks_0/norm_mlp/scale"] == tree.Role("vector")
    scanned = core.roles(core.supervised(gpt(2, True), losses.cross_entropy), TOKENS)
    assert scanned["blocks/qkv/kernel"] == tree.Role("matrix", 1)
    assert scanned["blocks/norm_mlp/scale"] == tree.Role("vector", 1)
    images = complete({"x": np.ones((8, 6, 6, 1), np.float32)})
    cnn = core.roles(core.supervised(models.CNN((2,), (), 3, batch_norm=True), losses.mse), images)
    assert (cnn["conv_0/kernel"].name, cnn["norm_0/scale"].name, cnn["head/kernel"].name) == ("conv", "vector", "head")
    assert core.roles(core.from_functions(lambda k, x: jnp.ones(3), lambda p, x: x, losses.mse), BATCH) == {}


def test_values_are_distributed_as_the_initialiser_says():
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("normal", nn.initializers.normal(0.02), (300, 400))
            self.param("uniform", nn.initializers.uniform(2.0), (300, 400))
            self.param("lecun", nn.initializers.lecun_normal(), (300, 400))
            self.param("orthogonal", nn.initializers.orthogonal(), (30, 30))
            return x

    params = params_of(Wide())
    n = 300 * 400
    # Five standard errors of the mean and of the standard deviation.
    for name, std in (("normal", 0.02), ("uniform", 2 / np.sqrt(12)), ("lecun", 1 / np.sqrt(300))):
        values = params[name].astype(np.float64)
        mean = 1.0 if name == "uniform" else 0.0
        assert abs(values.mean() - mean) < 5 * std / np.sqrt(n)
        assert abs(values.std() / std - 1) < 5 / np.sqrt(2 * n)
    correlation = np.corrcoef(params["normal"].ravel(), params["lecun"].ravel())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(n)
    rows = params["normal"] @ params["normal"].T / (400 * 0.02**2)
    assert np.max(np.abs(rows - np.diag(np.diag(rows)))) < 6 / np.sqrt(400)
    np.testing.assert_allclose(params["orthogonal"] @ params["orthogonal"].T, np.eye(30), atol=1e-5)


class DataDependent(nn.Module):
    """Its second parameter begins at the mean of the data, which no captured initialiser can know."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(1.0), (x.shape[-1], 3))
        mean = self.param("mean", lambda key: jnp.mean(x, axis=0))
        return (x - mean) @ kernel


def test_an_initialiser_that_looks_at_the_data_is_run_on_it():
    batch = BATCH | {"x": np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)}
    params = params_of(DataDependent(), batch)
    np.testing.assert_allclose(params["mean"], batch["x"].mean(0), rtol=1e-5, atol=1e-7)
    assert params["kernel"].std() > 0.3


def test_lifted_layers_are_initialised_as_linen_does():
    """A vmapped ensemble: members differ, and a module that Linen stacks twice falls back to Linen's own init."""
    ensemble = nn.vmap(
        nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, out_axes=1, axis_size=4
    )
    params = params_of(ensemble(3))
    assert params["kernel"].shape == (4, 6, 3)
    assert len({member.tobytes() for member in params["kernel"]}) == 4

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            inner = nn.vmap(
                nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=2
            )
            outer = nn.vmap(inner, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3)
            return outer(5)(x)

    kernel = jax.tree.leaves(params_of(Twice()))[1]
    assert kernel.shape == (3, 2, 6, 5)
    assert len({member.tobytes() for row in kernel for member in row}) == 6


def test_other_tasks_are_initialised_by_their_own_function():
    def init(key, x):
        return {"w": jax.random.normal(key, (x.shape[1], 2))}

    task = core.from_functions(init, lambda p, x: x @ p["w"], losses.mse)
    params, state = core_init.init_variables(task, rng.seed_key(5), BATCH)
    expected = jax.jit(lambda: init(rng.wrap(rng.seed_key(5)), BATCH["x"]))()
    same(jax.device_get(params), jax.device_get(expected))
    assert state == {}


def test_flax_is_left_as_it_was():
    before = nn.Module.param
    params_of(models.MLP((2,)))

    class Broken(nn.Module):
        @nn.compact
        def __call__(self, x):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        params_of(Broken())
    assert nn.Module.param is before


def test_a_parameters_key_follows_its_path_and_the_layer_takes_its_place():
    assert core_init.parameter_key("a_1/b") != core_init.parameter_key("a/b_1")
    assert core_init.parameter_key("a_1/b")[0] == core_init.parameter_key("a_2/b")[0]
    looped, stacked = (
        core_init.parameter_key("stages_1/blocks_3/kernel"),
        core_init.parameter_key("stages_1/blocks/kernel", stacked=True),
    )
    assert looped[0] == stacked[0]
    assert looped[1] == (1, 3)
    assert stacked[1:] == ((1, 0), 1)
