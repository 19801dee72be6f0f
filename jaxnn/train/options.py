"""What every experiment's command line takes besides its own settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from jax.sharding import PartitionSpec

from jaxnn import parallel

StrategyName = Literal[
    "single", "replicate", "pmap", "zero1", "zero2", "zero3", "fsdp", "tensor", "sequence", "fsdp_tensor"
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """An experiment's config derives from this: `class Config(train.RunOptions)`."""

    seed: int = 0  # the only source of randomness
    strategy: StrategyName = "single"  # how a step is spread over devices
    devices: int | None = None  # how many, None for all; forced ones where there is no accelerator
    out: str | None = None  # the run's folder; None for the next free runs/EXPERIMENT-N
    resume: bool = False  # go on with the run in `out`, or with the newest

    def placed(self, rules: Mapping[str, PartitionSpec] | None = None) -> Any:
        """The strategy that was asked for. Call it before anything uses JAX's devices.

        Args:
            rules: How the model's parameters are split over devices that share a layer: `models.gpt.RULES`.

        Raises:
            ValueError: As `parallel.by_name`.
        """
        return parallel.by_name(self.strategy, self.devices, rules)
