"""Our side of `benchmarks.models`: the models as users get them, the steps that `fit` compiles, and the weights that
PyTorch is given, in the layouts that `jaxnn.models.weights` knows where it knows one."""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from benchmarks.model_families import LR, Family, examples
from jaxnn import core, cost, data as sources, losses, models, optim, parallel, rng, tree
from jaxnn.bench import probes
from jaxnn.core.state import State, abstract, complete
from jaxnn.core.step import check_step, dispatch_steps, make_chunk, make_step, trace_step
from jaxnn.models.weights import tensors
from jaxnn.train import engine
from jaxnn.typing import Array

NOISE = 0.02  # deviation of what is added to parameters that begin at 0, so that a forgotten one would be seen
PROBES = 5  # products after each stretch


class LSTMLanguage(nn.Module):
    """Tokens -> logits of the next: a table, an LSTM, a dense layer."""

    embed: int
    width: int
    vocab: int

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """[B, T] -> [B, T, vocab]."""
        x = models.layers.Embed(self.vocab, self.embed, name="embed")(tokens)
        x, _ = models.RNN(models.LSTMCell(self.width), name="rnn")(x)
        return models.layers.Dense(self.vocab, role="head", name="head")(x)


def module(name: str, family: Family) -> nn.Module:
    """A family's model."""
    s: dict[str, Any] = dict(family.sizes)
    if name == "mlp":
        return models.MLP(**s)
    if name.startswith("gpt"):
        return models.GPT(models.GPTConfig(vocab=family.vocab, **s))
    if name == "lstm":
        return LSTMLanguage(vocab=family.vocab, **s)
    if name == "seq2seq":
        length = s.pop("length")
        return models.SideBySide(models.Seq2Seq(models.Seq2SeqConfig(family.vocab, **s)), length)
    if name == "transformer":
        length = s.pop("length")
        return models.SideBySide(
            models.Transformer(models.TransformerConfig(family.vocab, layout="marian", **s)), length
        )
    if name == "bert":
        return models.BERT(models.BERTConfig(family.vocab, head="classify", dropout=0.0, **s))
    if name == "resnet20":
        return models.ResNet(models.ResNetConfig.preset("resnet20", form="lax"))
    if name == "vgg11":
        return models.VGG(models.VGGConfig.preset("vgg11", head="small", classes=family.classes, form="lax"))
    if name == "vit":
        return models.ViT(models.ViTConfig(classes=family.classes, **s))
    return models.Inception(models.InceptionConfig(classes=family.classes, aux=False, dropout=0.0, form="lax"))


def task_of(name: str, family: Family) -> core.Task:
    """What is learned: the mean cross entropy of all targets."""
    return core.supervised(module(name, family), losses.cross_entropy)


def _noised(params: Any, model_state: Any) -> tuple[Any, Any]:
    draw = np.random.default_rng(1)

    def leaf(x: Any) -> np.ndarray:
        x = np.asarray(x)
        return x if x.any() else draw.normal(scale=NOISE, size=x.shape).astype(x.dtype)

    return jax.tree.map(leaf, params), model_state


def drawn(name: str, family: Family, batch: Mapping[str, Any]) -> State:
    """The state that all arms begin with, from the model's own initialisers."""
    return core.init_state(task_of(name, family), optim.adamw(LR), batch, strategy=parallel.single(), given=_noised)


def stored(data: Mapping[str, np.ndarray]) -> State:
    """The state that `write` has stored, with a new state of the optimizer: drawing a large model takes its time."""
    parts: dict[str, Any] = {"params": {}, "model_state": {}}
    for key, x in data.items():
        kind, _, path = key.partition(":")
        if kind in parts:
            *above, last = path.split("/")
            at = parts[kind]
            for part in above:
                at = at.setdefault(part, {})
            at[last] = x
    zero = np.zeros((), np.int32)
    opt_state = jax.jit(optim.adamw(LR).init)(parts["params"])
    state = State(zero, zero, parts["params"], parts["model_state"], opt_state, rng.seed_key(0))
    return parallel.single().put_state(state)


