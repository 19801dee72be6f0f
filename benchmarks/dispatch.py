"""`train.fit` against a hand-written scan on the articles' small programs, microseconds a step, interleaved.

python -m benchmarks.dispatch [--rounds 9] [--only NAME]

The hand-written program is what one writes in a notebook: data on the device, a jitted `lax.scan` over the epoch with
the state donated, a NumPy permutation before each epoch, the losses read at the end. "ideal" is one scan over a whole
round whose order was drawn beforehand: nothing but the arithmetic. `fit` also masks, reports the gradient norm and a
row an epoch, and stays stoppable and resumable. Every round times one stretch of `fit` between two of its hooks and
one of each scan, in turns, in one process; a ratio is the median of paired ratios, its interval the sign test's at 95
% or more.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from jaxnn import data, losses, models, train

MUST = 1.3
Program = tuple[
    Any, Any, optax.GradientTransformation, Any, int, int
]  # x, y, optimizer, module, batch size, steps a round


def programs() -> dict[str, Program]:
    """The articles' programs on data of their shapes."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def labels(n: int) -> np.ndarray:
        return rng.integers(0, 10, n).astype(np.int32)

    line = rng.uniform(-1, 1, (100, 1)).astype(np.float32)
    return {
        "regression_mlp": (normal(1000, 10), normal(1000, 1), optax.adam(1e-3), models.MLP((64, 1)), 32, 20_000),
        "linear_regression": (line, 2 * line + 1 + 0.1 * normal(100, 1), optax.sgd(0.01), models.MLP((1,)), 1, 200_000),
        "mnist_mlp": (normal(5000, 784), labels(5000), optax.sgd(0.01), models.MLP((128, 64, 10)), 32, 2_000),
        "wide_mlp": (normal(1000, 1000), labels(1000), optax.adam(1e-3), models.MLP((128, 64, 10)), 32, 2_000),
    }


def scans(program: Program) -> tuple[Callable[[], float], Callable[[], float]]:
    """The hand-written epoch scan and the ideal one: functions that run a round and give its seconds."""
    x, y, tx, module, batch, steps = program
    loss = losses.mse if y.ndim == 2 else losses.cross_entropy
    params = module.init(jax.random.key(0), x[:1])
    arrays = jax.device_put((x, y))
    rng = np.random.default_rng(0)
    per_epoch = len(x) // batch
    epochs = -(-steps // per_epoch)

    def order() -> np.ndarray:
        return rng.permutation(len(x))[: per_epoch * batch].reshape(per_epoch, batch).astype(np.int32)

    whole = jax.device_put(np.concatenate([order() for _ in range(epochs)]))

    def epoch(state: Any, arrays: Any, rows: Any) -> Any:
        def step(state: Any, row: Any) -> Any:
            params, opt_state = state

            def objective(p: Any) -> Any:
                return jnp.mean(loss(module.apply(p, arrays[0][row]), arrays[1][row]))

            value, grads = jax.value_and_grad(objective)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

        return jax.lax.scan(step, state, rows)

    compiled = jax.jit(epoch, donate_argnums=0)
    state = (params, jax.jit(tx.init)(params))

    def timed(orders: Callable[[], Any], count: int) -> float:
        nonlocal state
        began = time.perf_counter()
        values = []
        for _ in range(count):
            state, value = compiled(state, arrays, orders())
            values.append(value)
        jax.device_get(values)
        jax.block_until_ready(state)
        return (time.perf_counter() - began) * steps / (epochs * per_epoch)

    def by_epoch() -> float:
        return timed(order, epochs)

    def ideal() -> float:
        return timed(lambda: whole, 1)

    by_epoch()
    ideal()
    return by_epoch, ideal


class Turns(train.Hook):
    """Times the stretch of `fit` since it last acted, then a round of each scan."""

    def __init__(self, arms: tuple[Callable[[], float], ...], steps: int):
        self.arms, self.steps = arms, steps
        self.rounds: list[list[float]] = []
        self.began = 0.0

    def every(self, plan: train.Plan) -> int:
        return self.steps

    def act(self, at: train.Moment) -> None:
        now = time.perf_counter()
        self.rounds.append([now - self.began, *(arm() for arm in self.arms)])
        self.began = time.perf_counter()


def compare(name: str, program: Program, rounds: int) -> list[str]:
    """One row of the table."""
    x, y, tx, module, batch, steps = program
    loss = losses.mse if y.ndim == 2 else losses.cross_entropy
    turns = Turns(scans(program), steps)
    train.fit(
        train.supervised(module, loss),
        tx,
        data.Arrays(x, y),
        steps=steps * (rounds + 2),
        batch_size=batch,
        hooks=[turns],
        log=train.Log(every=-(-len(x) // batch), progress=False),
    )
    times = np.array(turns.rounds[2:]) / steps * 1e6  # the first two stretches compile and settle
    medians = [f"{t:.3f}" for t in np.median(times, axis=0)]
    by_epoch, ideal = (times[:, 0] / times[:, arm] for arm in (1, 2))
    verdict = "ok" if np.median(by_epoch) <= MUST else "MISSED"
    return [name, *medians, interval(by_epoch), verdict, interval(ideal)]


def interval(ratios: np.ndarray) -> str:
    """The median and the sign test's interval."""
    ratios = np.sort(ratios)
    low = max(0, int(stats.binom.ppf(0.025, len(ratios), 0.5)) - 1)
    return f"{np.median(ratios):.2f} [{ratios[low]:.2f}, {ratios[-1 - low]:.2f}]"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0]}, {arguments.rounds} rounds; must: fit / epoch scan <= {MUST}")
    line = "{:20}{:>10}{:>12}{:>10}  {:20}{:8}{}".format
    print(line("us a step", "fit", "epoch scan", "ideal", "fit / epoch scan", "", "fit / ideal"))
    for name, program in programs().items():
        if arguments.only in name:
            print(line(*compare(name, program, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
