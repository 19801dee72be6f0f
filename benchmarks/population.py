"""Many runs in one program against the same runs one after another: `train.fit(population=...)`.

python -m benchmarks.population [--rounds 3] [--devices 2]  # members spread over forced host devices, one a core

regression_mlp of the articles (1,000 examples of 10 inputs, a hidden layer of 64, Adam, batch 32, 100 epochs), at 64
rates. A round times one fit of all members and a few of one member around it, each a whole call of `fit`: tracing,
loading its program, training, rows. The fits of one member are scaled to 64. Both run once before, untimed, so that
their programs are in a cache on disk, which favours the runs one after another. Must: 10 times faster; goal: 20.

By the wall clock, and by the process's CPU seconds, which other programs disturb less and which do not show what a
second core saves.
"""

import argparse
import tempfile
import time

import jax
import numpy as np

from jaxnn import data, losses, models, optim, parallel, train

MEMBERS, MUST, GOAL = 64, 10.0, 20.0
RATES = np.geomspace(1e-4, 1e-1, MEMBERS).tolist()


def examples() -> data.Arrays:
    """1,000 examples of 10 inputs."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(1000, 10)).astype(np.float32)
    return data.Arrays(x, (np.sin(3 * x[:, :1]) + x[:, 1:2]).astype(np.float32))


def fit(source: data.Arrays, epochs: int, rates: list[float], devices: int = 1) -> tuple[float, float]:
    """Wall and CPU seconds of a whole fit of as many members as there are rates; one is without a population."""
    began = time.perf_counter(), time.process_time()
    run = train.fit(
        train.supervised(models.MLP((64, 1)), losses.mse),
        optim.adam(rates[0]),
        source,
        batch_size=32,
        epochs=epochs,
        log=train.Log(progress=False),
        population=optim.members(lr=rates) if len(rates) > 1 else None,
        strategy=parallel.replicate(devices) if devices > 1 else parallel.single(),
    )
    jax.block_until_ready(run.state)
    return time.perf_counter() - began[0], time.process_time() - began[1]


def main(rounds: int, solos: int, epochs: int, devices: int = 1) -> bool:
    """Prints the comparison; gives whether the bound holds by CPU seconds."""
    source = examples()
    if devices > 1:
        parallel.force_host_devices(devices)
    with tempfile.TemporaryDirectory() as cache:
        parallel.compilation_cache(cache)
        rng = np.random.default_rng(0)
        fit(source, epochs, RATES, devices)
        fit(source, epochs, RATES[:1])
        together, alone = [], []
        for _ in range(rounds):
            alone += [fit(source, epochs, [rate]) for rate in rng.choice(RATES, solos // 2).tolist()]
            together.append(fit(source, epochs, RATES, devices))
            alone += [fit(source, epochs, [rate]) for rate in rng.choice(RATES, solos - solos // 2).tolist()]
    print(f"{MEMBERS} members, {epochs} epochs, {rounds} rounds, {devices} devices, jax {jax.__version__}")
    ratios = []
    for i, clock in enumerate(("wall clock", "CPU seconds")):
        one, all_members = np.asarray(alone)[:, i], np.asarray(together)[:, i]
        per_round = MEMBERS * np.mean(one.reshape(rounds, solos), axis=1) / all_members
        ratios.append(float(np.median(per_round)))
        said = "goal met" if ratios[-1] >= GOAL else "met" if ratios[-1] >= MUST else "MISSED"
        print(
            f"  {clock:12} one after another {MEMBERS * np.median(one):6.2f} s ({1e3 * np.median(one):.0f} ms each), "
            f"in one program {np.median(all_members):.2f} s: {ratios[-1]:.1f} times faster "
            f"[{per_round.min():.1f}, {per_round.max():.1f}]  {said} (must {MUST:g}, goal {GOAL:g})"
        )
    return ratios[1] >= MUST


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--solos", type=int, default=8, help="runs of one member a round")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--devices", type=int, default=1, help="over which the members are spread")
    args = parser.parse_args()
    main(args.rounds, args.solos, args.epochs, args.devices)
