"""`jaxnn bench`: measure, compare, guard against a baseline, report.

Exit status: 0 ok, 1 regress, 2 inconclusive, 3 invalid (a case failed, a file or name is wrong, or the command line
was not understood). The worst of all cases counts, and of 1 and 3 the 3: a case that failed may hide a regression.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

OK, REGRESS, INCONCLUSIVE, INVALID = 0, 1, 2, 3
_STATUS = {"ok": OK, "improve": OK, "regress": REGRESS, "inconclusive": INCONCLUSIVE}
_EPILOG = """exit status:
  0  ok: no case is slower than the tolerance allows
  1  regress: one is
  2  inconclusive: the machine was too noisy to say; never passes as ok
  3  invalid: a case failed to compile or run, a file, name or revision is wrong"""
FORMATS = ("pytest-benchmark", "google-benchmark", "asv")


def register(commands: Any) -> None:
    """Adds `bench` and its actions to the parser's commands."""
    bench = commands.add_parser(
        "bench",
        formatter_class=_format,
        help="measure and compare jitted steps",
        description="Micro-benchmarks of jitted steps that can be trusted: compiled apart, run in turns, with a hidden "
        "control.",
        epilog=_EPILOG,
    )
    bench.status = INVALID
    bench.set_defaults(run=lambda args: _help(bench))
    actions = bench.add_subparsers(title="actions", dest="action", metavar="ACTION")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, more: str = "") -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}. {more}".strip()
        action = actions.add_parser(name, formatter_class=_format, help=text, description=description, epilog=_EPILOG)
        action.status = INVALID
        action.set_defaults(run=lambda args: _guarded(run, args), parser=action)
        return action

    run = add("run", _run, "measure the cases of files", "A case that fails is reported, and the others go on.")
    _cases(run)
    run.add_argument("--out", metavar="FILE", help="keep the results and every raw sample (JSON, jaxnn.bench/1)")
    run.add_argument("--list", action="store_true", help="only name the cases")
    run.add_argument("--peaks", action="store_true", help="probe the machine's peaks in turns with each case")
    run.add_argument("--device-time", action="store_true", help="profile each case too: the devices' own time")
    run.add_argument("--precision", type=float, default=0.01, metavar="X", help="stop at +-X of the median (0.01)")
    _timing(run, 5.0)

    compare = add(
        "compare",
        _compare,
        "compare two revisions, two files of results, or the arms of a file",
        "A and B are git revisions ('.' is the working folder): each gets a worktree and a worker process, which take "
        "turns; or two files of results, of which only large differences can be believed; or one benchmark file whose "
        "cases have arms.",
    )
    compare.add_argument("sides", nargs="+", metavar="A [B]", help="revisions, results.json files, or a benchmark file")
    compare.add_argument(
        "--paths",
        nargs="+",
        default=["benchmarks"],
        metavar="PATH",
        help="where the revisions keep their cases; absolute paths are used for both (benchmarks)",
    )
    compare.add_argument("-k", dest="expression", default="", metavar="EXPR", help=_K)
    compare.add_argument("--out", metavar="FILE", help="keep the results and every raw sample")
    compare.add_argument("--other-device", action="store_true", help="accept files of different devices")
    _timing(compare, 10.0)

    gate = add(
        "gate",
        _gate,
        "compare the cases with recorded programs, run in turns with them",
        "The baseline is the old program itself, not its time, so it holds on any machine of its kind.",
    )
    _cases(gate)
    gate.add_argument(
        "--baseline", required=True, metavar="FILE", help="a recorded program, or a folder of them, one a case"
    )
    gate.add_argument("--record", action="store_true", help="write the baseline instead")
    gate.add_argument("--other-device", action="store_true", help="accept a baseline recorded on another device")
    gate.add_argument("--out", metavar="FILE", help="keep the results and every raw sample")
    _timing(gate, 6.0)

    peaks = add("peaks", _peaks, "measure what this machine can do at most")
    peaks.add_argument("--max-seconds", type=float, default=4.0, metavar="S", help="how long, without compiling (4)")
    peaks.add_argument("--out", metavar="FILE", help="keep the results")

    report = add("report", _report, "one HTML page of result files: distributions, roofline, history, environment")
    report.add_argument("files", nargs="+", metavar="FILE", help="results, oldest first")
    report.add_argument("-o", "--out", default="bench.html", metavar="PAGE", help="the page (bench.html)")
    report.add_argument("--title", default="Benchmarks", help="its title")

    export = add("export", _export, "write results as another tool's JSON")
    export.add_argument("file", metavar="FILE", help="results")
    export.add_argument("--to", required=True, choices=FORMATS, help="whose JSON")
    export.add_argument("--out", metavar="FILE", help="where to (standard output)")

    explain = add(
        "explain",
        _explain,
        "one HTML page of a jitted step: operations by cost, memory, collectives, compilation",
        "TARGET is module:function or file.py:function, which takes nothing and returns (step, args), or the name of a "
        "case in a benchmark file (file.py:case).",
    )
    explain.add_argument("target", metavar="TARGET", help="module:function, file.py:function or file.py:case")
    explain.add_argument("-o", "--out", default="explain.html", metavar="PAGE", help="the page (explain.html)")
    explain.add_argument("--against", metavar="OTHER", help="a revision, another target, or a saved file")
    explain.add_argument("--save", metavar="FILE", help="keep the explanation, for --against")
    explain.add_argument("--peaks", action="store_true", help="measure peaks, and say how long a call takes at least")
    explain.add_argument(
        "--profile", type=int, default=0, metavar="N", help="run N calls, and show where the time went"
    )


