"""A spec for every leaf of every optimizer's state, and sharded updates are the unsharded ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from jaxnn import optim, tree
from jaxnn.optim.compose.places import places
from jaxnn.optim.registry import OPTIMIZERS

PARAM_SPECS = {"mlp": {"kernel": P(None, "model"), "bias": P("model")}, "embedding": P()}


def parameters():
    a, b, c = jax.random.split(jax.random.key(0), 3)
    return {
        "mlp": {"kernel": jax.random.normal(a, (16, 8)), "bias": jax.random.normal(b, (8,))},
        "embedding": jax.random.normal(c, (8, 8)),
    }


def extras(needs, params):
    loss = lambda p, **_: sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(p))  # noqa: E731
    known = {"value": loss(params), "value_fn": loss, "key": jax.random.key(1), "grad": params}
    return {name: known[name] for name in needs} | ({"grad": params} if "value_fn" in needs else {})


def make_step(tx, needs):
    """A traceable update of parameters by gradients that depend on them and on the step."""

    def step(params, state, number):
        grads = jax.tree.map(lambda p: jnp.sin(3 * p + number), params)
        updates, state = tx.update(grads, state, params, **extras(needs, params))
        return optim.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sharded_updates_are_unsharded_ones(name, devices8):
    """optax #548, #1660: states must be laid out by hand, and for several optimizers not even their shapes are known.

    In float64, where a difference is one of meaning, not of the order of sums.
    """
    entry = OPTIMIZERS[name]
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), parameters())
        tx = entry.make(entry.lr)
        specs = optim.state_specs(tx, params, PARAM_SPECS, zero_axis="data", mesh=mesh)
        is_spec = lambda x: isinstance(x, P)  # noqa: E731
        layout = [
            jax.tree.map(lambda s: NamedSharding(mesh, s), tree_of, is_leaf=is_spec) for tree_of in (PARAM_SPECS, specs)
        ]
        state = jax.jit(tx.init)(params)
        assert jax.tree.structure(state) == jax.tree.structure(specs, is_leaf=is_spec)
        step = make_step(tx, entry.needs)
        alone, sharded = jax.jit(step), jax.jit(step, in_shardings=(*layout, None), out_shardings=tuple(layout))
        expected = params, state
        found = tuple(jax.device_put((params, state), tuple(layout)))
        for number in range(2):
            expected = alone(*expected, float(number))
            found = sharded(*found, float(number))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), expected[0], found[0])
    moments = [p for p in places(state, params) if p.param is not None and np.size(p.leaf) >= 64]
    split = [s for s in jax.tree.leaves(specs, is_leaf=is_spec) if "data" in str(s)]
    assert bool(split) == bool(moments)


def test_leaves_follow_their_parameters():
    params = parameters()
    specs = tree.leaves_by_path(optim.state_specs(optim.adamw(1e-3), params, PARAM_SPECS))
    assert specs["stages/adam/mu/mlp/kernel"] == P(None, "model")
    assert specs["stages/adam/nu/mlp/bias"] == P("model")
    assert specs["stages/adam/hyper/count"] == P()
    zero = tree.leaves_by_path(
        optim.state_specs(optim.adamw(1e-3), params, PARAM_SPECS, "data", {"data": 4, "model": 2})
    )
    assert zero["stages/adam/mu/mlp/kernel"] == P("data", "model")
    assert zero["stages/adam/nu/mlp/bias"] == P("model")  # nothing is left free
    assert zero["stages/adam/nu/embedding"] == P("data")


OPTAX = {
    "adafactor": (lambda: optax.adafactor(1e-3, min_dim_size_to_factor=4), "0/v_row/mlp/kernel", P("data")),
    "lbfgs": (optax.lbfgs, "0/diff_params_memory/mlp/kernel", P(None, "data", "model")),
    "prodigy": (optax.contrib.prodigy, "exp_avg/mlp/kernel", P("data", "model")),
    "schedule_free_adamw": (optax.contrib.schedule_free_adamw, "z/mlp/kernel", P("data", "model")),
    "dog": (optax.contrib.dog, "1/init_params/mlp/kernel", P("data", "model")),
    "dadapt_adamw": (optax.contrib.dadapt_adamw, "exp_avg/mlp/kernel", P("data", "model")),
    "momo": (optax.contrib.momo, "exp_avg/mlp/kernel", P("data", "model")),
    "inject": (
        lambda: optax.inject_hyperparams(optax.adamw)(1e-3),
        "inner_state/0/mu/mlp/kernel",
        P("data", "model"),
    ),
}


@pytest.mark.parametrize("name", OPTAX)
def test_optax_states_too(name):
    """optax #548: `tx.init` of shapes raises for prodigy, schedule-free, DoG, D-Adaptation and MoMo."""
    make, path, spec = OPTAX[name]
    shapes = jax.eval_shape(parameters)
    found = optim.state_specs(make(), shapes, PARAM_SPECS, "data", {"data": 4, "model": 2})
    assert tree.leaves_by_path(found)[path] == spec


