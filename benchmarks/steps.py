"""The steps that everybody runs, as cases: `jaxnn bench run benchmarks/steps.py -k mlp`.

The MLP's and the GPT's are the steps that `train` compiles: forward, backward, AdamW's update, a donated state.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnn import bench, cli, core, losses, models, parallel
from jaxnn.core.state import complete
from jaxnn.core.step import make_step


def _train_step(module: Any, batch: dict[str, Any]) -> tuple[Any, tuple]:
    """The step of one device and its arguments (state, batch)."""
    task = core.supervised(module, losses.cross_entropy)
    strategy, tx = parallel.single(), optax.adamw(1e-3)
    state = core.init_state(task, tx, batch, strategy=strategy)
    return make_step(task, tx, strategy), (jax.device_put(state), strategy.put_batch(complete(batch)))


@bench.benchmark(donate="thread")
def mlp_step() -> tuple[Any, tuple]:
    """MLP 784-128-64-10, batch 128."""
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(128, 784)).astype(np.float32), "y": rng.integers(0, 10, 128).astype(np.int32)}
    return _train_step(models.MLP((128, 64, 10)), batch)


@bench.benchmark(donate="thread")
def gpt_step() -> tuple[Any, tuple]:
    """GPT of 2 layers, width 64, 8 windows of 64 bytes."""
    text = np.random.default_rng(0).integers(0, 256, (8, 65)).astype(np.int32)
    return _train_step(models.GPT(models.GPTConfig.preset("tiny")), {"x": text[:, :-1], "y": text[:, 1:]})


@bench.benchmark(donate="thread")
def adamw_update() -> tuple[Any, tuple]:
    """Optax's AdamW on 1.2 M parameters in 16 leaves: memory traffic."""
    tx = optax.adamw(1e-3)
    params = {f"w{i}": jnp.ones((272, 272)) for i in range(16)}

    def update(state: Any, grads: Any) -> Any:
        params, opt_state = state
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return update, ((params, tx.init(params)), jax.tree.map(lambda p: 1e-3 * p, params))


@bench.benchmark()
def squared_relu() -> tuple[dict[str, Any], tuple]:
    """Two ways to square a ReLU, as arms: the GPT's activation and the product of two."""
    arms = {"square": lambda x: jnp.square(jax.nn.relu(x)), "product": lambda x: jax.nn.relu(x) * jax.nn.relu(x)}
    return arms, (jax.random.normal(jax.random.key(0), (512, 1024)),)


if __name__ == "__main__":
    sys.exit(cli.main(["bench", "run", __file__, *sys.argv[1:]]))
