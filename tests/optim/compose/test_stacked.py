"""Stacked updates are those by leaves, in a program of one momentum; what cannot be stacked is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxnn import models, optim, tree
from jaxnn.optim.registry import OPTIMIZERS

FAST = ("adamw", "muon")
AVERAGES = ("ema", "lookahead", "schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd", "tail_average")


def parameters():
    shapes = {
        **{f"blocks_{i}": {"kernel": (4, 6), "bias": (6,), "gain": ()} for i in range(3)},
        "wide_1": {"kernel": (6, 4)},
        "wide_2": {"kernel": (4, 6)},
        "embedding": (5, 4),
        "list": [(3, 3), (3, 3)],
    }
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(treedef, [1 + jax.random.normal(k, s) for k, s in zip(keys, leaves, strict=True)])


def objective(params):
    return sum(jnp.sum(jnp.sin(1.3 * p) + p**2 / (2 + k)) for k, p in enumerate(jax.tree.leaves(params)))


def steps(tx, params, count=3):
    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(objective)(params)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=objective)
        return optim.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(count):
        params, state = step(params, state)
    return params, state


def compare(by_leaves, stacked, params, metrics=True):
    (expected, known), (found, state) = steps(by_leaves, params), steps(stacked, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), expected, found)
    if metrics:
        measured = optim.metrics(state)
        assert measured.keys() == optim.metrics(known).keys()
        for name, value in optim.metrics(known).items():
            np.testing.assert_allclose(measured[name], value, rtol=1e-5)
    return state


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in OPTIMIZERS if n not in AVERAGES],
)
def test_stacked_updates_are_those_by_leaves(name):
    entry = OPTIMIZERS[name]
    compare(entry.make(entry.lr), optim.stacked(entry.make(entry.lr)), parameters())


def test_the_state_is_that_of_a_scan_over_layers():
    params = parameters()
    tx = optim.stacked(optim.adamw(1e-2, metrics=("norms",)))
    state = tx.init(params)
    shapes = {path: x.shape for path, x in tree.leaves_by_path(optim.get(state, "adam.mu")).items()}
    assert (shapes["blocks/kernel"], shapes["blocks/gain"], shapes["list"]) == ((3, 4, 6), (3,), (2, 3, 3))
    assert optim.get(state, "adam.mu")["embedding"].shape == (5, 4)  # alone as it is
    # Both would be "wide/kernel".
    assert (shapes["wide_1/kernel"], shapes["wide_2/kernel"]) == ((6, 4), (4, 6))
    # A leaf cannot have others inside.
    assert _names({"a_1": jnp.ones(2), "a_2": {"b_1": jnp.ones(3), "b_2": jnp.ones(3)}}) == ["a_1", "a_2/b_1"]
    abstract = jax.eval_shape(tx.init, params)
    assert jax.tree.map(lambda x: x.shape, abstract) == jax.tree.map(jnp.shape, state)


def test_the_layers_of_a_stack_are_in_their_order():
    params = {f"block_{i}": {"w": jnp.full(2, float(i))} for i in range(11)}  # block_10 would stand before block_2
    tx = optim.stacked(optim.sgd_core(0.9))
    _, state = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(state.inner.mu["block"]["w"][:, 0], np.arange(11), rtol=1e-6)


def _names(params):
    return list(tree.leaves_by_path(optim.stacked(optim.sgd_core(0.9)).init(params).inner.mu))


def test_a_models_state_has_the_names_and_shapes_of_its_scan():
    config = models.GPTConfig(vocab=16, length=8, layers=3, heads=2, width=8, scan=False)
    loop = jax.eval_shape(models.GPT(config).init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    state = jax.eval_shape(optim.stacked(optim.muon(1e-2)).init, loop)
    scanned = jax.eval_shape(optim.adam_core().init, jax.eval_shape(models.stack_layers, loop))
    blocks = {path: x.shape for path, x in tree.leaves_by_path(scanned.mu).items() if path.startswith("blocks/")}
    found = {path: x.shape for path, x in tree.leaves_by_path(state).items()}
    for path, shape in blocks.items():
        assert shape in [found[at] for at in found if at.endswith(f"mu/{path}")]


def grouped(inside):
    rules = {
        "muon": optim.group(optim.role("matrix"), inside(optim.muon_core()), lr=0.5, decay=2.0),
        "adam": optim.group(optim.otherwise, inside(optim.adamw_core())),
    }
    return optim.stages(
        clip=optim.clip_by_global_norm(1.0),
        parts=optim.groups(**rules),
        decay=optim.decay(0.1),
        lr=optim.scale_by_lr(optim.cosine(1e-2, 10)),
        metrics=("lr", "clip", "norms", "group_norms"),
    )


def test_multipliers_metrics_and_hyperparameters_go_through():
    state = compare(grouped(lambda tx: tx), optim.stacked(grouped(lambda tx: tx)), parameters())
    assert optim.hyper(optim.set_hyper(state, muon_lr=0.25))["muon_lr"] == 0.25


@pytest.mark.slow
def test_it_stands_inside_groups_and_around_groups_under_a_rate():
    params = parameters()
    compare(grouped(lambda tx: tx), grouped(optim.stacked), params)
    plain, outside = (
        optim.stages(
            rule=around(
                optim.groups(
                    a=optim.group(optim.ndim(2), optim.adam_core(), decay=3.0), b=(optim.otherwise, optim.adam_core())
                )
            ),
            decay=optim.decay(0.1),
            lr=optim.scale_by_lr(1e-2),
        )
        for around in (lambda tx: tx, optim.stacked)
    )
    compare(plain, outside, params)
    assert "blocks_0/kernel" in str(optim.summary(outside, params))


def test_a_stack_may_be_split_over_devices_by_its_layers():
    params = {f"layer_{i}": {"kernel": jnp.ones((3, 5))} for i in range(8)}
    tx = optim.stacked(optim.muon(1e-2))
    specs = tree.leaves_by_path(optim.state_specs(tx, params, zero_axis="data", mesh={"data": 8}))
    (momentum,) = [spec for path, spec in specs.items() if path.endswith("mu/layer/kernel")]
    assert momentum == P("data")


def kernels(tx, leaves):
    params = {f"layer_{i}": {"kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32)} for i in range(leaves)}

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    text = jax.jit(step).lower(params, jax.eval_shape(tx.init, params), params).compile().as_text()
    return text.count("calls=")


def test_a_matrix_of_muon_is_one_kernel_where_it_was_two():
    one, two = (kernels(tx, 16) - kernels(tx, 8) for tx in (optim.stacked(optim.muon(1e-3)), optim.muon(1e-3)))
    assert two - one == 8  # of 8 matrices more; both need some scalars more too


def test_averages_and_leaves_that_differ_are_refused():
    params = parameters()
    with pytest.raises(ValueError, match=r"stacked: ema averages parameters .*optim.ema\(optim.stacked\("):
        optim.stacked(optim.ema(optim.adamw(1e-2))).init(params)
    compare(optim.ema(optim.adamw(1e-2)), optim.ema(optim.stacked(optim.adamw(1e-2))), params)
    with pytest.raises(TypeError, match=r"optim\.stacked"):
        optim.stacked(3)
    declared = {"a_0": tree.Role("matrix"), "a_1": tree.Role("embedding")}
    with tree.declaring(lambda: declared), pytest.raises(ValueError, match=r"stacked: 'a_0' and 'a_1' .* roles are"):
        optim.stacked(optim.muon(1e-2)).init({"a_0": jnp.ones((2, 2)), "a_1": jnp.ones((2, 2))})
    rules = optim.groups(
        a=optim.group(optim.path("blocks_0"), optim.adam_core(), decay=2.0), b=(optim.otherwise, optim.adam_core())
    )
    across = optim.stages(rules=rules, decay=optim.stacked(optim.decay(0.1)), lr=optim.scale_by_lr(1e-2))
    with pytest.raises(
        ValueError, match=r"stacked: one stack has one multiplier of its decay, and 'blocks_0/bias' and"
    ):
        across.update(params, across.init(params), params)


def test_lists_and_numbers_inside_words_have_names():
    assert _names([jnp.ones(2), jnp.ones(2)]) == ["all"]
    assert _names({"0": jnp.ones(2), "1": jnp.ones(2)}) == ["all"]
    assert _names(jnp.ones(2)) == ["."]
    assert _names({f"layer_{i}": {"conv2d_3": jnp.ones(2)} for i in range(2)}) == ["layer/conv2d"]
    with pytest.raises(ValueError, match=r"stacked: two leaves have the path 'a/w'"):
        _names({"a/w": jnp.ones(2), "a": {"w": jnp.ones(3)}})


def test_gradients_of_several_dtypes_and_parameters_of_numpy_are_stacked():
    params = {"a_1": np.ones((2, 3)), "a_2": jnp.full((2, 3), 2.0)}  # float64, where that is not enabled
    grads = {"a_1": jnp.full((2, 3), 0.25, jnp.bfloat16), "a_2": jnp.full((2, 3), -0.5)}
    plain, tx = optim.sgd(1e-2, 0.9), optim.stacked(optim.sgd(1e-2, 0.9))
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(grads, state, params)
    expected, known = plain.update(grads, plain.init(params), params)
    expected, _ = plain.update(grads, known, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2), expected, updates)
    np.testing.assert_allclose(updates["a_1"], -1e-2 * 0.25 * 1.9, rtol=1e-6)


def _by_rank():
    return optax.add_decayed_weights(0.1, lambda params: jax.tree.map(lambda p: jnp.ndim(p) > 1, params))


@pytest.mark.parametrize(
    "part",
    [
        _by_rank,
        pytest.param(lambda: optax.lamb(1e-2), marks=pytest.mark.slow),
        pytest.param(lambda: optax.adaptive_grad_clip(0.1), marks=pytest.mark.slow),
    ],
)
def test_what_takes_a_stack_for_one_layer_is_refused(part):
    params = {"a_1": jnp.ones(3), "a_2": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"stacked: optax\..*updates their stack otherwise than each of them"):
        optim.stacked(part()).init(params)
    optim.stacked(part()).init({"a": jnp.ones(3), "b": jnp.ones((3, 2))})  # no stack


MASK = {"a_1": True, "a_2": True, "b": False}


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.masked(optax.adam(1e-2), MASK),
        lambda: optim.stages(adam=optax.masked(optax.scale_by_adam(), MASK), lr=optim.scale_by_lr(1e-2)),
        lambda: optax.partition({"x": optax.sgd(1e-2)}, dict.fromkeys(MASK, "x")),
        lambda: optim.adamw(1e-2, where=optim.by_mask(MASK)),
        lambda: optim.groups(a=(optim.path("a_1"), optim.sgd(1e-2)), b=(optim.path("^b"), optim.sgd(1e-2))),
    ],
)
def test_masks_and_paths_of_the_leaves_do_not_fit_their_stacks(make):
    params = {"a_1": jnp.ones(3), "a_2": jnp.ones(3), "b": jnp.ones(3)}
    with pytest.raises(
        ValueError, match=r"^optim\.stacked: .* fails on the stacks \['a', 'b'\].*around: optax.masked\("
    ):
        optim.stacked(make()).init(params)
    optax.masked(optim.stacked(optim.adam(1e-2)), MASK).init(params)


@pytest.mark.slow
def test_what_is_optaxs_and_treats_elements_alone_is_stacked():
    params = parameters()
    tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(1e-2))
    compare(tx, optim.stacked(tx), params, metrics=False)


def test_an_objective_may_take_more_than_parameters():
    params = {"a_1": jnp.ones(2), "a_2": jnp.full(2, 2.0)}
    fn = lambda p, aux: sum(jnp.sum((x - aux) ** 2) for x in jax.tree.leaves(p))  # noqa: E731
    tx, aux = optim.stacked(optim.lbfgs()), jnp.full((), 0.5)
    value, grads = jax.value_and_grad(fn)(params, aux)
    update = lambda: tx.update(grads, tx.init(params), params, value=value, grad=grads, value_fn=fn, aux=aux)[0]  # noqa: E731
    assert jax.eval_shape(update)["a_2"].shape == (2,)
