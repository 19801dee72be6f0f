"""What every experiment's command line takes besides its own settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from jax.sharding import PartitionSpec

from jaxnn import parallel
from jaxnn.core import Step

StrategyName = Literal[
    "single", "replicate", "pmap", "zero1", "zero2", "zero3", "fsdp", "tensor", "sequence", "fsdp_tensor"
]
PrecisionName = Literal["float32", "bfloat16", "float16", "matmul_bf16"]


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Base of an experiment's config: `--accumulate`, `--precision`, `--remat` and `--nonfinite`; see `train.Step`."""

    accumulate: int = 1  # micro-batches a step: less memory for activations, the same numbers
    precision: PrecisionName = "float32"  # of the model; parameters and optimizer are float32 under all
    remat: Literal["none", "block", "dots", "projections", "full"] = "none"  # what the backward pass computes anew
    nonfinite: Literal["stop", "skip"] = "stop"  # at a step that is not finite: end the run, or leave the step out

    def settings(self) -> Step:
        """For `fit(..., step=cfg.settings())`; under float16 its optimizer is `cfg.settings().optimizer(tx)`."""
        return Step(accumulate=self.accumulate, precision=self.precision, remat=self.remat, nonfinite=self.nonfinite)
