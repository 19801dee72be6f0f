"""Loops, calls, conditions and devices: what is counted inside equals the same work written out, and formulas."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, PartitionSpec as P

from jaxnn import cost
from jaxnn.cost import trips

N = 8
DOT = 2 * N**3
X = jnp.ones((N, N))


def layer(x, w):
    return jnp.tanh(x @ w)


def image_layer(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def grouped(x, w):
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, w[:, :, :2], (1, 1), ((2, 2), (2, 2)), rhs_dilation=(2, 2), dimension_numbers=dims, feature_group_count=2
    )


def transposed(x, w):
    y = lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y[:, ::2, ::2]


@jax.custom_vjp
def own(x, w):
    return jnp.tanh(x @ w)


def own_forward(x, w):
    y = own(x, w)
    return y, (x, w, y)


own.defvjp(own_forward, lambda kept, g: (lambda d: (d @ kept[1].T, kept[0].T @ d))(g * (1 - kept[2] ** 2)))


def dilated(x, w):
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), ((2, 2), (2, 2)), rhs_dilation=(2, 2), dimension_numbers=dims)


def depthwise(x, w):
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w[:, :, :1], (1, 1), "SAME", dimension_numbers=dims, feature_group_count=4)


IMAGE = (jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 4, 4)))
BODIES = {
    "dot": (layer, X, X),
    "conv": (image_layer, *IMAGE),
    "dilated conv": (dilated, *IMAGE),
    "grouped conv": (depthwise, *IMAGE),
    "grouped and dilated conv": (grouped, *IMAGE),
    "transposed conv": (transposed, *IMAGE),
    "remat": (jax.checkpoint(layer), X, X),
    "nested jit": (jax.jit(lambda x, w: jax.jit(layer)(x, w) + 1), X, X),
    "custom_vjp": (own, X, X),
    "vmap": (jax.vmap(layer, (0, None)), jnp.ones((3, N, N)), X),
    "fori": (lambda x, w: lax.fori_loop(0, 3, lambda _, y: layer(y, w), x), X, X),
    "cond": (lambda x, w: lax.cond(x.sum() > 0, lambda x: layer(x, w), lambda x: layer(x, w.T), x), X, X),
    "attention": (lambda x, w: jax.nn.dot_product_attention(x, x, x @ w), jnp.ones((2, 5, 2, N)), X),
}


@pytest.mark.parametrize("differentiate", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_a_scan_is_the_loop_written_out(name, differentiate):
    body, x, w = BODIES[name]

    def looped(x, w):
        return jnp.sum(lax.scan(lambda c, _: (body(c, w), None), x, None, length=5)[0] ** 2)

    def written_out(x, w):
        for _ in range(5):
            x = body(x, w)
        return jnp.sum(x**2)

    single = cost.of(lambda x, w: body(x, w), x, w)
    a, b = (cost.of(jax.value_and_grad(f, (0, 1)) if differentiate else f, x, w) for f in (looped, written_out))
    assert a.products == b.products > 0
    assert a.transcendentals == b.transcendentals
    repeats = (4 if name == "remat" else 3) if differentiate else 1
    assert a.products == 5 * repeats * single.products
    assert not a.unknown
    assert not a.flags
    if not differentiate:
        assert a.flops == b.flops


def test_remat_counts_forward_recomputation_and_backward():
    def deep(policy):
        block = layer if policy is None else jax.checkpoint(layer, policy=policy)

        def loss(ws, x):
            for w in ws:
                x = block(x, w)
            return jnp.sum(x)

        return cost.of(jax.value_and_grad(loss, (0, 1)), [X] * 3, X).products

    policies = jax.checkpoint_policies
    assert deep(None) == 3 * 3 * DOT
    assert deep(policies.nothing_saveable) == 3 * 4 * DOT
    assert deep(policies.dots_saveable) == 3 * 3 * DOT


def test_what_nobody_uses_is_not_counted():
    assert cost.of(jax.value_and_grad(lambda x: jnp.sum(x @ X)), X).products == 2 * DOT
    assert cost.of(jax.grad(lambda x: jnp.sum(x @ X)), X).products == DOT
    dead = cost.of(lambda x: jax.jit(lambda x: (x @ x, x + 1))(x)[1], X)
    assert dead.flops == N * N

    def step(carry, _):
        used, unused = carry
        return (used + 1, unused @ unused), None

    assert cost.of(lambda x: lax.scan(step, (x, x), None, length=4)[0][0], X).products == 0
    assert cost.of(lambda x: lax.scan(step, (x, x), None, length=4)[0][1], X).products == 4 * DOT
    # A carry that feeds the one that is used counts, although it's not returned itself.
    chain = lambda c, _: ((c[0] + c[1], c[1] @ c[1]), None)  # noqa: E731
    assert cost.of(lambda x: lax.scan(chain, (x, x), None, length=4)[0][0], X).products == 4 * DOT


def test_xla_agrees_where_there_is_no_loop():
    def loss(x, w):
        return jnp.sum((x @ w) @ w.T)

    found = cost.of(jax.value_and_grad(loss, (0, 1)), jnp.ones((32, 64)), jnp.ones((64, 16)))
    assert found.xla_flops == pytest.approx(found.flops, rel=0.02)


def test_custom_derivatives():
    @jax.custom_vjp
    def f(x, w):
        return x @ w

    f.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T @ X, r[0].T @ g @ X))
    assert cost.of(f, X, X).products == DOT
    assert cost.of(jax.value_and_grad(lambda x, w: jnp.sum(f(x, w)), (0, 1)), X, X).products == 5 * DOT

    @jax.custom_jvp
    def g(x):
        return x @ x

    g.defjvp(lambda p, t: (g(p[0]), t[0] @ p[0]))
    assert cost.of(g, X).products == DOT
    assert cost.of(lambda x: jax.jvp(g, (x,), (x,)), X).products == 2 * DOT


def test_other_wrappers_are_entered():
    partitioned = custom_partitioning(lambda x: x @ x)
    partitioned.def_partition(partition=lambda *a: None, sharding_rule="i j -> i j")
    mapped = jax.custom_batching.custom_vmap(lambda x: x @ x)
    mapped.def_vmap(lambda size, batched, x: (x @ x, True))
    composite = lax.composite(lambda x: x @ x, "test.square")
    for f in (partitioned, mapped, composite, jax.named_call(lambda x: x @ x, name="square")):
        found = cost.of(f, X)
        assert found.products == DOT
        assert not found.flags
        assert not found.unknown


def test_vmap_multiplies():
    assert cost.of(jax.vmap(layer, (0, None)), jnp.ones((3, N, N)), X).products == 3 * DOT
    per_example = jax.vmap(jax.grad(lambda w, x: jnp.sum(layer(x, w) ** 2)), (None, 0))
    assert cost.of(per_example, X, jnp.ones((3, N, N))).products == 3 * 2 * DOT


def test_a_condition_counts_its_largest_branch():
    branches = [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x]
    found = cost.of(lambda i, x: lax.switch(i, branches, x), 1, X)
    assert found.products == 2 * DOT
    assert len(found.flags) == 1
    assert "largest of 3 branches" in found.flags[0]
    assert "test_walk.py:" in found.flags[0]
    same = cost.of(lambda p, x: lax.cond(p, lambda x: x @ x, lambda x: x @ x.T, x), True, X)
    assert same.products == DOT
    assert not same.flags
    small = cost.of(lambda p, x: lax.cond(p, lambda x: x + 1, lambda x: x @ x, x), True, X)
    assert small.products == DOT


def test_while_loops_without_a_bound_are_counted_once_and_flagged():
    def f(x):
        with jax.named_scope("decode"):
            return lax.while_loop(lambda x: x.sum() < 3, lambda x: x @ x, x)

    found = cost.of(f, X)
    assert found.products == DOT
    (flag,) = found.flags
    key = flag.split("trips={")[1].split(":")[0].strip("'") + ":" + flag.split("trips={")[1].split(":")[1].strip("'")
    assert key in flag
    for name in ("decode", key):
        bounded = cost.of(f, X, trips={name: 6})
        assert bounded.products == 6 * DOT
        assert bounded.flops_by["reduce_sum"] == 7 * (N * N - 1)  # the condition runs once more
        assert not bounded.flags
    with pytest.raises(ValueError, match=r"trips names \['encode'\].*Loops: test_walk.py"):
        cost.of(f, X, trips={"encode": 6})
    with pytest.raises(ValueError, match="is -1"):
        cost.of(f, X, trips={"decode": -1})


def count_up(start, stop, step, x, test=lax.lt):
    return lax.while_loop(lambda c: test(c[0], stop), lambda c: (c[0] + step, c[1] @ c[1]), (start, x))[1]


def test_counted_while_loops_are_exact():
    assert cost.of(lambda x: count_up(0, 7, 1, x), X).products == 7 * DOT
    assert cost.of(lambda x: count_up(1, 10, 4, x), X).products == 3 * DOT
    assert cost.of(lambda x: count_up(10, 0, -3, x, lax.gt), X).products == 4 * DOT
    assert cost.of(lambda x: count_up(0, 6, 2, x, lax.ne), X).products == 3 * DOT
    assert cost.of(lambda x: count_up(0, 6, 2, x, lax.le), X).products == 4 * DOT
    assert cost.of(lambda x: count_up(5, 5, 1, x), X).products == 0
    bound_behind_a_jit = lambda x: jax.jit(lambda n, x: lax.fori_loop(0, n, lambda i, x: x @ x, x))(9, x)  # noqa: E731
    found = cost.of(bound_behind_a_jit, X)
    assert found.products == 9 * DOT
    assert not found.flags
    nested = cost.of(lambda x: lax.fori_loop(0, 3, lambda i, x: count_up(0, 4, 1, x), x), X)
    assert nested.products == 12 * DOT

    def shrinking(x):  # the bound comes to meet the counter
        return lax.while_loop(lambda c: c[0] < c[1], lambda c: (c[0] + 1, c[1] - 1, c[2] @ x), (0, 8, x))[2]

    assert "unbounded" in cost.of(shrinking, X).flags[0]
    traced = cost.of(lambda n, x: lax.fori_loop(0, n, lambda i, x: x @ x, x), 9, X)
    assert traced.products == DOT
    assert len(traced.flags) == 1


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_keys_are_no_numbers(impl):
    """A key made of constants is a scalar of a dtype of its own, also where a loop carries it."""

    def step(x):
        key = lax.fori_loop(0, 3, lambda i, k: jax.random.fold_in(k, i), jax.random.key(0, impl=impl))
        key = jax.random.split(jax.random.fold_in(jax.random.clone(key), 3), 2)[1]
        return x @ x + jax.random.gamma(key, 2.0, (N, N))

    def call(x, key):
        return x @ x + jax.random.normal(key, (N, N))

    assert cost.of(step, X).products == DOT
    found = cost.of(call, X, jax.random.key(0, impl=impl))
    assert found.products == DOT
    assert found.bytes == 2 * X.nbytes + {"threefry2x32": 8, "rbg": 16}[impl]


@pytest.mark.parametrize("name", ["lt", "le", "gt", "ge", "ne"])
def test_trip_counts_against_a_loop(name):
    compare = {"lt": int.__lt__, "le": int.__le__, "gt": int.__gt__, "ge": int.__ge__, "ne": int.__ne__}[name]
    for start in range(-4, 5):
        for bound in range(-4, 5):
            for step in (-3, -2, -1, 1, 2, 3):
                i, runs = start, 0
                while compare(i, bound) and runs < 50:
                    i, runs = i + step, runs + 1
                assert trips.count(start, bound, step, name) == (None if runs == 50 else runs), (start, bound, step)


@functools.cache
def mesh():
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def test_shard_map_counts_all_devices_and_one():
    plain = cost.of(layer, X, X)

    def by_rows(x, w):
        return layer(x, w)

    rows = jax.shard_map(by_rows, mesh=mesh(), in_specs=(P(("data", "model")), P()), out_specs=P(("data", "model")))
    found = cost.of(rows, X, X)
    assert found.flops == plain.flops
    assert found.flops_per_device == plain.flops / 8
    assert [dict(m.shape) for m in found.meshes] == [{"data": 2, "model": 4}]
    replicated = jax.shard_map(by_rows, mesh=mesh(), in_specs=(P("data"), P()), out_specs=P("data"), check_vma=False)
    assert cost.of(replicated, X, X).flops == 4 * plain.flops  # each of four model devices repeats the work
    some = jax.shard_map(
        by_rows, mesh=mesh(), in_specs=(P("data"), P()), out_specs=P("data"), axis_names={"data"}, check_vma=False
    )
    manual = cost.of(jax.jit(some), X, X)
    assert manual.flops == plain.flops
    assert manual.flops_per_device == plain.flops / 2


def test_a_scan_inside_shard_map():
    def f(x):
        return lax.scan(lambda c, _: (lax.psum(c @ X, "data"), None), x, None, length=3)[0]

    found = cost.of(jax.shard_map(f, mesh=mesh(), in_specs=P("data"), out_specs=P("data"), check_vma=False), X)
    assert found.products == 3 * 2 * (N // 2) * N * N * 8
    assert found.products == 8 * cost.of(lambda x: lax.scan(lambda c, _: (c @ X, None), x, None, 3)[0], X[:4]).products


def test_pmap_counts_all_devices(devices8):
    x = jnp.ones((8, N, N))
    found = cost.of(jax.pmap(lambda x: lax.psum(layer(x, x), "i"), axis_name="i"), x)
    assert found.products == 8 * DOT
    assert found.flops_per_device * 8 == found.flops
    step = jax.pmap(jax.value_and_grad(lambda x: jnp.sum(layer(x, x) ** 2)))
    assert cost.of(step, x).products == 8 * 3 * DOT


def test_an_unknown_container_is_flagged():
    callee = lambda r, x: x @ x  # noqa: E731
    found = cost.of(lambda x: jax.custom_derivatives.linear_call(callee, callee, x, x), X)
    assert any("unknown container" in flag and "linear_call" in flag for flag in found.flags)
    assert found.products > 0


def test_attention_is_its_formula():
    batch, time, heads, width = 2, 16, 4, 8
    q = jnp.ones((batch, time, heads, width))
    each = 2 * batch * heads * time * time * width  # scores, or the weighted sum of values
    attend = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    assert cost.of(attend, q, q, q).products == 2 * each
    loss = jax.value_and_grad(lambda q, k, v: jnp.sum(attend(q, k, v, is_causal=True) ** 2), (0, 1, 2))
    found = cost.of(loss, q, q, q)
    assert found.products == 6 * each
    assert found.flops_by["exp"] == batch * heads * time * time
    remat = jax.value_and_grad(lambda q: jnp.sum(jax.checkpoint(attend)(q, q, q) ** 2))
    # The scores are computed again; the sum of values is not, for no gradient needs it.
    assert cost.of(remat, q).products == 7 * each
