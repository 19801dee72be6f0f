"""What an experiment found at the end of its run, kept in its folder: values, sections, and pictures as PNG files.

    result.json        values by name, the step that they are of, and the sections' texts and tables
    card_TITLE.png     a section's figure

A report shows the same once; a card is made from these files at any time, beside those of other seeds.
"""

import dataclasses
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxnn import tree
from jaxnn.report import format_value, plain
from jaxnn.runs.durable import write_atomic, write_json
from jaxnn.runs.environment import usage
from jaxnn.runs.folder import RunFolder
from jaxnn.runs.summary import Section
from jaxnn.typing import PyTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULT, CARD = "result.json", "card"
DPI = 110  # 880 pixels for the 8 inches of `report.curve`


@dataclasses.dataclass(frozen=True)
class Part:
    """A section as it is kept.

    Attributes:
        title: Its heading.
        text: Shown first.
        headers: Names of the columns.
        rows: Cells by row: numbers, text, None.
        picture: The name of its figure's file beside `result.json`; "" for none.
    """

    title: str
    text: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]
    picture: str


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run ended with.

    Attributes:
        step: The data step that it is of.
        values: By name.
        parameters: How many the model has.
        parts: The sections.
    """

    step: int
    values: Mapping[str, float]
    parameters: int
    parts: Sequence[Part]


def write_result(
    folder: RunFolder, values: Mapping[str, float], params: PyTree, step: int, *, sections: Sequence[Section] = ()
) -> None:
    """Keeps what an experiment found, in place of what an earlier end of the run had kept.

    Args:
        folder: The run's folder.
        values: Name -> value.
        params: The parameters, or their shapes.
        step: The data step that they are of.
        sections: What the experiment shows, as `write_summary` takes them.
    """
    if not folder.writes:
        return
    before = read_result(folder.path)
    parts: list[Part] = []
    for section in sections:
        picture = ""
        if section.figure is not None:
            picture = _free(f"{CARD}_{slug(section.title)}", [part.picture for part in parts])
            write_atomic(folder.path / picture, png(section.figure))
        rows = [[_cell(cell) for cell in row] for row in section.rows]
        parts.append(Part(section.title, section.text, list(section.headers), rows, picture))
    found = Result(step, {name: float(value) for name, value in values.items()}, tree.size(params), parts)
    write_json(folder.path / RESULT, dataclasses.asdict(found))
    stale = {part.picture for part in before.parts} if before is not None else set()
    for picture in stale - {"", *(part.picture for part in parts)}:
        (folder.path / picture).unlink(missing_ok=True)
    folder.journal.append("result", step, **usage())


def read_result(path: Path, troubles: list[str] | None = None) -> Result | None:
    """What the run in `path` ended with; None where it has not, or where the file cannot be read, which is told."""
    try:
        held = json.loads((path / RESULT).read_bytes())
        parts = [Part(**part) for part in held.pop("parts")]
        return Result(parts=[part for part in parts if Path(part.picture).name == part.picture], **held)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if troubles is not None:
            troubles.append(f"{RESULT} could not be read: {error}.")
        return None


def png(figure: "Figure") -> bytes:
    """A figure on white, for a file that Markdown shows."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white")
    return buffer.getvalue()


def slug(title: str) -> str:
    """A title as a part of a file's name: "held_out_images"."""
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_")[:40] or "figure"


def _free(name: str, taken: Sequence[str]) -> str:
    """The name of a PNG file that no other section of the run has; that of the curves is the card's."""
    names = [f"{name}.png", *(f"{name}_{number}.png" for number in range(2, len(taken) + 3))]
    return next(each for each in names if each not in (*taken, f"{CARD}_curves.png"))


def _cell(value: Any) -> Any:
    """A table's cell as JSON has it; what is neither number nor text is as it is shown."""
    value = plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return format_value(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)
