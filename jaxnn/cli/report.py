"""`jaxnn report RUN [RUN ...]`: a page of a run, or of several side by side, from the files of their folders."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OK, WRONG = 0, 1
AXES = ("step", "epoch", "time")


def register(commands: Any) -> None:
    """Adds `report` to the parser's commands."""
    report = commands.add_parser(
        "report",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
        help="compare runs in one HTML page",
        description="Writes one self-contained page: curves of the runs over each other, their last and best values, "
        "speed, and what differs in their config and environment; of one run alone, its report. Runs may be going on, "
        "or have been killed: what cannot be read is told on the page. Run folders are only read. Exit status 1 where "
        "a folder holds no run; the page shows the others.",
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder")
    report.add_argument("-o", "--out", default="runs.html", metavar="PAGE", help="the page (runs.html)")
    report.add_argument("--x", choices=AXES, default="step", help="what the curves are drawn over (step)")
    report.add_argument("--title", default="", help="its title")
    report.set_defaults(run=lambda args: write(args.runs, args.out, args.x, args.title))


def write(folders: Sequence[str], out: str, x: Any, title: str) -> int:
    """Writes the page; 1 where a folder is no run, or the page cannot be written."""
    from jaxnn import runs

    records, seen, status = [], set(), OK
    for folder in folders:
        path = Path(folder).expanduser()
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        try:
            records.append(runs.read_record(path))
        except (OSError, ValueError) as error:
            print(f"jaxnn report: {error}", file=sys.stderr)
            status = WRONG
    if not records:
        return status
    if len(records) == 1 and x == "step":
        page = runs.summary_page(records[0], runs.stored_params(records[0].path))
        page.title = title or page.title
    else:
        page = runs.comparison_page(records, x=x, title=title)
    try:
        written = page.write(out)
    except OSError as error:
        print(f"jaxnn report: {out} cannot be written: {error.strerror or error}. Give another --out.", file=sys.stderr)
        return WRONG
    print(f"{len(records)} run{'s' * (len(records) > 1)} in {written}")
    return status
