"""The articles' programs in PyTorch: eager, or with the model compiled.

Batches are cut out of a permuted tensor rather than drawn through a DataLoader, which costs several times a step here.
"""

import importlib
import time
from collections.abc import Callable
from typing import Any

from benchmarks.article_programs import Program, accuracy


class Torch:
    """One arm: `compiled` says whether the model goes through `torch.compile`."""

    def __init__(self, compiled: bool):
        self.torch: Any = importlib.import_module("torch")
        self.compiled = compiled

    def model(self, program: Program, data: dict[str, Any]) -> Any:
        """The network, channels first."""
        nn = self.torch.nn
        layers: list[Any] = []
        width, side = data["x"].shape[-1], data["x"].shape[1] if program.channels else 0
        for channels in program.channels:
            layers += [nn.Conv2d(width, channels, 3), nn.ReLU(), nn.MaxPool2d(2)]
            width, side = channels, (side - 2) // 2
        if program.channels:
            layers.append(nn.Flatten())
            width *= side * side
        for features in program.dense[:-1]:
            layers += [nn.Linear(width, features), nn.ReLU()]
            width = features
        layers.append(nn.Linear(width, program.dense[-1]))
        return nn.Sequential(*layers)

    def tensors(self, program: Program, x: Any, y: Any) -> tuple[Any, Any]:
        """Inputs, channels first, and targets."""
        torch = self.torch
        inputs = torch.from_numpy(x)
        if program.channels:
            inputs = inputs.permute(0, 3, 1, 2).contiguous()
        return inputs, torch.from_numpy(y) if program.loss == "mse" else torch.from_numpy(y).long()

    def setup(self, program: Program, data: dict[str, Any]) -> tuple[Any, Any, Callable[[int], None]]:
        """The model, the loss and `train(epochs)`; `self.first` is called after each epoch's first step."""
        torch = self.torch
        torch.manual_seed(0)
        model = self.model(program, data)
        if self.compiled:
            model = torch.compile(model)
        loss_fn = torch.nn.MSELoss() if program.loss == "mse" else torch.nn.CrossEntropyLoss()
        kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        optimizer = kinds[program.optimizer](model.parameters(), lr=program.lr)
        x, y = self.tensors(program, data["x"], data["y"])
        n, batch = len(x), program.batch

        def train(epochs: int) -> None:
            for _ in range(epochs):
                order, total = torch.randperm(n), torch.zeros(())
                for start in range(0, n, batch):
                    rows = order[start : start + batch]
                    optimizer.zero_grad()
                    loss = loss_fn(model(x[rows]), y[rows])
                    loss.backward()
                    optimizer.step()
                    total += loss.detach()
                    if self.first is not None:
                        self.first()
                        self.first = None
                float(total)

        return model, loss_fn, train

    first: Callable[[], None] | None = None

    def whole(self, program: Program, data: dict[str, Any], first: Callable[[], None]) -> dict[str, float]:
        """The whole program."""
        self.first = first
        model, loss_fn, train = self.setup(program, data)
        train(program.epochs)
        x, y = self.tensors(program, data["x_test"], data["y_test"])
        model.eval()
        with self.torch.no_grad():
            outputs = self.torch.cat([model(part) for part in x.split(256)])
            return {"loss": float(loss_fn(outputs, y)), **accuracy(program, outputs.numpy(), data)}

    def steady(self, program: Program, data: dict[str, Any], turn: Callable[[int, float], int | None]) -> None:
        """Stretches of training."""
        _, _, train = self.setup(program, data)
        train(1)
        epochs, seconds = 0, 0.0
        while (wanted := turn(epochs, seconds)) is not None:
            epochs, began = wanted, time.perf_counter()
            train(epochs)
            seconds = time.perf_counter() - began


def make(kind: str) -> Torch:
    """The arm of a kind, "eager" or "compiled"."""
    return Torch(kind == "compiled")
