"""Finding cases in files.

A benchmark file is a Python file that offers cases at its top level, in one of two ways or both:

    @bench.benchmark(donate="thread")
    def mlp_step():
        \"\"\"Made when it is measured, so that one that fails does not stop the others.\"\"\"
        return step, args                         # as bench.Case's; {"base": f, "head": g}, args compares the arms

    CASES = [bench.Case("adam", update, args)]    # or a function that gives them

A case is called `FILE/NAME`. Files that offer nothing are not even imported.
"""

import ast
import dataclasses
import functools
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxnn.bench.case import Case, Donate
from jaxnn.bench.guards import BenchError

_MARK = "_jaxnn_benchmark"


@dataclass(frozen=True)
class Arms:
    """Programs to be compared on the same arguments; the first is the base.

    Attributes:
        name: What the results call it.
        cases: `FILE/NAME:ARM` -> program.
    """

    name: str
    cases: Mapping[str, Case]


@dataclass(frozen=True)
class Item:
    """Something that a file offers, not made yet.

    Attributes:
        name: `FILE/NAME`.
        make: Gives a `Case`, or `Arms`; raises what the file's code raises.
    """

    name: str
    make: Callable[[], Case | Arms]


def benchmark(
    function: Callable[[], tuple] | None = None, *, name: str | None = None, donate: Donate = None
) -> Callable[..., Any]:
    """Marks a function of a benchmark file: it returns the program and its arguments.

    Args:
        function: Without arguments; gives (program, args) as for `Case`, or ({arm: program}, args). Stays callable.
        name: What the results call it; by default the function's name.
        donate: See `Case`.
    """
    if function is None:
        return functools.partial(benchmark, name=name, donate=donate)
    setattr(function, _MARK, (name or function.__name__, donate))
    return function


def collect(paths: Sequence[str | os.PathLike], expression: str = "") -> list[Item]:
    """What the files and folders offer, in their order.

    Args:
        paths: Python files; folders are searched for `*.py`, not deeper. A file that is named must offer something.
        expression: Keep the names that match, see `matches`.

    Raises:
        BenchError: If a path does not exist, nothing is offered or nothing matches, or two cases have one name.
    """
    items: list[Item] = []
    for path in paths:
        items += _of_path(pathlib.Path(path))
    names = [item.name for item in items]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BenchError(f"bench.collect: two cases are called {twice[0]!r}. Give one of them name=.")
    if not items:
        raise BenchError(f"bench.collect: no file of {[str(p) for p in paths]} offers a case. {_HOW}")
    kept = [item for item in items if matches(expression, item.name)]
    if not kept:
        raise BenchError(f"bench.collect: no case matches {expression!r}. There are: {', '.join(names)}.")
    return kept


_HOW = "Decorate a function with @bench.benchmark, or define CASES; `jaxnn.bench.collect` shows both."


def matches(expression: str, name: str) -> bool:
    """Whether `name` matches words joined by "and", "or" and "not", as in pytest; "or" binds least; "" matches all."""
    name = name.lower()

    def word(text: str) -> bool:
        text = text.strip().lower()
        return not word(text[4:]) if text.startswith("not ") else text in name

    return any(all(word(part) for part in option.split(" and ")) for option in expression.split(" or "))


def _of_path(path: pathlib.Path) -> list[Item]:
    if path.is_dir():
        files = [file for file in sorted(path.glob("*.py")) if not file.name.startswith("_")]
        return [item for file in files if offers(file) for item in _of_file(file)]
    if not path.is_file():
        raise BenchError(f"bench.collect: {str(path)!r} does not exist. Give a file or a folder of benchmarks.")
    found = list(_of_file(path)) if offers(path) else []
    if not found:
        raise BenchError(f"bench.collect: {path.name} offers no case. {_HOW}")
    return found


def offers(path: pathlib.Path) -> bool:
    """Whether a file's text defines CASES or decorates a function with `benchmark`. Nothing is imported.

    A file that is no Python counts, so that importing it says what is wrong.
    """
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError):
        return True
    for node in body:
        if isinstance(node, ast.FunctionDef):
            names = [ast.unparse(d).partition("(")[0].rpartition(".")[2] for d in node.decorator_list]
            if node.name == "CASES" or "benchmark" in names:
                return True
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "CASES" for target in targets):
            return True
    return False


