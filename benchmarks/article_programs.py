"""The articles' five programs as numbers, and their data: what every arm of `benchmarks.articles` is built from.

NumPy alone is needed to read it, so that the environment of the peers, which has no jaxnn, can.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

CACHE = "ARTICLES_CACHE"  # the environment variable that names the folder of compiled programs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One program; the arms differ in what runs it, and in nothing else.

    Attributes:
        dense: Widths of the dense layers, relu between them; the last is the output's.
        channels: Widths of 3x3 convolutions without padding, each with relu and 2x2 max pooling, before them.
        loss: Mean squared error, or cross entropy from logits with integer labels.
        optimizer: With the defaults of all three frameworks, which agree, but for the rate.
        lr: Its rate.
        batch: Examples a step.
        epochs: Passes over the data in the whole program.
        against_keras: How many times faster than Keras on TensorFlow the steady step must be.
        whole_against_keras: Likewise the whole program.
    """

    dense: tuple[int, ...]
    channels: tuple[int, ...] = ()
    loss: Literal["mse", "cross_entropy"]
    optimizer: Literal["adam", "sgd"]
    lr: float
    batch: int
    epochs: int
    against_keras: float
    whole_against_keras: float = 2.0


PROGRAMS = {
    "regression_mlp": Program(
        dense=(64, 1), loss="mse", optimizer="adam", lr=1e-3, batch=32, epochs=100, against_keras=50
    ),
    "linear_regression": Program(
        dense=(1,), loss="mse", optimizer="sgd", lr=0.01, batch=1, epochs=100, against_keras=200
    ),
    "mnist_mlp": Program(
        dense=(128, 64, 10), loss="cross_entropy", optimizer="sgd", lr=0.01, batch=32, epochs=10, against_keras=6
    ),
    "wide_mlp": Program(
        dense=(128, 64, 10), loss="cross_entropy", optimizer="adam", lr=1e-3, batch=32, epochs=10, against_keras=6
    ),
    "mnist_cnn": Program(
        dense=(128, 10),
        channels=(32, 64),
        loss="cross_entropy",
        optimizer="adam",
        lr=1e-3,
        batch=32,
        epochs=10,
        against_keras=1,
        whole_against_keras=1,
    ),
}


def accuracy(program: Program, outputs: np.ndarray, data: dict[str, np.ndarray]) -> dict[str, float]:
    """The share of the test data that was classified rightly, where it is classified."""
    if program.loss == "mse":
        return {}
    return {"accuracy": float((outputs.argmax(-1) == data["y_test"]).mean())}


def write_data(name: str, folder: Path) -> Path:
    """Writes a program's `x`, `y`, `x_test`, `y_test` where they are not yet; every epoch has whole batches only.

    The frameworks treat a short last batch differently (Keras compiles for it anew), so there is none.
    """
    path = folder / f"{name}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        from experiments import linear_regression, regression_mlp, wide_mlp
        from jaxnn import data

        parts: tuple[Any, ...]
        if name == "linear_regression":
            x, y = linear_regression.points(linear_regression.Config())
            parts = ({"x": x, "y": y}, {"x": x, "y": y})
        elif name == "regression_mlp":
            parts = (regression_mlp.friedman(1000, 0).arrays, regression_mlp.friedman(1000, 1).arrays)
        elif name == "wide_mlp":
            examples, fresh = wide_mlp.clouds(1000, 0, 0).arrays, wide_mlp.clouds(1000, 0, 1).arrays
            parts = tuple({"x": p["x"], "y": p["y"].argmax(-1).astype(np.int32)} for p in (examples, fresh))
        else:
            parts = (data.digits("train").arrays, data.digits("test").arrays)
            if name == "mnist_mlp":
                parts = tuple({"x": p["x"].reshape(-1, 784), "y": p["y"]} for p in parts)
        count = len(parts[0]["x"]) // PROGRAMS[name].batch * PROGRAMS[name].batch
        with open(path.with_suffix(".part"), "wb") as file:
            np.savez(file, x=parts[0]["x"][:count], y=parts[0]["y"][:count], x_test=parts[1]["x"], y_test=parts[1]["y"])
        path.with_suffix(".part").rename(path)
    return path
