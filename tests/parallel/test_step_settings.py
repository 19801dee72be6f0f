"""What a step does besides the gradient, under every strategy and together: micro-batches, precision, what the backward
pass computes anew, averages, and steps that are left out."""

import functools

import jax
import numpy as np
import optax
import pytest

from jaxnn import core, optim, tree
from jaxnn.core.step import make_step
from tests.parallel.cases import BATCH, EXAMPLES, STEPS, Trained, case, compiled_chunk, rows, start, train
from tests.parallel.strategies import EVERY
from tests.parallel.test_hlo import collectives

QUICK = ("zero3",)  # of the default tests; `make test-all` goes through all
SOME = 12  # steps, among them ragged ones, ones of empty devices, and one without examples
SGD = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1, momentum=0.9))


def everywhere(quick=QUICK):
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in EVERY]


@functools.cache
def trained(name: str, strategy: str, settings: core.Step, devices: int | None = None) -> Trained:
    return train(name, SGD, EVERY[strategy](name, devices), settings, SOME)


def assert_close(one: Trained, other: Trained, atol: float) -> None:
    np.testing.assert_allclose(other.weights, one.weights, rtol=1e-6)
    np.testing.assert_allclose(other.losses, one.losses, atol=atol)
    ours = tree.leaves_by_path((one.state.params, one.state.model_state))
    theirs = tree.leaves_by_path((other.state.params, other.state.model_state))
    for path, leaf in ours.items():
        np.testing.assert_allclose(np.array(theirs[path]), np.array(leaf), atol=atol, err_msg=path)


# ---- micro-batches


@pytest.mark.parametrize("strategy", everywhere())
@pytest.mark.parametrize("name", ["mlp", pytest.param("gpt", marks=pytest.mark.slow)])
def test_micro_batches_give_the_numbers_of_the_whole_batch(name, strategy, devices8):
    """With dropout, an L2 penalty, token weights, ragged and empty micro-batches: three of an example a device."""
    whole = trained(name, "single", core.Step())
    assert_close(whole, trained(name, strategy, core.Step(accumulate=3)), 1e-6)


