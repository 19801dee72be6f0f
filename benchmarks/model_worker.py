"""One arm of `benchmarks.models` on one family, in a process of its own, in the environment of its framework.

python -m benchmarks.model_worker ARM FAMILY DATA.npz THREADS

What it finds goes to standard output as lines of JSON, whatever a framework prints to standard error: the losses of the
first steps, or why there are none; that it is ready; then a stretch of training for each line on standard input.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.article_worker import stretches
from benchmarks.model_families import CHECKED, FAMILIES, LR, OURS, Family

Run = Callable[[int], float]


def ours(arm: str, name: str, family: Family, data: Mapping[str, np.ndarray]) -> tuple[Run, Callable[[], Any]]:
    """`run(steps)`, and the probe of the machine's peak."""
    from benchmarks import model_jax
    from jaxnn import parallel

    parallel.compilation_cache(os.environ["JAXNN_MODELS_CACHE"])
    return model_jax.make(arm, name, family, data), model_jax.peak()


def peers(arm: str, name: str, family: Family, data: Mapping[str, np.ndarray], threads: int) -> Run:
    """`run(steps)` in PyTorch: AdamW with its default settings (one loop over the parameters, neither fused nor foreach
    on CPU), the loss and the model in one compiled function where the arm is "compiled"."""
    import torch  # pyrefly: ignore[missing-import]
    import torch.nn.functional as F  # pyrefly: ignore[missing-import]

    from benchmarks import model_torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # as XLA does
    weights = {key[2:]: torch.from_numpy(x.copy()) for key, x in data.items() if key.startswith("w:")}
    model = model_torch.module(name, family, weights).train()
    images = len(family.x) == 3
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"]).long()
    if images:
        x = x.permute(0, 3, 1, 2).contiguous()
    if family.vocab:
        x = x.long()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)

    def objective(x: Any, y: Any) -> Any:
        return F.cross_entropy(model(x).flatten(0, -2), y.flatten())

    if arm == "compiled":
        objective = torch.compile(objective)
    batches = list(zip(x.split(family.batch), y.split(family.batch)))
    done = 0

    def run(steps: int) -> float:
        nonlocal done
        total = torch.zeros(())
        for _ in range(steps):
            optimizer.zero_grad()
            loss = objective(*batches[done % len(batches)])
            loss.backward()
            optimizer.step()
            total += loss.detach()
            done += 1
        return float(total)

    return run


def main(arm: str, name: str, path: str, threads: str) -> None:
    """Runs one arm."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    more: dict[str, float] = {}

    def tell(**values: Any) -> None:
        print(json.dumps({**values, **more}), file=out, flush=True)

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    family = FAMILIES[name]
    with np.load(path) as file:
        data = dict(file)
    probe: Callable[[], Any] = dict
    began = time.perf_counter()
    try:
        if arm in OURS:
            run, probe = ours(arm, name, family, data)
        else:
            run = peers(arm, name, family, data, int(threads))
        losses = [run(1) for _ in range(CHECKED)]
    except Exception as error:  # whatever a compiler throws is told, and the other arms go on
        traceback.print_exc()
        tell(failed=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
        return
    tell(losses=losses, first_s=time.perf_counter() - began)
    turn = stretches(tell, lambda: bool(sys.stdin.readline()))
    steps, seconds = 0, 0.0
    while (wanted := turn(steps, seconds)) is not None:
        steps, start = wanted, (time.perf_counter(), time.process_time())
        run(steps)
        seconds, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
        more.clear()
        more.update(cpu_s=cpu, **probe())


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # the threads of some frameworks take seconds to end