def test_what_does_not_fit_is_refused():
    params = parameters()
    with pytest.raises(ValueError, match=r"zero_axis is 'fsdp', and the mesh has \['data'\]"):
        optim.state_specs(optim.adam(1e-3), params, None, "fsdp", {"data": 4})
    with pytest.raises(ValueError, match=r"param_specs and params differ in \['embedding'\]"):
        optim.state_specs(optim.adam(1e-3), params, {"mlp": PARAM_SPECS["mlp"]})
    with pytest.raises(ValueError, match=r"is no spec for leaf 'mlp/bias' float32\[8\]"):
        optim.state_specs(optim.adam(1e-3), params, PARAM_SPECS | {"mlp": {"kernel": P(), "bias": P("a", "b")}})


def named(mesh, specs):
    return jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda x: isinstance(x, P))


def test_the_mesh_is_that_of_the_specs_or_of_the_parameters_or_in_force(devices8):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    params, tx = parameters(), optim.adamw(1e-3)
    expected = optim.state_specs(tx, params, PARAM_SPECS, "data", mesh)
    assert tree.leaves_by_path(expected)["stages/adam/mu/mlp/kernel"] == P("data", "model")
    shardings = named(mesh, PARAM_SPECS)
    placed = jax.device_put(params, shardings)
    shapes = jax.tree.map(lambda p, s: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=s), params, shardings)
    assert optim.state_specs(tx, params, shardings, zero_axis="data") == expected
    for known in (placed, shapes):
        assert optim.state_specs(tx, known, PARAM_SPECS, zero_axis="data") == expected
        assert optim.state_specs(tx, known, zero_axis="data") == expected  # as the parameters lie
    with jax.set_mesh(mesh):
        assert optim.state_specs(tx, parameters(), PARAM_SPECS, zero_axis="data") == expected
    with pytest.raises(
        ValueError, match=r"zero_axis is 'data', and no mesh is known. Give mesh=, param_specs of.*set_mesh"
    ):
        optim.state_specs(tx, params, PARAM_SPECS, zero_axis="data")
    other = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    mixed = {**shardings, "embedding": NamedSharding(other, P())}
    with pytest.raises(ValueError, match=r"of param_specs, 'mlp/bias' is on the mesh \{.*'embedding' on \{.*mesh="):
        optim.state_specs(tx, params, mixed, zero_axis="data")
    assert optim.state_specs(tx, params, mixed, "data", mesh) == expected


WRAPPED = {
    "q8": lambda: optim.with_state_dtype(optim.adamw(1e-2), optim.q8),
    "bfloat16": lambda: optim.with_state_dtype(optim.adamw(1e-2), jnp.bfloat16),
    "master_weights": lambda: optim.master_weights(optim.adamw(1e-2)),
    "stochastic_rounding": lambda: optim.stochastic_rounding(optim.adamw(1e-2)),
    "accumulate": lambda: optim.accumulate(optim.adamw(1e-2), 2),
    "skip_nonfinite": lambda: optim.skip_nonfinite(optim.adamw(1e-2)),
    "batched": lambda: optim.batched(optim.adam_core()),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_optimizers_too(name, devices8):
    """Random bits go by position in the whole array: rounding, too, is the same on any mesh."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params = {
        "a": jax.random.normal(jax.random.key(0), (64, 128)).astype(jnp.bfloat16),
        "b": jax.random.normal(jax.random.key(1), (64, 128)).astype(jnp.bfloat16),
    }
    tx = WRAPPED[name]()
    specs = optim.state_specs(tx, params, zero_axis="data", mesh=mesh)
    split = tree.leaves_by_path(jax.tree.map(str, specs, is_leaf=lambda x: isinstance(x, P)))
    assert any("data" in spec for spec in split.values())
    layout = jax.tree.map(lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda x: isinstance(x, P))
    state = tx.init(params)
    whole = NamedSharding(mesh, P())
    step = make_step(tx, ())
    alone, sharded = jax.jit(step), jax.jit(step, in_shardings=(whole, layout, None), out_shardings=(whole, layout))
    expected, found = (params, state), (jax.device_put(params, whole), jax.device_put(state, layout))
    for number in range(2):
        expected = alone(*expected, float(number))
        found = sharded(*found, float(number))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=1e-5, atol=1e-6
        ),
        expected,
        found,
    )
    if name == "q8":
        codes = optim.get(found[1], "nu.a.codes")
        assert codes.addressable_shards[0].data.size == codes.size // 8
