"""`jaxnn bench`: every action on tiny cases, its exit status, and one message for what cannot be."""

import json
import math
import re
import subprocess

import jax
import jax.numpy as jnp
import pytest

from jaxnn import bench, cli
from jaxnn.bench import schema, stored
from jaxnn.cli.bench import status

CASES = """
import jax, jax.numpy as jnp
from jaxnn import bench

N = 20

@bench.benchmark
def loop():
    args = (jnp.full((64, 64), 1e-3), jnp.int32(N))
    return (lambda x, n: jax.lax.fori_loop(0, n, lambda _, y: jnp.tanh(y @ x), x)), args

@bench.benchmark
def arms():
    args = (jnp.full((64, 64), 1e-3), jnp.int32(8), jnp.int32(80))
    def turns(which):
        return lambda x, a, b: jax.lax.fori_loop(0, (a, b)[which], lambda _, y: jnp.tanh(y @ x), x)
    return {"short": turns(0), "long": turns(1)}, args
"""
BROKEN = """
@bench.benchmark
def broken():
    return (lambda x: x @ jnp.ones(3)), (jnp.ones(4),)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "b.py").write_text(CASES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two files: the same program twice, one that is twice as long in the second, and one only the first has."""

    def measure(name, n):
        return bench.measure(name, lambda x: jnp.sin(x) * n, args=(jnp.ones(64),), max_seconds=0.2, block_s=0.001)

    folder = tmp_path_factory.mktemp("results")
    bench.save(folder / "a.json", [measure("same", 2), measure("other", 3), measure("gone", 1)])
    bench.save(folder / "b.json", [measure("same", 2), measure("other", 4)])
    return folder


def call(*words):
    return cli.main(["bench", *(str(word) for word in words)])


def error(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


# ---- the command line ----
@pytest.mark.parametrize("argv", [["nonsense"], ["run", "--nonsense"], ["gate"], ["export", "x", "--to", "csv"]])
def test_a_command_line_that_is_not_understood_exits_with_3(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        call(*argv)
    assert stopped.value.code == 3
    assert "usage: jaxnn bench" in capsys.readouterr().err


def test_help_states_the_exit_statuses(capsys):
    assert call() == 3
    for argv in (["--help"], ["run", "--help"], ["compare", "--help"], ["gate", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            call(*argv)
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert all(word in text for word in ("0  ok", "1  regress", "2  inconclusive", "3  invalid"))


def test_the_worst_result_is_the_status():
    class Made:
        def __init__(self, verdict):
            self.verdict = verdict

    failure = bench.Failure("x", "TypeError", "y")
    assert status([]) == 0
    assert status([Made("ok"), Made("improve")]) == 0
    assert status([Made("ok"), Made("inconclusive")]) == 2
    assert status([Made("inconclusive"), Made("regress")]) == 1
    assert status([Made("regress"), failure]) == 3


# ---- run ----
def test_a_case_that_fails_is_reported_and_the_others_go_on(here, capsys):
    (here / "benchmarks" / "b.py").write_text(CASES + BROKEN)
    assert call("run", "-k", "loop or broken", "--max-seconds", 0.2, "--out", "r.json") == 3
    seen = capsys.readouterr()
    assert "b/loop   " in seen.out
    assert "b/broken   FAILED TypeError: dot_general" in seen.out
    assert "1 of 2 cases failed: b/broken" in seen.err
    assert "\x1b[" not in seen.out  # no colour where no terminal is
    kept = bench.load("r.json").results
    assert [type(result).__name__ for result in kept] == ["Measurement", "Failure"]
    assert call("run", "-k", "loop", "--max-seconds", 0.2) == 0


def test_cases_are_named_without_being_run(here, capsys):
    assert call("run", "--list", "benchmarks/b.py") == 0
    assert capsys.readouterr().out.split() == ["b/loop", "b/arms"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "-k", "zzz"], "no case matches 'zzz'. There are: b/loop, b/arms."),
        (["run", "nowhere"], "'nowhere' does not exist"),
        (["compare", "a", "b", "c"], "3 sides"),
        (["compare", "benchmarks/b.py", "HEAD"], "one side is a file, 'HEAD' is not"),
        (["compare", "HEAD", "HEAD"], "Revisions need a git repository"),
        (["gate", "--baseline", "gone"], "there is no baseline 'gone'. Write it with --record"),
        (["gate", "--baseline", "one.json"], "one.json is one program, and b/loop, b/arms match"),
        (["report", "gone.json"], "gone.json"),
        (["export", "benchmarks/b.py", "--to", "asv"], "is no JSON"),
        (["explain", "benchmarks.gone:f"], "importing 'benchmarks.gone' raised ModuleNotFoundError"),
        (["explain", "benchmarks/b.py:gone"], "has no 'gone'. It has loop, arms"),
        (["explain", "benchmarks/b.py:loop", "--against", "b.py:x"], "there is no file 'b.py'"),
    ],
)
def test_what_is_wrong_is_one_line_and_3(here, capsys, argv, message):
    assert call(*argv) == 3
    assert message in error(capsys)


# ---- compare ----
def test_the_arms_of_a_file_are_compared(here, capsys):
    # Ten times the work; on a busy machine inconclusive is allowed, ok is not.
    verdict = {1: "REGRESS", 2: "INCONCLUSIVE"}[call("compare", "benchmarks/b.py", "-k", "arms", "--max-seconds", 5)]
    assert verdict in capsys.readouterr().out
    assert call("compare", "benchmarks/b.py", "-k", "loop") == 3
    assert "it has no arms" in capsys.readouterr().out


def test_files_are_compared_for_what_that_is_worth(results, capsys):
    assert call("compare", results / "a.json", results / "b.json") in (1, 2)
    text = capsys.readouterr().out
    assert "(the same program)" in text
    assert "gone   in one file only" in text
    same = bench.load(results / "a.json", other_device=True)
    assert stored.compare_stored(same, same).verdict == "ok"


def scaled(results, factor, program):
    content = json.loads((results / "a.json").read_text())
    row = content["results"][0]
    row["median_s"] *= factor
    row["interval"] |= {"low": row["median_s"] * 0.99, "high": row["median_s"] * 1.01}
    row["compile"]["program"] = program
    content["results"] = [row]
    return content


@pytest.mark.parametrize(
    ("factor", "program", "expected"), [(2.0, "x", 1), (0.5, "x", 0), (1.1, "x", 2), (1.1, "base", 0)]
)
def test_stored_times_decide_only_what_is_far_apart(results, tmp_path, factor, program, expected):
    for name, content in (("a", scaled(results, 1.0, "base")), ("b", scaled(results, factor, program))):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert call("compare", tmp_path / "a.json", tmp_path / "b.json") == expected


def test_files_of_other_devices_newer_and_foreign_ones(results, tmp_path, capsys):
    content = json.loads((results / "a.json").read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content | {"environment": content["environment"] | {"device": "8 x tpu v9"}}))
    assert call("compare", results / "a.json", other) == 3
    assert "8 x tpu v9. Say --other-device" in error(capsys)
    assert call("compare", results / "a.json", other, "--other-device") != 3
    for text, message in ((json.dumps(content | {"schema": "jaxnn.bench/2"}), "Update jaxnn"), ("{}", "no file of")):
        other.write_text(text)
        for action in (["compare", results / "a.json", other], ["report", other], ["export", other, "--to", "asv"]):
            assert call(*action) == 3
            assert message in error(capsys)


