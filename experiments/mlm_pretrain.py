"""A small BERT learns to guess hidden words of prose and snippets, then to tell good snippets from bad by few labels.

make data; python -m experiments.mlm_pretrain --out runs/mlm  # 20 M tokens; what it gains: docs/results/mlm_pretrain.md
python -m experiments.mlm_pretrain --out runs/mlm --resume --tuning.labels 0 --tuning.epochs 3  # the same encoder again
"""

import ast
import dataclasses
import functools
import re
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import sentiment
from jaxnn import data, losses, metrics, models, optim, parallel, runs, train
from jaxnn.typing import Params, Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """What the encoder is then tuned with, or one that begins at random."""

    labels: int = 1000  # labelled snippets, drawn by the seed; 0 for all
    seeds: int = 5  # so many times
    epochs: int = 10  # passes over them
    lr: float = 5e-4  # peak for the encoder, per update; a tenth of warm-up, then linear to 0
    head_lr: float = 2e-3  # for the new head


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(train.RunOptions):
    """Pretraining by hidden tokens, and what it is worth."""

    data: str = ".cache/prose/tdavid"  # folder of a SWORD commentary; the standard library's docstrings where it is not
    snippets: str = ".cache/snippets"  # what it is fine-tuned on; see experiments.sentiment
    repeat: int = 12  # times that a pass over the prose has the snippets' own texts, without labels; 0 for prose alone
    vocab: int = 6000  # WordPiece tokens, learned from both
    layers: int = 2
    width: int = 128
    length: int = 64  # tokens a packed row
    steps: int | None = None  # of pretraining; None for 10,000, and 300 of docstrings
    batch: int = 32  # rows a step
    lr: float = 0.01  # peak of pretraining for matrices, by Muon; 50 steps of warm-up, then linear to 0
    adam_lr: float = 2e-3  # for embeddings and vectors, by Adam
    hide: float = 0.2  # share of the tokens to be guessed
    precision: Literal["float32", "matmul_bf16"] = "matmul_bf16"  # operands of matrix products
    tuning: Tuning = Tuning()


# ---- data


@functools.cache
def commentary(folder: str) -> list[str]:
    """Paragraphs of a SWORD commentary: zlib blocks (.czz) found by an index of (start, size, size unpacked) (.czs)."""
    paragraphs = []
    for index in sorted(Path(folder).glob("*.czs")):
        blocks, places = index.with_suffix(".czz").read_bytes(), struct.iter_unpack("<III", index.read_bytes())
        text = b"".join(zlib.decompress(blocks[start : start + size]) for start, size, _ in places)
        # Markup that begins a paragraph parts them; all other markup goes.
        for part in re.split(r'<div [^>]*sID[^>]*type="x-p"/>|\x00|<title', text.decode("utf-8", "replace")):
            paragraphs.append(" ".join(re.sub(r"<[^>]*>|^[^<]*>", " ", part).split()))
    return [p for p in paragraphs if len(p) > 40]