@pytest.mark.parametrize("strategy", everywhere())
def test_a_loss_scale_cancels_on_devices_of_unequal_weight(strategy, devices8):
    """In float32, where nothing but the scale is new: SGD is not blind to a gradient's size, as Adam is."""
    settings = core.Step(accumulate=3, precision=core.Precision(scaled=True))
    scaled = train("mlp", optim.loss_scale(SGD, 2.0**6), EVERY[strategy]("mlp", None), settings, SOME)
    assert_close(trained("mlp", "single", core.Step()), scaled, 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", EVERY)
def test_batch_norm_is_that_of_a_micro_batch_over_all_devices(strategy, devices8):
    one = trained("cnn", "single", core.Step(accumulate=3))
    assert_close(one, trained("cnn", strategy, core.Step(accumulate=3)), 1e-5)
    whole = trained("cnn", "single", core.Step())
    assert np.max(np.abs(one.losses - whole.losses)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("strategy", [name for name in EVERY if name != "single"])
def test_ghost_batch_norm_is_that_of_one_device(strategy, devices, devices8):
    if strategy in ("replicate", "zero1") or devices == 8:
        one = trained("ghost", "single", core.Step())
        assert_close(one, trained("ghost", strategy, core.Step(), devices), 1e-5)


@pytest.mark.parametrize(
    "strategy",
    [pytest.param("pmap", marks=pytest.mark.slow), pytest.param("replicate", marks=pytest.mark.slow), "zero2"],
)
def test_gradients_are_sent_once_a_step(strategy, devices8):
    """Over 3 micro-batches as over one: the same collectives of the same bytes, outside of their loop."""
    found = []
    for settings in (core.Step(), core.Step(accumulate=3)):
        made = EVERY[strategy]("mlp", 8)
        task, source = case("mlp")
        state = start("mlp", SGD, made)
        batch = core.state.complete(source.take(np.arange(BATCH)))
        compiled = made.compile_step(make_step(task, SGD, made, settings)).lower(state, made.put_batch(batch))
        found.append(sorted(collectives(compiled.compile().as_text())))
    assert found[0] == found[1] != []


# ---- steps that are not finite

SKIP = core.Step(nonfinite="skip")
POISON = 5  # the data step whose batch holds the example that is not finite
ADAM = optim.ema(optim.adamw(3e-3), 0.9)


def poisoned_rows() -> np.ndarray:
    ids = rows()
    ids[ids == EXAMPLES - 1] = 0
    ids[POISON, 13] = EXAMPLES - 1
    return ids


def bytes_of(part):
    return {path: np.asarray(leaf).tobytes() for path, leaf in tree.leaves_by_path(jax.device_get(part)).items()}


@pytest.mark.parametrize("strategy", everywhere())
@pytest.mark.parametrize("micro", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_step_left_out_is_the_run_without_its_batch_to_the_byte(strategy, micro, devices8):
    """In the middle of a dispatch; the other run has two dispatches, and between them goes on to the next data step."""
    made = EVERY[strategy]("poisoned", None)
    settings = core.Step(nonfinite="skip", accumulate=micro)
    chunk, state, arrays = compiled_chunk("poisoned", ADAM, made, settings=settings)
    first, ids = jax.device_get(state), poisoned_rows()
    with_poison, report = chunk(state, arrays, made.put_rows(ids), np.int32(SOME))
    before, _ = chunk(made.put_state(core.State(*first)), arrays, made.put_rows(ids), np.int32(POISON))
    held = jax.device_get(before)
    assert int(held.step) == int(held.data_step) == POISON
    onward = made.put_state(core.State(*held)._replace(data_step=np.int32(POISON + 1)))
    rest = np.full_like(ids, -1)
    rest[: STEPS - POISON - 1] = ids[POISON + 1 :]
    without, _ = chunk(onward, arrays, made.put_rows(rest), np.int32(SOME - POISON - 1))
    assert bytes_of(with_poison) == bytes_of(without)
    assert (int(with_poison.step), int(with_poison.data_step)) == (SOME - 2, SOME)  # one of the batches is empty
    report = jax.device_get(report)
    skipped = np.asarray(report["skipped_steps"].sum)[:SOME]
    assert skipped.tolist() == [float(step == POISON) for step in range(SOME)]
    assert all(np.isfinite(np.asarray(mean.sum)).all() for mean in report.values())
    assert report["loss"].weight[POISON] == 0
    moved = [a != b for a, b in zip(bytes_of(first.params).values(), bytes_of(with_poison.params).values())]
    assert all(moved)


@pytest.mark.slow
def test_without_the_setting_the_poison_spreads():
    made = EVERY["single"]("poisoned", None)
    chunk, state, arrays = compiled_chunk("poisoned", ADAM, made)
    state, report = chunk(state, arrays, made.put_rows(poisoned_rows()), np.int32(SOME))
    assert "skipped_steps" not in report
    assert not np.isfinite(np.asarray(state.params["head"]["kernel"])).any()


# ---- all together


ATOL = {"bfloat16": 2e-2, "float16": 5e-3, "matmul_bf16": 2e-2}


@functools.cache
def together(strategy: str, precision: str) -> Trained:
    settings = core.Step(accumulate=3, precision=precision, remat="block", nonfinite="skip")
    tx = settings.optimizer(optim.ema(optim.adamw(3e-3), 0.9))
    return train("gpt", tx, EVERY[strategy]("gpt", None), settings, SOME)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "precision"),
    [(name, "bfloat16") for name in EVERY]
    + [(name, precision) for name in ("replicate", "zero3", "tensor") for precision in ("float16", "matmul_bf16")],
)
def test_all_settings_together_are_those_of_one_device(strategy, precision, devices8):
    """A GPT under accumulation, a precision, rematerialised blocks, skipping and an average: to the precision's digits,
    and the same steps left out."""
    one, other = together("single", precision), together(strategy, precision)
    np.testing.assert_allclose(other.losses, one.losses, atol=ATOL[precision])
    assert int(one.state.step) == int(other.state.step)
    for path, leaf in tree.leaves_by_path(optim.eval_params(other.state.opt_state, other.state.params)).items():
        assert leaf.dtype == np.float32, path
        assert np.isfinite(np.asarray(leaf)).all()
    wide = train("gpt", optim.ema(optim.adamw(3e-3), 0.9), EVERY["single"]("gpt", None), core.Step(), SOME)
    np.testing.assert_allclose(one.losses, wide.losses, atol=5 * ATOL[precision])
