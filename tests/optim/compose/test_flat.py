"""Flat updates are those by leaves, in a program of one kernel a leaf; what is not elementwise is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import optim, tree

CORES = {
    "adam": lambda: optim.adam_core(nesterov=True),
    "adagrad": optim.adagrad_core,
    "ademamix": optim.ademamix_core,
    "amsgrad": optim.amsgrad_core,
    "lion": optim.lion_core,
    "nadam": optim.nadam_core,
    "radam": optim.radam_core,
    "rmsprop": lambda: optim.rmsprop_core(centered=True, momentum=0.9),
    "sgd": lambda: optim.sgd_core(0.9, nesterov=True),
}


def parameters():
    shapes = {"a": (4, 3), "b": (3,), "c": (2, 6), "d": (), "e": (3,), "f": (0, 2), "g": (12,), "h": (5,)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {name: {"w": jax.random.normal(k, shape)} for k, (name, shape) in zip(keys, shapes.items(), strict=True)}


def chain(core):
    return optim.stages(core=core, decay=optim.decay(0.1, where=optim.ndim(2)), lr=optim.scale_by_lr(1e-2))


def steps(tx, params, count=3):
    state = tx.init(params)
    for k in range(count):
        updates, state = tx.update(jax.tree.map(lambda p, k=k: jnp.sin((k + 2) * p), params), state, params)
        params = optim.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("adam", "sgd") else pytest.mark.slow) for n in CORES]
)
def test_flat_updates_are_those_by_leaves(name):
    params = parameters()
    by_leaves, flat = chain(CORES[name]()), chain(optim.flat(CORES[name]()))
    compare(by_leaves, flat, params)


def compare(by_leaves, flat, params):
    (expected, known), (found, state) = (jax.jit(lambda tx=tx: steps(tx, params))() for tx in (by_leaves, flat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), expected, found)
    metrics = optim.metrics(state)
    assert metrics.keys() == optim.metrics(known).keys()
    for measured, value in optim.metrics(known).items():
        np.testing.assert_allclose(metrics[measured], value, rtol=1e-5)


def test_whole_optimizers_are_flat_too_and_report_the_same():
    params = parameters()
    adamw = optim.adamw(optim.cosine(1e-2, 10), weight_decay=0.1, metrics=("lr", "norms"))
    compare(adamw, optim.flat(adamw), params)
    clipped = optim.stages(
        clip=optim.clip_by_global_norm(0.5),
        sgd=optim.sgd_core(0.9),
        decay=optim.decay(0.1, coupling="none", cautious=True),
        lr=optim.scale_by_lr(1e-2),
        metrics=("clip",),
    )
    compare(clipped, optim.flat(clipped), params)


def test_in_groups_it_takes_the_groups_multipliers():
    params = parameters()

    def grouped(inside):
        mine, theirs = (inside(optim.stages(adam=optim.adam_core(), decay=optim.decay(0.1))) for _ in range(2))
        parts = optim.groups(
            a=optim.group(optim.ndim(2), mine, lr=0.5, decay=2.0), b=optim.group(optim.otherwise, theirs, decay=0.0)
        )
        return optim.stages(parts=parts, lr=optim.scale_by_lr(1e-2))

    compare(grouped(lambda tx: tx), grouped(optim.flat), params)
    parts = optim.groups(
        a=optim.group(optim.ndim(2), optim.adam_core(), decay=2.0), b=(optim.otherwise, optim.adam_core())
    )
    across = optim.stages(parts=parts, decay=optim.flat(optim.decay(0.1)), lr=optim.scale_by_lr(1e-2))
    with pytest.raises(ValueError, match=r"flat: one vector has one multiplier of its decay, and 'a/w' and 'b/w' are"):
        across.update(params, across.init(params), params)


def test_its_state_is_vectors_that_split_whole_and_keep_their_dtypes():
    params = parameters()
    tx = chain(optim.with_state_dtype(optim.flat(optim.adam_core()), {"mu": jnp.bfloat16}))
    _, state = steps(tx, params)
    assert (optim.get(state, "core.mu")["small"].dtype, optim.get(state, "core.nu")["small"].dtype) == (
        jnp.bfloat16,
        jnp.float32,
    )
    assert optim.get(state, "core.nu")["small"].shape == (48,)
    np.testing.assert_allclose(optim.hyper(optim.set_hyper(state, b2=0.5))["b2"], 0.5)
    abstract = jax.eval_shape(tx.init, params)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(abstract)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(state)
    ]
    specs = tree.leaves_by_path(optim.state_specs(tx, params, zero_axis="data", mesh={"data": 8}))
    split = [path for path, spec in specs.items() if spec == jax.sharding.PartitionSpec("data")]
    assert [path.split("/")[-2:] for path in split] == [["mu", "small"], ["nu", "small"]]


def growth(tx):
    """Operations that a leaf adds to a step, and kernels to what it compiles to."""
    counts = []
    for leaves in (8, 16):
        params = {f"layer_{i}": jax.ShapeDtypeStruct((4, 4), jnp.float32) for i in range(leaves)}

        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        lowered = jax.jit(step).lower(params, jax.eval_shape(tx.init, params), params)
        counts.append(np.asarray([lowered.as_text().count(" = "), lowered.compile().as_text().count("calls=")]))
    return (counts[1] - counts[0]) / 8


def test_a_leaf_is_one_kernel_where_optax_has_three():
    """XLA's time to compile goes by them: AdamW on 3,000 leaves takes half a minute."""
    flat = optim.stages(adam=optim.flat(optim.adamw_core()), decay=optim.decay(0.01), lr=optim.scale_by_lr(1e-3))
    (operations, kernels), (least, one), (theirs, three) = map(
        growth, (flat, optim.flat(optim.adamw(1e-3)), optax.adamw(1e-3))
    )
    assert (round(kernels), round(one), round(three)) == (1, 1, 3)
    assert 0 < 3 * operations <= theirs
    assert 0 < 5 * least <= theirs


def test_what_is_not_elementwise_or_not_of_one_dtype_is_refused():
    refused = (
        optim.adafactor_core(),
        optim.muon_core(),
        optim.cautious(optim.adam_core()),
        optim.flat(optim.adam_core()),
        optim.adamw(1e-3, where=optim.ndim(2)),
        optim.adamw(1e-3, metrics=("layer_norms",)),
        optim.muon(1e-3),
        optim.ema(optim.adamw(1e-3)),
        optax.scale_by_adam(),
    )
    for tx in refused:
        with pytest.raises(ValueError, match=r"optim.flat: .* is not known to be elementwise.*optim.stages\(adam="):
            optim.flat(tx)
    with pytest.raises(ValueError, match=r"optim.flat: 'decay' \(decay\) is not known to be elementwise"):
        optim.flat(optim.adamw(1e-3, where=optim.ndim(2)))
    with pytest.raises(TypeError, match=r"optim.flat: 'tx' must be an optax gradient transformation.*call it"):
        optim.flat(optim.adam_core)
    mixed = {"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16)}
    with pytest.raises(ValueError, match=r"parameters of one vector.*'a' is float32, 'b' is bfloat16.*optim.groups"):
        optim.flat(optim.adam_core()).init(mixed)
    tx, params = optim.flat(optim.adam_core()), {"a": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"gradients of one vector.*'a' is float32, 'b' is bfloat16"):
        tx.update(mixed, tx.init(params), params)
