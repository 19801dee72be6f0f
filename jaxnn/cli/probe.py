"""Starts jax's backend, times matrix products, and prints what it found as one line of JSON.

`doctor` runs this file in a process of its own: an unknown XLA flag aborts the process, a broken driver may hang it.
It imports nothing of jaxnn, so that it says something even when another distribution has overwritten the package.
"""

import json
import time
from typing import Any

MARK = "jaxnn-probe:"
CACHE = "jax_compilation_cache_dir"


def gflops(n: int, dtype: str, seconds: float = 0.4) -> dict[str, Any]:
    """The best rate of an n x n matrix product with float32 accumulation, and whether its values are right.

    Args:
        n: Side of the matrices; a power of two keeps the expected value exact.
        dtype: Of the operands.
        seconds: How long to go on timing; at least five products are timed.

    Returns:
        "dtype", "gflops" (10^9 multiplications and additions a second, best of all), "right".
    """
    import jax
    import jax.numpy as jnp

    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
    a, b = jnp.full((n, n), 0.5, dtype), jnp.full((n, n), 2.0, dtype)
    out = jax.block_until_ready(product(a, b))
    right = bool((out == n).all())
    best, tries, end = float("inf"), 0, time.perf_counter() + seconds
    while tries < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(product(a, b))
        best, tries = min(best, time.perf_counter() - start), tries + 1
    return {"dtype": dtype, "gflops": 2 * n**3 / best / 1e9, "right": right}


def probe() -> dict[str, Any]:
    """Backend, devices, memory of the first device where known, the compilation cache folder, and matrix products."""
    import jax

    devices = jax.devices()
    backend = jax.default_backend()
    memory = devices[0].memory_stats() or {}
    n = 1024 if backend == "cpu" else 8192
    return {
        "backend": backend,
        "number": len(devices),
        "kinds": sorted({d.device_kind for d in devices}),
        "bytes_limit": memory.get("bytes_limit"),
        "cache": getattr(jax.config, CACHE),
        "products": [gflops(n, dtype) for dtype in ("float32", "bfloat16")],
    }


if __name__ == "__main__":
    print(MARK + json.dumps(probe()), flush=True)
