"""One update of `jaxnn.optim` beside optax's, hand-written ones and torch's.

python -m benchmarks.optimizers                       # 20 M parameters in 150 leaves and in 1,000; Muon; 3,000 leaves
python -m benchmarks.optimizers --leaves 150 --many 0 # 150 leaves, and Muon
python -m benchmarks.optimizers --leaves --no-muon    # thousands of leaves only
python -m benchmarks.optimizers --torch PYTHON        # torch too, by an interpreter that has it

Every round times each arm once, in a shuffled order, after an untimed call; parameters and state are donated. A ratio
is the median of paired ratios with its interval, of the process's CPU seconds, which other programs disturb less than
the wall clock. What they take to compile: `benchmarks.optimizer_compile`.
"""

import dataclasses
import json
import pathlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from benchmarks.optimizer_compile import LR, update
from jaxnn import optim
from jaxnn.bench import statistics

TOTAL = 20_000_000
LOOP, LOOPED = 8, 150  # steps of a loop, and of how many leaves: at 1,000 it compiles for minutes
Step = Callable[[], None]  # one micro-step, done when it returns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    leaves: tuple[int, ...] = (150, 1000)  # of how many leaves the parameters are
    rounds: int = 21
    muon: bool = True  # also Muon's steps on 96 matrices
    many: int = 3000  # also steps of so many leaves; 0 for none
    torch: pathlib.Path | None = None  # a Python with torch, for its fused and foreach AdamW


def parameters(count: int, total: int = TOTAL) -> dict[str, Any]:
    """`count` nearly square matrices, `total` elements in all, float32."""
    rows = int((total / count) ** 0.5)
    shape = (rows, total // count // rows)
    return {f"layer_{i:04d}": {"kernel": jnp.full(shape, 0.01, jnp.float32)} for i in range(count)}


def running(step: Callable[..., Any], params: Any, state: Any, grads: Any) -> Step:
    """One call after the other of a step that is donated its parameters and state."""
    return calls(jax.jit(step, donate_argnums=(0, 1)), params, state, grads)


def calls(program: Callable[..., Any], params: Any, state: Any, grads: Any) -> Step:
    """One call after the other of a program that is donated its parameters and state."""
    held = [jax.tree.map(jnp.copy, params), state]

    def run() -> None:
        held[:] = program(*held, grads)
        jax.block_until_ready(held)

    return run


def in_turn(*steps: Step) -> Step:
    """Each call runs the next of `steps`."""
    number = [0]

    def run() -> None:
        steps[number[0] % len(steps)]()
        number[0] += 1

    return run


# ---- what is compared


def fused(params: Any, state: Any, grads: Any) -> Any:
    """AdamW written out by hand, leaf by leaf."""
    count, mu, nu = state
    count = count + 1
    t = count.astype(jnp.float32)
    rate, root = LR / (1 - 0.9**t), jnp.sqrt(1 - 0.999**t)

    def leaf(p: Any, m: Any, v: Any, g: Any) -> Any:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        return p - rate * m / (jnp.sqrt(v) / root + 1e-8) - LR * 0.01 * p, m, v

    out = jax.tree.map(leaf, params, mu, nu, grads)
    split = [jax.tree.map(lambda x, i=i: x[i], out, is_leaf=lambda x: isinstance(x, tuple)) for i in range(3)]
    return split[0], (count, split[1], split[2])


def copy(params: Any, state: Any, grads: Any) -> Any:
    """The traffic of AdamW without its arithmetic: four arrays read, three written."""
    mu, nu = state
    return (
        jax.tree.map(lambda p, g: p + g, params, grads),
        (jax.tree.map(lambda m, g: m + g, mu, grads), jax.tree.map(lambda v, g: v - g, nu, grads)),
    )


def nothing(params: Any, state: Any, grads: Any) -> Any:
    """What handing over so many arrays takes, donated or not, and getting as many back."""
    del grads
    return params, state


def accumulated(k: int, params: Any, grads: Any) -> Step:
    """Calls that add, k - 1 of them, and one that emits, each a program of its own."""
    tx = optim.accumulate(optim.adamw(LR), k)

    def last(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.emit(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    add, emit = jax.jit(tx.add, donate_argnums=1), jax.jit(last, donate_argnums=(0, 1))
    held = [jax.tree.map(jnp.copy, params), jax.jit(tx.init)(params)]

    def more() -> None:
        held[1] = add(grads, held[1])
        jax.block_until_ready(held)

    def finish() -> None:
        held[:] = emit(*held, grads)
        jax.block_until_ready(held)

    return in_turn(*[more] * (k - 1), finish)


def clipped() -> optax.GradientTransformation:
    """Our clip and AdamW."""
    return optim.stages(
        clip=optim.clip_by_global_norm(1.0),
        adam=optim.adamw_core(),
        decay=optim.decay(0.01),
        lr=optim.scale_by_lr(LR),
    )


def looped(tx: optax.GradientTransformation, params: Any) -> Step:
    """Calls of `LOOP` steps in one program, whose gradients are computed there: half of the parameters."""
    step = update(tx)

    def one(_: Any, carry: Any) -> Any:
        grads = jax.lax.optimization_barrier(jax.tree.map(lambda p: 0.5 * p, carry[0]))
        return step(*carry, grads)

    def steps(params: Any, state: Any, _: Any) -> Any:
        return jax.lax.fori_loop(0, LOOP, one, (params, state))

    return running(steps, params, jax.jit(tx.init)(params), None)


def arms(count: int) -> Iterator[tuple[str, float | None, int, dict[str, Step]]]:
    """Comparisons as (what, most that the ratio must be, micro-steps a unit, arms); the first arm is the base."""
    params = parameters(count)
    grads = jax.tree.map(lambda p: 0.5 * p, params)
    one = lambda tx: running(update(tx), params, jax.jit(tx.init)(params), grads)  # noqa: E731
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)  # noqa: E731
    flat = {"all": {"kernel": jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)])}}
    yield (
        "adamw",
        1.0,
        1,
        {
            "optax": one(optax.adamw(LR, weight_decay=0.01)),
            "jaxnn": one(optim.adamw(LR)),
            "jaxnn, flat": one(optim.flat(optim.adamw(LR))),
            "by hand": running(fused, params, (jnp.zeros((), jnp.int32), zeros(), zeros()), grads),
            "one flat vector": running(
                update(optim.adamw(LR)),
                flat,
                jax.jit(optim.adamw(LR).init)(flat),
                jax.tree.map(lambda p: 0.5 * p, flat),
            ),
            "its memory traffic": running(copy, params, (zeros(), zeros()), grads),
            "the call alone": running(nothing, params, (zeros(), zeros()), grads),
        },
    )
    clip = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LR, weight_decay=0.01))
    yield (
        "clip and adamw",
        0.6,
        1,
        {"optax": one(clip), "jaxnn": one(clipped()), "jaxnn, flat": one(optim.flat(clipped()))},
    )
    if count == LOOPED:
        forms = {"optax": clip, "jaxnn": clipped()}
        yield f"the same, {LOOP} steps a call", None, 1, {name: looped(tx, params) for name, tx in forms.items()}
    skip = optax.apply_if_finite(optax.adamw(LR, weight_decay=0.01), 10)
    skipping = optim.skip_nonfinite(optim.adamw(LR))
    yield (
        "skip what is not finite",
        0.6,
        1,
        {"optax": one(skip), "jaxnn": one(skipping), "jaxnn, flat": one(optim.flat(skipping))},
    )
    steps = optax.MultiSteps(optax.adamw(LR, weight_decay=0.01), 4).gradient_transformation()
    branch = one(optim.accumulate(optim.adamw(LR), 4))
    halves = accumulated(4, params, grads)
    yield "accumulate by 4", 0.4, 4, {"optax": one(steps), "jaxnn": halves, "jaxnn in one program": branch}


