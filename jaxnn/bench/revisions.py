"""Two revisions of a repository against each other: a worktree and a worker process each, which take turns.

The base has two workers, so that there is a control here too. Between its blocks a worker waits for the next request
and does nothing.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from jaxnn.bench import display, explaining, schema, statistics, timing
from jaxnn.bench.collect import matches
from jaxnn.bench.comparison import Comparison, judge
from jaxnn.bench.explaining import Explanation
from jaxnn.bench.guards import BenchError
from jaxnn.bench.measurement import Failure, Measurement
from jaxnn.bench.timing import Block

_WORKER = pathlib.Path(__file__).with_name("worker.py")
_PACKAGE = _WORKER.parent.parent


@dataclass(frozen=True)
class Options:
    """How a comparison of revisions is run; as for `compare`."""

    tolerance: float = 0.03
    level: float = 0.95
    max_seconds: float = 10.0
    seed: int = 0
    block_s: float = timing.BLOCK_S


@dataclass(frozen=True)
class OneSided:
    """A case that only one revision has, so that there is nothing to compare it with."""

    name: str
    revision: str

    def __str__(self) -> str:
        return f"{self.name}   only at {self.revision}: nothing to compare"


def compare_revisions(
    base: str,
    head: str,
    paths: Sequence[str | os.PathLike],
    *,
    expression: str = "",
    repository: str | os.PathLike = ".",
    options: Options | None = None,
) -> Iterator[Comparison | Failure | OneSided]:
    """Compares every case that both revisions have.

    Args:
        base: Anything that git resolves to a commit.
        head: The same; "." is the working folder as it is.
        paths: Of benchmark files or folders. Relative ones are looked up in each revision, absolute ones are taken as
            they are for both.
        expression: Keep the cases that match, see `collect.matches`.
        repository: A folder of the repository.
        options: How long, how exact.

    Yields:
        A comparison, a failure or a remark a case.

    Raises:
        BenchError: If there is no such revision, a worker does not start, or no case matches.
    """
    settings = options or Options()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # this process needs nothing of the device
    root = _git(repository, "rev-parse", "--show-toplevel")
    commits = {name: name if name == "." else resolve(root, name) for name in dict.fromkeys((base, head))}
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxnn-bench-")))
        trees = {name: root for name in commits if name == "."}
        for index, (name, commit) in enumerate(commits.items()):
            if name != ".":
                trees[name] = stack.enter_context(worktree(root, commit, folder / f"{index}-{commit[:12]}"))
        workers = [stack.enter_context(Process(side, trees[side], paths)) for side in (base, head, base)]
        both = [name for name in workers[0].names if name in workers[1].names]
        either = [*workers[0].names, *(n for n in workers[1].names if n not in both)]
        wanted = [name for name in either if matches(expression, name)]
        if not wanted:
            raise BenchError(f"bench.compare: no case matches {expression!r}. There are: {', '.join(either)}.")
        for name in wanted:
            if name not in both:
                yield OneSided(name, base if name in workers[0].names else head)
                continue
            try:
                yield _compare(name, workers, settings, folder)
            except BenchError as error:
                if any(worker.dead for worker in workers):
                    raise
                yield Failure(name, "BenchError", str(error))


def explain_revision(revision: str, target: str, *, repository: str | os.PathLike = ".") -> Explanation:
    """What `bench.explain` says of a step as it was at a revision: nothing but its counts, memory and compilation.

    Args:
        revision: Anything that git resolves to a commit.
        target: As for `collect.program`; a relative file is looked up in the revision, in the folder of the same name.
        repository: A folder of the repository.

    Raises:
        BenchError: If there is no such revision, or the target has no step there.
    """
    root = _git(repository, "rev-parse", "--show-toplevel")
    inside = _git(repository, "rev-parse", "--show-prefix")
    commit = resolve(root, revision)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxnn-bench-")))
        tree = stack.enter_context(worktree(root, commit, folder / commit[:12]))
        path = folder / "explanation.json"
        place = pathlib.Path(tree, inside)
        if not place.is_dir():
            raise BenchError(f"bench.explain: at {revision}: there is no folder {inside!r}.")
        stack.enter_context(Process(revision, tree, ["--explain", target, path], place))
        found = explaining.load(path)
    return dataclasses.replace(found, name=f"{target} at {revision}")


def resolve(root: str | os.PathLike, revision: str) -> str:
    """The commit of a revision.

    Raises:
        BenchError: If git knows none.
    """
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except BenchError as error:
        raise BenchError(
            f"bench.revisions: {revision!r} is no revision of {root}, and no file. Give a commit, a branch, a tag, or "
            "'.' for the working folder."
        ) from error


def _git(folder: str | os.PathLike, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BenchError(f"bench.revisions: git cannot be run: {error}.") from error
    if done.returncode:
        reason = done.stderr.strip() or f"git {words[0]} failed"
        raise BenchError(f"bench.revisions: {reason}. Revisions need a git repository.")
    return done.stdout.strip()


@contextlib.contextmanager
def worktree(root: str | os.PathLike, commit: str, folder: pathlib.Path) -> Iterator[str]:
    """A commit checked out in a folder of its own, removed afterwards."""
    _git(root, "worktree", "add", "--detach", "--force", str(folder), commit)
    try:
        yield str(folder)
    finally:
        _git(root, "worktree", "remove", "--force", str(folder))


class Process:
    """A worker: `worker.py` in a worktree, asked over pipes.

    Attributes:
        names: Its cases.
        backend: What it measures on.
    """

    def __init__(
        self,
        revision: str,
        tree: str,
        paths: Sequence[str | os.PathLike],
        place: str | os.PathLike | None = None,
    ):
        self.revision = revision
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        # A repository that is not jaxnn's own takes the rest of jaxnn from where this is running.
        search = [tree, *filter(None, [os.environ.get("PYTHONPATH")]), str(_PACKAGE.parent)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(_PACKAGE), *(str(path) for path in paths)],
            cwd=place or tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # Three processes share an accelerator, so none may take all of its memory.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(search), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )
        try:
            hello = self._answer()
        except BaseException:
            self.close()
            raise
        self.names: list[str] = hello.get("names", [])
        self.backend: str = hello.get("backend", "")

    @property
    def dead(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """One request and its answer.

        Raises:
            BenchError: What the worker raised, or that it is gone.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = [text for text in self._errors.read().splitlines() if text.strip()][-3:]
            raise BenchError(
                f"bench.revisions: the worker of {self.revision} ended with status {self._process.returncode}: "
                f"{' | '.join(last) or 'without a word'}."
            )
        answer = json.loads(line)
        if "error" in answer:
            raise BenchError(f"bench.revisions: at {self.revision}: {answer['error']}")
        return answer


