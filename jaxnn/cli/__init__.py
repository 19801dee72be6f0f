"""The command line: `jaxnn` or `python -m jaxnn`.

Commands are functions that return an exit status; what they need is imported when they run, so that `--help` answers at
once (30 ms, of which argparse takes 15; importing tyro alone takes 80, and these commands have no config to read).
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from jaxnn.cli import bench, card, completion, launch, new, report


class _Parser(argparse.ArgumentParser):
    """A parser that gives up on a command line with a status of its command's choice."""

    status = 2

    def error(self, message: str) -> NoReturn:
        """Prints the usage and what is wrong."""
        self.print_usage(sys.stderr)
        self.exit(self.status, f"{self.prog}: error: {message}\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of every command; each sets `run`, a function of the parsed arguments."""
    parser = _Parser(
        prog="jaxnn",
        formatter_class=_wide,
        description="Tools around jaxnn's training runs.",
        epilog="`jaxnn COMMAND --help` says more about one command.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(title="commands", dest="command")

    doctor = commands.add_parser(
        "doctor",
        formatter_class=_wide,
        help="check that training will work on this machine",
        description="Checks versions, devices, flags, package clashes, caches, memory and disk, and times a matrix "
        "product. Exit status: 0 when nothing will fail (warnings included), 1 otherwise.",
    )
    doctor.add_argument("--json", action="store_true", help="print the checks as JSON instead of a table")
    doctor.add_argument("--out", default=".", metavar="FOLDER", help="where runs will be written (default: here)")
    doctor.add_argument(
        "--timeout", type=float, default=120, metavar="SECONDS", help="give up on a hanging jax backend after this long"
    )
    doctor.set_defaults(run=_doctor)

    checkpoint = commands.add_parser(
        "checkpoint",
        formatter_class=_wide,
        help="list, verify or inspect the checkpoints of a run",
        description="Reads the checkpoints of a run; never writes, so it may be used beside a live run.",
    )
    actions = checkpoint.add_subparsers(title="actions", dest="action", required=True)
    for name, text in (
        ("list", "every checkpoint: step, whether it is good, metric, size, age"),
        ("verify", "check every checksum of every checkpoint; exit status 1 names the damaged ones"),
        ("inspect", "every array of one checkpoint: path, shape, dtype, size, norm, mean, and whether it is finite"),
    ):
        action = actions.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", formatter_class=_wide
        )
        action.add_argument("folder", metavar="RUN", help="a run's folder, or its checkpoints folder")
        if name == "inspect":
            action.add_argument(
                "--step", type=int, help="which checkpoint (default: the newest good one, else the newest)"
            )
        action.set_defaults(run=_checkpoint)

    report.register(commands)
    card.register(commands)
    launch.register(commands)
    bench.register(commands)
    new.register(commands)
    completion.register(commands, parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments after the program's name; by default the process's.

    Returns:
        The exit status: 0 well, 1 something is wrong, 2 the command line was not understood (raised as SystemExit);
        `bench` has its own.
    """
    parser = make_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        getattr(args, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.version:
        from jaxnn import __version__

        print(f"jaxnn {__version__}")
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    return args.run(args)


def _wide(prog: str) -> argparse.HelpFormatter:
    """Help beside its command, not below it."""
    return argparse.HelpFormatter(prog, max_help_position=28)


def _doctor(args: argparse.Namespace) -> int:
    from jaxnn.cli import doctor

    return doctor.main(json_output=args.json, folder=args.out, timeout=args.timeout)


def _checkpoint(args: argparse.Namespace) -> int:
    from jaxnn.cli import checkpoint

    if args.action == "list":
        return checkpoint.list_all(args.folder)
    if args.action == "verify":
        return checkpoint.verify(args.folder)
    return checkpoint.inspect(args.folder, args.step)
