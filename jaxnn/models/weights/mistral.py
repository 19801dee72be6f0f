"""Mistral's files: Llama's, with a window."""

from collections.abc import Mapping
from typing import Any

from jaxnn.models.weights.llama import family
from jaxnn.models.weights.table import count


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"window": count("mistral", config, "sliding_window", 0) or None}


ARCHITECTURE = family("mistral", "Mistral", _read, lambda c: {"sliding_window": c.window}, lambda c: not c.qkv_bias)
