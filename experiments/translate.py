"""English to Spanish by a recurrent network with additive attention, or by a transformer; chrF and BLEU by chapters.

python -m experiments.translate  # numbers in words, always there: BLEU 100 after a minute of processor time
make data && python -m experiments.translate --data .cache/verses --steps 1050  # chrF 34.2, BLEU 14.3; 4.5 such minutes
python -m experiments.translate --data .cache/verses --steps 640 --model seq2seq  # chrF 29.5, BLEU 11.6; 3.7 of them
"""

import dataclasses
import functools
import sys
import time
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxnn import data, figures, losses, metrics, models, optim, parallel, runs, train

PAD, START, END = 0, 1, 2
BUCKETS = (8, 16, 24, 32, 48, 64, 96)  # tokens that a batch of held-out sources is padded to


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(train.RunOptions):
    """English to Spanish."""

    model: Literal["seq2seq", "transformer"] = "transformer"
    data: str = "numbers"  # numbers in words, or the folder of the Bible's verses that `make data` made
    vocab: int = 3000  # byte pairs of both languages together
    layout: Literal["t5", "marian"] = "marian"  # of the transformer
    length: int = 40  # tokens of a source or target at most; longer pairs are not learned from
    width: int = 128  # of embeddings and layers; the recurrent states have 3/2 of it
    layers: int = 2  # of the transformer's halves; the recurrent one has a layer in each
    batch: int = 32  # pairs a step
    steps: int = 600  # updates
    lr: float = 0.01  # peak of Muon, for matrices; warmed up, then linear to 3 %
    adam_lr: float = 4e-3  # peak of Adam, for everything else
    dropout: float = 0.0
    beams: int = 1  # hypotheses; 1 is greedy
    precision: Literal["float32", "matmul_bf16"] = "matmul_bf16"  # operands of matrix products


# ---- data
@functools.cache
def verses(folder: str) -> tuple[list[data.Verse], list[data.Verse]]:
    """Pairs to learn from, and those of held-out chapters."""
    return data.split_chapters(data.number_verses() if folder == "numbers" else data.read_verses(folder))


@functools.cache
def tokenizer(folder: str, vocab: int) -> Any:
    """Byte pairs of both languages, learned from what is not held out."""
    import tokenizers as hf

    bpe = hf.Tokenizer(hf.models.BPE())
    bpe.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = hf.decoders.ByteLevel()
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=["<pad>", "<start>", "<end>"], initial_alphabet=alphabet, show_progress=False
    )
    texts = (text for verse in verses(folder)[0] for text in (verse.source, verse.target))
    bpe.train_from_iterator(texts, trainer)
    return bpe


def encode(cfg: Config, texts: list[str]) -> list[list[int]]:
    """Token ids of each text and the end token."""
    return [[*e.ids, END] for e in tokenizer(cfg.data, cfg.vocab).encode_batch(texts)]


def padded(rows: list[list[int]], length: int) -> np.ndarray:
    """int32 [N, length]."""
    return np.array([row[:length] + [PAD] * (length - len(row)) for row in rows], np.int32)


@functools.cache
def fitting(cfg: Config, side: int) -> tuple[list[Any], int]:
    """Pairs of `cfg.length` tokens at most, as ids; and the longest of a source or target of both sides."""
    pairs = verses(cfg.data)[side]
    rows = list(zip(encode(cfg, [v.source for v in pairs]), encode(cfg, [v.target for v in pairs])))
    return [row for row in rows if max(map(len, row)) <= cfg.length], max(max(map(len, row)) for row in rows)


def source(cfg: Config, side: int) -> data.Arrays:
    """The pairs: a source and what goes into the decoder side by side as x, what is to come out as y."""
    rows, _ = fitting(cfg, side)
    length = sides(cfg)
    sources, targets = (padded([row[i] for row in rows], length) for i in (0, 1))
    inputs = np.concatenate([np.full((len(rows), 1), START, np.int32), targets[:, :-1]], axis=1)
    weights = (targets != PAD).astype(np.float32)
    return data.Arrays(np.concatenate([sources, inputs], axis=1), targets, weights=weights)


def sides(cfg: Config) -> int:
    """Tokens that a source is padded to, and a target."""
    return min(cfg.length, max(fitting(cfg, side)[1] for side in (0, 1)))


# ---- model
def translator(cfg: Config) -> Any:
    """The network of `cfg.model`; its parameters are at "net"."""
    dtype = jnp.bfloat16 if cfg.precision == "matmul_bf16" else None
    vocab = tokenizer(cfg.data, cfg.vocab).get_vocab_size()
    common: dict[str, Any] = {"vocab": vocab, "dropout": cfg.dropout, "matmul_dtype": dtype}
    if cfg.model == "seq2seq":
        state = 3 * cfg.width // 2
        return models.Seq2Seq(models.Seq2SeqConfig(embed=cfg.width, width=state, attention=cfg.width, **common))
    return models.Transformer(
        models.TransformerConfig(
            layout=cfg.layout, width=cfg.width, heads=4, hidden=4 * cfg.width, layers=cfg.layers, **common
        )
    )


