"""Two rates on one way through an optimizer, or one on some of its ways only: refused where it can be known."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxnn import optim
from jaxnn.optim.compose.probe import descends
from jaxnn.optim.registry import OPTIMIZERS

PARAMS = {"mlp": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones((4,))}, "embedding": jnp.ones((6, 4))}
ADAM = optim.adam_core()
RATE = optim.scale_by_lr(1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.stages(adam=optim.adam(1e-3), lr=RATE), r"'adam.lr' has a rate, and so has 'lr': each.*climb"),
        (
            lambda: optim.stages(g=optim.groups(a=(optim.otherwise, optim.ema(optim.adam(1e-3)))), lr=RATE),
            r"'g.a.inner.lr' has a rate, and so has 'lr'",
        ),
        (
            lambda: optim.groups(a=(optim.ndim(2), optim.adam(1e-3)), b=(optim.otherwise, ADAM)),
            r"group 'a' has a rate, 'lr', and group 'b' has none: with a rate around both 'a' would climb",
        ),
        (
            lambda: optim.groups(a=optim.group(optim.otherwise, optim.adam(1e-3), lr=0.1)),
            r"group 'a' has lr=0.1, which multiplies the rate of the optim.stages around",
        ),
        (
            lambda: optim.groups(a=optim.group(optim.otherwise, optim.lamb_core(weight_decay=0.1), decay=0.0)),
            r"group 'a' has decay=0.0, which multiplies stages.*the weight_decay of 'lamb' is part of its rule",
        ),
        (
            lambda: optim.groups(
                a=optim.group(optim.otherwise, optim.schedule_free_radam(1.0, weight_decay=0.1), decay=0.0)
            ),
            r"the weight_decay of 'rectified_adam' is part of its rule",
        ),
        (
            lambda: optim.stages(a=optim.stages(b=ADAM, d=optim.decay(0.1, coupling="schedule")), lr=RATE),
            r"'a.d' is to come after the rate, 'lr', and within 'a' it.*the parameters grow. Put it beside the rate",
        ),
        (
            lambda: optim.stages(g=optim.groups(a=(optim.otherwise, optim.decay(0.1, coupling="none"))), lr=RATE),
            r"'g.a' is to come after the rate, 'lr', and within 'g'",
        ),
    ],
)
def test_two_rates_on_one_way_or_one_on_some(make, message):
    """optax trains uphill: `chain(adam(1e-3), scale_by_learning_rate(1e-3))` turns the sign round twice, silently."""
    with pytest.raises(ValueError, match=message):
        make()
    theirs = optax.chain(optax.sgd(1.0), optax.scale_by_learning_rate(1.0))
    assert float(theirs.update(PARAMS, theirs.init(PARAMS))[0]["mlp"]["bias"][0]) == 1.0


WARMED = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: optim.stages(
                g=optim.groups(a=(optim.ndim(2), ADAM), b=(optim.otherwise, optax.adamw(WARMED))), lr=RATE
            ),
            r"'g.b' \(optax.chain: tried on a gradient, its updates point down it\) has a rate, and so has 'lr'.*"
            r"optax.scale_by_adam\(\) for.*on purpose, say so: optim.stateless",
        ),
        (
            lambda: optim.stages(clip=optax.clip_by_global_norm(1.0), a=optax.sgd(0.1), lr=optax.scale(-0.1)),
            r"'a' \(optax.chain: .* has a rate, and so has 'lr' \(optax.*: ",
        ),
        (
            lambda: optim.groups(a=(optim.ndim(2), optax.sgd(0.1)), b=(optim.otherwise, ADAM)),
            r"group 'a' has a rate, 'a' \(optax.*, and group 'b' has none: with a rate around both 'a' would climb",
        ),
        (
            lambda: optim.groups(a=optim.group(optim.otherwise, optax.sgd(0.1), lr=0.1)),
            r"group 'a' has lr=0.1, which multiplies the rate of the optim.stages around",
        ),
    ],
)
def test_a_rate_that_optax_hides_is_found_by_a_trial(make, message):
    """At init, abstract too: building an optimizer must not start the backend."""
    tx = make()
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(tx.init, PARAMS)


@pytest.mark.parametrize(
    ("tx", "found"),
    [
        (optax.adamw(1e-3, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)), True),
        (optax.chain(optax.add_noise(10.0, 0.55, 0), optax.sgd(0.1)), True),
        (optax.chain(optax.trace(0.9), optax.add_decayed_weights(10.0)), False),
        (optax.scale(-1.0), False),  # somebody maximizes
        (optax.set_to_zero(), False),
        (optax.masked(optax.sgd(0.1), lambda p: {name: name == "mlp" for name in p}), False),  # of other parameters
        (optax.scale_by_zoom_linesearch(5), False),  # wants the objective
        (optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)), False),
    ],
    ids=["decay", "noise", "core", "maximize", "zero", "masked", "search", "ascent"],
)
def test_what_a_trial_finds(tx, found):
    assert descends(optim.stable(tx)) == found


def test_climbing_on_purpose_is_said():
    """An adversary's parameters climb; and where nothing tells that two rates meet, nothing is refused."""
    up = optim.stateless(lambda u, p: jax.tree.map(jnp.negative, u), "climb", descends=False)
    adversary = optim.stages(adam=optax.scale_by_sign(), climb=up)
    tx = optim.stages(g=optim.groups(a=(optim.ndim(2), ADAM), b=(optim.otherwise, adversary)), lr=RATE)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert float(updates["mlp"]["bias"][0]) > 0
    unseen = optim.stages(a=optax.masked(optax.sgd(0.1), {"mlp": True, "embedding": True}), lr=RATE)
    unseen.init(PARAMS)


def test_a_rate_that_is_traced_is_not_tried():
    def init(lr):
        return optim.stages(a=optax.scale(-lr), lr=RATE).init(PARAMS)

    jax.eval_shape(jax.vmap(init), jnp.ones(3))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_ready_made_form_is_known_to_descend(name):
    entry = OPTIMIZERS[name]
    with pytest.raises(ValueError, match=r"has a rate, and so has 'lr'"):
        optim.stages(whole=entry.make(entry.lr), lr=RATE)


def test_rates_that_do_not_meet_are_no_error():
    """Whole optimizers beside each other, beside what is frozen, and beside what optax does not show."""
    for other in (optim.sgd(0.1), optim.frozen, optax.sgd(0.1)):
        tx = optim.groups(a=(optim.ndim(2), optim.adam(1e-3)), b=(optim.otherwise, other))
        updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
        assert float(updates["embedding"][0, 0]) < 0
        assert float(updates["mlp"]["bias"][0]) <= 0


def test_a_rate_is_seen_through_stages():
    tx = optim.stages(whole=optim.sgd(0.5, metrics=()), decay=optim.decay(0.1, coupling="none"), metrics=("lr",))
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert float(optim.metrics(state)["lr"]) == 0.5
