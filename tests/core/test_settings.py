"""The settings of a step: what they refuse, and what the backward pass stores under each rematerialisation policy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import core, cost, losses, models, optim, parallel, tree
from jaxnn.core.settings import REMAT, check_accumulates
from jaxnn.core.state import complete
from jaxnn.core.step import make_grad_fn, make_step

CONFIG = models.GPTConfig(vocab=16, length=64, layers=4, heads=2, width=32, dropout=0.1)
TOKENS = np.random.default_rng(0).integers(0, 16, (8, 65)).astype(np.int32)
BATCH = complete({"x": TOKENS[:, :-1], "y": TOKENS[:, 1:]})


@functools.cache
def task(kind="gpt"):
    if kind == "mlp":
        return core.supervised(models.MLP((64, 64, 64, 1), dropout=0.1, activation=jnp.sin), losses.mse)
    return core.supervised(models.GPT(dataclasses.replace(CONFIG, scan=kind == "scanned")), losses.cross_entropy)


MLP_BATCH = complete({"x": np.ones((64, 8), np.float32), "y": np.ones((64, 1), np.float32)})


def stored(kind, remat):
    """Bytes that the forward pass stores for the backward pass, whatever the compiler makes of it."""
    batch = MLP_BATCH if kind == "mlp" else BATCH
    loss = core.Step(remat=remat).loss_of(task(kind))
    params, state = jax.eval_shape(task(kind).init, jax.random.key(0), batch)
    pull = jax.eval_shape(
        lambda p: jax.vjp(lambda p: loss(p, state, batch, jax.random.key(1), True).total, p)[1], params
    )
    return tree.nbytes(pull)


@pytest.mark.parametrize("kind", ["gpt", "scanned"])
def test_each_policy_stores_less_than_the_one_before(kind):
    sizes = [stored(kind, remat) for remat in ("none", "dots", "projections", "block")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4
    assert sizes[-1] < sizes[0] / 3


def test_a_whole_loss_computed_anew_stores_its_products_alone():
    assert stored("mlp", "full") < 0.7 * stored("mlp", "none")


@functools.cache
def gradients(kind, remat):
    """Compiled gradients, and the bytes of temporaries in them."""
    batch = MLP_BATCH if kind == "mlp" else BATCH
    params, state = jax.jit(task(kind).init)(jax.random.key(0), batch)
    fn = jax.jit(make_grad_fn(task(kind), core.Step(remat=remat)))
    compiled = fn.lower(params, state, batch, jax.random.key(1)).compile()
    return compiled(params, state, batch, jax.random.key(1))[0], cost.memory(compiled).temporaries


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "remat"),
    [("scanned", "block"), ("scanned", "dots"), ("scanned", "projections"), ("gpt", "block"), ("mlp", "full")],
)
def test_what_is_computed_anew_has_the_same_gradients(kind, remat):
    """And in a scan over layers less memory on every backend. XLA:CPU undoes it elsewhere: it computes equal things
    once."""
    plain, most = gradients(kind, "none")
    anew, less = gradients(kind, remat)
    for path, leaf in tree.leaves_by_path(plain).items():
        np.testing.assert_allclose(tree.leaves_by_path(anew)[path], leaf, rtol=1e-5, atol=1e-6, err_msg=path)
    if kind == "scanned":
        assert less < 0.6 * most


def test_a_policy_that_reaches_no_layer_is_refused():
    batch = MLP_BATCH
    state = core.init_state(task("mlp"), optax.sgd(0.1), batch, strategy=parallel.single())
    step = make_step(task("mlp"), optax.sgd(0.1), parallel.single(), core.Step(remat="block"))
    with pytest.raises(ValueError, match=r"remat='block' is for repeated layers.*models\.layer.*remat='full'"):
        jax.eval_shape(step, state, batch)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"accumulate": 0}, ValueError, r"train\.Step: accumulate=0.*at least 1"),
        ({"accumulate": 2.0}, TypeError, r"accumulate=2\.0 is no whole number"),
        ({"remat": "blocks"}, ValueError, r"remat='blocks' is unknown\. Tried: none, block, dots, projections, full"),
        ({"nonfinite": "ignore"}, ValueError, r"nonfinite='ignore' is unknown\. Tried: stop, skip"),
    ],
)
def test_unknown_settings_are_refused(given, error, match):
    with pytest.raises(error, match=match):
        core.Step(**given)


def test_micro_batches_that_do_not_divide_are_refused(count_compiles):
    with pytest.raises(ValueError, match=r"accumulate=4 .* 6 examples a device \(48 over 8\).*of 32: 64"):
        check_accumulates(48, 8, core.Step(accumulate=4), "train.fit")
    state = core.init_state(task(), optax.sgd(0.1), BATCH, strategy=parallel.single())
    step = core.make_train_step(task(), optax.sgd(0.1), strategy=parallel.single(), step=core.Step(accumulate=3))
    with (
        count_compiles() as seen,
        pytest.raises(ValueError, match=r"train\.make_train_step: accumulate=3.* 8 examples"),
    ):
        step(state, BATCH)
    assert seen.compiles == []


def test_what_is_recorded_is_what_is_not_the_default():
    assert core.Step().facts() == {}
    assert core.Step(accumulate=2, remat="full").facts() == {"accumulate": 2, "remat": "full"}
    given = core.Step(precision=core.Precision(products="float16"))
    assert given.facts() == {"precision": {"compute": None, "products": "float16", "scaled": False}}
    assert "full" in REMAT


def test_a_line_search_sees_the_objective_of_all_micro_batches():
    seen = []

    def update(updates, state, params=None, *, value, value_fn, **extra):
        seen.append(None)
        return jax.tree.map(lambda g: 0 * g, updates), {"value": value, "again": value_fn(params)}

    zero = jnp.zeros((), jnp.float32)
    tx = optax.GradientTransformationExtraArgs(lambda params: {"value": zero, "again": zero}, update)
    state = core.init_state(task("mlp"), tx, MLP_BATCH, strategy=parallel.single())
    step = core.make_train_step(task("mlp"), tx, strategy=parallel.single(), step=core.Step(accumulate=4))
    state, _ = step(state, MLP_BATCH)
    assert seen
    np.testing.assert_allclose(state.opt_state["again"], state.opt_state["value"], rtol=1e-6)
    assert float(state.opt_state["value"]) > 0.1


def test_an_average_is_kept_and_evaluated_beside_a_loss_scale():
    settings = core.Step(precision="float16")
    tx = settings.optimizer(optim.ema(optim.sgd(0.1), 0.5))
    state = tx.init({"w": jnp.zeros(2)})
    updates, state = tx.update({"w": jnp.full(2, 2.0**15)}, state, {"w": jnp.ones(2)})
    np.testing.assert_allclose(updates["w"], -0.1)
    np.testing.assert_allclose(optim.eval_params(state, {"w": jnp.zeros(2)})["w"], 0.9)
