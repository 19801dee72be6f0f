import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxnn import sharding

P = PartitionSpec


@pytest.fixture
def mesh(devices8):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices8)


X = jnp.arange(8 * 6, dtype=jnp.float32).reshape(8, 6)
RULES = {"batch": "data", "embed": "model", "time": None, "tokens": ("data", "model")}


def test_constrain_without_rules_adds_nothing_to_the_program():
    assert sharding.constrain(X, "batch", "embed") is X
    jaxpr = jax.make_jaxpr(lambda x: sharding.constrain(x, "batch", "embed"))(X)
    assert jaxpr.eqns == []


@pytest.mark.parametrize(
    ("names", "spec"),
    [
        (("batch", "embed"), P("data", "model")),
        (("batch", "time"), P("data", None)),
        ((None, "embed"), P(None, "model")),
        (("tokens", None), P(("data", "model"), None)),
        (("unknown", "embed"), P(None, "model")),
    ],
)
def test_constrain_places_logical_axes_by_the_rules(mesh, names, spec):
    def place(x):
        with sharding.use(mesh, RULES):
            return sharding.constrain(x, *names)

    placed = jax.jit(place)(X)
    assert placed.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2), placed.sharding
    np.testing.assert_array_equal(placed, X)


def test_rules_hold_inside_use_only_and_nest(mesh):
    other = {"batch": "model"}
    with sharding.use(mesh, RULES):
        with sharding.use(mesh, other):
            inner = jax.jit(lambda x: sharding.constrain(x, "batch", None))(X)
        outer = jax.jit(lambda x: sharding.constrain(x + 0, "batch", None))(X)
    assert inner.sharding.is_equivalent_to(NamedSharding(mesh, P("model", None)), 2)
    assert outer.sharding.is_equivalent_to(NamedSharding(mesh, P("data", None)), 2)
    assert sharding.constrain(X, "batch", None) is X


def test_rules_are_taken_back_after_an_error(mesh):
    with pytest.raises(RuntimeError), sharding.use(mesh, RULES):
        raise RuntimeError
    assert sharding.constrain(X, "batch", None) is X


@pytest.mark.parametrize("names", [("batch",), ("batch", "time", "embed"), ()])
def test_a_name_too_many_or_too_few_is_an_error_with_or_without_a_mesh(names):
    with pytest.raises(
        ValueError, match=rf"sharding\.constrain: {len(names)} names .* for shape \(8, 6\)\. Name every axis"
    ):
        sharding.constrain(X, *names)


def _region(mesh, fn, out_specs):
    return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=P("data", "model"), out_specs=out_specs, check_vma=False))


def test_manual_axes_are_those_of_the_enclosing_region(mesh):
    seen = []

    def note(x):
        seen.append(sharding.manual_axes())
        return x

    assert sharding.manual_axes() == ()
    jax.jit(note)(X)
    _region(mesh, note, P("data", "model"))(X)
    jax.pmap(note, axis_name="i")(X)
    assert [set(axes) for axes in seen] == [set(), {"data", "model"}, {"i"}]


def test_constrain_is_a_no_op_inside_a_manual_region(mesh):
    def body(x):
        with sharding.use(mesh, RULES):
            return sharding.constrain(x, "batch", "embed")

    region = _region(mesh, body, P("data", "model"))
    assert "sharding_constraint" not in str(jax.make_jaxpr(region)(X))
    np.testing.assert_array_equal(region(X), X)


def test_psum_manual_makes_one_expression_global_under_jit_shard_map_and_pmap(mesh, devices8):
    def total(x):
        return sharding.psum_manual(jnp.sum(x))

    exact = float(np.arange(48).sum())
    assert float(total(X)) == exact
    assert float(jax.jit(total, in_shardings=NamedSharding(mesh, P("data", "model")))(X)) == exact
    assert float(_region(mesh, total, P())(X)) == exact
    np.testing.assert_array_equal(jax.pmap(total, axis_name="i", devices=devices8)(X), np.full(8, exact))


def test_gradient_through_a_statistic_over_all_devices_is_that_of_one_device(mesh):
    def loss(w, x):  # the sum over this shard's rows; the mean is over the rows of all shards, as in BatchNorm
        y = x @ w
        mean = sharding.psum_manual(jnp.sum(y)) / 8
        return jnp.sum(jnp.square(y - mean) * mean)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(("data", "model"))), out_specs=P(), check_vma=False)
    def gradient(w, x):
        return jax.lax.psum(jax.grad(loss)(w, x), ("data", "model"))

    w, x = jnp.linspace(0.1, 0.6, 6), X / 48
    np.testing.assert_allclose(jax.jit(gradient)(w, x), jax.grad(loss)(w, x), rtol=1e-5)
