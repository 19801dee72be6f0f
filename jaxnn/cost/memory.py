"""What a compiled program needs in device memory, as XLA planned it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        arguments: Of the arguments.
        outputs: Of the results, those that alias a donated argument included.
        temporaries: Of everything between.
        aliased: Of the results that reuse a donated argument's memory.
        code: Of the executable; 0 where the backend does not say.
    """

    arguments: int
    outputs: int
    temporaries: int
    aliased: int
    code: int

    @property
    def peak(self) -> int:
        """Arguments + outputs + temporaries - aliased; XLA's own peak leaves out temporaries on a CPU."""
        return self.arguments + self.outputs + self.temporaries - self.aliased


def memory(compiled: Any) -> Memory | None:
    """The memory of a `jax.stages.Compiled` (bytes, one device), or None where the backend does not say."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )
