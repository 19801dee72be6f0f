"""Mistral's files: Llama's, with a window."""

from collections.abc import Mapping
from typing import Any

from jaxnn.models.weights.llama import family


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    window = config.get("sliding_window")
    return {"window": None if window is None else int(window)}


ARCHITECTURE = family("mistral", "Mistral", _read, lambda c: {"sliding_window": c.window}, lambda c: not c.qkv_bias)
