"""What a diagnosis says: verdicts with their evidence, and what could not be told."""

import dataclasses
import textwrap
from typing import Literal

from jaxnn.report import html_table

BADLY, SLOW = "it does badly", "it is slow"
_WIDTH = 110


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One trouble of a run.

    Attributes:
        name: What it is: "rate too high".
        question: Which question it answers, "it does badly" or "it is slow".
        evidence: What was measured, with figures.
        suggestion: The one thing to try first.
        severity: "severe" where the result is of no use or most of the time is lost, else "moderate".
    """

    name: str
    question: Literal["it does badly", "it is slow"]
    evidence: str
    suggestion: str
    severity: Literal["severe", "moderate"] = "moderate"


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The troubles of a run, the severe ones first; true where there are any. `print` shows it, and a notebook as well.

    Attributes:
        about: Of which run.
        verdicts: What was found.
        notes: What was seen that is no trouble.
        unknown: What could not be told, and why.
    """

    about: str
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the verdicts."""
        return tuple(verdict.name for verdict in self.verdicts)

    def __bool__(self) -> bool:
        return bool(self.verdicts)

    def __len__(self) -> int:
        return len(self.verdicts)

    def __getitem__(self, name: str) -> Verdict:
        """The verdict of a name.

        Raises:
            KeyError: If there is none; lists those there are.
        """
        for verdict in self.verdicts:
            if verdict.name == name:
                return verdict
        raise KeyError(f"Diagnosis: there is no verdict {name!r}. Found: {', '.join(self.names) or 'nothing'}.")

    def __str__(self) -> str:
        lines = [f"{self.about}: {self._count()}"]
        for question in (BADLY, SLOW):
            found = [verdict for verdict in self.verdicts if verdict.question == question]
            lines.append(f"{question}:" + ("" if found else " nothing found"))
            for verdict in found:
                lines.append(f"  {verdict.name} ({verdict.severity})")
                lines += _wrapped("    seen  ", verdict.evidence) + _wrapped("    try   ", verdict.suggestion)
        for text in self.notes:
            lines += _wrapped("note: ", text)
        for text in self.unknown:
            lines += _wrapped("not told: ", text)
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = [(v.question, f"{v.name} ({v.severity})", v.evidence, v.suggestion) for v in self.verdicts]
        notes = [f"note: {text}" for text in self.notes] + [f"not told: {text}" for text in self.unknown]
        headers = ("question", "verdict", "seen", "try")
        return html_table(rows, headers, "Diagnosis", "\n".join([f"{self.about}: {self._count()}", *notes]))

    def _count(self) -> str:
        return {0: "no trouble found", 1: "1 verdict"}.get(len(self.verdicts), f"{len(self.verdicts)} verdicts")


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)
