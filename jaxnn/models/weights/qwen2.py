"""Qwen2's files: Llama's, with a bias on queries, keys and values."""

from collections.abc import Mapping
from typing import Any

from jaxnn.models.gpt import GPTConfig
from jaxnn.models.weights.llama import family
from jaxnn.models.weights.table import count


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    window = count("qwen2", config, "sliding_window", 0) if config.get("use_sliding_window", False) else 0
    layers = count("qwen2", config, "num_hidden_layers", 0)
    first = count("qwen2", config, "max_window_layers", 28)
    if window and 0 < first < layers:
        raise ValueError(
            f"models.load: config.json of a qwen2 has max_window_layers={first} of {layers} layers. Tried: one window "
            f"for all layers, or none. Use a model that has that."
        )
    return {"qkv_bias": True, "window": window if window and first < layers else None}


def _write(c: GPTConfig) -> dict[str, Any]:
    if c.window is None:
        return {"use_sliding_window": False}
    return {"use_sliding_window": True, "sliding_window": c.window, "max_window_layers": 0}


ARCHITECTURE = family("qwen2", "Qwen2", _read, _write, lambda c: bool(c.qkv_bias))