_K = 'keep the cases whose name holds the words; "and", "or" and "not" join them'


def _cases(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", default=["benchmarks"], metavar="PATH", help="files, folders (benchmarks)")
    parser.add_argument("-k", dest="expression", default="", metavar="EXPR", help=_K)


def _timing(parser: argparse.ArgumentParser, seconds: float) -> None:
    parser.add_argument(
        "--tolerance", type=float, default=0.03, metavar="X", help="a slowdown up to X is ok (0.03 is 3 %%)"
    )
    parser.add_argument(
        "--max-seconds", type=float, default=seconds, metavar="S", help=f"a case, without compiling ({seconds:g})"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of arguments and the order of runs (0)")


def _format(prog: str) -> argparse.HelpFormatter:
    """Help beside its command; the epilog as it is written."""
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=28)


def _help(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return INVALID


def _guarded(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Runs an action; what is wrong with files, names and cases is one line on the standard error."""
    from jaxnn.bench.guards import BenchError

    try:
        return run(args)
    except (BenchError, OSError) as error:
        print(f"jaxnn {error}" if isinstance(error, BenchError) else f"jaxnn bench: {error}", file=sys.stderr)
        return INVALID


def status(results: Iterable[Any]) -> int:
    """The exit status of results: the worst counts, in the order 3, 1, 2, 0."""
    from jaxnn.bench.measurement import Failure

    found = set()
    for result in results:
        verdict = getattr(result, "verdict", "ok")
        found.add(INVALID if isinstance(result, Failure) else _STATUS.get(verdict, OK))
    return next((code for code in (INVALID, REGRESS, INCONCLUSIVE) if code in found), OK)


def _finish(results: list[Any], out: str | None) -> int:
    """Writes the results if asked, says how many failed, and gives the status."""
    from jaxnn import bench

    if out:
        bench.save(out, results)
        print(f"{len(results)} results in {out}")
    if failed := [result for result in results if isinstance(result, bench.Failure)]:
        names = ", ".join(result.name for result in failed)
        print(f"{len(failed)} of {len(results)} cases failed: {names}", file=sys.stderr)
    return status(results)


def _each(items: Iterable[Any], measure: Callable[[Any], Any]) -> list[Any]:
    """Makes and measures every item; prints each result when it is there, a failure in its place."""
    from jaxnn.bench.measurement import Failure

    results = []
    for item in items:
        try:
            result = measure(item.make())
        except Exception as error:  # whatever a stranger's case raises
            result = Failure(item.name, type(error).__name__, str(error))
        results.append(result)
        print(result, flush=True)
    return results


def _run(args: argparse.Namespace) -> int:
    from jaxnn.bench import collect, comparison, measurement

    items = collect.collect(args.paths, args.expression)
    if args.list:
        print("\n".join(item.name for item in items))
        return OK

    def measure(made: Any) -> Any:
        if isinstance(made, collect.Arms):
            return comparison.compare(made.cases, **_options(args))
        return measurement.measure(
            made.name,
            made.function,
            args=made.args,
            donate=made.donate,
            precision=args.precision,
            max_seconds=args.max_seconds,
            seed=args.seed,
            peaks=args.peaks,
            device_time=args.device_time,
        )

    return _finish(_each(items, measure), args.out)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {"tolerance": args.tolerance, "max_seconds": args.max_seconds, "seed": args.seed}


def _compare(args: argparse.Namespace) -> int:
    from jaxnn.bench import collect, comparison, revisions, schema, stored
    from jaxnn.bench.guards import BenchError

    files = [pathlib.Path(side).is_file() for side in args.sides]
    if len(args.sides) == 1:
        items = collect.collect(args.sides, args.expression)

        def measure(case: Any) -> Any:
            if not isinstance(case, collect.Arms):
                raise BenchError("it has no arms: return {name: program, ...}, args from it, or measure it with `run`.")
            return comparison.compare(case.cases, **_options(args))

        return _finish(_each(items, measure), args.out)
    if len(args.sides) > 2:
        raise BenchError(f"bench.compare: {len(args.sides)} sides. Give two revisions, two result files or one file.")
    if all(files):
        found = stored.compare_stored(
            *(schema.load(side, other_device=True) for side in args.sides), other_device=args.other_device
        )
        print(found)
        return _STATUS[found.verdict]
    if any(files):
        wrong = args.sides[files.index(False)]
        raise BenchError(f"bench.compare: one side is a file, {wrong!r} is not. Give two files, or two revisions.")
    results = []
    options = revisions.Options(tolerance=args.tolerance, max_seconds=args.max_seconds, seed=args.seed)
    base, head = args.sides
    for result in revisions.compare_revisions(base, head, args.paths, expression=args.expression, options=options):
        print(result, flush=True)
        if not isinstance(result, revisions.OneSided):
            results.append(result)
    if not results:
        raise BenchError(f"bench.compare: {base} and {head} have no case in common, so there is no verdict.")
    return _finish(results, args.out)


def _gate(args: argparse.Namespace) -> int:
    from jaxnn.bench import collect, replaying
    from jaxnn.bench.guards import BenchError

    items = collect.collect(args.paths, args.expression)
    baseline = pathlib.Path(args.baseline)
    single = baseline.suffix == ".json"
    if single and len(items) > 1:
        names = ", ".join(item.name for item in items)
        raise BenchError(f"bench.gate: {baseline.name} is one program, and {names} match. Choose one with -k.")
    if not args.record and not baseline.exists():
        raise BenchError(f"bench.gate: there is no baseline {str(baseline)!r}. Write it with --record.")
    if args.record and not single:
        baseline.mkdir(parents=True, exist_ok=True)

    def measure(case: Any) -> Any:
        if isinstance(case, collect.Arms):
            case = next(iter(case.cases.values()))
        path = baseline if single else baseline / (re.sub(r"[^\w.-]+", "-", case.name) + ".json")
        if args.record:
            replaying.record(path, case, args.seed)
            return _Recorded(f"{case.name}   recorded in {path}")
        if not path.exists():
            raise BenchError(f"bench.gate: {baseline} has no {path.name}. Write it with --record.")
        _check_device(path, args.other_device)
        return _named(replaying.replay(path, case, **_options(args)), case.name)

    results = _each(items, measure)
    kept = [result for result in results if not isinstance(result, _Recorded)]
    return _finish(kept, None if args.record else args.out)


def _named(found: Any, case: str) -> Any:
    """A comparison whose programs are called after their case: a file may hold many."""
    arms = {name: name if name == "A/A" else f"{case}:{name}" for name in found.measurements}
    replace = dataclasses.replace
    rows = {arms[name]: replace(row, name=arms[name]) for name, row in found.rows.items()}
    measured = {arms[name]: replace(m, name=arms[name]) for name, m in found.measurements.items()}
    return replace(found, base=arms[found.base], rows=rows, measurements=measured)


class _Recorded(str):
    """What `gate --record` says of a case."""


def _check_device(path: pathlib.Path, other_device: bool) -> None:
    """Refuses a program that was recorded on another device, unless that is wanted."""
    from jaxnn.bench.guards import BenchError
    from jaxnn.bench.probes import device_name

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        where = content.get("environment", {}).get("device")
    except (ValueError, AttributeError):
        return  # `replay` says what is wrong with it
    if where is not None and where != device_name() and not other_device:
        raise BenchError(
            f"bench.gate: {path.name} was recorded on {where}, and this is {device_name()}. Record it again, or say "
            "--other-device: the program runs here all the same, but may not be the one you would have compiled."
        )


def _peaks(args: argparse.Namespace) -> int:
    from jaxnn.bench import probes

    found = probes.peaks(args.max_seconds)
    print(found)
    return _finish([found], args.out)


def _report(args: argparse.Namespace) -> int:
    from jaxnn.bench import page, schema

    results = [schema.load(path, other_device=True) for path in args.files]
    written = page.make_page(results, args.title).write(args.out)
    print(f"{written}: {sum(len(found.results) for found in results)} results of {len(results)} files")
    return OK


def _export(args: argparse.Namespace) -> int:
    from jaxnn.bench import exporting, schema

    text = json.dumps(exporting.export(schema.load(args.file, other_device=True), args.to), indent=1)
    if args.out:
        pathlib.Path(args.out).write_text(text + "\n", encoding="utf-8")
        print(f"{args.to} JSON in {args.out}")
    else:
        print(text)
    return OK


def _explain(args: argparse.Namespace) -> int:
    from jaxnn.bench import collect, explaining, probes, revisions

    step, arguments, donate = collect.program(args.target)
    against: Any = None
    if args.against:
        if pathlib.Path(args.against).is_file():
            against = explaining.load(args.against)
        elif ":" not in args.against:
            against = revisions.explain_revision(args.against, args.target)
        else:
            other, given, donated = collect.program(args.against)
            against = explaining.explain(other, *given, name=args.against, donate=donated)
    found = explaining.explain(
        step,
        *arguments,
        out=args.out,
        against=against,
        name=args.target,
        donate=donate,
        peaks=probes.peaks() if args.peaks else None,
        profile=args.profile,
    )
    if args.save:
        found.save(args.save)
    print(found)
    print(f"page: {args.out}")
    return OK
