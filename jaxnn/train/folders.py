"""The run folder of a run, opened or made by process 0 and followed by the other processes of its job."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxnn import parallel
from jaxnn.runs import Follower, RunFolder
from jaxnn.runs.folder import CONFIG
from jaxnn.train import setting_checks
from jaxnn.train.together import first_does

WHERE = "train.fit"


def resumes(out: str | os.PathLike[str] | None, resume: bool | str) -> bool:
    """Whether a run is gone on with.

    Raises:
        ValueError: If `resume` is neither a truth value nor "auto", or "auto" without a folder.
    """
    if resume in (True, False):
        return bool(resume)
    if resume != "auto" or out is None:
        raise ValueError(
            f"{WHERE}: resume={resume!r}{' without out=' if resume == 'auto' else ''}. Write True, False, or 'auto' "
            "with out=: go on where there is a run, begin one where there is none."
        )
    return parallel.agree((Path(out) / CONFIG).is_file())


def opened(out: str | os.PathLike[str]) -> RunFolder | None:
    """The folder of a run to go on with; None where its making was cut short and it is to be made."""
    folder = first_does(lambda: None if RunFolder.is_half_made(out) else RunFolder.open(out, hold=True))
    config = parallel.agree(folder.config if folder is not None else None)
    return folder if folder is not None or config is None else _seen(Follower(out, config))


def created(out: str | os.PathLike[str], config: Mapping[str, Any]) -> RunFolder:
    """The folder of a new run."""
    folder = first_does(lambda: RunFolder.create(out, config, hold=True))
    return folder if folder is not None else _seen(Follower(out, config))


def checked(folder: RunFolder, config: Mapping[str, Any], free: Sequence[str], steps: int) -> list[str]:
    """What a resumed run changes; refuses what may not change, and a run that has gone further than `steps`."""

    def check() -> list[str]:
        changed = folder.check_config(config, free)
        setting_checks.goes_on(WHERE, folder, steps)
        return changed

    return parallel.agree(first_does(check))


def _seen(folder: Follower) -> Follower:
    if not folder.is_visible():
        raise ValueError(
            f"{WHERE}: process {parallel.process_index()} does not see {folder.path}, which process 0 has made. Tried: "
            "reading its config.json. Give out= a folder on a file system that all machines share."
        )
    return folder
