"""Running an experiment as a command: config from arguments, errors in a line, interruption as an exit code."""

import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxnn import parallel
from jaxnn.runs import RunFolder, Section, own_card, write_card, write_result, write_summary
from jaxnn.train.run import Interrupted, Run
from jaxnn.typing import PyTree

# The form in which this library says what is wrong with what it was given: "train.fit: ...", "data.TextFiles: ...".
_ROOMS = "train|data|order|losses|metrics|models|layers|attention|optim|parallel|runs|core|tree|rng|sharding|cost|bench"
_ROOMS += "|report|figures"
_OURS = re.compile(rf"(({_ROOMS})\.\w[\w.]*|Task|batch): ")
USAGE = 2
JOB, RESUME = "JAXNN_JOB", "JAXNN_RESUME"  # set by `jaxnn launch`


def run_folder(name: str, out: str | None = None, resume: bool | str = False) -> Path:
    """Where an experiment's run goes: `out`; else the next free `runs/NAME-001`, or to resume, the newest there is.

    The processes of a job take what process 0 finds, and a job that `jaxnn launch` starts again what it found first.
    """
    if out is not None:
        return Path(out)
    note = Path(os.environ[JOB]) / "run" if JOB in os.environ else None
    if note is not None and (told := parallel.agree(note.read_text() if note.is_file() else None)) is not None:
        return Path(told)
    found = Path(parallel.agree(str(_free_folder(name, bool(resume)))))
    if note is not None and parallel.process_index() == 0:
        note.write_text(str(found))
    return found


def _free_folder(name: str, resume: bool) -> Path:
    endings = [path.name.removeprefix(f"{name}-") for path in Path("runs").glob(f"{name}-*")]
    last = max((int(ending) for ending in endings if ending.isdigit()), default=0)
    return Path("runs") / f"{name}-{last if resume and last else last + 1:03d}"


def span(text: str | None) -> tuple[int, int] | None:
    """Two data steps as a command line gives them: "20:25" is (20, 25).

    Raises:
        ValueError: If the text is something else.
    """
    if text is None:
        return None
    start, _, stop = text.partition(":")
    if not (start.isdigit() and stop.isdigit()):
        raise ValueError(f"train.span: {text!r} is not START:STOP. Give two data steps, 20:25.")
    return int(start), int(stop)


def conclude(run: Run, result: Mapping[str, float], *sections: Section) -> dict[str, float]:
    """Ends an experiment: its values and `sections` go into the run's report, `result.json` and `card.md`.

    The values, and where the report and the card are, are printed. `jaxnn card` makes one card of the runs of several
    seeds, at any time. A `card.md` that somebody wrote stays: the run's is `card_2.md` then.

    Args:
        run: What was run; without a folder nothing is written.
        result: Name -> value.
        sections: What the experiment shows, with its pictures.

    Returns:
        `result`, as floats.
    """
    values = {name: float(value) for name, value in result.items()}
    if run.folder is not None and not run.folder.writes:
        return values
    print("  ".join(f"{name} {value:.4g}" for name, value in values.items()))
    if run.stopped is not None:
        print(f"stopped: {run.stopped}")
    if run.folder is not None:
        conclude_folder(run.folder, values, run.state.params, int(run.state.data_step), *sections)
    return values


def conclude_folder(
    folder: RunFolder, result: Mapping[str, float], params: PyTree, step: int, *sections: Section
) -> None:
    """What `conclude` writes, of a run or of a study: `report.html`, `result.json` and `card.md`.

    Args:
        folder: Of the run, or of the study, whose config is `{"config": settings}`.
        result: Name -> value.
        params: The parameters, or their shapes: the card tells how many.
        step: The last step that the experiment took.
        sections: What it shows, with its pictures.
    """
    write_result(folder, result, params, step, sections=sections)
    write_summary(folder, params, sections=sections)
    card = own_card(folder.path)
    beside = "" if card.name == "card.md" else " (the card.md that is there is none of jaxnn's, and stays)"
    print(f"card: {write_card([folder.path], card)}{beside}")
    print(f"report: {folder.report}")


def command(main: Callable[[Any], Any], config: type, argv: list[str] | None = None) -> Any:
    """Calls `main(config(...))` with the config that the command line gives; `--help` lists its fields.

    What the library refuses is printed as one line, exit code 2. A run interrupted by Ctrl-C or SIGTERM has been saved;
    the command that goes on with it is printed, exit code 128 + the signal's number. Everything else is raised.

    A process of a job (`parallel.initialize`) joins it first. With `JAXNN_RESUME=auto` in the environment a run that
    the folder holds is gone on with, as if `--resume` had been given.

    Args:
        main: The experiment.
        config: A dataclass; its fields' comments become the help.
        argv: Arguments; by default the process's.
    """
    import tyro

    settings: Any = tyro.cli(config, args=argv)
    try:
        parallel.initialize()
        if os.environ.get(RESUME) == "auto" and not getattr(settings, "resume", True):
            settings = dataclasses.replace(settings, resume="auto")
        return main(settings)
    except Interrupted as interrupted:
        if parallel.process_index() != 0:
            sys.exit(128 + interrupted.signal)
        print(f"\n{interrupted}", file=sys.stderr)
        if interrupted.folder is not None and hasattr(settings, "resume") and hasattr(settings, "out"):
            given = sys.argv[1:] if argv is None else argv
            print(f"Go on: {_go_on(given, interrupted.folder.path)}", file=sys.stderr)
        sys.exit(128 + interrupted.signal)
    except (TypeError, ValueError) as error:
        if not _OURS.match(str(error)):
            raise
        print(error, file=sys.stderr)
        if parallel.process_count() > 1:
            parallel.leave(USAGE)
        sys.exit(USAGE)


def _go_on(argv: Sequence[str], folder: Path) -> str:
    """The command line that resumes the run in `folder`: the options it was started with, its folder, and --resume."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = [sys.argv[0]] if spec is None else ["-m", spec.name]
    words = [word for word in argv if word != "--resume"]
    if not any(word == "--out" or word.startswith("--out=") for word in words):
        words += ["--out", _near(folder)]
    return shlex.join([_near(sys.executable), *program, *words, "--resume"])


def _near(path: str | Path) -> str:
    """A path as seen from the working folder, where it lies in it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.pardir) else relative
