"""Generation: what a cache of keys and values is worth.

python -m benchmarks.generation [--seconds 120] [--tokens 256]

GPT "small" (4 layers of width 192, 1.8 M parameters) with room for 512 bytes continues a prompt of 16 by 256, greedily,
with the cache and without, in turns (`bench.compare`). Must: 5 times faster with it.
"""

import argparse
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import bench, models
from jaxnn.models import generation

MUST = 5.0


def measured(tokens: int = 256, seconds: float = 150.0) -> dict[str, float]:
    """How many times faster it is with the cache: the median, and its interval's ends.

    Raises:
        SystemExit: If the texts with and without a cache differ.
    """
    gpt = models.GPT(models.GPTConfig.preset("small", length=512))
    prompt = np.random.default_rng(0).integers(0, 256, 16).astype(np.int32)
    params = jax.jit(gpt.init)(jax.random.key(0), prompt[None])["params"]
    greedy = {"steps": tokens, "temperature": 0.0}
    # The same text, or the times would be of different things.
    with_cache, without = (models.generate(gpt, params, prompt, cache=cache, **greedy) for cache in (True, False))
    if with_cache.tolist() != without.tolist():
        raise SystemExit("benchmarks.generation: the texts with and without a cache differ.")
    keys = jax.random.split(jax.random.key(0), 1)
    drawing = (jnp.float32(0), jnp.float32(1))
    limits = (jnp.int32(tokens), jnp.int32(-1))
    window = jnp.zeros((1, 16 + tokens), jnp.int32).at[0, :16].set(prompt)
    shared = (keys, drawing, limits)

    def cached(params, prompt, start, *rest):
        return generation._cached(gpt, params, prompt, start, *rest, tokens, None, False)

    def uncached(params, window, filled, *rest):
        return generation._windowed(gpt, params, window, filled, *rest, tokens, None, False)

    result = bench.compare(
        {
            "no cache": bench.Case("no cache", uncached, (params, window, jnp.full(1, 16, jnp.int32), *shared)),
            "cache": bench.Case("cache", cached, (params, jnp.asarray(prompt)[None], jnp.zeros(1, jnp.int32), *shared)),
        },
        max_seconds=seconds,
    )
    print(result)
    low, high = result.interval.low, result.interval.high  # unbounded where there were too few rounds
    return {"faster": 1 / result.ratio, "low": 1 / high, "high": 1 / low if low > 0 else math.inf}


def main(tokens: int, seconds: float) -> bool:
    """Prints the comparison; gives whether the bound holds."""
    faster = measured(tokens, seconds)["faster"]
    said = "met" if faster >= MUST else "MISSED"
    print(f"{tokens} tokens, GPT small: {faster:.1f} times faster with the cache; must be {MUST:.0f}: {said}")
    return faster >= MUST


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=150.0)
    arguments = parser.parse_args()
    raise SystemExit(0 if main(arguments.tokens, arguments.seconds) else 1)