def git(*words):
    subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@y", *words], check=True, capture_output=True)


def test_two_revisions_take_turns(here, capfd):
    file = here / "benchmarks" / "b.py"
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "a")
    file.write_text(CASES.replace("N = 20", "N = 60").replace("def arms", "def renamed") + "print('chatter')\n")
    git("commit", "-qam", "b")
    verdict = {1: "REGRESS", 2: "INCONCLUSIVE"}[
        call("compare", "HEAD~1", "HEAD", "--max-seconds", 6, "--out", "r.json")
    ]
    text = capfd.readouterr().out
    assert "vs b/loop@HEAD~1 +" in text
    assert verdict in text
    assert "b/arms   only at HEAD~1" in text
    assert "b/renamed   only at HEAD: nothing to compare" in text
    (found,) = bench.load("r.json").results
    assert found.rows["b/loop@HEAD"].estimate.ratio > 1.5  # 3 where nothing else runs
    assert set(found.measurements) == {"b/loop@HEAD~1", "b/loop@HEAD", "A/A"}
    worktrees = subprocess.run(["git", "worktree", "list"], capture_output=True, text=True, check=True).stdout
    assert len(worktrees.splitlines()) == 1
    assert call("compare", "HEAD", "nowhere") == 3
    assert "'nowhere' is no revision" in capfd.readouterr().err


# ---- gate ----
def test_a_recorded_program_guards_the_case(here, capsys):
    assert call("gate", "-k", "loop", "--baseline", "base", "--record") == 0
    assert "b/loop   recorded in base/b-loop.json" in capsys.readouterr().out
    file = here / "benchmarks" / "b.py"
    file.write_text(CASES.replace("jnp.tanh(y @ x)", "jnp.tanh(y @ x @ x @ x)"))
    assert call("gate", "-k", "loop", "--baseline", "base/b-loop.json", "--max-seconds", 5, "--out", "r.json") in (1, 2)
    assert "vs b/loop:base +" in capsys.readouterr().out
    assert call("gate", "-k", "arms", "--baseline", "base") == 3
    assert "base has no b-arms-short.json. Write it with --record" in capsys.readouterr().out
    content = json.loads((here / "base" / "b-loop.json").read_text())
    content["environment"]["device"] = "8 x tpu v9"
    (here / "base" / "b-loop.json").write_text(json.dumps(content))
    assert call("gate", "-k", "loop", "--baseline", "base") == 3
    assert "was recorded on 8 x tpu v9" in capsys.readouterr().out
    assert call("gate", "-k", "loop", "--baseline", "r.json") == 3
    assert "holds 'jaxnn.bench/1', not a program" in capsys.readouterr().out


