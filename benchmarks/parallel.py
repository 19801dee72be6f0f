"""What strategies cost: a step against a hand-written one, bytes sent, memory a device, and the time to compile.

python -m benchmarks.parallel                                 # all of it, on 8 devices; forced ones on a CPU
python -m benchmarks.parallel --parts steps --rounds 31
python -m benchmarks.parallel --parts bytes compile --out runs/parallel.html

A step: `strategy.compile_step(make_step(...))` against the same layout written in plain jax and optax
(`benchmarks/parallel_by_hand.py`), a few calls of each in turns; must be at most 1.10 of its time, goal 1.03. Both do
the same job: masked losses and their weight are added, parameters in parts are gathered again for the backward pass.
Both end at the same loss, or the suite stops. Ratios are by the wall clock or by CPU seconds, whichever has the
narrower interval. Beside the times, which are noisy where eight devices share two cores, stands what is not: whether
both programs send the same, and how many instructions and fusions each has. Bytes and memory are those of the compiled
step (`jaxnn.cost`). Compiling: CPU seconds from the function to the program, caches cleared; with the layers scanned,
48 must cost at most 1.5 times what 12 do.
"""

import dataclasses
import os
import pathlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from benchmarks import parallel_by_hand as by_hand
from jaxnn import core, cost, losses, models, parallel, report, tree
from jaxnn.bench import compilation, guards, schema, statistics
from jaxnn.core.state import complete
from jaxnn.core.step import make_step
from jaxnn.cost import hlo
from jaxnn.parallel import layout

MUST, GOAL, MUST_DEPTH = 1.10, 1.03, 1.5
IN_FLIGHT = 8  # calls between two waits: collectives of forced devices may deadlock under many
SCALARS = 64  # bytes: sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    parts: tuple[str, ...] = ("steps", "bytes", "compile")
    strategies: tuple[str, ...] = tuple(parallel.STRATEGIES)
    devices: int = 8  # at most
    models: tuple[str, ...] = ("mlp", "gpt")  # whose steps are timed
    rounds: int = 21  # of every pair of steps
    depths: tuple[int, ...] = (12, 24, 48)  # layers to compile
    out: pathlib.Path | None = None  # a page with the tables and plots


class Problem(NamedTuple):
    """A model, its data and the rules by which its layers are split."""

    module: Any
    x: np.ndarray
    y: np.ndarray
    rules: Any


def gpt(layers: int, width: int, length: int, batch: int, **settings: Any) -> Problem:
    """A GPT over bytes, 8 heads."""
    config = models.GPTConfig(layers=layers, heads=8, width=width, length=length, tied=False, **settings)
    text = np.random.default_rng(0).integers(0, 256, (batch, length + 1)).astype(np.int32)
    return Problem(models.GPT(config), text[:, :-1], text[:, 1:], models.gpt.RULES)


def mlp() -> Problem:
    """64-128-128-128-8, 64 examples: a step of microseconds a device."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 64)).astype(np.float32), rng.integers(0, 8, 64).astype(np.int32)
    return Problem(models.MLP((128, 128, 128, 8)), x, y, models.mlp.RULES)


TX = optax.adamw(1e-3)


class Ours(NamedTuple):
    """A strategy's step on a problem, with its arguments placed."""

    strategy: Any
    step: Any
    state: core.State
    batch: Any
    task: Any


def ours(problem: Problem, name: str, devices: int) -> Ours:
    """The step that `train` compiles."""
    strategy = parallel.by_name(name, None if name == "single" else devices, rules=problem.rules)
    task = core.supervised(problem.module, losses.cross_entropy)
    batch = complete({"x": problem.x, "y": problem.y})
    state = core.init_state(task, TX, batch, strategy=strategy)
    step = strategy.compile_step(make_step(task, TX, strategy, never_empty=True))  # as `fit` does without weights
    return Ours(strategy, step, state, strategy.put_batch(batch), task)


