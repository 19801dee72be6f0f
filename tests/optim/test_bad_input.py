"""What does not fit is refused before anything is compiled, by name, and with what to write instead."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxnn import optim

PARAMS = {"mlp": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones((4,))}, "embedding": jnp.ones((6, 4))}
ADAM = optim.adam_core()
SUM = optim.accumulate(optim.sgd(1.0), 2)


def grouped(**named):
    return optim.groups(**named).init(PARAMS)


def test_a_group_that_matches_nothing():
    """optax #993: a label or a mask that matches nothing is silent."""
    with pytest.raises(
        ValueError, match=r"group 'head' = path\('head'\) matches no leaf of .*mlp/kernel.*leave the gr"
    ):
        grouped(head=(optim.path("head"), ADAM), rest=(optim.otherwise, ADAM))


def test_a_leaf_that_matches_two_groups():
    with pytest.raises(ValueError, match=r"leaf 'mlp/kernel' \(8, 4\).*matches \['a', 'b'\].*b=\(.*& ~"):
        grouped(a=(optim.path("mlp"), ADAM), b=(optim.ndim(2), ADAM), c=(optim.otherwise, ADAM))


def test_a_leaf_that_matches_none():
    """optax #159, #271, #1148: what no mask covers passes through as a raw gradient."""
    with pytest.raises(ValueError, match=r"leaf 'mlp/bias' \(4,\).*matches no group.*Add NAME=\(optim.otherwise"):
        grouped(a=(optim.ndim(2), ADAM))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.adamw(-1e-3), r"optim.scale_by_lr: lr is -0.001. Give a number >= 0"),
        (lambda: optim.adamw(1e-3, b2=1.0), r"optim.adam: b2 is 1. Give a number in \[0, 1\)"),
        (lambda: optim.adamw(1e-3, weight_decay=-0.1), r"optim.decay: weight_decay is -0.1"),
        (lambda: optim.adamw(float("nan")), r"lr is nan"),
        (lambda: optim.adam(lambda step: -1.0), r"the schedule of lr at step 0 is -1"),
        (lambda: optim.clip_by_global_norm(0), r"max_norm is 0. Give a number > 0"),
        (
            lambda: optim.mars_core(optim.muon_core()),
            r"muon has no hyperparameter b1 of its own. Give mars_core\(tx, b1",
        ),
    ],
)
def test_a_value_that_makes_no_sense(make, message):
    """optax takes a negative rate and b2 = 1, and trains the wrong way or divides by 0."""
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.ndim("2"), r"optim.ndim: '2' is no rank. Give whole numbers"),
        (lambda: optim.ndim(), r"optim.ndim: no rank"),
        (lambda: optim.path(None), r"optim.path: None is no regular expression"),
        (lambda: optim.role("matrix") & (lambda leaf: True), r"optim: <function .* is no predicate. Write optim.role"),
        (lambda: optim.ndim(2) | "head", r"optim: 'head' is no predicate. Write optim.role"),
        (lambda: SUM.add(PARAMS, SUM.init(PARAMS), jnp.ones(3)), r"optim.accumulate: weight has the shape \(3,\)"),
    ],
)
def test_predicates_and_weights_of_the_wrong_kind(make, message):
    """A rank that is text matched nothing, silently; the others were Python's errors."""
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_an_unknown_hyperparameter():
    """optax: an unknown key of inject_hyperparams' dictionary is added, and nothing reads it."""
    state = optim.adamw(1e-3).init(PARAMS)
    with pytest.raises(ValueError, match=r"no hyperparameter 'learning_rate'. There are .*adam.b1"):
        optim.set_hyper(state, learning_rate=1e-4)
    with pytest.raises(TypeError, match="b3"):
        optim.adamw(1e-3, b3=0.9)