# ---- optimizer
def build(cfg: Config) -> train.Setup:
    """Everything that `fit` needs, for tools to reuse."""
    net = models.SideBySide(translator(cfg), sides(cfg))
    task = train.supervised(net, losses.cross_entropy, {"accuracy": metrics.accuracy})
    warm = min(50, cfg.steps // 2)
    rate = optim.warmup(optim.linear(cfg.lr, 0.03 * cfg.lr, cfg.steps - warm), warm)
    muon = optim.muon(rate, weight_decay=0.0, scale=optim.spectral, adam_lr=cfg.adam_lr)
    tx = optim.stages(clip=optim.clip_by_global_norm(1.0), muon=muon)
    return train.Setup(task=task, tx=tx, data=source(cfg, 0), validation=source(cfg, 1)[:256])


# ---- translations
def translations(cfg: Config, params: Any, texts: list[str]) -> list[str]:
    """What the model makes of each text, batches of near-equal length at a time."""
    net, rows = translator(cfg), encode(cfg, texts)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    written = [""] * len(rows)
    for first in range(0, len(rows), 64):
        at = by_length[first : first + 64]
        room = next((b for b in BUCKETS if b >= len(rows[at[-1]])), BUCKETS[-1])
        x = padded([rows[i] for i in at] + [[END]] * (64 - len(at)), room)
        out = models.translate(net, params, x, length=min(2 * room, BUCKETS[-1]), beams=cfg.beams)
        ids = [[t for t in row if t not in (PAD, START, END)] for row in out[: len(at)].tolist()]
        for i, text in zip(at, tokenizer(cfg.data, cfg.vocab).decode_batch(ids)):
            written[i] = text.strip()
    return written


def attention_map(cfg: Config, params: Any, text: str, translation: str) -> Any:
    """Where the decoder looked as it wrote: a picture, rows the target's tokens, columns the source's."""
    net, rows, target = translator(cfg), encode(cfg, [text]), encode(cfg, [translation])
    inputs = np.array([[START, *target[0][:-1]]], np.int32)
    _, weights = net.apply({"params": params}, np.array(rows, np.int32), inputs, attention=True)
    looks = np.asarray(weights)[0]
    looks = looks[-1].mean(axis=0) if looks.ndim == 4 else looks  # the last layer's heads
    bpe = tokenizer(cfg.data, cfg.vocab)
    names = [[bpe.decode([t]).strip() or bpe.id_to_token(t) for t in row] for row in (rows[0], target[0])]
    return figures.attention(looks, names[0], names[1], "Where each Spanish token was read")


# ---- the run
def main(cfg: Config) -> dict[str, float]:
    """Trains, translates the held-out chapters, scores them and draws where the model looked."""
    import sacrebleu

    parallel.compilation_cache()
    strategy = cfg.placed((models.transformer if cfg.model == "transformer" else models.seq2seq).RULES)
    setup = build(cfg)
    print(setup.data, flush=True)
    started = time.process_time()
    run = train.fit(
        setup.task,
        setup.tx,
        setup.data,
        batch_size=cfg.batch,
        steps=cfg.steps,
        seed=cfg.seed,
        strategy=strategy,
        validation=setup.validation,
        out=train.run_folder("translate", cfg.out, cfg.resume),
        resume=cfg.resume,
        config=dataclasses.asdict(cfg),
    )
    if run.stopped or run.folder is None:
        sys.exit(f"stopped: {run.stopped}")
    cpu_s = time.process_time() - started
    held_out, params = verses(cfg.data)[1], run.state.params["net"]
    sources, wanted = [v.source for v in held_out], [v.target for v in held_out]
    written = translations(cfg, params, sources)
    result = {"chrf": sacrebleu.corpus_chrf(written, [wanted]).score, "training_cpu_s": cpu_s}
    result["bleu"] = sacrebleu.corpus_bleu(written, [wanted]).score
    shown = range(0, len(held_out), max(1, len(held_out) // 12))
    samples = [[held_out[i].place, sources[i], written[i], wanted[i]] for i in shown]
    at = min(shown, key=lambda i: abs(len(sources[i]) - 60))
    looks = runs.Section("Attention", figure=attention_map(cfg, params, sources[at], written[at]))
    pairs = runs.Section("Held-out pairs", samples, ["", "English", "written", "Spanish"])
    return train.conclude(run, result, looks, pairs)


if __name__ == "__main__":
    train.command(main, Config)
