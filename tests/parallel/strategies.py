"""The strategies that tests go through, by name: functions of (model, devices). Every leaf that divides is split."""

from collections.abc import Callable
from typing import Any

from jaxnn import models, parallel

RULES = {"mlp": models.mlp.RULES, "gpt": models.gpt.RULES} | dict.fromkeys(
    ("cnn", "ghost", "poisoned"), models.cnn.RULES
)


def _tensor(**settings: Any) -> Callable[[str, int | None], Any]:
    return lambda model, devices: parallel.tensor(RULES[model], devices, model=2, min_size=1, **settings)


SPLIT: dict[str, Callable[[str, int | None], Any]] = {
    "zero1": lambda model, devices: parallel.zero(1, devices, min_size=1),
    "zero2": lambda model, devices: parallel.zero(2, devices, min_size=1),
    "zero3": lambda model, devices: parallel.zero(3, devices, min_size=1),
    "fsdp": lambda model, devices: parallel.fsdp(devices, min_size=1),
    "tensor": _tensor(),
    "sequence": _tensor(sequence=True),
    "fsdp_tensor": _tensor(fsdp=True),
}
WHOLE: dict[str, Callable[[str, int | None], Any]] = {
    "single": lambda model, devices: parallel.single(),
    "replicate": lambda model, devices: parallel.replicate(devices),
    "pmap": lambda model, devices: parallel.pmap(devices),
}
EVERY = WHOLE | SPLIT