@pytest.mark.parametrize(
    ("make", "name", "value", "domain"),
    [
        (lambda: optim.adamw(1e-3), "lr", -1.0, ">= 0"),
        (lambda: optim.adam(optim.constant(1e-3)), "lr_multiplier", -1.0, ">= 0"),
        (
            lambda: optim.groups(a=optim.group(optim.ndim(2), ADAM, lr=0.5), b=(optim.otherwise, ADAM)),
            "a_lr",
            -1.0,
            ">= 0",
        ),
        (lambda: optim.mars(1e-3), "gamma", -5.0, ">= 0"),
        (lambda: optim.lars(1e-3), "trust", -5.0, "> 0"),
        (lambda: optim.lookahead(ADAM), "alpha", 7.0, r"in \[0, 1\]"),
        (lambda: optim.sgd(1e-3, 0.9), "dampening", 7.0, r"in \[0, 1\]"),
        (lambda: optim.sam(ADAM), "rho", -1.0, ">= 0"),
        (lambda: optim.normuon_core(), "rms", -1.0, ">= 0"),
        (lambda: optim.tail_average(ADAM, 3), "start", -1.0, ">= 0"),
        (lambda: optim.ema(optim.adam(1e-3)), "decay", 2.0, r"in \[0, 1\)"),
    ],
)
def test_a_value_that_could_not_have_been_built_cannot_be_set(make, name, value, domain):
    """optax: inject_hyperparams takes any value for any key. Nor may a population have such a member."""
    state = make().init({"w": jnp.ones((4, 3)), "v": jnp.ones((3, 3))})
    with pytest.raises(ValueError, match=rf"optim.set_hyper: {name} is {value:g}. Give a number {domain}"):
        optim.set_hyper(state, **{name: value})
    with pytest.raises(ValueError, match=rf"optim.set_hyper: {name} is {value:g}. Give a number {domain}"):
        optim.set_hyper(jax.tree.map(lambda x: jnp.stack([x, x]), state), **{name: jnp.asarray([0.5, value])})
    with pytest.raises(ValueError, match=rf"{name} is {value:g}. Give a number {domain}"):
        jax.eval_shape(lambda s: optim.members(**{name: [0.5, value]}).spread(s), state)


def test_a_value_that_could_have_been_built_can_be_set():
    """Shampoo's b2 may be 1, where its statistics are sums; Adam's may not."""
    state = optim.stages(s=optim.shampoo_core(b2=1.0, graft=None)).init({"w": jnp.ones((3, 2))})
    assert float(optim.hyper(optim.set_hyper(state, b2=1.0))["b2"]) == 1.0
    spread = optim.grid(b2=[0.5, 1.0]).spread(state)
    assert optim.hyper(spread)["b2"].tolist() == [0.5, 1.0]
    with pytest.raises(ValueError, match=r"b2 is 1. Give a number in \[0, 1\)"):
        optim.grid(b2=[0.5, 1.0]).spread(optim.adam(1e-3).init(PARAMS))
    with pytest.raises(ValueError, match=r"optim.grid: lr is -0.001. Give a number >= 0"):
        optim.grid(lr=[1e-3, -1e-3])
    with pytest.raises(TypeError, match=r"metrics must be a tuple of names, got None"):
        optim.adam(1e-3, metrics=None)
    with pytest.raises(ValueError, match=r"optim.stochastic_rounding: seed is 1.5. Give a whole number, 0 or more"):
        optim.stochastic_rounding(optim.adam(1e-3), seed=1.5)
    with pytest.raises(ValueError, match=r"optim.loss_scale: period is 2.5. Give a whole number, 1 or more"):
        optim.loss_scale(optim.adam(1e-3), period=2.5)
    for make in (optim.grid, optim.members):
        with pytest.raises(
            TypeError, match=rf"optim.{make.__name__}: lr must be a sequence of numbers, got 0.1. Write"
        ):
            make(lr=0.1)


def test_a_mask_of_the_wrong_structure():
    """optax #1007: masks are trees that nothing checks against the parameters."""
    mask = {"mlp": {"kernel": True}, "embedding": False}
    tx = optim.stages(decay=optim.decay(0.1, where=optim.by_mask(mask)), lr=optim.scale_by_lr(1.0))
    with pytest.raises(
        ValueError, match=r"leaf 'mlp/bias' \(4,\) has no entry in the mask, which has embedding, mlp/k"
    ):
        tx.init(PARAMS)
    with pytest.raises(TypeError, match=r"entry 'a' is 1. Give a tree of bools"):
        optim.by_mask({"a": 1})
    with pytest.raises(TypeError, match=r"is no predicate. Write optim.role"):
        optim.decay(0.1, where=mask)
    tx = optim.stages(adam=optax.masked(optax.scale_by_adam(), mask), lr=optim.scale_by_lr(1.0))
    with pytest.raises(
        ValueError,
        match=r"optim.stable: optax.masked fails on the parameters \['embedding', .*differs in .*bias.*Give one of",
    ):
        tx.init(PARAMS)


