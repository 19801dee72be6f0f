"""`jaxnn launch --processes N -- COMMAND`: a job of several processes on one machine, watched and started again.

Exit status: 0 when all processes ended well; 2 when the command line or what the program was given was refused; 128 +
the signal's number (130, 143) when the job was asked to stop and saved; 3 when it was given up.
"""

import argparse
import sys
from typing import Any

MISUNDERSTOOD = 2


def register(commands: Any) -> None:
    """Adds `launch` to the parser's commands."""
    launch = commands.add_parser(
        "launch",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
        usage="jaxnn launch --processes N [options] -- COMMAND ...",
        help="start a command as several processes of one job, and start it again when one of them dies",
        description="Starts COMMAND as N processes that form one job on this machine, prints what they say line by "
        "line, and watches them. When one dies or stops moving, all are killed and started again; the run goes on "
        "from its newest good checkpoint. Ctrl-C and SIGTERM are passed on: the job saves and ends. Exit status: 0 "
        "well; 2 refused; 130 or 143 interrupted and saved; 3 given up.",
    )
    launch.add_argument("--processes", type=int, required=True, metavar="N", help="how many")
    launch.add_argument(
        "--devices-per-process", type=int, default=1, metavar="K", help="CPU devices that each process shows (1)"
    )
    launch.add_argument(
        "--restarts", type=int, default=3, metavar="N", help="give up after so many restarts without progress (3)"
    )
    launch.add_argument(
        "--stall-seconds",
        type=float,
        default=300,
        metavar="S",
        help="restart when a process that was training has not moved for so long (300); more than its longest "
        "compilation or pause",
    )
    launch.add_argument(
        "--start-seconds",
        type=float,
        default=900,
        metavar="S",
        help="likewise before its first steps are done and after training: start, data, compilation, reports (900)",
    )
    launch.add_argument(
        "--grace-seconds", type=float, default=60, metavar="S", help="from a request to stop to the kill (60)"
    )
    launch.add_argument("words", nargs="+", metavar="COMMAND", help="after --: what to run, python -m experiments.NAME")
    launch.set_defaults(run=_run, parser=launch)


def _run(args: argparse.Namespace) -> int:
    from jaxnn.cli.supervisor import Limits, Supervisor

    for name in ("processes", "devices_per_process"):
        if getattr(args, name) < 1:
            print(
                f"jaxnn launch: --{name.replace('_', '-')} is {getattr(args, name)}. Give at least 1.", file=sys.stderr
            )
            return MISUNDERSTOOD
    if args.restarts < 0 or min(args.stall_seconds, args.start_seconds, args.grace_seconds) <= 0:
        print("jaxnn launch: give --restarts >= 0, and seconds that are positive.", file=sys.stderr)
        return MISUNDERSTOOD
    limits = Limits(
        restarts=args.restarts,
        stall_s=args.stall_seconds,
        start_s=args.start_seconds,
        grace_s=args.grace_seconds,
    )
    return Supervisor(args.words, args.processes, args.devices_per_process, limits).run()
