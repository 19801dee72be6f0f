"""`jaxnn new NAME`: a working experiment in one file, to change from there.

The templates in `templates/` are experiments themselves, called my_experiment: they are linted and run as they are.
"""

import argparse
import keyword
import re
import sys
from pathlib import Path
from typing import Any

KINDS = ("regression", "image", "text", "csv")
_PLACEHOLDER = "my_experiment"
OK, REFUSED, MISUNDERSTOOD = 0, 1, 2


def register(commands: Any) -> None:
    """Adds `new` to the parser's commands."""
    new = commands.add_parser(
        "new",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
        help="write a working experiment, NAME.py, to start from",
        description="Writes NAME.py: one file that trains, evaluates, predicts and draws, and reads from top to "
        "bottom. It runs as it is, on data that it makes or finds; the places for your own are marked. Nothing that "
        "is there is overwritten.",
    )
    new.add_argument("name", metavar="NAME", help="what to call it: a Python module's name, my_experiment")
    new.add_argument("--kind", choices=KINDS, default=KINDS[0], help=f"what it learns from ({KINDS[0]})")
    new.add_argument("--out", default=".", metavar="FOLDER", help="where to (here)")
    new.set_defaults(run=lambda args: write(args.name, args.kind, args.out))


def write(name: str, kind: str, folder: str) -> int:
    """Writes the experiment; 1 where a file is in the way or cannot be written, 2 where the name will not do."""
    if (wrong := refusal(name)) is not None:
        print(f"jaxnn new: {wrong}", file=sys.stderr)
        return MISUNDERSTOOD
    path = Path(folder).expanduser() / f"{name}.py"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(template(kind).replace(_PLACEHOLDER, name))
    except FileExistsError:
        what = f"{path} is there already" if path.exists() else f"{path.parent} is a file"
        print(f"jaxnn new: {what}; it is left as it is. Give another name, or another --out.", file=sys.stderr)
        return REFUSED
    except OSError as error:
        print(f"jaxnn new: {path} cannot be written: {error.strerror or error}. Give another --out.", file=sys.stderr)
        return REFUSED
    run = f"python {path}"
    print(f"wrote {path}")
    for command, does in (
        (f"{run} --steps 20", "a quick look"),
        (run, "the run"),
        (f"{run} --help", "what can be set"),
    ):
        print(f"  {command:{len(run) + 12}}  {does}")
    return OK


def template(kind: str) -> str:
    """The text of a kind of experiment, called my_experiment."""
    import importlib.resources

    return (importlib.resources.files("jaxnn.cli") / "templates" / f"{kind}.py").read_text(encoding="utf-8")


def refusal(name: str) -> str | None:
    """Why an experiment cannot have this name; None where it can."""
    plain = re.sub(r"\W+", "_", re.sub(r"\.py$", "", name.replace("\\", "/").rpartition("/")[2]), flags=re.ASCII)
    plain = plain.strip("_").lower()
    plain = f"experiment_{plain}".rstrip("_") if not plain[:1].isalpha() or keyword.iskeyword(plain) else plain
    if "/" in name or "\\" in name:
        return f"{name!r} is a path. Give a name, and the folder as --out: jaxnn new {plain} --out FOLDER."
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
        return f"{name!r} is no name for a Python module. Try: jaxnn new {plain}"
    if hides(name):
        return (
            f"a file {name}.py would hide the module {name!r} from Python wherever it is run. "
            f"Try: jaxnn new my_{name.lower()}"
        )
    return None


def hides(name: str) -> bool:
    """Whether a module of this name is installed or Python's own: a script's folder comes before them."""
    import importlib.util

    if name in sys.stdlib_module_names:
        return True
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # something of that name is there, and is broken
        return True
    if spec is None or spec.origin is None:
        return False
    # A file in the working folder may be the one that is to be written, which is looked at there.
    return spec.submodule_search_locations is not None or Path(spec.origin).parent != Path.cwd()
