"""What a run begins with: others' parameters, and the statistics of BatchNorm that belong to them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import data, losses, models, train

NET = models.CNN((2,), (), 3, batch_norm=True)
QUIET = {"batch_size": 8, "log": train.Log(progress=False)}


def equal(a, b) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def fit(init_from, **changes):
    """A step of rate 0: only statistics move."""
    settings = {"steps": 1, "init_from": init_from} | QUIET | changes
    return train.fit(TASK, optax.sgd(0.0), source(), **settings)


def source() -> data.Arrays:
    x = np.random.default_rng(0).normal(3.0, 2.0, (16, 6, 6, 1)).astype(np.float32)
    return data.Arrays(x, np.arange(16) % 3)


TASK = train.supervised(NET, losses.cross_entropy)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return train.fit(TASK, optax.adam(0.01), source(), steps=6, out=tmp_path_factory.mktemp("runs") / "first", **QUIET)


@pytest.fixture(scope="module")
def drawn(first):
    """After a step from the parameters alone."""
    return fit(first.state.params).state


@pytest.mark.parametrize("kind", ["run", "state", "folder", "variables"])
def test_statistics_come_with_the_parameters(first, drawn, kind):
    state = first.state
    variables = {"params": state.params, **state.model_state}
    given = {"run": first, "state": state, "folder": first.folder.path, "variables": variables}[kind]
    again = fit(given)
    equal(again.state.params, state.params)
    # One step from theirs is near them; one from the initialiser's 0 and 1 is not.
    theirs, now, fresh = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(s.model_state)]) for s in (state, again.state, drawn)
    )
    assert np.abs(now - theirs).max() < 0.5 * np.abs(fresh - theirs).max()
    scores = [train.evaluate(TASK, s, source())["loss"] for s in (state, again.state)]
    assert abs(scores[0] - scores[1]) < 0.2


def test_statistics_that_are_not_the_tasks_are_refused(first):
    state = first.state
    (name,) = state.model_state["batch_stats"]
    others = {"batch_stats": {name: {"mean": jnp.zeros(5), "var": jnp.ones(5)}}}
    bad = [
        (others, rf"init_from has 'batch_stats/{name}/mean' float32\[5\]\. Tried: float32\[2\]"),
        ({"batch_stats": {"other": {"mean": jnp.zeros(2)}}}, "has 'batch_stats/other/mean' .*which the task has not"),
        ({"batch_stats": {name: {"mean": jnp.zeros(2)}}}, rf"lacks 'batch_stats/{name}/var'"),
    ]
    for more, message in bad:
        with pytest.raises(ValueError, match=message):
            fit({"params": state.params, **more})
    with pytest.raises(ValueError, match=r"which the task has not.*Give its parameters alone"):
        fit(state._replace(model_state={"others": {"a": jnp.zeros(2)}}))


def test_a_folder_of_weights_is_told_how_it_is_read(first, tmp_path):
    folder = tmp_path / "weights"
    vit = models.ViT(models.ViTConfig(image=8, patch=4, layers=1, heads=2, width=8, classes=2))
    models.save(vit, jax.jit(vit.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3))), folder)
    with pytest.raises(ValueError, match=r"holds no good checkpoint.*init_from=models\.load\(folder\)\[1\]"):
        fit(folder)
