"""A GPT learns as well with its moments in eight bits."""

import pathlib

import jax
import numpy as np
import pytest

from jaxnn import data, losses, models, optim, train

STEPS = 300


@pytest.mark.slow
def test_the_loss_stays_within_half_a_percent():
    text = b"".join(p.read_bytes() for p in sorted(pathlib.Path(np.__file__).parent.glob("*.py")))[:200_000]
    tokens = np.frombuffer(text, np.uint8).astype(np.int32)
    windows = tokens[: len(tokens) // 65 * 65].reshape(-1, 65)
    source = data.Arrays(windows[:, :-1], windows[:, 1:])
    net = models.GPT(models.GPTConfig(vocab=256, length=64, width=64, layers=2, heads=4))
    task = train.supervised(net, losses.cross_entropy)

    def last(tx):
        run = train.fit(task, tx, source, batch_size=8, steps=STEPS, log=train.Log(progress=False, every=50))
        _, values = run.column("loss")
        return np.asarray(values), run.state

    tx = optim.adamw(optim.warmup(optim.cosine(3e-3, STEPS - 20), 20), b2=0.99)
    full, _ = last(tx)
    small, state = last(optim.with_state_dtype(tx, optim.q8))
    assert full[-1] < 0.8 * full[0]
    np.testing.assert_allclose(small[-2:].mean(), full[-2:].mean(), rtol=0.005)
    held = sum(x.nbytes for x in jax.tree.leaves(state.opt_state))
    assert held <= 2.1 * sum(x.size for x in jax.tree.leaves(state.params))
