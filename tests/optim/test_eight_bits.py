"""A GPT trained with moments in eight bits beside one with moments in float32."""

import numpy as np
import pytest

from jaxnn import data, losses, models, optim, train

STEPS, LAST = 300, 20


def losses_of(seed: int, eight_bits: bool, steps: int = STEPS) -> list[float]:
    """The training loss of every step, in nats a byte."""
    net = models.GPT(models.GPTConfig.preset("tiny", vocab=256))
    tx = optim.adamw(optim.warmup_stable_decay(1e-3, STEPS))
    if eight_bits:
        tx = optim.with_state_dtype(tx, {"mu": optim.q8, "nu": optim.q8})
    run = train.fit(
        train.supervised(net, losses.cross_entropy),
        tx,
        data.TextFiles(data.stdlib_files()[0], length=net.config.length),
        batch_size=8,
        steps=steps,
        seed=seed,
        log=train.Log(progress=False, every=1),
    )
    return [row["loss"] for row in run.history]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_gpt_in_eight_bits_ends_within_half_a_percent_of_float32(seed):
    full, small = (losses_of(seed, eight_bits) for eight_bits in (False, True))
    assert full[0] == pytest.approx(small[0], rel=1e-6)  # the same model, the same data
    assert np.mean(full[-LAST:]) < 0.6 * full[0]  # it has learned
    ratio = np.mean(small[-LAST:]) / np.mean(full[-LAST:])
    assert abs(ratio - 1) <= 0.005, ratio