def hand(problem: Problem, name: str, made: Ours) -> tuple[Any, tuple[Any, Any]]:
    """The hand-written step of the same layout, and its state: copies that lie where ours do."""
    loss = by_hand.masked_loss(problem.module, losses.cross_entropy)
    strategy, params = made.strategy, made.state.params
    state = jax.tree.map(jnp.copy, (params, made.state.opt_state))
    if name in ("single", "replicate", "pmap"):
        extra = {"single": (), "replicate": (getattr(strategy, "mesh", None),), "pmap": (strategy.devices,)}[name]
        return getattr(by_hand, name)(loss, TX, *extra), state
    with tree.declaring(lambda: core.roles(made.task, made.batch)):
        opt_specs = strategy.state_specs(made.state).opt_state
        kept = strategy.moment_specs(params)
        rules = getattr(strategy, "rules", None)
        used = layout.matched(params, dict(rules), strategy.mesh, "hand") if rules else {}
        split = strategy.param_specs(params) != used
    whole = jax.sharding.PartitionSpec()
    again = tree.map_by_path(lambda path, _: split and "blocks" in path, params)  # the layers that the model repeats
    kept, used = (tree.map_by_path(lambda path, _, s=s: s.get(path, whole), params) for s in (kept, used))
    if name.startswith("zero"):
        return by_hand.zero(loss, TX, strategy.mesh, strategy.stage, kept, opt_specs, again), state
    names = {"batch": "data"} | (dict.fromkeys(("heads", "mlp", "vocab"), "model") if rules else {})
    names |= {"sequence": "model"} if strategy.sequence else {}
    return by_hand.partitioned(loss, TX, strategy.mesh, kept, used, opt_specs, again, names), state


# ---- a step's time


class Arm:
    """Calls of a step one after the other, the state threaded through them."""

    def __init__(self, step: Any, state: Any, args: tuple[Any, ...], value: Callable[[Any], float]):
        self.step, self.state, self.args, self.value = step, state, args, value

    def run(self) -> tuple[float, float, float]:
        """Seconds a call: until the calls have returned, until their results are there, and of CPU."""
        cpu, began, out = time.process_time(), time.perf_counter(), None
        for _ in range(IN_FLIGHT):
            self.state, out = self.step(self.state, *self.args)
        called = time.perf_counter()
        jax.block_until_ready((self.state, out))
        done, used = time.perf_counter(), time.process_time() - cpu
        self.last = out
        return (called - began) / IN_FLIGHT, (done - began) / IN_FLIGHT, used / IN_FLIGHT

    def loss(self) -> float:
        """Of the last step."""
        return self.value(jax.device_get(self.last))


def sent(program: Any, mesh: Any) -> Counter:
    """(kind, axes) -> bytes, without what is no larger than a few sums."""
    found: Counter = Counter()
    for each in cost.collectives(program, mesh):
        found[each.kind, each.axes] += each.total_bytes
    return Counter({key: size for key, size in found.items() if size > SCALARS})


def programs(text: str) -> tuple[int, int]:
    """Instructions and fusions of a module."""
    opcodes = Counter(i.opcode for c in hlo.parse(text).computations.values() for i in c)
    return sum(opcodes.values()) - opcodes["parameter"], opcodes["fusion"]


def alike(a: Counter, b: Counter) -> bool:
    """Whether two programs send the same, scalars aside."""
    return set(a) == set(b) and all(abs(a[key] - b[key]) <= SCALARS for key in a)


def kinds(found: Counter) -> str:
    """As text: "all-reduce 0.1 MB"."""
    return ", ".join(f"{kind} {size / 1e6:.2f} MB" for (kind, _), size in sorted(found.items())) or "nothing"


STEPS = ["model", "strategy", "ours us", "by hand us", "ours / hand", "clock", "", "dispatch", "sends", "instructions"]
STEPS += ["fusions"]


