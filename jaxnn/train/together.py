"""What the processes of a job must do at the same step although only one of them knows that it is due.

A signal reaches one process, minutes pass on every clock a little differently, and dispatches are sized by how long
they took. So all meet at agreed data steps, about a second apart, and go by what they hear there: any process's signal,
process 0's clock. Between these points nothing that a process does depends on its own time. Likewise each reads its own
part of a batch: what one of them cannot read or use, all refuse.
"""

import dataclasses
import hashlib
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jaxnn
from jaxnn import parallel
from jaxnn.runs import config_changes
from jaxnn.runs.folder import plain_config
from jaxnn.train.signals import Signals
from jaxnn.typing import Strategy

MEET_S = 1.0  # between two meetings: how late a signal may be heard; one takes a millisecond
WHERE = "train.fit"


@dataclasses.dataclass
class Together:
    """The meetings of a run's processes.

    Attributes:
        at: The data step of the next one.
        steps: Done since the last one.
        seconds: Taken by them.
        met_at: When the last one was.
    """

    at: int = 0
    steps: int = 0
    seconds: float = 0.0
    met_at: float = dataclasses.field(default_factory=time.monotonic)

    def after(self, step: int) -> int:
        """The data step of the next meeting, after `step`."""
        if self.at <= step:
            self.at = step + 1
        return self.at

    def meet(self, step: int, signals: Signals, save_due: bool) -> tuple[bool, float]:
        """Hears of signals, and gives whether to save and how long a step takes, the same on every process.

        Args:
            step: The data step.
            signals: Takes in what any process has noticed.
            save_due: Whether this one's clock says that a checkpoint is due.
        """
        now, steps = time.monotonic(), max(1, self.steps)
        # Hooks and saves between steps count for the next meeting, not for the length of dispatches.
        heard = parallel.numbers(signals.noticed or 0, save_due, self.seconds / steps, (now - self.met_at) / steps)
        if (number := int(heard[:, 0].max())) and signals.received is None:
            signals.received = number
        self.at, self.steps, self.seconds = step + max(1, int(MEET_S / max(1e-9, float(heard[0, 3])))), 0, 0.0
        self.met_at = time.monotonic()
        return bool(heard[0, 1]), max(1e-9, float(heard[0, 2]))


def first_does(action: Callable[[], Any]) -> Any:
    """What `action()` gives, on process 0, which alone does it; None on the others. What it refuses, all refuse."""
    result, error = None, None
    if parallel.process_index() == 0:
        try:
            result = action()
        except (TypeError, ValueError) as refused:
            error = refused
    told = parallel.agree(_told(error))
    if error is not None:
        raise error
    if told is not None:
        raise (TypeError if told[0] else ValueError)(told[1])
    return result


def each_does(action: Callable[[], Any]) -> Any:
    """What `action()` gives, on each process; what one of them refuses, all refuse. Collective: a millisecond."""
    if parallel.process_count() == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except (TypeError, ValueError) as refused:
        error = refused
    refuse(error)
    return result


def refuse(error: Exception | None) -> None:
    """Raises on every process what one of them refused: its `error`, None where there is none. Collective."""
    if not parallel.numbers(error is not None).any():
        return
    everyone = parallel.gather(_told(error))
    if error is not None:
        raise error
    is_type, text = next(told for told in everyone if told is not None)
    raise (TypeError if is_type else ValueError)(text)


def _told(error: Exception | None) -> list[Any] | None:
    """What of an error the other processes are told."""
    return None if error is None else [isinstance(error, TypeError), str(error)]


def same_action(hook: str, step: int, action: Any) -> None:
    """Refuses a hook that wants something else on another process: they would wait for each other for ever."""
    if parallel.process_count() == 1:
        return
    described = type(action).__name__ if action is not None else "Continue"
    for name in ("reason", "why", "step", "skip"):
        described += f" {getattr(action, name, '')}"
    if len({float(x) for x in parallel.numbers(zlib.crc32(described.encode()))[:, 0]}) > 1:
        wanted = parallel.gather(described.strip())
        other = next(i for i, text in enumerate(wanted) if text != wanted[0])
        raise ValueError(
            f"{WHERE}: at step {step} hook {hook} wants {wanted[0]!r} on process 0 and {wanted[other]!r} on process "
            f"{other}. Tried: the same decision everywhere. Decide by what process 0 says: parallel.agree(value)."
        )


def same_program(config: Mapping[str, Any], strategy: Strategy) -> None:
    """Refuses processes that would not do the same: another config, other code, or no devices in the strategy.

    Raises:
        ValueError: Naming the process, and the field or the code.
    """
    count = parallel.process_count()
    if count == 1:
        return
    without = sorted(set(range(count)) - {d.process_index for d in strategy.devices})
    if without:
        raise ValueError(
            f"{WHERE}: the strategy's {len(strategy.devices)} devices leave out process {without[0]} of {count}. "
            f"Tried: {type(strategy).__name__}. Give a strategy over all devices: parallel.replicate(), or --strategy "
            "replicate without --devices."
        )
    mine = {"config": plain_config(config), "code": _code()}
    everyone = parallel.gather(mine)
    first = everyone[0]
    for index, other in enumerate(everyone):
        if other["config"] != first["config"]:
            changes = config_changes(first["config"], other["config"])
            raise ValueError(
                f"{WHERE}: processes 0 and {index} of {count} are to do different things (0 -> {index}): "
                f"{'; '.join(changes.values())}. Start all of them with the same arguments."
            )
        if other["code"] != first["code"]:
            named = ", ".join(name for name in first["code"] if first["code"][name] != other["code"].get(name))
            raise ValueError(
                f"{WHERE}: processes 0 and {index} of {count} run different code: {named}. Start all of them from the "
                "same files."
            )


def _code() -> dict[str, str]:
    """What tells this program from another: versions, and digests of the library and of the main module."""
    import jax

    library = hashlib.sha256()
    root = Path(jaxnn.__file__).parent
    for path in sorted(root.rglob("*.py")):
        library.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    known = main is not None and Path(main).is_file()
    return {
        "python": ".".join(map(str, sys.version_info[:2])),
        "jax": jax.__version__,
        "jaxnn": library.hexdigest()[:16],
        "the main module": hashlib.sha256(Path(main).read_bytes()).hexdigest()[:16] if known and main else "",
    }