# ---- report, export, explain ----
def test_the_page_holds_every_part(results, here, capsys):
    peaks = bench.Peaks(schema.device_name(), {n: peak(n, u) for n, u in (("product float32", "FLOP"), ("copy", "B"))})
    arms = {"base": lambda x: x @ x, "head": lambda x: x @ x + 1}
    compared = bench.compare(arms, args=(jnp.ones((16, 16)),), max_seconds=0.3)
    sweep = bench.sweep("s", lambda n: (jnp.sin, (jnp.ones(n),)), {"n": [8, 64, 512]}, max_seconds=0.2)
    bench.save(
        "now.json", [*bench.load(results / "b.json").results, compared, sweep, peaks, bench.Failure("f", "E", "m")]
    )
    assert call("report", results / "a.json", "now.json", "-o", "page.html", "--title", "A <title>") == 0
    html = (here / "page.html").read_text()
    assert "A &lt;title&gt;" in html
    for heading in ("Failed", "Comparisons", "Distributions", "Sweep s", "Roofline", "History", "Environment"):
        assert f"<h2>{heading}</h2>" in html
    forest = math.isfinite(compared.interval.high)  # too few rounds on a busy machine have no interval to draw
    assert html.count("<svg") == 6 + forest  # two measurements, one comparison, the sweep's fit, roof, history
    assert "t = " in html
    assert call("report", results / "a.json", "-o", "one.html") == 0
    assert "<h2>History</h2>" not in (here / "one.html").read_text()


def peak(name, unit):
    from jaxnn.bench.probes import Peak

    return Peak(name, 1e10, bench.Interval(9e9, 1.1e10), unit)


@pytest.mark.parametrize("to", ["pytest-benchmark", "google-benchmark", "asv"])
def test_results_of_other_tools(results, here, capsys, to):
    assert call("export", results / "a.json", "--to", to) == 0
    printed = json.loads(capsys.readouterr().out)
    assert call("export", results / "a.json", "--to", to, "--out", "x.json") == 0
    assert json.loads((here / "x.json").read_text()) == printed
    assert "other" in json.dumps(printed)


def test_explain_writes_a_page_and_a_file_to_compare_with(here, capsys):
    assert call("explain", "benchmarks/b.py:loop", "-o", "p.html", "--save", "e.json") == 0
    assert "benchmarks/b.py:loop, explained" in (here / "p.html").read_text()
    assert call("explain", "benchmarks/b.py:arms", "-o", "p.html", "--against", "e.json") == 0
    assert "Against benchmarks/b.py:loop" in (here / "p.html").read_text()
    assert jax.__version__ in (here / "p.html").read_text()


def test_explain_shows_the_differences_from_another_revision(here, capsys):
    """Of a step that the working folder has changed since, without a commit of its own."""
    file = here / "benchmarks" / "b.py"
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "a")
    file.write_text(CASES.replace("jnp.tanh(y @ x)", "jnp.tanh(y @ x @ x)").replace("def arms", "def renamed"))
    assert call("explain", "benchmarks/b.py:loop", "-o", "p.html", "--against", "HEAD") == 0
    page = (here / "p.html").read_text()
    assert "Against benchmarks/b.py:loop at HEAD" in page
    was, now = 2 * 64**3, 4 * 64**3  # a product an iteration, then two; the loop's length is an argument
    (row,) = [line for line in page.replace("<tr>", "\n<tr>").splitlines() if "<td>FLOPs</td>" in line]
    cells = [float(cell.replace(",", "")) for cell in re.findall(r">([\d,]+)<", row)]
    assert cells[:2] == pytest.approx([was, now], rel=0.05)
    assert call("explain", "benchmarks/b.py:renamed", "--against", "HEAD") == 3
    assert "at HEAD: bench.explain: benchmarks/b.py has no 'renamed'" in error(capsys)
    assert call("explain", "benchmarks/b.py:loop", "--against", "nowhere") == 3
    assert "'nowhere' is no revision" in error(capsys)
    worktrees = subprocess.run(["git", "worktree", "list"], capture_output=True, text=True, check=True).stdout
    assert len(worktrees.splitlines()) == 1