def pair(model: str, problem: Problem, name: str, cfg: Config) -> list[Any]:
    """One row of the table of steps."""
    made = ours(problem, name, cfg.devices)
    step, state = hand(problem, name, made)
    args = (made.batch["x"], made.batch["y"], made.batch["mask"])
    texts = [
        f.lower(*a).compile().as_text() for f, a in ((made.step, (made.state, made.batch)), (step, (state, *args)))
    ]
    arms = (
        Arm(made.step, made.state, (made.batch,), lambda out: float(out["loss"].sum / out["loss"].weight)),
        Arm(step, state, args, lambda out: float(out[0] / out[1])),
    )
    rng, times = np.random.default_rng(0), np.zeros((cfg.rounds, 2, 3))
    for arm in arms * 2:
        arm.run()
    np.testing.assert_allclose(arms[0].loss(), arms[1].loss(), rtol=1e-4, err_msg=f"{model} {name}: not the same step")
    with guards.frozen_gc():
        for row in times:
            for i in rng.permutation(2):
                row[i] = arms[i].run()
    mesh = getattr(made.strategy, "mesh", ())
    a, b = (sent(text, mesh) for text in texts)
    counts = [programs(text) for text in texts]
    dispatch, wall, cpu = (ratio(times[:, 0, i] / times[:, 1, i]) for i in range(3))
    clock, (middle, _, text) = min((("wall", wall), ("cpu", cpu)), key=lambda pair: pair[1][1])
    said = "goal met" if middle <= GOAL else "must met" if middle <= MUST else "MISSED"
    micro = np.median(times[:, :, 1], axis=0) * 1e6
    same = "the same" if alike(a, b) else f"{kinds(a)}; by hand {kinds(b)}"
    each = [f"{counts[0][i]} : {counts[1][i]}" for i in range(2)]
    return [model, name, *(f"{t:.0f}" for t in micro), text, clock, said, dispatch[2], same, *each]


def ratio(ratios: np.ndarray) -> tuple[float, float, str]:
    """The median, the width of its interval (of the logarithm), and both as text."""
    found = statistics.median_interval(np.log(ratios), 0.95)
    middle = float(np.exp(np.median(np.log(ratios))))
    return middle, found.high - found.low, f"{middle:.2f} [{np.exp(found.low):.2f}, {np.exp(found.high):.2f}]"


def steps(cfg: Config, page: report.Page) -> None:
    """Our steps against hand-written ones."""
    rows = []
    for model in cfg.models:
        problem = mlp() if model == "mlp" else gpt(2, 64, 32, 16)
        for name in cfg.strategies:
            rows.append(pair(model, problem, name, cfg))
            print("  ".join(map(str, rows[-1])), flush=True)
    show(page, f"A step, {cfg.rounds} rounds of {IN_FLIGHT} calls (must {MUST}, goal {GOAL})", rows, STEPS)


# ---- bytes and memory against the number of devices


def wire(found: Any) -> float:
    """Bytes that a device sends in a collective on a ring (Patarasuk & Yuan 2009)."""
    share = (found.group - 1) / found.group
    return found.total_bytes * (2 if found.kind == "all-reduce" else 1) * (1 if "permute" in found.kind else share)


def theory(name: str, n: int, parameters: int, stream: int, layers: int) -> float:
    """Bytes that a device needs to send a step; `stream` are those of the residual stream of all examples."""
    share, two = (n - 1) / n, (4 * layers + 2) * stream
    of_data = {"replicate": 2, "pmap": 2, "zero1": 3, "zero2": 2, "zero3": 3, "fsdp": 3}
    if name in of_data:
        return of_data[name] * parameters * share
    if name == "fsdp_tensor":  # groups of 2 share a layer
        return 3 * parameters / 2 * (n / 2 - 1) / (n / 2) + 2 * two / (n / 2) / 2
    return 2 * two * share if n > 1 else 0


def per_device(tree_: Any) -> int:
    """Bytes that the first device holds of arrays."""
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree_))


BYTES = ["strategy", "devices", "sent MB", "theory MB", "sent / theory", "state MB", "temporaries MB", "sends"]


