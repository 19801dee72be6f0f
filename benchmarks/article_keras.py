"""The articles' programs in Keras, as they write them: compile, fit, evaluate, predict."""

import importlib
import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.article_programs import Program, accuracy


class Keras:
    """One arm: Keras on a backend."""

    def __init__(self, backend: str):
        os.environ |= {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        self.keras: Any = importlib.import_module("keras")

    def model(self, program: Program, data: dict[str, Any]) -> Any:
        """The network, compiled; the last layer gives logits."""
        keras = self.keras
        keras.utils.set_random_seed(0)
        layers: list[Any] = [keras.Input(data["x"].shape[1:])]
        for channels in program.channels:
            layers += [keras.layers.Conv2D(channels, 3, activation="relu"), keras.layers.MaxPooling2D(2)]
        if program.channels:
            layers.append(keras.layers.Flatten())
        layers += [keras.layers.Dense(width, activation="relu") for width in program.dense[:-1]]
        layers.append(keras.layers.Dense(program.dense[-1]))
        model = keras.Sequential(layers)
        kinds = {"adam": keras.optimizers.Adam, "sgd": keras.optimizers.SGD}
        entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(kinds[program.optimizer](program.lr), "mse" if program.loss == "mse" else entropy)
        return model

    def whole(self, program: Program, data: dict[str, Any], first: Callable[[], None]) -> dict[str, float]:
        """The whole program."""

        class First(self.keras.callbacks.Callback):
            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                if batch == 0:
                    first()

        model = self.model(program, data)
        settings = {"batch_size": program.batch, "verbose": 0}
        model.fit(data["x"], data["y"], epochs=program.epochs, callbacks=[First()], **settings)
        loss = model.evaluate(data["x_test"], data["y_test"], batch_size=256, verbose=0)
        outputs = model.predict(data["x_test"], batch_size=256, verbose=0)
        return {"loss": float(loss), **accuracy(program, outputs, data)}

    def steady(self, program: Program, data: dict[str, Any], turn: Callable[[int, float], int | None]) -> None:
        """Stretches of training: each is one call of `fit`, timed from its first epoch's end to its last's.

        So what `fit` does before it trains counts in none.
        """

        class Ends(self.keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                ends.append(time.perf_counter())

        ends: list[float] = []
        model = self.model(program, data)
        epochs, seconds = 0, 0.0
        while (wanted := turn(epochs, seconds)) is not None:
            epochs = wanted
            ends.clear()
            model.fit(
                data["x"],
                data["y"],
                epochs=epochs + 1,
                batch_size=program.batch,
                verbose=0,
                callbacks=[Ends()],
            )
            seconds = ends[-1] - ends[0]


def make(kind: str) -> Keras:
    """The arm of a kind, "tensorflow" or "jax"."""
    return Keras(kind)
