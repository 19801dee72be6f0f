"""`jaxnn card RUN [RUN ...] --out NAME`: a result card of a run, or of the runs of several seeds."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

OK, WRONG = 0, 1


def register(commands: Any) -> None:
    """Adds `card` to the parser's commands."""
    card = commands.add_parser(
        "card",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
        help="write a result card of a run, or of several seeds, in Markdown",
        description="Writes NAME.md and its pictures, NAME_*.png: command, values with mean and standard deviation "
        "over the seeds, data, machine, time, versions, settings, curves, and what the experiment showed at its end. "
        "Runs may differ in nothing but their seed; an unfinished one is told as such. Run folders are only read. "
        "Exit status 1 where no card can be made.",
    )
    card.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder")
    card.add_argument("-o", "--out", required=True, metavar="PAGE", help="the card, NAME or NAME.md")
    card.add_argument("--title", default="", help="its title (the experiment's name)")
    card.set_defaults(run=lambda args: write(args.runs, args.out, args.title))


def write(folders: Sequence[str], out: str, title: str) -> int:
    """Writes the card; 1 where it cannot be made or written."""
    from jaxnn import runs

    try:
        print(runs.write_card(folders, out, title=title))
    except ValueError as error:
        print(f"jaxnn card: {error}", file=sys.stderr)
        return WRONG
    except OSError as error:
        print(f"jaxnn card: {out} cannot be written: {error.strerror or error}. Give another --out.", file=sys.stderr)
        return WRONG
    return OK