def sizes(cfg: Config, page: report.Page) -> None:
    """What a step of a scanned GPT sends and keeps, on 2, 4 and 8 devices."""
    layers, width, length, batch = 6, 128, 64, 16
    problem = gpt(layers, width, length, batch, scan=True)
    counts = [n for n in (2, 4, 8) if n <= cfg.devices]
    rows, curves = [], {"sent": {}, "temporaries": {}}
    for name in cfg.strategies:
        for n in [1] if name == "single" else counts:
            made = ours(problem, name, n)
            program = made.step.lower(made.state, made.batch).compile()
            memory = cost.memory(program)
            mesh = getattr(made.strategy, "mesh", ())
            bytes_ = sum(map(wire, cost.collectives(program, mesh)))
            needed = theory(name, n, tree.nbytes(made.state.params), batch * length * width * 4, layers) if n > 1 else 0
            temporaries = memory.temporaries / 1e6 if memory else float("nan")
            more = f"{bytes_ / needed:.2f}" if needed else "-"
            text = kinds(sent(program, mesh))
            rows.append([name, n, bytes_ / 1e6, needed / 1e6, more, per_device(made.state) / 1e6, temporaries, text])
            print("  ".join(map(report.format_value, rows[-1])), flush=True)
            curves["sent"].setdefault(name, []).append(bytes_ / 1e6)
            curves["temporaries"].setdefault(name, []).append(temporaries)
    show(
        page, f"GPT of {layers} scanned layers, width {width}, {batch} x {length} tokens, AdamW: a device", rows, BYTES
    )
    for what, lines in curves.items():
        own = {name: line for name, line in lines.items() if len(line) == len(counts)}
        page.figure(report.curve(counts, own, f"{what}, MB a device", "devices", "MB"))


# ---- compiling


COMPILE = ["strategy", "devices", "layers", "trace s", "lower s", "compile s", "all, CPU s", "against the first"]


def compiled(name: str, devices: int, layers: int) -> list[float]:
    """CPU seconds to trace, lower and compile the step of a scanned GPT."""
    made = ours(gpt(layers, 64, 32, 8, scan=True), name, devices)
    jax.clear_caches()
    at = [time.process_time()]
    with compilation.persistent_cache(False):
        traced = made.step.trace(made.state, made.batch)
        at.append(time.process_time())
        lowered = traced.lower()
        at.append(time.process_time())
        lowered.compile()
        at.append(time.process_time())
    return np.diff(at).tolist()


def compiling(cfg: Config, page: report.Page) -> None:
    """Compile time against depth, and against devices."""
    rows, curves = [], {}
    first = cfg.depths[0]
    for name in cfg.strategies:
        many = 1 if name == "single" else cfg.devices
        counts = [] if name == "single" else [n for n in (2, 4) if n < cfg.devices]
        base = 0.0
        for n, layers in [*((many, depth) for depth in cfg.depths), *((n, first) for n in counts)]:
            seconds = compiled(name, n, layers)
            base = base or sum(seconds)
            against = sum(seconds) / base
            said = f"{against:.2f}"
            if layers == 48 and first == 12:
                said += f" (must {MUST_DEPTH}: {'met' if against <= MUST_DEPTH else 'MISSED'})"
            rows.append([name, n, layers, *(round(s, 2) for s in seconds), round(sum(seconds), 2), said])
            print("  ".join(map(str, rows[-1])), flush=True)
            if n == many:
                curves.setdefault(name, []).append(sum(seconds))
    show(page, "CPU seconds to compile the step of a scanned GPT of width 64", rows, COMPILE)
    page.figure(report.curve(cfg.depths, curves, "compiling", "layers", "CPU seconds"))


def show(page: report.Page, title: str, rows: list[list[Any]], headers: list[str]) -> None:
    """Prints a table and puts it on the page."""
    print(f"\n{title}\n{report.text_table(rows, headers)}\n", flush=True)
    page.heading(title).table(rows, headers)


PARTS: dict[str, Callable[[Config, report.Page], None]] = {"steps": steps, "bytes": sizes, "compile": compiling}


def main(cfg: Config) -> None:
    """Prints the tables; writes the page."""
    parallel.force_host_devices(cfg.devices)
    parallel.compilation_cache()
    where = schema.environment()
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    about = (
        f"{cfg.devices} x {jax.devices()[0].device_kind}, {where['processor']}, jax {where['jax']}, {load} at the start"
    )
    print(about, flush=True)
    page = report.Page("What strategies cost").text(about)
    for part in cfg.parts:
        PARTS[part](cfg, page)
    if cfg.out is not None:
        print(f"-> {page.write(cfg.out)}")


if __name__ == "__main__":
    main(tyro.cli(Config))
