"""Low-rank adapters in a run: only they learn, checkpoints leave the base out, any beginning is taken or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnn import data, losses, models, optim, parallel, train, tree


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 6)).astype(np.float32)
    source = data.Arrays({"x": x, "y": np.sin(x[:, :2])})
    task = train.supervised(models.MLP((16, 2)), losses.mse)
    base = train.init_state(task, optax.sgd(0.1), source.take(np.arange(4)), strategy=parallel.single()).params
    return task, source, jax.device_get(base)


def spec(base) -> models.LoRA:
    first = next(path for path in tree.leaves_by_path(base) if path.endswith("kernel"))
    return models.LoRA(where=f"{first}$", rank=2)


def adapters_only() -> optax.GradientTransformation:
    return optim.groups(lora=(optim.path("^lora/"), optax.adam(0.05)), base=(optim.otherwise, optim.frozen))


def equal(a, b) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_only_adapters_learn_and_checkpoints_leave_the_base_out(setting, tmp_path):
    task, source, base = setting
    task = train.with_lora(task, spec(base))
    settings = {"batch_size": 8, "seed": 1, "init_from": {"base": base}}
    out = tmp_path / "run"
    run = train.fit(task, adapters_only(), source, steps=12, out=out, save=train.Checkpointing(every=4), **settings)
    equal(run.state.params["base"], base)
    assert run.history[-1]["loss"] < 0.9 * run.history[0]["loss"]
    with run.folder.checkpoints() as checkpoints:
        newest = checkpoints.folder / f"{checkpoints.latest():08d}"
    stored = train.beginning.given("test", newest, ()).params
    assert stored.keys() == {path for path in tree.leaves_by_path(run.state.params) if path.startswith("lora/")}
    # Predictions are those of the merged parameters.
    merged, kept = models.merge_lora(run.state.params["base"], run.state.params["lora"], spec(base))
    got = train.predict(task, run.state, source)
    want = models.MLP((16, 2)).apply({"params": merged}, source.take(np.arange(32))["x"])
    np.testing.assert_allclose(got, want, atol=1e-5)
    equal(models.unmerge_lora(merged, kept), base)
    # In another program the state needs what the run began with, and a longer run goes on to the byte.
    state = train.load_state(out, task, adapters_only(), source, init_from={"base": base})
    equal(state.params, run.state.params)
    longer = train.fit(task, adapters_only(), source, steps=16, out=out, resume=True, **settings)
    straight = train.fit(task, adapters_only(), source, steps=16, **settings)
    equal(longer.state.params, straight.state.params)
    other = jax.tree.map(lambda x: x + 1, base)
    with pytest.raises(ValueError, match="init_from"):
        train.fit(
            task, adapters_only(), source, steps=20, out=out, resume=True, **settings | {"init_from": {"base": other}}
        )


def test_a_run_begins_with_another_ones_parameters(setting, tmp_path):
    task, source, base = setting
    first = train.fit(task, optax.adam(0.01), source, batch_size=8, steps=4, out=tmp_path / "first")
    for init_from in (first, first.state, first.state.params, tmp_path / "first"):
        again = train.fit(task, optax.sgd(0.0), source, batch_size=8, steps=1, init_from=init_from)
        equal(again.state.params, first.state.params)
    # The first run's arrays are still its own.
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(first.state.params)))
    # An entry that is left out is drawn.
    name = sorted(base)[-1]
    part = {k: v for k, v in first.state.params.items() if k != name}
    again = train.fit(task, optax.sgd(0.0), source, batch_size=8, steps=1, init_from=part)
    equal(again.state.params, {**part, name: base[name]})


def test_what_does_not_belong_is_refused(setting, tmp_path):
    task, source, base = setting
    fit = lambda init_from: train.fit(task, optax.sgd(0.1), source, batch_size=8, steps=1, init_from=init_from)  # noqa: E731
    name = sorted(base)[0]
    bad = [
        ({"other": jnp.ones(3)}, r"has 'other' float32\[3\], which the task has not"),
        ({name: {**base[name], "kernel": jnp.ones((2, 2))}}, r"float32\[2, 2\]"),
        ({name: {"kernel": base[name]["kernel"]}}, "lacks '.*bias'"),
        (tmp_path, "holds no config.json"),
    ]
    for init_from, message in bad:
        with pytest.raises(ValueError, match=message):
            fit(init_from)


@pytest.mark.parametrize("wrong", [None, {"rank": 2}, models.LoRA])
def test_no_spec_is_told_when_the_task_is_made(setting, wrong):
    task, _, _ = setting
    with pytest.raises(TypeError, match=r"models\.lora: spec is .*Tried: a LoRA\. Write models\.LoRA"):
        train.with_lora(task, wrong)
    with pytest.raises(TypeError, match=r"train\.with_lora: the first argument must be a Task"):
        train.with_lora(models.MLP((2,)), models.LoRA())


def test_a_loaded_run_has_the_base_that_it_began_with(setting, tmp_path):
    task, source, base = setting
    adapted, tx = train.with_lora(task, spec(base)), adapters_only()
    settings = {"batch_size": 8, "steps": 2, "seed": 7}
    given = train.fit(adapted, tx, source, out=tmp_path / "given", init_from={"base": base}, **settings)
    equal(
        train.load_state(tmp_path / "given", adapted, tx, source, init_from={"base": base}).params, given.state.params
    )
    other = jax.tree.map(lambda x: x + 1, base)
    for init_from, words in ((None, "it is None"), ({"base": other}, "it is another")):
        with pytest.raises(ValueError, match=rf"train\.load_state: init_from: .*{words}.*Give what `fit` was given"):
            train.load_state(tmp_path / "given", adapted, tx, source, init_from=init_from)
    # A base that was drawn is drawn again, by the run's seed.
    drawn = train.fit(adapted, tx, source, out=tmp_path / "drawn", init_from={}, **settings)
    state = train.load_state(tmp_path / "drawn", adapted, tx, source, init_from={})
    equal(state.params, drawn.state.params)
    began = {name: (tmp_path / name / "journal.jsonl").read_text() for name in ("given", "drawn")}
    assert "given parameters" in began["given"]
    assert "init_from" not in began["drawn"]


def test_a_base_at_random_must_be_asked_for(setting, tmp_path):
    """Nothing learns it: adapters of no base, and a folder of adapters, whose checkpoints have none, are refused."""
    task, source, base = setting
    adapted = train.with_lora(task, spec(base))
    fit = lambda init_from, **more: train.fit(  # noqa: E731
        adapted, adapters_only(), source, batch_size=8, steps=1, init_from=init_from, **more
    )
    with pytest.raises(ValueError, match=r"^train\.fit: init_from is None, and 'base'.*random.*init_from=\{'base': "):
        fit(None)
    first = fit({"base": base}, out=tmp_path / "first")
    for only in (tmp_path / "first", {"lora": first.state.params["lora"]}):
        with pytest.raises(ValueError, match=r"init_from has \['lora'\] alone, and 'base'.*'base': params\} beside"):
            fit(only)
    again = fit(first)
    equal(again.state.params["base"], base)
    drawn = fit({}, seed=3)
    assert np.abs(np.asarray(jax.tree.leaves(drawn.state.params["base"])[1]) - jax.tree.leaves(base)[1]).max() > 0


def test_parameters_of_the_base_alone_are_told_where_they_belong(setting):
    task, source, base = setting
    adapted = train.with_lora(task, spec(base))
    with pytest.raises(ValueError, match=r"They fit below 'base'. Write init_from=\{'base': \.\.\.\}"):
        train.fit(adapted, adapters_only(), source, batch_size=8, steps=1, init_from=base)
