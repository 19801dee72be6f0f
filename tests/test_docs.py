"""The documents: every block of Python in them runs, every page is found, and what they say of files is so."""

import ast
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
_BLOCK = re.compile(r"^(?P<skip><!-- not run: [^\n]+ -->\n\n?)?(?P<fence>```+)python\n(?P<code>.*?)^(?P=fence)$", re.M | re.S)


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
    hidden = ("XLA_FLAGS", "NPROC")
    return {name: value for name, value in os.environ.items() if name not in hidden} | {"MPLBACKEND": "agg"}


def test_blocks_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n\n```python\nx = 1\n```\n\n<!-- not run: why -->\n```python\ny\n```\n```console\n$ z\n```\n")
    assert blocks(page) == [(4, "x = 1\n", True), (9, "y\n", False)]
    assert program(page).splitlines()[3] == "x = 1"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(runs for *_, runs in blocks(page))], ids=lambda p: str(p.relative_to(ROOT))
)
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