# ---- the weights for PyTorch


def _plain(params: Any, stats: Any) -> dict[str, np.ndarray]:
    """Our own names with dots, for modules that are named as ours: kernels as torch keeps them, the rest as it is."""
    ends = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}
    found = {}
    for path, value in {**tree.leaves_by_path(params), **tree.leaves_by_path(stats)}.items():
        *above, end = path.split("/")
        x = np.asarray(value)
        if end == "kernel":
            x = np.transpose(x, (3, 2, 0, 1)) if x.ndim == 4 else x.T
        found[".".join([*above, ends.get(end, end)])] = x
    return found


def _cell(cell: Mapping[str, Any], end: str) -> dict[str, np.ndarray]:
    """A recurrent cell as torch.nn.LSTM or GRU names it; what it has no second bias for is 0."""
    kernel, hidden = np.asarray(cell["input"]["kernel"]), np.asarray(cell["hidden"])
    second = np.zeros(hidden.shape[1], np.float32)
    if "hidden_bias" in cell:
        second[-hidden.shape[0] :] = cell["hidden_bias"]
    return {
        f"weight_ih_{end}": kernel.T,
        f"weight_hh_{end}": hidden.T,
        f"bias_ih_{end}": np.asarray(cell["input"]["bias"]),
        f"bias_hh_{end}": second,
    }


def _recurrent(params: Any) -> dict[str, np.ndarray]:
    """The plain names, and recurrent cells as torch has them."""
    params = dict(params)
    found: dict[str, np.ndarray] = {}
    for name in [n for n in ("rnn", "encoder") if n in params]:
        ways = params.pop(name)
        for way, end in (("forward_0", "l0"), ("backward_0", "l0_reverse")):
            if way in ways:
                found |= {f"{name}.{k}": x for k, x in _cell(ways[way]["cell"], end).items()}
    if "decoder_0" in params:
        found |= {f"decoder.{k}": x for k, x in _cell(params.pop("decoder_0"), "l0").items()}
    return found | _plain(params, {})


def torch_weights(name: str, family: Family, state: State) -> dict[str, np.ndarray]:
    """The state dict of the family's module in `benchmarks.model_torch`."""
    made: Any = module(name, family)
    params = state.params
    if name in ("resnet20", "vit", "inception"):
        return dict(models.to_torchvision(made, {"params": params, **state.model_state}))
    if name == "seq2seq":
        return _recurrent(params["net"])
    if name == "lstm":
        return _recurrent(params)
    if name in ("transformer", "bert"):
        net, own = (made.net, params["net"]) if name == "transformer" else (made, params)
        with tempfile.TemporaryDirectory() as folder:
            models.save(net, own, folder)
            return {key: np.array(tensor.read()) for key, tensor in tensors.read_folder(Path(folder)).items()}
    return _plain(params, state.model_state.get("batch_stats", {}))