def _compare(name: str, workers: list[Process], settings: Options, folder: pathlib.Path) -> Comparison:
    """One case, in turns, until there is a verdict."""
    sides = [workers[0].revision, workers[1].revision]
    labels = [f"{name}@{side}" for side in (sides if sides[0] != sides[1] else ("base", "head"))]
    for worker in workers:
        worker.ask("build", name=name, seed=settings.seed)
    chosen = [worker.ask("calibrate", block_s=settings.block_s) for worker in workers]
    steps = [answer["step_s"] for answer in chosen]
    if max(steps) < 2 * min(steps):
        for worker in workers:
            worker.ask("calls", number=min(answer["calls"] for answer in chosen))
    rng = np.random.default_rng(settings.seed)
    rounds: list[list[Block]] = []
    start, look, sizes = time.perf_counter(), 0, statistics.look_sizes(len(workers))
    due, rows, aa, clock = next(sizes), [], None, "wall"
    with display.live(name) as show:
        for number, order in enumerate(timing.latin_rounds(len(workers), rng)):
            blocks = {arm: _block(workers[arm], number, place, arm) for place, arm in enumerate(order)}
            rounds.append([blocks[arm] for arm in range(len(workers))])
            final = time.perf_counter() - start > settings.max_seconds
            if len(rounds) < due and not final:
                continue
            due, look = next(sizes), look + 1
            by_clock = {"wall": timing.seconds(rounds, "wall")}
            # CPU time says nothing about what an accelerator did.
            by_clock["cpu"] = timing.seconds(rounds, "cpu") if workers[0].backend == "cpu" else by_clock["wall"]
            alpha = 1 - settings.level
            rows, aa, clock = judge(labels, by_clock, settings.tolerance, alpha, look, final, settings.seed)
            show(f"{rows[0].estimate} {rows[0].verdict}  {len(rounds)} rounds")
            if final or rows[0].verdict != "inconclusive":
                break
    seconds = time.perf_counter() - start
    measurements: dict[str, Measurement] = {}
    for label, worker in zip([*labels, "A/A"], workers, strict=True):
        path = folder / "finished.json"
        worker.ask("finish", path=str(path), level=settings.level, seed=settings.seed)
        measurements[label] = _named(schema.load(path, other_device=True).results[0], label)
    assert aa is not None
    return Comparison(
        labels[0], {rows[0].name: rows[0]}, aa, clock, settings.tolerance, len(rounds), seconds, measurements
    )


def _block(worker: Process, number: int, place: int, arm: int) -> Block:
    raw = worker.ask("block", round=number, position=place, arm=arm)
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    return Block(**fields)


def _named(found: Any, name: str) -> Measurement:
    return dataclasses.replace(found, name=name)
