"""How docstrings become Markdown: formulas stay as they were written, and "> 0" is no quotation.

mkdocstrings loads this by its path in mkdocs.yml. Docstrings are written for people who read them
in the code, so they are changed here rather than there.
"""

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Source|Yields|Example):", re.M)
_FORMULA = re.compile(r"<-|(?<![=<>!])=(?!=)")


def _is_formula(paragraph: str) -> bool:
    """Whether a paragraph is lines of assignments, which Markdown would run together."""
    lines = paragraph.splitlines()
    return len(lines) > 1 and "<-" in paragraph and all(_FORMULA.search(line) for line in lines)


def mended(text: str) -> str:
    """The docstring with formulas as code, and the ">" that begins a description escaped."""
    found = _SECTION.search(text)
    body, sections = (
        (text, "") if found is None else (text[: found.start()], text[found.start() :])
    )
    paragraphs = [
        f"```text\n{p}\n```" if _is_formula(p) else p for p in re.split(r"\n{2,}", body)
    ]
    sections = re.sub(r"^(\s+[\w.*, ]+: )>", r"\1\\>", sections, flags=re.M)
    return "\n\n".join(paragraphs) + sections


class Docstrings(griffe.Extension):
    """Mends every docstring that is read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for each object once it is complete."""
        if obj.docstring is not None:
            obj.docstring.value = mended(obj.docstring.value)