def write(name: str, family: Family, path: Path) -> float:
    """Writes the data and the first weights of a family; gives the FLOPs of products and convolutions in a step."""
    data = examples(family)
    batch = {key: x[: family.batch] for key, x in data.items()}
    state = drawn(name, family, batch)
    weights = {f"w:{key}": x for key, x in torch_weights(name, family, state).items()}
    for kind in ("params", "model_state"):
        weights |= {f"{kind}:{key}": np.asarray(x) for key, x in tree.leaves_by_path(getattr(state, kind)).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {**data, **weights}
    np.savez(path, **arrays)
    step = make_step(task_of(name, family), optim.adamw(LR), parallel.single(), never_empty=True)
    return cost.of(jax.jit(step).trace(abstract(state), abstract(complete(batch))), compile=False).products


# ---- the arms

Run = Callable[[int], float]  # steps to the sum of their losses


def make(arm: str, name: str, family: Family, data: Mapping[str, np.ndarray]) -> Run:
    """`run(steps)`, which trains on from where it is. The programs are those that `train.fit` compiles."""
    settings = core.Step(precision="matmul_bf16") if arm.endswith("_bf16") else core.Step()
    task, tx, strategy = task_of(name, family), optim.adamw(LR), parallel.single()
    batches = [
        {key: data[key][i : i + family.batch] for key in ("x", "y")} for i in range(0, len(data["x"]), family.batch)
    ]
    state = stored(data)
    step = engine.scalars(make_step(task, tx, strategy, settings, never_empty=True))
    done = 0

    if not arm.startswith("loop"):
        compiled = strategy.compile_step(step)
        whole = [complete(batch) for batch in batches]

        def one_by_one(steps: int) -> float:
            nonlocal state, done
            sums = []
            for _ in range(steps):
                state, report = compiled(state, strategy.put_batch(whole[done % len(whole)]))
                sums.append(report["loss"])
                done += 1
            jax.block_until_ready(state)
            return _total(jax.device_get(sums))

        return one_by_one

    resident = sources.Arrays(data["x"], data["y"]).resident()
    first = complete(batches[0])
    sums = check_step(trace_step(step, state, first, strategy), state)
    k_max = dispatch_steps(family.batch, sums)
    chunk = strategy.compile(make_chunk(step, resident, sums, k_max))
    arrays = strategy.put_shared(resident.arrays)
    ids = np.arange(len(data["x"]), dtype=np.int32).reshape(len(batches), family.batch)

    def in_a_loop(steps: int) -> float:
        nonlocal state, done
        reports = []
        for at in range(0, steps, k_max):
            k = min(k_max, steps - at)
            rows = np.full((k_max, family.batch), -1, np.int32)
            rows[:k] = ids[(done + np.arange(k)) % len(ids)]
            state, report = chunk(state, arrays, strategy.put_rows(rows), np.int32(k))
            reports.append((report["loss"], k))
            done += k
        jax.block_until_ready(state)
        return sum(float(np.sum(np.asarray(m.sum)[:k] / np.asarray(m.weight)[:k])) for m, k in reports)

    return in_a_loop


def _total(means: list[Any]) -> float:
    return float(sum(float(mean.sum) / float(mean.weight) for mean in means))


def peak() -> Callable[[], dict[str, float]]:
    """A probe of the machine's matrix products: seconds of wall clock and of the CPU, and FLOPs, of a product."""
    probe = probes.product("float32")
    a, b = probe.case.args(jax.random.key(0))  # type: ignore[operator]
    multiply: Any = jax.jit(probe.case.function)
    jax.block_until_ready(multiply(a, b))

    def measure() -> dict[str, float]:
        jax.block_until_ready(multiply(a, b))  # warms the caches that the stretch has cooled
        began = time.perf_counter(), time.process_time()
        for _ in range(PROBES):
            out = multiply(a, b)
            jax.block_until_ready(out)
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
        return {"peak_s": wall / PROBES, "peak_cpu_s": cpu / PROBES, "peak_flops": probe.amount}

    return measure


# ---- the loss curve of narrow products


def curve(name: str, family: Family, steps: int) -> dict[str, list[float]]:
    """The losses of a family's first steps on real text, with float32 and with bf16 products, from the same state.

    The text is Python's standard library, in windows drawn by `train.fit`'s order; the loss in nats a byte.
    """
    source = sources.TextFiles(sources.stdlib_files()[0], length=family.x[0])
    found: dict[str, list[float]] = {}
    for precision in ("float32", "matmul_bf16"):
        task, tx, strategy = task_of(name, family), optim.adamw(LR), parallel.single()
        order = engine.Order(0, source, family.batch)
        batch = sources.host_batch(source, order(0, 1)[0])
        state = core.init_state(task, tx, batch, strategy=strategy)
        step = engine.scalars(make_step(task, tx, strategy, core.Step(precision=precision), never_empty=True))
        compiled = strategy.compile_step(step)
        sums = []
        for i in range(steps):
            batch = sources.host_batch(source, order(i, 1)[0])
            state, report = compiled(state, strategy.put_batch(batch))
            sums.append(report["loss"])
        found[precision] = [float(m.sum) / float(m.weight) for m in jax.device_get(sums)]
    return found