def matrices(side: int) -> dict[str, Any]:
    """96 square matrices."""
    kernel = np.random.default_rng(0).standard_normal((side, side), np.float32) / side**0.5
    return {f"blocks_{i}": {"kernel": jnp.asarray(kernel * (1 + i / 96))} for i in range(96)}


def muon_arms(side: int) -> tuple[str, float, int, dict[str, Step]]:
    """Muon's steps, as `arms` gives comparisons."""
    params = matrices(side)
    grads = jax.tree.map(lambda p: 0.5 * p, params)
    one = lambda tx: running(update(tx), params, jax.jit(tx.init)(params), grads)  # noqa: E731
    steps = {
        "optax": one(optax.contrib.muon(LR)),
        "jaxnn": one(optim.muon(LR)),
        "jaxnn, stacked": one(optim.stacked(optim.muon(LR))),
    }
    return f"muon, 96 of {side} x {side}", 1.0, 1, steps


def timed(steps: Mapping[str, Step], units: int, rounds: int) -> dict[str, np.ndarray]:
    """Seconds a micro-step of every arm, [rounds, 2], in turns: by the wall clock, and of the CPU."""
    rng = np.random.default_rng(0)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for name in steps:
        for _ in range(units):
            steps[name]()
    for _ in range(rounds):
        for name in rng.permutation(list(steps)):
            for _ in range(units):
                steps[name]()  # warms the caches that another arm has cooled
            began = time.perf_counter(), time.process_time()
            for _ in range(units):
                steps[name]()
            now = time.perf_counter(), time.process_time()
            times[name].append(((now[0] - began[0]) / units, (now[1] - began[1]) / units))
    return {name: np.asarray(t) for name, t in times.items()}


