"""The articles' programs in jaxnn's `fit`, and by hand: a jitted loop, a scan over the epoch, a scan over many epochs.

The hand-written ones are what one writes in a notebook with care: data on the device, the state donated, NumPy
permutations before each dispatch, losses read at the end. They run jaxnn's models, so that they have its CPU forms of
convolution and pooling, without which the CNN's loop takes 3 times as long and its scan 10.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.article_programs import CACHE, Program, accuracy
from jaxnn import data as sources, losses, models, parallel, train
from jaxnn.train import session

BLOCK_STEPS = 2048
Turn = Callable[[int, float], int | None]


def parts(program: Program) -> tuple[Any, Any, optax.GradientTransformation]:
    """Module, loss and optimizer."""
    module = models.CNN(program.channels, program.dense[:-1]) if program.channels else models.MLP(program.dense)
    loss = losses.mse if program.loss == "mse" else losses.cross_entropy
    return module, loss, {"adam": optax.adam, "sgd": optax.sgd}[program.optimizer](program.lr)


class Stretches(train.Hook):
    """Times the stretch of `fit` since it last acted, and ends the run when its length is to change."""

    def __init__(self, turn: Turn, epochs: int):
        self.turn, self.epochs, self.wanted = turn, epochs, epochs
        self.began: float | None = None

    def every(self, plan: train.Plan) -> int:
        return plan.epoch * self.epochs

    def act(self, at: train.Moment) -> train.Stop | None:
        if self.began is not None:  # the first stretch compiled
            wanted = self.turn(self.epochs, time.perf_counter() - self.began)
            if wanted != self.epochs:
                self.wanted = wanted or 0
                return train.Stop("its stretches change")
        self.began = time.perf_counter()
        return None


@dataclasses.dataclass(frozen=True)
class Fit:
    """`train.fit` as it comes."""

    def task(self, program: Program) -> tuple[train.Task, optax.GradientTransformation]:
        """What is learned, and how."""
        module, loss, tx = parts(program)
        return train.supervised(module, loss), tx

    def whole(self, program: Program, data: dict[str, Any], first: Callable[[], None]) -> dict[str, float]:
        """The whole program, with the compilation cache that an experiment has."""
        parallel.compilation_cache(os.environ[CACHE])
        deliver = session.Session.deliver

        def marked(self: Any, *arguments: Any) -> None:
            first()
            deliver(self, *arguments)

        setattr(session.Session, "deliver", marked)  # noqa: B010
        task, tx = self.task(program)
        source = sources.Arrays(data["x"], data["y"])
        log = train.Log(progress=False)
        run = train.fit(task, tx, source, batch_size=program.batch, epochs=program.epochs, log=log)
        values = train.evaluate(task, run.state, sources.Arrays(data["x_test"], data["y_test"]))
        outputs = train.predict(task, run.state, data["x_test"])
        return {"loss": values["loss"], **accuracy(program, outputs, data)}

    def steady(self, program: Program, data: dict[str, Any], turn: Turn) -> None:
        """Stretches between two of a hook's steps, in one run once their length is found."""
        source = sources.Arrays(data["x"], data["y"])
        task, tx = self.task(program)
        epochs = turn(0, 0.0) or 0
        while epochs:
            hook, per_epoch = Stretches(turn, epochs), len(source) // program.batch
            log = train.Log(progress=False, every=min(100, per_epoch))  # as in a run of epochs
            steps = 2**30 // (epochs * per_epoch) * epochs * per_epoch
            train.fit(task, tx, source, batch_size=program.batch, steps=steps, hooks=[hook], log=log)
            epochs = hook.wanted


@dataclasses.dataclass(frozen=True)
class ByHand:
    """A loop over jitted steps, or over jitted scans of `block` epochs at most and `BLOCK_STEPS` steps."""

    scan: bool
    block: int = 1

    def blocks(self, program: Program, data: dict[str, Any]) -> int:
        """Epochs a dispatch; one for convolutions, whose epochs take a second."""
        return 1 if program.channels else max(1, min(self.block, BLOCK_STEPS * program.batch // len(data["x"])))

    def setup(self, program: Program, data: dict[str, Any]) -> tuple[Any, Any, Callable[..., Any]]:
        """Module, loss, and `run(epochs, first) -> params`; `first` is called after the first dispatch."""
        module, loss, tx = parts(program)
        arrays = jax.device_put((data["x"], data["y"]))
        params = jax.jit(module.init)(jax.random.key(0), data["x"][:1])
        state = (params, jax.jit(tx.init)(params))
        order, n, block = np.random.default_rng(0), len(data["x"]), self.blocks(program, data)

        def step(state: Any, arrays: Any, rows: Any) -> Any:
            params, opt_state = state

            def objective(p: Any) -> Any:
                return jnp.mean(loss(module.apply(p, arrays[0][rows]), arrays[1][rows]))

            value, grads = jax.value_and_grad(objective)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

        def epoch(state: Any, arrays: Any, rows: Any) -> Any:
            return jax.lax.scan(lambda state, row: step(state, arrays, row), state, rows)

        compiled = jax.jit(epoch if self.scan else step, donate_argnums=0)

        def run(epochs: int, first: Callable[[], None] | None = None) -> Any:
            nonlocal state
            values: list[Any] = []
            for done in range(0, epochs, block):
                orders = [order.permutation(n) for _ in range(min(block, epochs - done))]
                rows = np.concatenate(orders).reshape(-1, program.batch).astype(np.int32)
                for part in (rows,) if self.scan else rows:
                    state, value = compiled(state, arrays, part)
                    values.append(value)
                    if first is not None:
                        jax.block_until_ready(value)
                        first, _ = None, first()
            jax.device_get(values)
            return jax.block_until_ready(state)[0]

        return module, loss, run

    def whole(self, program: Program, data: dict[str, Any], first: Callable[[], None]) -> dict[str, float]:
        """The whole program; the scan's first step is its first epoch."""
        parallel.compilation_cache(os.environ[CACHE])
        module, loss, run = self.setup(program, data)
        params = run(program.epochs, first)
        outputs = np.asarray(jax.jit(module.apply)(params, data["x_test"]))
        value = float(jnp.mean(loss(outputs, data["y_test"])))
        return {"loss": value, **accuracy(program, outputs, data)}

    def steady(self, program: Program, data: dict[str, Any], turn: Turn) -> None:
        """Stretches of training."""
        run = self.setup(program, data)[2]
        block = self.blocks(program, data)
        run(block)
        epochs, seconds = 0, 0.0
        while (wanted := turn(epochs, seconds)) is not None:
            epochs, began = -(-wanted // block) * block, time.perf_counter()
            run(epochs)
            seconds = time.perf_counter() - began


def make(kind: str) -> Fit | ByHand:
    """The arm of a kind, "fit", "loop", "scan" (an epoch) or "scans" (many)."""
    return Fit() if kind == "fit" else ByHand(kind != "loop", 2**20 if kind == "scans" else 1)
