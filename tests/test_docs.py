"""The documents: every block of Python in them runs, and the files that they lead to fit the project."""

import ast
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A comment right before a block keeps it from running, and says why: <!-- not run: needs torch -->
_BLOCK = re.compile(
    r"^(?P<skip><!-- not run: [^\n]+ -->\n\n?)?(?P<fence>```+)python\n(?P<code>.*?)^(?P=fence)$", re.M | re.S
)


def blocks(page: pathlib.Path) -> list[tuple[int, str, bool]]:
    """The Python blocks of a page: line of the first statement, code, whether it runs."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, found.start("code")) + 1, found["code"], found["skip"] is None)
        for found in _BLOCK.finditer(text)
    ]


def program(page: pathlib.Path) -> str:
    """The blocks of a page that run, as one module whose lines have the numbers that they have in the page."""
    lines = [""] * (page.read_text(encoding="utf-8").count("\n") + 1)
    for at, code, runs in blocks(page):
        if runs:
            lines[at - 1 : at - 1 + code.count("\n")] = code.splitlines()
    return "\n".join(lines) + "\n"


def as_a_reader() -> dict[str, str]:
    """The environment of somebody who types the page's blocks: no devices are forced for them."""
    flags = " ".join(f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f)
    rest = {name: value for name, value in os.environ.items() if name != "NPROC"}
    return rest | {"MPLBACKEND": "agg", "XLA_FLAGS": flags}


def test_blocks_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n\n```python\nx = 1\n```\n\n<!-- not run: why -->\n```python\ny\n```\n```console\n$ z\n```\n")
    assert blocks(page) == [(4, "x = 1\n", True), (9, "y\n", False)]
    assert program(page).splitlines()[3] == "x = 1"


def pages_that_run() -> list:
    """Pages with blocks that run; one that says <!-- tests: slow --> is left to the full test run."""
    return [
        pytest.param(
            page,
            id=str(page.relative_to(ROOT)),
            marks=[pytest.mark.slow] if "<!-- tests: slow -->" in page.read_text(encoding="utf-8") else [],
        )
        for page in PAGES
        if any(runs for *_, runs in blocks(page))
    ]


@pytest.mark.parametrize("page", pages_that_run())
def test_blocks_run(page, tmp_path):
    file = tmp_path / f"page_{page.stem}.py"  # not optax.py, which would be imported in optax's place
    file.write_text(program(page), encoding="utf-8")
    code = f"import runpy; runpy.run_path({file.name!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=as_a_reader() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{page.relative_to(ROOT)}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_blocks_that_do_not_run_are_python_too(page):
    for at, code, _ in blocks(page):
        try:
            ast.parse(code)
        except SyntaxError as error:
            pytest.fail(f"{page.relative_to(ROOT)}:{at + (error.lineno or 1) - 1}: {error.msg}")


# ---- the notebook

NOTEBOOK = json.loads((ROOT / "notebooks" / "first_hour.ipynb").read_text(encoding="utf-8"))


def test_notebook_keeps_no_trace_of_a_machine():
    for number, cell in enumerate(NOTEBOOK["cells"]):
        shown = json.dumps(cell.get("outputs", []))
        assert len(shown) < 100_000, f"cell {number}: {len(shown)} bytes of output; run docs/execute.py"
        texts = re.sub(r'"image/png": "[^"]*"', "", shown)
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr|Users|content)/|[A-Z]:\\\\", texts), f"cell {number}"
        assert cell.get("execution_count") is None


def test_notebook_has_its_outputs():
    kinds = {
        kind for cell in NOTEBOOK["cells"] for output in cell.get("outputs", []) for kind in output.get("data", {})
    }
    assert {"image/png", "text/html"} <= kinds, "run docs/execute.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_notebook_runs():
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "execute.py"), "--check"],
        env=as_a_reader() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]


# ---- environments

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


def lane(python: str) -> str:
    """The constraints of a Python version, as the Makefile chooses them."""
    return "py311" if tuple(map(int, python.split("."))) < (3, 12) else "py313"


def test_conda_environment_fits_the_constraints():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    python = re.search(r"- python=([\d.]+)$", text, re.M)[1]
    pip = re.search(r"- pip:\n((?: {6}- .+\n)+)", text)[1]
    lines = [line.strip().removeprefix("- ") for line in pip.splitlines()]
    assert f"-c constraints/{lane(python)}.txt" in lines
    (checkout,) = [line for line in lines if line.startswith("-e ")]
    assert set(re.search(r"\[(.+)\]", checkout)[1].split(",")) <= set(EXTRAS)
    assert len(lines) == 2  # everything else comes from these two


def test_dockerfile_fits_the_project():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    python = re.search(r"^FROM python:([\d.]+)-slim$", text, re.M)[1]
    constraints = set(re.findall(r"-c constraints/(\w+)\.txt", text))
    assert constraints == {lane(python)}
    asked = re.findall(r"EXTRAS=([\w,]+)", text)
    assert asked
    assert {extra for extras in asked for extra in extras.split(",")} <= set(EXTRAS)
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for name in line.split()}
    kept = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M))
    assert copied == kept  # nothing is copied that the build does not see, nothing seen that it does not need
    assert all((ROOT / name).exists() for name in copied)
    assert text.index("COPY pyproject.toml") < text.index("RUN pip install")


def test_extras_that_the_install_page_names_are_those_of_the_project():
    page = (ROOT / "docs" / "install" / "pip.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", page, re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(EXTRAS)


# ---- nothing is left out


def test_every_room_has_a_page_that_shows_its_docstring():
    shown = {
        room
        for page in (ROOT / "docs" / "rooms").glob("*.md")
        for room in re.findall(r"^::: jaxnn\.(\w+)$", page.read_text(encoding="utf-8"), re.M)
    }
    package = (ROOT / "jaxnn").iterdir()
    rooms = {path.stem for path in package if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert shown == {room for room in rooms if not room.startswith("_")}


def test_every_task_is_listed():
    folder = ROOT / "docs" / "how-to"
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (folder / "index.md").read_text(encoding="utf-8")))
    assert {page.name for page in folder.glob("*.md")} == listed | {"index.md"}


def test_formulas_of_docstrings_stay_as_they_are():
    griffe = pytest.importorskip("griffe")  # of the extra `docs`
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs" / "docstrings.py")
    docstrings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docstrings)
    given = "Adam's direction.\n\nmu <- b1 mu\nnu  = b2 nu\n\nProse a <- b.\n\nArgs:\n    lr: > 0.\n    x: a > b."
    assert docstrings.mended(given) == (
        "Adam's direction.\n\n```text\nmu <- b1 mu\nnu  = b2 nu\n```\n\nProse a <- b.\n\n"
        "Args:\n    lr: \\> 0.\n    x: a > b."
    )
    assert issubclass(docstrings.Docstrings, griffe.Extension)