def show(what: str, most: float | None, times: Mapping[str, np.ndarray]) -> bool:
    """Prints a comparison; says whether one of our forms is within the bound."""
    base = next(iter(times))
    within = []
    for name, seconds in times.items():
        wall, log = np.log(seconds / times[base]).T
        interval = statistics.median_interval(log, 0.95)
        ratio = float(np.exp(np.median(log)))
        said = ""
        if name in ("jaxnn", "jaxnn, flat") and most is not None:
            within.append(ratio <= most)
            said = f"  {'met' if within[-1] else 'MISSED'} (must {most:g})"
        bounds = "" if name == base else f" [{np.exp(interval.low):.2f}, {np.exp(interval.high):.2f}]"
        print(
            f"  {what:26} {name:22} {1e3 * np.median(seconds[:, 0]):8.1f} ms (x {np.exp(np.median(wall)):.2f})  "
            f"CPU {1e3 * np.median(seconds[:, 1]):8.1f} ms  x {ratio:.2f}{bounds}{said}",
            flush=True,
        )
    return any(within) or not within


# ---- thousands of leaves


def filled(params: Any) -> Any:
    """Arrays of the shapes of `params`."""
    return jax.tree.map(lambda x: jnp.full(x.shape, 0.01, x.dtype), params)


def chunked_s(params: Any) -> tuple[float, Step]:
    """Seconds of the first step of `optim.chunked_step`, less those of the next; and further steps."""
    step = optim.chunked_step(optim.adamw(LR))
    grads = filled(params)
    held = [filled(params), jax.jit(step.init)(filled(params))]
    jax.clear_caches()

    def run() -> None:
        held[:] = step(held[0], held[1], grads)
        jax.block_until_ready(held)

    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return seconds[0] - seconds[1], run


def many_leaves(many: int) -> bool:
    """Prints the time of a step of AdamW on leaves of 16 x 16 and of 67 x 100, and what `chunked_step` compiles in."""
    forms = {"optax": optax.adamw(LR, weight_decay=0.01), "jaxnn": optim.flat(optim.adamw(LR))}
    met = True
    for size in ((16, 16), (67, 100)):
        leaves = {f"layer_{i}": {"kernel": jax.ShapeDtypeStruct(size, jnp.float32)} for i in range(many)}
        steps = {
            name: running(update(tx), filled(leaves), jax.jit(tx.init)(filled(leaves)), filled(leaves))
            for name, tx in forms.items()
        }
        if size == (16, 16):
            seconds, steps["chunked"] = chunked_s(leaves)
            print(f"  compile adamw, {many} leaves, chunked: {seconds:.1f} s")
        met &= show(f"adamw, {many} of {size[0]} x {size[1]}", 1.0, timed(steps, 1, 11))
    return met


TORCH = """
import json, sys, time, torch
torch.set_num_threads({threads})
count, total, rounds = {count}, {total}, {rounds}
rows = int((total / count) ** 0.5); shape = (rows, total // count // rows)
for name, how in (("fused", dict(fused=True)), ("foreach", dict(foreach=True))):
    params = [torch.nn.Parameter(torch.full(shape, 0.01)) for _ in range(count)]
    for p in params: p.grad = 0.5 * p.detach()
    tx = torch.optim.AdamW(params, 1e-3, weight_decay=0.01, **how)
    times = []
    for i in range(rounds + 2):
        began = time.perf_counter(); tx.step(); times.append(time.perf_counter() - began)
    print(json.dumps([name, sorted(times[2:])[rounds // 2]]))
"""


def torch_times(python: pathlib.Path, count: int, rounds: int) -> None:
    """Prints torch's AdamW on the same sizes, in a process of its own after ours: beside, not in turns."""
    code = TORCH.format(threads=2, count=count, total=TOTAL, rounds=rounds)
    out = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    for name, seconds in map(json.loads, out.splitlines()):
        print(f"  {'adamw':26} {'torch ' + name:22} {1e3 * seconds:8.1f} ms", flush=True)


def main(cfg: Config) -> bool:
    """Prints every comparison; gives whether all bounds hold."""
    met = True
    for count in cfg.leaves:
        print(f"{TOTAL // 10**6} M float32 parameters in {count} leaves, {cfg.rounds} rounds, jax {jax.__version__}")
        for what, most, units, steps in arms(count):
            met &= show(what, most, timed(steps, units, cfg.rounds))
        if cfg.torch is not None:
            torch_times(cfg.torch, count, cfg.rounds)
    if cfg.muon:
        for side in (64, 256):
            what, most, units, steps = muon_arms(side)
            met &= show(what, most, timed(steps, units, cfg.rounds))
    return many_leaves(cfg.many) and met if cfg.many else met


if __name__ == "__main__":
    main(tyro.cli(Config))
