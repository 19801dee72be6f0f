"""Fine-tunes all-MiniLM-L6-v2 on movie snippets: 85.7 % of held-out ones right (one run), TF-IDF and regression 79.8 %.

make data; python -m experiments.sentiment   # 22.6 M parameters, 10,568 snippets; TF-IDF and logistic regression beside
python -m experiments.sentiment --weights none --epochs 10   # a small encoder from random parameters
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn import data, figures, losses, metrics, models, optim, parallel, rng, runs, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(train.RunOptions):
    """BERT, fine-tuned to tell good from bad."""

    data: str = ".cache/snippets"  # folder of movieReviewSnippets_GroundTruth.txt
    weights: str = ".cache/minilm"  # folder of a BERT with its tokenizer; "none" for a small one from random parameters
    epochs: int = 1  # passes over the data
    batch: int = 16  # snippets a step
    lr: float = 1e-4  # peak, per update, after a tenth of the steps; then linear to 0
    dropout: float = 0.1
    length: int = 32  # most tokens of a snippet while learning: two thirds have fewer; held-out ones are read to 64
    precision: Literal["float32", "matmul_bf16"] = "matmul_bf16"  # operands of matrix products


# ---- data

WHOLE = 64  # tokens: nearly every snippet has fewer
BUCKETS = (16, 24, 32, 48)  # lengths of batches below the most: a program is compiled for each
GOOD = (
    "a joy from start to end",
    "funny, warm and wise",
    "the cast is superb",
    "I would see it again tomorrow",
    "moving without being sentimental",
    "a small masterpiece",
)
BAD = (
    "two hours that I will never get back",
    "dull, loud and empty",
    "the cast looks bored",
    "I left before the end",
    "sentimental without being moving",
    "a great disappointment",
)


@functools.cache
def snippets(folder: str) -> tuple[list[str], np.ndarray]:
    """Texts and whether they are good, by the mean of twenty people's ratings; ratings of 0 are left out."""
    path = Path(folder) / "movieReviewSnippets_GroundTruth.txt"
    if not path.is_file():
        print(f"No {path}: {len(GOOD + BAD)} sentences stand in. `make data` fetches the snippets.", flush=True)
        return [*GOOD, *BAD], np.array([1] * len(GOOD) + [0] * len(BAD))
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line]
    rows = [(float(score), text.strip()) for _, score, text in rows if float(score)]
    return [text for _, text in rows], np.array([int(score > 0) for score, _ in rows])


def held_out(text: str) -> bool:
    """A fifth of the texts, by a hash of them: equal texts are on the same side."""
    return hashlib.blake2b(text.encode(), digest_size=1).digest()[0] < 51


@functools.cache
def split(folder: str) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    """Texts and labels to learn from, and held-out ones."""
    texts, labels = snippets(folder)
    out = np.array([held_out(text) for text in texts])
    sides = [([t for t, o in zip(texts, out, strict=True) if o == side], labels[out == side]) for side in (False, True)]
    return *sides[0], *sides[1]


# ---- model


@functools.cache
def pretrained(cfg: Config) -> tuple[data.Tokenizer, models.BERT, Any]:
    """A tokenizer, the network, and its parameters: the given ones with a new head, or None to draw all of them."""
    changes: dict[str, Any] = {
        "head": "classify",
        "classes": 2,
        "pooling": "mean",
        "pooler": False,
        "dropout": cfg.dropout,
        "matmul_dtype": jnp.bfloat16 if cfg.precision == "matmul_bf16" else None,
    }
    if (Path(cfg.weights) / "config.json").is_file():
        model, params = models.load(cfg.weights, init=rng.wrap(rng.seed_key(cfg.seed)), **changes)
        return data.Tokenizer.load(cfg.weights), model, params
    if cfg.weights != "none":
        print(f"No weights in {cfg.weights}: a small network begins at random. `make data` fetches MiniLM.", flush=True)
    tokenizer = data.Tokenizer.train(split(cfg.data)[0], vocab=4096, kind="wordpiece")
    sizes = {"layers": 2, "heads": 4, "width": 128, "mlp_width": 512, "length": WHOLE}
    return tokenizer, models.BERT(models.BERTConfig(vocab=tokenizer.vocab, **sizes, **changes)), None


# ---- loss, optimizer


def build(cfg: Config) -> train.Setup:
    """Everything that `fit` needs, for tools to reuse."""
    texts, labels, others, truth = split(cfg.data)
    tokenizer, model, params = pretrained(cfg)
    shorter = [bucket for bucket in BUCKETS if bucket < cfg.length]
    source = data.Sentences(tokenizer, texts, length=cfg.length, buckets=shorter, y=labels)
    validation = data.Sentences(tokenizer, others, length=WHOLE, buckets=BUCKETS, y=truth)
    task = train.supervised(model, losses.cross_entropy, {"accuracy": metrics.accuracy})
    if params is not None:
        task = dataclasses.replace(task, init=lambda key, batch: (params, {}))
    steps = cfg.epochs * -(-len(source) // min(cfg.batch, len(source)))
    up = max(1, steps // 10)
    rate = optim.schedules.joined(
        (optim.schedules.linear(0, cfg.lr, up), up), (optim.schedules.linear(cfg.lr, 0, max(1, steps - up)), None)
    )
    return train.Setup(task=task, tx=optim.adamw(rate), data=source, validation=validation)


# ---- the run


def baseline(cfg: Config) -> float | None:
    """Accuracy of logistic regression on TF-IDF of words and pairs of words; None without scikit-learn."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        return None
    texts, labels, others, truth = split(cfg.data)
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    fitted = LogisticRegression(C=10, max_iter=1000).fit(vectors.fit_transform(texts), labels)
    return float(fitted.score(vectors.transform(others), truth))


def main(cfg: Config) -> dict[str, float]:
    """Fine-tunes and judges the held-out texts; some of them are in the run's report."""
    parallel.compilation_cache()
    strategy = cfg.placed(models.bert.RULES)
    setup = build(cfg)
    _, _, texts, truth = split(cfg.data)
    out = train.run_folder("sentiment", cfg.out, cfg.resume)
    print(f"{setup.data}, {len(texts)} held out\n-> {out}", flush=True)
    run = train.fit(
        setup.task,
        setup.tx,
        setup.data,
        batch_size=min(cfg.batch, len(setup.data)),
        epochs=cfg.epochs,
        seed=cfg.seed,
        strategy=strategy,
        validation=setup.validation,
        out=out,
        resume=cfg.resume,
        config=dataclasses.asdict(cfg),
    )
    probabilities = jax.nn.softmax(train.predict(run.task, run.state, setup.validation, batch_size=32))[:, 1]
    given = np.asarray(probabilities > 0.5, np.int64)
    result = {"accuracy": float(np.mean(given == truth))}
    if (other := baseline(cfg)) is not None:
        result["tfidf_accuracy"] = other
    counts = np.zeros((2, 2), np.int64)
    np.add.at(counts, (truth, given), 1)
    title = f"{(given != truth).sum()} of {len(truth)} are wrong"
    picture = runs.Section("Held-out snippets", figure=figures.matrix(counts, title, names=("bad", "good")))
    surest = np.argsort(-np.abs(np.asarray(probabilities) - truth), kind="stable")[:12]
    rows = [[texts[i], ("bad", "good")[truth[i]], float(probabilities[i])] for i in surest]
    worst = runs.Section("The surest mistakes", rows, ["text", "people say", "probability of good"])
    return train.conclude(run, result, picture, worst)


if __name__ == "__main__":
    train.command(main, Config)
