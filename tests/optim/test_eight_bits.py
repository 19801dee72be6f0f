"""A GPT trained with moments in eight bits beside one with moments in float32.

    python -m tests.optim.test_eight_bits 0.003 0 1 2 3

prints the rows of the table in docs/optim.md: a peak rate, then seeds.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import data, losses, models, optim, parallel, train, tree

STEPS, LAST, BATCH = 300, 20, 8
NUDGES = (0.0, 1e-4, -1e-4)  # of the rate, relative: what a run's result owes to chance
ADAMW = optim.adamw(0.0, metrics=())
Q8 = optim.with_state_dtype(ADAMW, optim.q8)
NET = models.GPT(models.GPTConfig.preset("tiny", vocab=256))
TASK = train.supervised(NET, losses.cross_entropy)


@functools.cache
def step_of(small):
    """`(params, opt_state, batch, lr) -> (params, opt_state, loss)`: one program for all rates and seeds."""
    tx = Q8 if small else ADAMW

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, batch, lr):
        def mean(p):
            loss = TASK.loss(p, {}, batch, jax.random.key(0), True)
            return loss.total / loss.weight

        loss, grads = jax.value_and_grad(mean)(params)
        updates, opt_state = tx.update(grads, optim.set_hyper(opt_state, lr=lr), params)
        return optim.apply_updates(params, updates), opt_state, loss

    return step


@functools.lru_cache(maxsize=1)
def beginning(seed):
    """Batches and first parameters, those of `fit(..., seed=seed, batch_size=8)`."""
    source = data.TextFiles(data.stdlib_files()[0], length=NET.config.length)
    ids = data.order.examples(seed, 0, STEPS, n=len(source), batch_size=BATCH)
    batches = [data.host_batch(source, one) for one in ids]
    state = train.init_state(TASK, ADAMW, batches[0], seed=seed, strategy=parallel.single())
    return batches, jax.tree.map(np.asarray, state.params)


def final_loss(seed, peak, *, small, nudge=0.0, steps=STEPS):
    """Mean training loss of the last 20 steps, nats a byte, and the final optimizer state."""
    batches, first = beginning(seed)
    params = jax.tree.map(jnp.array, first)
    opt_state = (Q8 if small else ADAMW).init(params)
    rates = jax.vmap(optim.warmup_stable_decay(peak * (1 + nudge), STEPS))(jnp.arange(STEPS))
    found = []
    for batch, lr in zip(batches[:steps], rates):
        params, opt_state, loss = step_of(small)(params, opt_state, batch, lr)
        found.append(loss)
    found = jax.device_get(found)
    return float(np.mean(found[-LAST:])), opt_state


def pair(seed, peak, nudges=NUDGES):
    """Losses [2, nudges]: with moments in float32, and in eight bits."""
    return np.array([[final_loss(seed, peak, small=s, nudge=n)[0] for n in nudges] for s in (False, True)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_gpt_in_eight_bits_ends_within_half_a_percent_of_float32(seed):
    start, _ = final_loss(seed, 1e-3, small=False, steps=LAST)
    full, _ = final_loss(seed, 1e-3, small=False)
    small, opt_state = final_loss(seed, 1e-3, small=True)
    assert full < 0.8 * start  # it has learned
    assert small == pytest.approx(full, rel=0.005)
    assert tree.nbytes(opt_state) <= 2.1 * tree.size(beginning(seed)[1])


@pytest.mark.slow
def test_at_a_rate_where_float32_itself_scatters_the_mean_stays_within_half_a_percent():
    """Three runs that differ by 1e-4 in their rate are up to 0.9 % apart: no single pair says anything."""
    ratios = [small / full for full, small in (pair(seed, 3e-3) for seed in range(4))]
    assert np.mean(ratios) == pytest.approx(1, abs=0.005)


if __name__ == "__main__":
    for seed in map(int, sys.argv[2:]):
        full, small = pair(seed, float(sys.argv[1]))
        percent = lambda a, b: f"{100 * (a / b - 1):+.2f} %"  # noqa: E731
        print(
            f"| {sys.argv[1]} | {seed} | {full[0]:.4f} | {small[0]:.4f} | {percent(small[0], full[0])}"
            f" | {percent(small.mean(), full.mean())} | {percent(full.max(), full.min())} |",
            full.tolist(),
            small.tolist(),
            flush=True,
        )