def docstrings() -> list[str]:
    """What the standard library's sources say of themselves."""
    found = []
    for file in data.stdlib_files()[0]:
        try:
            nodes = ast.walk(ast.parse(file.read_bytes()))
        except (SyntaxError, ValueError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found += [" ".join(doc.split()) for n in nodes if isinstance(n, kinds) and (doc := ast.get_docstring(n))]
    return [text for text in found if len(text) > 40]


@functools.cache
def prose(folder: str) -> tuple[list[str], list[str]]:
    """Paragraphs to learn from, and a twentieth held out by a hash."""
    texts = commentary(folder)
    if not texts:
        print(f"No prose in {folder}: docstrings stand in. `make data` fetches some.", flush=True)
        texts = docstrings()
    sides: tuple[list[str], list[str]] = ([], [])
    for text in texts:
        sides[zlib.crc32(text.encode()) % 20 == 0].append(text)
    return sides


@functools.cache
def words(cfg: Config) -> data.Tokenizer:
    """WordPiece, learned from prose and snippets alike; what is rare of their characters is no token."""
    texts = prose(cfg.data)[0] + 8 * sentiment.split(cfg.snippets)[0]
    return data.Tokenizer.train([re.sub(r"[^\x20-\x7e]", " ", t) for t in texts], vocab=cfg.vocab, kind="wordpiece")


def hidden(cfg: Config, texts: list[str]) -> Source:
    """Texts in packed rows, some of whose tokens are to be guessed."""
    tokens = words(cfg)
    rows = data.Packed(tokens.encode(texts), length=cfg.length, pad=tokens.pad)
    most = round(1.3 * cfg.hide * cfg.length)  # few rows have more
    hide = data.masked_tokens(tokens.vocab, tokens.mask, tokens.special, cfg.hide, most)
    return data.mapped(rows, hide, random=True, seed=cfg.seed)


# ---- model, loss, optimizer


def task(cfg: Config, **head: Any) -> train.Task:
    """The encoder with a head."""
    dtype = jnp.bfloat16 if cfg.precision == "matmul_bf16" else None
    sizes = {"layers": cfg.layers, "heads": 4, "width": cfg.width, "mlp_width": 4 * cfg.width, "length": cfg.length}
    net = models.BERT(models.BERTConfig(vocab=words(cfg).vocab, types=0, matmul_dtype=dtype, **sizes, **head))
    return train.supervised(net, losses.cross_entropy, {"accuracy": metrics.accuracy})


def updates(cfg: Config) -> int:
    """Steps of pretraining: what stands in for prose is there to be tried."""
    return cfg.steps if cfg.steps is not None else 10_000 if commentary(cfg.data) else 300


def up_and_down(peak: float, up: int, steps: int) -> optax.Schedule:
    """Linear to the peak, and from there to 0."""
    return optim.warmup(optim.linear(peak, 0.0, max(1, steps - up)), max(1, up))


def build(cfg: Config) -> train.Setup:
    """Everything that pretraining's `fit` needs, for tools to reuse."""
    learn, held_out = prose(cfg.data)
    steps = updates(cfg)
    rate = up_and_down(cfg.lr, min(50, steps // 2), steps)
    muon = optim.muon(rate, weight_decay=0.0, scale=optim.spectral, adam_lr=cfg.adam_lr)
    return train.Setup(
        task=task(cfg, head="mlm", dropout=0.0),
        tx=optim.stages(clip=optim.clip_by_global_norm(1.0), muon=muon),
        data=hidden(cfg, learn + cfg.repeat * sentiment.split(cfg.snippets)[0]),
        validation=hidden(cfg, held_out[::4]),
    )


# ---- the run


def tuned(cfg: Config, params: Params | None, seed: int) -> float:
    """Held-out accuracy on the snippets, from these parameters' encoder, or from none."""
    texts, labels, others, truth = sentiment.split(cfg.snippets)
    few = np.random.default_rng(seed).permutation(len(texts))[: cfg.tuning.labels or None]
    source = data.Sentences(words(cfg), [texts[i] for i in few], length=cfg.length, y=labels[few])
    held_out = data.Sentences(words(cfg), others, length=cfg.length, y=truth)
    size = min(32, len(source))
    steps = cfg.tuning.epochs * -(-len(source) // size)
    head, rest = (optim.adamw(up_and_down(lr, steps // 10, steps)) for lr in (cfg.tuning.head_lr, cfg.tuning.lr))
    run = train.fit(
        task(cfg, head="classify", pooling="mean", pooler=False),
        optim.groups(head=(optim.role("head"), head), rest=(optim.otherwise, rest)),
        source,
        batch_size=size,
        epochs=cfg.tuning.epochs,
        seed=seed,
        log=train.Log(progress=False),
        init_from=params and {name: part for name, part in params.items() if not name.startswith("mlm_")},
    )
    return float(train.evaluate(run.task, run.state, held_out)["accuracy"])


def around(tokens: data.Tokenizer, row: np.ndarray, at: int) -> str:
    """The text of a row of tokens: [?] stands for the hidden one at `at`, ... for other hidden ones."""
    parts, begin = [], 0
    for i in np.flatnonzero(row == tokens.mask):
        parts += [tokens.decode(row[begin:i]), "[?]" if i == at else "..."]
        begin = i + 1
    return " ".join([*parts, tokens.decode(row[begin:])]).strip()


def guesses(cfg: Config, run: train.Run) -> list[list[str]]:
    """A hidden token of each of a dozen held-out rows: what stands around it, the token, the likeliest three."""
    tokens, texts = words(cfg), prose(cfg.data)[1]
    rows = hidden(cfg, texts[:: max(1, len(texts) // 12)])
    seen = rows.take(np.arange(0, len(rows), max(1, len(rows) // 12))[:12])
    likely = jax.nn.softmax(train.predict(run.task, run.state, data.Arrays(seen)))
    found = []
    for i, (x, segment, places) in enumerate(zip(seen["x"], seen["segment"], seen["places"])):
        shown = np.flatnonzero((seen["weights"][i] > 0) & (x[places] == tokens.mask))  # some hidden ones stay as read
        if not shown.size:
            continue
        n = shown[len(shown) // 2]
        at = places[n]
        near = np.arange(max(0, at - 12), min(len(x), at + 13))
        near = near[segment[near] == segment[at]]
        best = np.argsort(-likely[i, n])[:3]
        said = ", ".join(f"{tokens.decode(t[None])} {likely[i, n, t]:.2f}" for t in best)
        found.append([around(tokens, x[near], int(at - near[0])), tokens.decode(seen["y"][i, n, None]), said])
    return found


def main(cfg: Config) -> dict[str, float]:
    """Pretrains, fine-tunes both ways, and says what it was worth."""
    parallel.compilation_cache()
    strategy = cfg.placed(models.bert.RULES)
    setup = build(cfg)
    out = train.run_folder("mlm_pretrain", cfg.out, cfg.resume)
    print(f"{setup.data}\n-> {out}", flush=True)
    options: dict[str, Any] = {"batch_size": cfg.batch, "steps": updates(cfg), "seed": cfg.seed, "strategy": strategy}
    options |= {"validation": setup.validation, "validate_every": max(1, updates(cfg) // 3)}
    config = dataclasses.asdict(dataclasses.replace(cfg, tuning=Tuning()))  # a run may be tuned in several ways
    run = train.fit(setup.task, setup.tx, setup.data, out=out, resume=cfg.resume, config=config, **options)
    own = train.evaluate(run.task, run.state, hidden(cfg, sentiment.split(cfg.snippets)[2]))
    last = next(row for row in reversed(run.history) if "val_loss" in row)
    result = {"prose_loss": last["val_loss"], "prose_accuracy": last["val_accuracy"], "snippets_loss": own["loss"]}
    print("fine-tuning, from the pretrained encoder and from scratch ...", flush=True)
    rows: list[list[Any]] = []
    for seed in range(cfg.tuning.seeds):
        rows.append([seed, tuned(cfg, jax.device_get(run.state.params), seed), tuned(cfg, None, seed)])
        print("seed {}: held-out accuracy {:.4f}, from scratch {:.4f}".format(*rows[-1]), flush=True)
    _, ours, theirs = np.array(rows).T
    for name, values in (("pretrained", ours), ("scratch", theirs), ("gain", ours - theirs)):
        result |= {name: values.mean(), f"{name}_spread": values.std(ddof=min(1, len(values) - 1))}
    table = runs.Section("What it is worth", rows, ["seed", "held-out accuracy, pretrained", "from scratch"])
    samples = runs.Section("Hidden tokens of held-out prose", guesses(cfg, run), ["as read", "hidden", "guessed"])
    return train.conclude(run, result, table, samples)


if __name__ == "__main__":
    train.command(main, Config)