def load_file(path: str | os.PathLike) -> Any:
    """A Python file as a module. The working folder can be imported from, as under `python -m`.

    Raises:
        BenchError: If importing it raises.
    """
    path = pathlib.Path(path).resolve()
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    spec = importlib.util.spec_from_file_location(f"jaxnn_bench_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BenchError(f"bench.collect: {path.name} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the file look for their module there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BenchError(
            f"bench.collect: importing {path.name} raised {type(error).__name__}: {error}. Mend the file, or leave it "
            "out."
        ) from error
    return module


def _of_file(path: pathlib.Path) -> Iterator[Item]:
    try:
        module = load_file(path)
    except BenchError as error:
        failure = error

        def broken() -> Case:
            raise failure

        yield Item(path.stem, broken)
        return
    for value in vars(module).values():
        if callable(value) and getattr(value, "__module__", None) == module.__name__ and hasattr(value, _MARK):
            name, donate = getattr(value, _MARK)
            label = f"{path.stem}/{name}"
            yield Item(label, functools.partial(_made, label, value, donate))
    cases = getattr(module, "CASES", ())
    for case in cases() if callable(cases) else cases:
        if not isinstance(case, Case):
            raise BenchError(f"bench.collect: {path.name}: CASES holds {type(case).__name__}, not bench.Case. {_HOW}")
        label = f"{path.stem}/{case.name}"
        yield Item(label, functools.partial(dataclasses.replace, case, name=label))


def _made(label: str, function: Callable[[], Any], donate: Donate) -> Case | Arms:
    made = function()
    if isinstance(made, Case):
        return dataclasses.replace(made, name=label)
    if not isinstance(made, tuple) or len(made) != 2 or not (callable(made[0]) or isinstance(made[0], Mapping)):
        raise BenchError(
            f"bench.benchmark: {label} returned {type(made).__name__}, not (program, args) or ({{arm: program}}, args)."
        )
    program, args = made
    if isinstance(program, Mapping):
        if len(program) < 2:
            raise BenchError(f"bench.benchmark: {label} has the arms {[*program]}. Give a base and a candidate.")
        names = {f"{label}:{arm}": function for arm, function in program.items()}
        return Arms(label, {arm: Case(arm, function, args, donate) for arm, function in names.items()})
    return Case(label, program, args, donate)


def resolve(target: str) -> Any:
    """The object that `module:name` or `file.py:name` names.

    Raises:
        BenchError: If there is no such module, file or name.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise BenchError(f"bench.explain: {target!r} names nothing. Write module:function or file.py:function.")
    if place.endswith(".py"):
        if not pathlib.Path(place).is_file():
            raise BenchError(f"bench.explain: there is no file {place!r}.")
        module = load_file(place)
    else:
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            module = importlib.import_module(place)
        except Exception as error:
            raise BenchError(f"bench.explain: importing {place!r} raised {type(error).__name__}: {error}.") from error
    value = module
    for part in name.split("."):
        if not hasattr(value, part):
            near = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise BenchError(f"bench.explain: {place} has no {name!r}. It has {', '.join(near[:12]) or 'no function'}.")
        value = getattr(value, part)
    return value


def program(target: str) -> tuple[Callable[..., Any], tuple, Donate]:
    """The function, arguments and donation that a target stands for.

    Args:
        target: `module:function` or `file.py:function`, a function without arguments that gives (step, args), a
            `Case` or a function marked by `benchmark`; or `file.py:NAME` of a case in CASES.

    Raises:
        BenchError: If there is none.
    """
    place, _, name = target.rpartition(":")
    file = pathlib.Path(place)
    offered = _of_file(file) if place.endswith(".py") and file.is_file() and offers(file) else ()
    found: Any = next((item.make() for item in offered if item.name.partition("/")[2] == name), None)
    if found is None:
        found = resolve(target)
        if callable(found):
            mark = getattr(found, _MARK, (name, None))
            found = _call(target, found, mark[1])
    if isinstance(found, Arms):
        found = next(iter(found.cases.values()))
    if not isinstance(found, Case):
        raise BenchError(f"bench.explain: {target} is {type(found).__name__}. Name a function that gives (step, args).")
    return found.function, found.make_args(), found.donate


def _call(target: str, function: Callable[[], Any], donate: Donate) -> Case | Arms:
    try:
        return _made(target, function, donate)
    except TypeError as error:
        raise BenchError(
            f"bench.explain: {target} could not be called without arguments: {error}. Name a function that makes the "
            "step: it takes nothing and returns (step, args)."
        ) from error
