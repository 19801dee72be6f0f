"""A small BERT learns to guess hidden words of prose, then to tell good snippets from bad: better than from scratch?

make data; python -m experiments.mlm_pretrain   # Spurgeon's 15 MB; then 10,568 movie snippets, both ways, same settings
python -m experiments.mlm_pretrain --steps 200  # without `make data`: docstrings of Python's standard library
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
from jaxnn import data, losses, metrics, models, optim, parallel, runs, train, tree
from jaxnn.typing import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(train.RunOptions):
    """Pretraining by hidden tokens, and what it is worth."""

    data: str = ".cache/prose/tdavid"  # folder of a SWORD commentary; the standard library's docstrings where it is not
    snippets: str = ".cache/snippets"  # what it is fine-tuned on; see experiments.sentiment
    vocab: int = 4096  # WordPiece tokens, learned from the prose
    layers: int = 2
    width: int = 128
    length: int = 64  # tokens a packed row
    steps: int = 3000  # of pretraining
    batch: int = 32  # rows a step
    lr: float = 1e-3  # peak of pretraining, per update; a tenth of warm-up, then linear to 0
    epochs: int = 3  # of fine-tuning
    tune_lr: float = 5e-4  # its peak
    precision: Literal["float32", "matmul_bf16"] = "matmul_bf16"  # operands of matrix products


# ---- data


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
def tokenizer(folder: str, vocab: int) -> data.Tokenizer:
    """WordPiece, learned from the prose; its rare characters are not tokens."""
    kept = [re.sub(r"[^\x20-\x7e]", " ", text) for text in prose(folder)[0]]
    return data.Tokenizer.train(kept, vocab=vocab, kind="wordpiece")


# ---- model, loss, optimizer


def model(cfg: Config, **head: Any) -> models.BERT:
    """The encoder with a head."""
    dtype = jnp.bfloat16 if cfg.precision == "matmul_bf16" else None
    sizes = {"layers": cfg.layers, "heads": 4, "width": cfg.width, "mlp_width": 4 * cfg.width, "length": cfg.length}
    return models.BERT(models.BERTConfig(vocab=cfg.vocab, types=0, matmul_dtype=dtype, **sizes, **head))


def optimizer(peak: float, steps: int) -> optax.GradientTransformationExtraArgs:
    """AdamW; up over a tenth of the steps, then down to 0."""
    up = max(1, steps // 10)
    parts = (optim.schedules.linear(0, peak, up), up), (optim.schedules.linear(peak, 0, steps - up), None)
    return optim.adamw(optim.schedules.joined(*parts))


def build(cfg: Config) -> train.Setup:
    """Everything that pretraining's `fit` needs, for tools to reuse."""
    words = tokenizer(cfg.data, cfg.vocab)
    cfg = dataclasses.replace(cfg, vocab=words.vocab)
    hide = data.masked_tokens(words.vocab, words.mask, words.special)
    learn, held_out = (
        data.mapped(data.Packed(words.encode(side), length=cfg.length, pad=words.pad), hide, random=True, seed=cfg.seed)
        for side in prose(cfg.data)
    )
    task = train.supervised(model(cfg, head="mlm", dropout=0.0), losses.cross_entropy, {"accuracy": metrics.accuracy})
    return train.Setup(task=task, tx=optimizer(cfg.lr, cfg.steps), data=learn, validation=held_out)


# ---- the run


def tuned(cfg: Config, params: Params | None) -> float:
    """Held-out accuracy on the snippets, from these parameters' encoder, or from none."""
    words = tokenizer(cfg.data, cfg.vocab)
    texts, labels, others, truth = sentiment.split(cfg.snippets)
    source, held_out = (
        data.Sentences(words, side, length=cfg.length, y=y) for side, y in ((texts, labels), (others, truth))
    )
    net = model(dataclasses.replace(cfg, vocab=words.vocab), head="classify", pooling="mean", pooler=False)
    task = train.supervised(net, losses.cross_entropy, {"accuracy": metrics.accuracy})
    tx = optimizer(cfg.tune_lr, cfg.epochs * -(-len(source) // 32))
    if params is not None:
        state = train.init_state(task, tx, source.take(np.arange(1)), seed=cfg.seed, strategy=parallel.single())
        known = tree.leaves_by_path(params)
        begin = tree.map_by_path(lambda path, leaf: known.get(path, leaf), state.params)
        task = dataclasses.replace(task, init=lambda key, batch: (begin, {}))
    size = min(32, len(source))
    run = train.fit(task, tx, source, batch_size=size, epochs=cfg.epochs, seed=cfg.seed, log=train.Log(progress=False))
    return float(train.evaluate(run.task, run.state, held_out)["accuracy"])


def main(cfg: Config) -> dict[str, float]:
    """Pretrains, fine-tunes both ways, and says what it was worth."""
    parallel.compilation_cache()
    strategy = cfg.placed(models.bert.RULES)
    setup = build(cfg)
    out = train.run_folder("mlm_pretrain", cfg.out, cfg.resume)
    print(f"{setup.data}\n-> {out}", flush=True)
    run = train.fit(
        setup.task,
        setup.tx,
        setup.data,
        batch_size=cfg.batch,
        steps=cfg.steps,
        seed=cfg.seed,
        strategy=strategy,
        validation=setup.validation,
        validate_every=max(1, cfg.steps // 3),
        out=out,
        resume=cfg.resume,
        config=dataclasses.asdict(cfg),
    )
    print("fine-tuning, from the pretrained encoder and from scratch ...", flush=True)
    last = next(row for row in reversed(run.history) if "val_loss" in row)
    result = {
        "hidden_token_loss": last["val_loss"],
        "hidden_token_accuracy": last["val_accuracy"],
        "pretrained_accuracy": tuned(cfg, jax.device_get(run.state.params)),
        "scratch_accuracy": tuned(cfg, None),
    }
    rows = [[name, value] for name, value in result.items()]
    return train.conclude(run, result, runs.Section("What it is worth", rows, ["held-out", "value"]))


if __name__ == "__main__":
    train.command(main, Config)
