"""An update in small programs is the update in one: results, donation, how many programs there are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import optim, tree

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


PARAMS = {f"block_{i}": {"kernel": normal(8, 12), "bias": normal(12)} for i in range(4)} | {"scale": normal()}
GRADS = [jax.tree.map(lambda p, s=s: s * jnp.cos(7 * p), PARAMS) for s in (3.0, 0.01, -1.0)]

clipped = optim.stages(
    clip=optim.clip_by_global_norm(1.0),
    adam=optim.adamw_core(),
    decay=optim.decay(0.1, where=optim.path("kernel"), coupling="schedule"),
    lr=optim.scale_by_lr(optim.cosine(1e-2, 10)),
    metrics=("lr", "norms", "clip"),
)
CASES = {
    "adamw": optim.adamw(1e-2),
    "clip, masked decay, schedule, metrics": clipped,
    "groups": optim.muon(1e-2),
    "norms of layers": optim.lamb(1e-2),
    "eight bits": optim.with_state_dtype(optim.adamw(1e-2), optim.q8),
    "skip": optim.skip_nonfinite(optim.adamw(1e-2)),
    "averages": optim.ema(optim.sgd(1e-2, momentum=0.9)),
    "one number of all": optim.prodigy(),
    "optax": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
}


def copied(values):
    return jax.tree.map(jnp.copy, values)


def whole(tx):
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optim.apply_updates(params, updates), state

    return jax.jit(step)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_update_in_one_program(name):
    tx = CASES[name]
    chunked, one = optim.chunked_step(tx, size=3), whole(tx)
    mine = theirs = (PARAMS, tx.init(PARAMS))
    mine = copied(mine)
    for grads in GRADS:
        mine, theirs = chunked(*mine, grads), one(*theirs, grads)
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    loose = name == "eight bits"  # an ulp before rounding may be a code after it
    for (path, a), b in zip(tree.leaves_by_path(mine).items(), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), path
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if not loose or path.startswith("0/"):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-3 if loose else 1e-6, err_msg=path)


def test_equal_leaves_share_a_program_and_nothing_compiles_again():
    params = {f"layer_{i:02}": normal(4, 4) for i in range(40)}
    step = optim.chunked_step(optim.adamw(1e-2), size=8)
    state = step.init(params)
    grads = copied(params)
    for _ in range(3):
        params, state = step(params, state, grads)
        state = optim.set_hyper(state, lr=float(optim.hyper(state)["lr"]) / 2)
    assert step.programs == 2  # five times eight leaves, and the common scalars
    assert int(optim.get(state, "adam.hyper.count")) == 3
    assert float(optim.metrics(state)["lr"]) == pytest.approx(1e-2 / 4)


def test_a_chain_of_sums_is_one_program():
    params = {f"layer_{i:02}": normal(4, 4) for i in range(40)}
    step = optim.chunked_step(clipped, size=8)
    step(params, step.init({**params}), copied(params))
    assert step.programs <= 9  # the first leaf's sum, which begins with 0, is another program


def test_what_is_given_is_overwritten_but_for_the_gradients():
    params, tx = {"a": normal(4, 4), "b": normal(4, 4)}, optim.adamw(1e-2)
    for donate in (True, False):
        given = copied(params)
        grads, state = copied(params), tx.init(given)
        optim.chunked_step(tx, donate=donate)(given, state, grads)
        gone = [x.is_deleted() for x in jax.tree.leaves((given, optim.get(state, "mu"), optim.get(state, "nu")))]
        assert gone == [donate] * 6
        assert not any(x.is_deleted() for x in jax.tree.leaves(grads))


def test_the_order_of_the_parameters_in_the_state_does_not_matter():
    """Leaves belong to a parameter by path; different parameters of one shape keep apart."""
    params = {f"p{i}": jnp.full((3,), float(i)) for i in range(12)}
    step = optim.chunked_step(optim.sgd(1.0), size=5)
    moved, _ = step(copied(params), step.init(params), {f"p{i}": jnp.full((3,), 0.5 * i) for i in range(12)})
    for i in range(12):
        np.testing.assert_allclose(moved[f"p{i}"], 0.5 * i)


def test_constants_and_repeated_results_are_arrays_of_their_own():
    """A result that is a number, a given gradient, or another result can be donated in the next step."""

    def update(grads, state, params=None):
        del state, params
        return grads, {"one": jnp.ones(()), "last": grads, "again": grads}

    tx = optax.GradientTransformation(lambda p: {"one": jnp.ones(()), "last": p, "again": copied(p)}, update)
    step = optim.chunked_step(tx)
    params, grads = {"w": normal(4)}, {"w": normal(4)}
    state = step.init(copied(params))
    for _ in range(3):
        params, state = step(params, state, grads)
    np.testing.assert_array_equal(state["again"]["w"], grads["w"])


def test_inside_a_program_it_is_the_plain_update():
    tx = optim.adamw(1e-2)
    step = optim.chunked_step(tx)
    a = jax.jit(step)(PARAMS, tx.init(PARAMS), GRADS[0])[0]
    b = whole(tx)(PARAMS, tx.init(PARAMS), GRADS[0])[0]
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert step.programs == 0


def test_bad_input():
    with pytest.raises(TypeError, match=r"optim.chunked_step: size is 2.5"):
        optim.chunked_step(optim.adamw(1e-2), 2.5)
    with pytest.raises(ValueError, match="at least 1"):
        optim.chunked_step(optim.adamw(1e-2), 0)
    with pytest.raises(TypeError, match="optax gradient transformation"):
        optim.chunked_step(optim.adamw)
    tx = optax.stateless(lambda u, p: (jax.debug.print("{}", u["w"][0]), u)[1])
    step = optim.chunked_step(tx)
    params = {"w": normal(4)}
    with pytest.raises(ValueError, match="effects"):
        step(params, step.init(params), params)
    step = optim.chunked_step(optim.adamw(1e-2))
    with pytest.raises(ValueError, match="gradients and parameters differ"):
        step(params, step.init(params), {"v": normal(4)})