@pytest.mark.parametrize(
    "make",
    [
        lambda mask: optim.decay(0.1, where=mask),
        lambda mask: optim.decay(0.1, where=optim.ndim(2) & ~mask),
        lambda mask: optim.groups(a=(mask, ADAM), rest=(optim.otherwise, ADAM)),
        lambda mask: optim.hyperball(mask),
        lambda mask: optim.lars(1e-3, where=mask),
        lambda mask: optim.lamb(1e-3, where=mask),
    ],
    ids=["decay", "combined", "groups", "hyperball", "lars", "lamb"],
)
def test_a_mask_of_other_parameters(make):
    """Entries that no parameter has: a typing error, or another model's mask; seen at init, not at the first step."""
    mask = {"mlp": {"kernel": True, "bias": False}, "embedding": False, "haed": {"kernel": True}}
    with pytest.raises(
        ValueError, match=r"optim.*by_mask.* has entries for haed/kernel, .*embedding, mlp/bias, mlp/ker"
    ):
        make(optim.by_mask(mask)).init(PARAMS)
    with pytest.raises(ValueError, match=r"optim.*by_mask.*: leaf 'mlp/bias' \(4,\) has no entry in the mask"):
        make(optim.by_mask({"mlp": {"kernel": True}, "embedding": False})).init(PARAMS)


def test_a_mask_of_all_parameters_goes_inside_a_group():
    mask = optim.by_mask({"mlp": {"kernel": True, "bias": False}, "embedding": True})
    shrinking = optim.stages(adam=ADAM, decay=optim.decay(0.5, where=mask), lr=optim.scale_by_lr(1.0))
    tx = optim.groups(mlp=(optim.path("mlp"), shrinking), rest=(optim.otherwise, optim.sgd(0.1)))
    assert tx.init(PARAMS).groups.keys() == {"mlp", "rest"}


def test_a_mask_of_the_right_structure():
    mask = {"mlp": {"kernel": True, "bias": False}, "embedding": False}
    tx = optim.stages(decay=optim.decay(0.5, where=optim.by_mask(mask)), lr=optim.scale_by_lr(1.0))
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
    assert float(updates["mlp"]["kernel"][0, 0]) == -0.5
    assert float(updates["embedding"][0, 0]) == 0
    assert repr(optim.by_mask(mask)) == "by_mask(1 of 3)"


def test_integer_leaves():
    with pytest.raises(TypeError, match=r"leaf 'steps' int32\[3\] is not floating.*model state"):
        optim.adamw(1e-3).init({"w": jnp.ones(3), "steps": jnp.ones(3, jnp.int32)})


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        ({"embedding": PARAMS["embedding"]}, r"mlp/bias: .* is only in the second"),
        (PARAMS | {"embedding": jnp.ones((4, 6))}, r"embedding: float32\[4, 6\] against float32\[6, 4\]"),
    ],
)
def test_gradients_that_do_not_fit(grads, message):
    tx = optim.adamw(1e-3)
    with pytest.raises(ValueError, match=message):
        tx.update(grads, tx.init(PARAMS), PARAMS)


def test_what_is_no_transformation():
    with pytest.raises(TypeError, match=r"'adam' must be an optax gradient transformation.*It is a function: call it"):
        optim.stages(adam=optim.adam_core)
    with pytest.raises(ValueError, match=r"no metric 'norm'.*Did you mean 'norms'"):
        optim.stages(adam=ADAM, metrics=("norm",))


@pytest.mark.parametrize("leaf", [jnp.zeros((0, 4)), jnp.ones((3,), jnp.complex64), jnp.ones(())])
def test_odd_leaves_work(leaf):
    """Empty, complex and scalar leaves go through everything that wraps an optimizer."""
    params = {"odd": leaf, "w": jnp.ones((16, 8))}
    chain = optim.stages(clip=optim.clip_by_global_norm(1.0), adam=optim.adam_core(), lr=optim.scale_by_lr(1e-2))
    wrappers = [
        optim.skip_nonfinite,
        optim.loss_scale,
        optim.master_weights,
        optim.stochastic_rounding,
        lambda tx: optim.accumulate(tx, 1),
        lambda tx: optim.with_state_dtype(tx, optim.q8),
        lambda tx: optim.with_state_dtype(tx, jnp.bfloat16),
    ]
    for wrap in (*wrappers, lambda tx: optim.batched(optim.adam_core())):
        tx = wrap(chain)
        state = jax.jit(tx.init)(params)
        updates, new = jax.jit(tx.update)(params, state, params)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        moved = optim.apply_updates(params, updates)
        assert moved["odd"].shape == leaf.shape
        assert moved["odd"].dtype == leaf.dtype
        assert bool(jnp.isfinite(moved["odd"]).all())
        optim.summary(tx, params)
        optim.state_specs(tx, params, zero_axis="data", mesh={"data": 8})
