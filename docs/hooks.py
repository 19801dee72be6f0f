"""What the site needs beyond mkdocs: a nav that finds pages, the first hour, the API's pages.

mkdocs calls these by name while it builds. Nothing here imports jaxnn: the API is read, not run.
"""

import ast
import base64
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "first_hour.ipynb"
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


# ---- nav


def _named(nav: Any) -> list[str]:
    """The pages that a nav names, those of its patterns left out."""
    if isinstance(nav, str):
        return [] if nav.endswith("*") else [nav.rstrip("?")]
    return [
        page for item in (nav.values() if isinstance(nav, dict) else nav) for page in _named(item)
    ]


def _expand(nav: Any, pages: list[str], taken: set[str]) -> Any:
    """The nav with "FOLDER/*" replaced by the pages there that nothing names, and "PAGE?" dropped
    where there is none."""
    if isinstance(nav, dict):
        return {title: _expand(part, pages, taken) for title, part in nav.items()}
    if isinstance(nav, str):
        return nav.rstrip("?")
    out: list[Any] = []
    for item in nav:
        text = item if isinstance(item, str) else ""
        if text.endswith("*"):
            folder = text[:-1]
            found = [
                p
                for p in pages
                if p.startswith(folder) and "/" not in p[len(folder) :] and p not in taken
            ]
            taken.update(found)
            out += found
        elif not text.endswith("?") or text[:-1] in pages:
            out.append(_expand(item, pages, taken))
    return out


def on_config(config: Any) -> Any:
    """Expands the nav's patterns."""
    docs = Path(config["docs_dir"])
    pages = sorted(p.relative_to(docs).as_posix() for p in docs.rglob("*.md"))
    pages += [f"api/{room}.md" for room in rooms()]
    config["nav"] = _expand(config["nav"], pages, set(_named(config["nav"])))
    return config


# ---- generated pages


def rooms() -> list[str]:
    """The rooms, by name: the public modules and packages of jaxnn."""
    found = [
        p.stem if p.is_file() else p.name
        for p in (ROOT / "jaxnn").iterdir()
        if p.suffix in ("", ".py")
    ]
    return sorted(name for name in found if not name.startswith("_"))


def exported(room: str) -> list[tuple[str, str]]:
    """The names that a package's `__init__` re-exports as `x as x`, in its order, with where each
    is defined; none for a module."""
    init = ROOT / "jaxnn" / room / "__init__.py"
    if not init.exists():
        return []
    body = ast.parse(init.read_text("utf-8"))
    found = [
        (alias.name, f"{node.module}.{alias.name}")
        for node in ast.walk(body)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    ]
    own = [node.name for node in body.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return found + [(name, f"jaxnn.{room}.{name}") for name in own if not name.startswith("_")]


def api_page(room: str) -> str:
    """The page of a room's public names; mkdocstrings fills in what their docstrings say."""
    names = exported(room)
    if not names:
        return f"# {room}\n\n::: jaxnn.{room}\n    options: {{ heading: {room} }}\n"
    # By definition: a function may have the name of its module, as `train.fit` does.
    blocks = [
        f"::: {path}\n    options: {{ heading: {room}.{name}, toc_label: {name} }}\n"
        for name, path in dict(names).items()
    ]
    return f"# {room}\n\nThe public names of `jaxnn.{room}`.\n\n" + "\n".join(blocks)


def _output(output: dict[str, Any], images: dict[str, bytes]) -> str:
    """One output of a cell as markdown."""
    content = output.get("data", {})
    if "image/png" in content:
        name = f"first-hour-{len(images) + 1}.png"
        images[name] = base64.b64decode(content["image/png"])
        return f"![A figure of the cell above]({name})\n"
    if "text/html" in content:
        return "".join(content["text/html"]) + "\n"
    text = _ANSI.sub("", "".join(output.get("text", content.get("text/plain", [])))).rstrip()
    return f"```{{ .text .no-copy }}\n{text}\n```\n" if text else ""


def first_hour() -> tuple[str, dict[str, bytes]]:
    """The notebook as a page, with the outputs that it holds, and its figures by file name."""
    images: dict[str, bytes] = {}
    parts: list[str] = []
    for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source.replace("](../docs/", "](") + "\n")
            continue
        parts.append(f"```python\n{source}\n```\n")
        shown = "".join(_output(output, images) for output in cell["outputs"])
        if shown:
            parts.append(f'<div class="output" markdown="1">\n\n{shown}\n</div>\n')
    return "\n".join(parts), images


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages and figures."""
    page, images = first_hour()
    made: dict[str, str | bytes] = {"first-hour.md": page, **images}
    made |= {f"api/{room}.md": api_page(room) for room in rooms()}
    for name, content in made.items():
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, content=content))
    return files
