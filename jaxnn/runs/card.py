"""A result card: what was run on which data, what came out over the seeds, on what and how long; Markdown and PNGs.

Every word on it is read from the folders of runs that were really made, so that it can be written again at any time,
and a number cannot be other than what a run reported. Where a folder does not hold something, the card does not say it.
"""

import itertools
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxnn.report import format_value
from jaxnn.runs import curves, facts
from jaxnn.runs.durable import write_atomic
from jaxnn.runs.folder import config_changes
from jaxnn.runs.record import Record, flat, read_record
from jaxnn.runs.result import CARD, Part, Result, png, read_result

WHERE = "runs.write_card"
SIGNED = "*Written by `jaxnn card` from the files of "  # begins a card's last line; what lacks it is never replaced
OWN = ("fit.seed", "config.seed", "config.out", "config.resume")  # of a run: may differ between those of one card
ROWS = 30  # of a section's table
_SPECIAL = re.compile(r"([\\`*]|(?<!\w)_|_(?!\w)|\](?=[(\[:]))")

Values = Mapping[str, float]


def write_card(folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, title: str = "") -> Path:
    """Writes the card of a run, or of several that differ in nothing but their seed: `out`.md, and `out`_*.png.

    It shows the command, the values that the runs ended with (`train.conclude`; else the last that they reported, of
    the validation where there was one), their mean and standard deviation, data, size, machine, time, versions,
    settings, curves, the sections that the first run ended with, and the last sample of text.

    Args:
        folders: The runs' folders, which are only read; one that is given twice counts once. A run may be unfinished:
            the card says so, and the mean leaves it out.
        out: Where, ".md" or not; folders above it are made.
        title: Of the card; by default the experiment's name.

    Returns:
        The card's path.

    Raises:
        ValueError: If there is no run, a folder is none, or reported nothing; if runs differ in more than their seed,
            share it, or only some of them ended with a result; if `out` is a folder, or a file that is no card.
        OSError: If it cannot be written.
    """
    target = _target(Path(out).expanduser())
    records, results = _given(folders)
    labels = facts.labels(records)
    values = {label: ended_with(record, result) for label, record, result in zip(labels, records, results)}
    name = title or facts.experiment(records[0])
    blocks = [f"# {text(name)}", *_notes(labels, records), _fenced(facts.commands(records))]
    blocks += _results(labels, records, results, values)
    told = facts.known(records, results)
    if len(records) == 1:
        told = {"seed": [f"{labels[0].removeprefix('seed ')}; one run: the spread over seeds is not known"], **told}
    blocks += _facts(labels, told)
    target.parent.mkdir(parents=True, exist_ok=True)
    blocks += _curves(labels, records, target)
    first = next((i for i, result in enumerate(results) if result is not None), 0)
    whose = f" ({labels[first]})" if len(records) > 1 else ""
    if (result := results[first]) is not None:
        blocks += [block for part in result.parts for block in _section(part, whose, records[first].path, target)]
    blocks += _sample(records[first])
    blocks += ["## Settings", _table(_settings(records[0]), ("setting", "value"))]
    blocks.append(f"{SIGNED}{', '.join(f'`{record.path.absolute().name}`' for record in records)}.*")
    write_atomic(target, ("\n\n".join(blocks) + "\n").encode())
    return target


# ---- what is given


def _target(out: Path) -> Path:
    if out.is_dir():
        raise ValueError(f"{WHERE}: {out} is a folder. Give the card a name in it: {out / 'NAME'}.")
    target = out if out.suffix == ".md" else out.with_name(f"{out.name}.md")
    if not _may_write(target):
        raise ValueError(f"{WHERE}: {target} is there, and no card. Tried: writing one. Give another name, or move it.")
    return target


def _may_write(target: Path) -> bool:
    """Whether nothing is there, or an earlier card."""
    return not target.exists() or (target.is_file() and f"\n{SIGNED}" in target.read_text(errors="replace"))


def own_card(folder: Path) -> Path:
    """Where a run's card goes in its folder: card.md, or the first of card_2.md ... where that is somebody's own."""
    others = (folder / f"{CARD}_{number}.md" for number in itertools.count(2))
    return next(path for path in itertools.chain([folder / f"{CARD}.md"], others) if _may_write(path))


