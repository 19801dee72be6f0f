"""An experiment of many parts in one folder: each part is done once, whatever stops the experiment between two."""

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from jaxnn import parallel
from jaxnn.runs import Section
from jaxnn.runs.durable import json_lines, write_atomic
from jaxnn.runs.environment import usage
from jaxnn.train import folders
from jaxnn.train.command import conclude_folder, run_folder
from jaxnn.train.run import Interrupted
from jaxnn.train.together import first_does
from jaxnn.typing import PyTree

WHERE = "train.Study"
PARTS = "parts.jsonl"  # in the folder: what every part gave
Part = dict[str, Any]


class Study:
    """What an experiment of many runs has found, part by part, and the folder that it is kept in.

        with train.Study("seeds", dataclasses.asdict(cfg), free=["seeds"], out=cfg.out, resume=cfg.resume) as study:
            for seed in cfg.seeds:
                study.once({"seed": seed}, lambda: {"loss": trained(seed)})
            study.conclude({"loss": min(part["loss"] for part in study.parts)}, params, cfg.steps, *sections)

    Other writers are kept out of the folder until the block ends. In a job all processes do every part; process 0
    writes, and what it has read the others take over.

    Args:
        name: Of the experiment, for `run_folder`.
        config: Its settings, as JSON; `out` and `resume` are none of them.
        free: Settings that a resumption may change: which parts there are, how they are shown.
        out: Its folder; by default the next free `runs/NAME-001`, or to resume, the newest.
        resume: As for `fit`: with the parts that the folder holds, and settings that agree but for `free`.

    Raises:
        ValueError: Without `resume`, if the folder holds a study; with it, if it holds none or one of other settings.

    Attributes:
        folder: Where all is kept; `folder.path / ...` is free for runs of parts.
        parts: What the parts gave, in the order in which they were done.
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        *,
        free: Sequence[str] = (),
        out: str | None = None,
        resume: bool | str = False,
    ):
        settings = {"config": {key: value for key, value in config.items() if key not in ("out", "resume")}}
        path = run_folder(name, out, resume)
        found = folders.opened(path) if folders.resumes(path, resume) else None
        self.folder = folders.created(path, settings) if found is None else found
        try:
            first_does(lambda: self.folder.check_config(settings, [f"config.{key}" for key in free]))
            self.folder.update_config(settings)
            self.parts: list[Part] = parallel.agree(first_does(self._read))
        except BaseException:
            self.folder.release()
            raise
        self.folder.journal.append("start" if found is None else "resume", len(self.parts), **usage())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.release()

    def _read(self) -> list[Part]:
        return [row for _, row in json_lines(self._file, WHERE)]

    @property
    def _file(self) -> Path:
        return self.folder.path / PARTS

    def once(self, key: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> Part:
        """The part of that key: as it was kept, or now made and kept.

        Args:
            key: What tells it from the others; goes into the part.
            make: Gives what it found, as JSON.

        Raises:
            TypeError: If the part is not JSON.
            Interrupted: If it is interrupted; the parts before it are kept, and `folder` is the study's.
        """
        for part in self.parts:
            if all(part.get(name) == value for name, value in key.items()):
                return part
        try:
            found = make()
        except Interrupted as interrupted:  # by the `fit` of the part, whose folder is not the one to go on with
            interrupted.folder = self.folder
            raise
        except KeyboardInterrupt as error:
            kept = f"{len(self.parts)} parts are kept in {self.folder.path}"
            raise Interrupted(f"{WHERE}: interrupted; {kept}.", None, signal.SIGINT, self.folder) from error
        part = _plain({**key, **found, **key}, key)
        self.parts.append(part)
        if self.folder.writes:
            write_atomic(self._file, "".join(json.dumps(row) + "\n" for row in self.parts).encode())
        self.folder.journal.append("part", len(self.parts), key=dict(key), **usage())
        return part

    def conclude(self, result: Mapping[str, float], params: PyTree, step: int, *sections: Section) -> None:
        """Ends the study: `report.html`, `result.json` and `card.md`, with these values and sections.

        Args:
            result: Name -> value.
            params: The parameters of one of its runs, or their shapes: the card tells how many.
            step: The last step of its runs.
            sections: What it shows, with its pictures.
        """
        self.folder.journal.append("end", step, stopped=None, **usage())
        if self.folder.writes:
            conclude_folder(self.folder, result, params, step, *sections)


def _plain(part: Mapping[str, Any], key: Mapping[str, Any]) -> Part:
    """A part as it will be read again, so that one just made is the same."""
    try:
        return json.loads(json.dumps(part))
    except TypeError as error:
        raise TypeError(
            f"{WHERE}.once: part {dict(key)} cannot be kept: {error}, so it is not JSON. Give numbers, text, lists and "
            "dicts: float(x), x.tolist()."
        ) from error