def _given(folders: Sequence[str | os.PathLike[str]]) -> tuple[list[Record], list[Result | None]]:
    paths = {path.resolve(): path for path in (Path(folder).expanduser() for folder in folders)}
    if not paths:
        raise ValueError(f"{WHERE}: no runs. Give at least one run's folder, the out= of train.fit.")
    records = [read_record(path) for path in paths.values()]
    results = [_current(record) for record in records]
    for record, result in zip(records, results):
        if result is None and not curves.series(record.rows):
            raise ValueError(
                f"{WHERE}: {record.path} has no result: it reported no values. Tried: its result.json and "
                f"metrics.jsonl. {record.outcome[1] or 'Train for at least one step.'}"
            )
    first, *others = records
    for other in others:
        changes = config_changes(_shared(first.config), _shared(other.config))
        if changes:
            shown = "; ".join(list(changes.values())[:6]) + "; ..." * (len(changes) > 6)
            raise ValueError(
                f"{WHERE}: {first.path} and {other.path} differ in more than their seed: {shown}. "
                "A mean is over seeds alone: write a card for each, or compare them with `jaxnn report`."
            )
    labels = facts.labels(records)
    if twice := [label for label in labels if labels.count(label) > 1]:
        same = " and ".join(str(record.path) for record, label in zip(records, labels) if label == twice[0])
        raise ValueError(f"{WHERE}: {same} are of the same {twice[0]}. A spread is over seeds: give one of them.")
    lacking = [r.path for r, result in zip(records, results) if result is None and r.outcome[0] == "finished"]
    if lacking and any(results):
        raise ValueError(
            f"{WHERE}: {lacking[0]} did not end with a result (train.conclude), others did. Tried: its result.json. "
            "Resume it, which evaluates it again, or leave it out."
        )
    return records, results


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what is a run's own."""
    parts = {part: value for part, value in config.items() if isinstance(value, Mapping)}
    kept = {p: {k: v for k, v in values.items() if f"{p}.{k}" not in OWN} for p, values in parts.items()}
    return {**config, **kept}


def _current(record: Record) -> Result | None:
    """What the run ended with, if it has not gone on since."""
    result = read_result(record.path, record.troubles)
    names = [event.get("event") for event in record.events]
    told = len(names) - names[::-1].index("result") if "result" in names else 0
    if result is not None and "resume" in names[told:]:
        reached = max(row["step"] for row in [*record.rows, *record.events[told:]])
        if reached > result.step:
            record.troubles.append(f"result.json is of step {result.step:,}, and the run went on: it is left out.")
            return None
    return result


def ended_with(record: Record, result: Result | None) -> Values:
    """What a run ended with; else the last values that it reported, of the validation where there was one."""
    if result is not None:
        return {curves.title(name): value for name, value in result.values.items()}
    last = {name: float(values[-1]) for name, (_, values) in curves.series(record.rows).items()}
    validated = [name for name in last if name.startswith("val_")]
    wanted = validated or [name for name in last if curves.family(name) not in curves.LAST]
    return {curves.title(name): last[name] for name in wanted or last}


# ---- blocks


def _notes(labels: Sequence[str], records: Sequence[Record]) -> list[str]:
    """How runs ended that did not simply finish, and what could not be read of them."""
    notes = []
    for label, record in zip(labels, records):
        whose = f"{label}: " if len(records) > 1 else ""
        outcome, sentence = record.outcome
        if sentence:
            notes.append(f"**{whose}{outcome}** at step {format_value(record.steps_text)}. {text(sentence)}")
        notes += [text(f"{whose}{trouble}") for trouble in record.troubles]
    return notes


def _results(
    labels: Sequence[str], records: Sequence[Record], results: Sequence[Result | None], values: Mapping[str, Values]
) -> list[str]:
    """A table of the values: a row a run and a row of means, or a row a value where there is one run."""
    if len(records) == 1 and results[0] is not None:
        return [_table([(text(name), value) for name, value in values[labels[0]].items()], ("result", ""))]
    if len(records) == 1:
        at = {curves.title(name): int(steps[-1]) for name, (steps, _) in curves.series(records[0].rows).items()}
        rows = [(text(name), value, at[name]) for name, value in values[labels[0]].items()]
        return [_table(rows, ("last reported", "", "at step"))]
    names = list(dict.fromkeys(name for found in values.values() for name in found))
    rows = [[label, *(format_value(values[label].get(name), pad=True) for name in names)] for label in labels]
    ended = [values[label] for label, record in zip(labels, records) if record.outcome[0] in ("finished", "stopped")]
    if len(ended) > 1:
        means = [spread([v[name] for v in ended]) if all(name in v for v in ended) else "–" for name in names]
        rows.append([f"**mean of {len(ended)}**", *(f"**{mean}**" for mean in means)])
    note = "± is the standard deviation over the seeds."
    return [_table(rows, ["", *map(text, names)]), *([note] if len(ended) > 1 else [])]


def _facts(labels: Sequence[str], known: Mapping[str, Sequence[str]]) -> list[str]:
    """A table of what is the same in all runs, then one with a column a run of what differs."""
    same = [(what, text(texts[0])) for what, texts in known.items() if len(set(texts)) == 1]
    other = [(what, *(text(each) or "–" for each in texts)) for what, texts in known.items() if len(set(texts)) > 1]
    tables = [(same, ("", "")), (other, ("", *labels))]
    return [_table(rows, headers) for rows, headers in tables if rows]


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation, the latter with two digits: "0.9227 ± 0.0013"; "–" for fewer than two."""
    if len(values) < 2:
        return "–"
    if not all(map(math.isfinite, values)):
        return "not finite"
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    if not 1e-6 < deviation < 1e6:  # none, or beyond plain digits
        return f"{format_value(mean)} ± {format_value(deviation)}"
    digits = max(0, 1 - int(f"{deviation:.1e}".partition("e")[2]))
    return f"{mean:,.{digits}f} ± {deviation:,.{digits}f}"


def _curves(labels: Sequence[str], records: Sequence[Record], target: Path) -> list[str]:
    found = {label: curves.series(record.rows) for label, record in zip(labels, records)}
    if len(records) == 1:
        series = found[labels[0]]
        groups = {f: names for f, names in curves.families(series).items() if f not in curves.LAST}
        moving = {f: names for f, names in groups.items() if curves.moves(series[name] for name in names)}
        drawn = curves.panels(series, dict(list(moving.items())[: curves.FIGURES])) if moving else None
    else:
        drawn = curves.overlaid(found)
    if drawn is None:
        return []
    picture = target.with_name(f"{target.stem}_curves.png")
    write_atomic(picture, png(drawn))
    return ["## Curves", f"![Curves of the reported values]({picture.name})"]


def _section(part: Part, whose: str, folder: Path, target: Path) -> list[str]:
    blocks = [f"## {text(part.title)}{whose}"]
    if part.text:
        blocks += [text(paragraph) for paragraph in re.split(r"\n\s*\n", part.text.strip())]
    if part.picture:
        picture = target.with_name(f"{target.stem}_{part.picture.partition('_')[2]}")
        try:
            content = (folder / part.picture).read_bytes()
            if picture.resolve() != (folder / part.picture).resolve():
                write_atomic(picture, content)
            blocks.append(f"![{text(part.title)}]({picture.name})")
        except FileNotFoundError:
            blocks.append(f"Its picture, {part.picture}, is no longer in the run's folder.")
    if part.rows:
        rows = [[text(cell) if isinstance(cell, str) else cell for cell in row] for row in part.rows[:ROWS]]
        blocks.append(_table(rows, [text(header) for header in part.headers]))
        if len(part.rows) > ROWS:
            blocks.append(f"{len(part.rows) - ROWS} further rows are in the run's report.")
    return blocks


def _sample(record: Record) -> list[str]:
    samples = [event for event in record.events if event.get("event") == "sample" and event.get("text")]
    if not samples:
        return []
    return [f"## Sample, step {samples[-1]['step']:,}", _fenced([str(samples[-1]["text"])])]


def _settings(record: Record) -> list[tuple[str, str]]:
    """The experiment's config, then what `fit` was given besides; paths as `facts.near` has them."""
    config = record.config.get("config")
    own = dict(flat(config)) if isinstance(config, Mapping) else {}
    fit = {name: value for name, value in flat(record.fit) if name not in own and value != "null"}
    hidden = {"batch_size", "examples", *(name.partition(".")[2] for name in OWN)}
    shown = [(name, facts.near(value)) for name, value in [*own.items(), *fit.items()] if name not in hidden]
    return [(f"`{name}`", f"`{value.replace('`', chr(39))}`" if value else "") for name, value in shown]


# ---- Markdown


def text(plain: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    escaped = _SPECIAL.sub(r"\\\1", " ".join(plain.split())).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"^([#>+-])", r"\\\1", escaped)


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    """A table; cells of text are Markdown already, columns of numbers are set right and written as in a report."""
    numeric = [all(cell is None or not isinstance(cell, str) for cell in column) for column in zip(*rows)]
    cells = [[format_value(cell, pad=right) for cell, right in zip(row, numeric)] for row in rows]
    lines = [[*headers], ["---:" if right else "---" for right in numeric], *cells]
    return "\n".join(
        f"| {' | '.join(' '.join(cell.replace('|', chr(92) + '|').split()) for cell in r)} |" for r in lines
    )


def _fenced(lines: Sequence[str]) -> str:
    """Lines as they are, in a fence longer than any that they hold."""
    content = "\n".join(lines)
    longest = max((len(run) for run in re.findall(r"`{3,}", content)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}text\n{content}\n{fence}"
