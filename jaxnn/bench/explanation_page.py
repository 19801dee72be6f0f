"""The page of an explained step."""

from collections.abc import Callable, Iterable, Mapping

from jaxnn.bench import display
from jaxnn.bench.explaining import ROWS, Explanation, Part
from jaxnn.report import Page

_PARTS = ("share", "FLOPs", "bytes", "line", "layer or stage", "phase", "primitives")
_OPS = ("share", "a call", "operation", "origin")


def make(found: Explanation, against: Explanation | None) -> Page:
    """The page, with the differences from another step or revision first."""
    page = Page(f"{found.name}, explained")
    total = found.totals["FLOPs"]
    page.facts(
        {
            "FLOPs a call": display.amount(total, "F"),
            "memory": display.amount(found.memory["peak"], "B") if found.memory else "unknown",
            "compile": display.duration(sum(found.compile[k] for k in ("trace s", "lower s", "compile s"))),
            "equations": int(found.totals["equations"]),
            "collectives": len(found.collectives),
        }
    )
    if found.remarks:
        page.heading("Remarks").text(*found.remarks)
    if against is not None:
        _differences(page, found, against)
    if found.floors:
        page.heading("At least").text(
            "How long a call takes at least by each limit that was measured on this machine. A step that takes much "
            "longer than the largest is bound by neither."
        )
        page.table([(k, display.duration(v)) for k, v in found.floors.items()], ("limit", "a call"))
    if found.ops:
        page.heading("Time by operation").text("Device time of the costliest operations, from a profile.")
        page.table([(_kept(f"{100 * s:.1f} %"), _kept(display.duration(t)), op, o) for op, o, t, s in found.ops], _OPS)
    page.heading("Operations by cost").text(
        "FLOPs by the line that wrote them. Bytes are operands and results as if nothing were fused: an upper estimate."
    )
    page.table([_row(part, total) for part in found.parts[:ROWS]], _PARTS)
    if len(found.parts) > ROWS:
        page.text(f"{len(found.parts) - ROWS} more lines hold {_rest(found.parts[ROWS:], total)} of the FLOPs.")
    _grouped(page, "By layer", found, lambda part: part.layer or "-")
    if any(part.stage for part in found.parts):
        _grouped(page, "By optimizer stage", found, lambda part: part.stage or "not the optimizer")
    _grouped(page, "By phase", found, lambda part: part.phase)
    page.heading("Memory")
    if found.memory:
        page.table([(k, display.amount(v, "B")) for k, v in found.memory.items()], ("class", "on one device"))
    page.table([(k, display.amount(v, "B")) for k, v in found.arguments.items()], ("argument", "size, all devices"))
    page.heading("Collectives")
    page.table([(c,) for c in found.collectives], ("what one device runs",)) if found.collectives else page.text(
        "None."
    )
    page.heading("Compilation")
    page.table([(k, _whole(v)) for k, v in found.compile.items()], ("part", "value"))
    page.heading("Environment")
    return page.table([(k, str(v)) for k, v in found.environment.items() if v not in ("", None)], ("", ""))


def _row(part: Part, total: float) -> tuple[str, ...]:
    share = f"{100 * part.flops / total:.1f} %" if total else "-"
    place = part.stage or part.layer or "-"
    names = ", ".join(part.primitives[:3])
    return (
        _kept(share),
        _amount(part.flops, "F"),
        _amount(part.bytes, "B"),
        part.source or "?",
        place,
        part.phase,
        names,
    )


def _kept(text: str) -> str:
    """Text that is not broken at its spaces, so that a table's numbers stay on one line."""
    return text.replace(" ", "\u00a0")


def _amount(value: float, unit: str) -> str:
    return _kept(display.amount(value, unit))


def _rest(parts: Iterable[Part], total: float) -> str:
    return f"{100 * sum(part.flops for part in parts) / total:.1f} %" if total else "none"


def _grouped(page: Page, title: str, found: Explanation, key: Callable[[Part], str]) -> None:
    total = found.totals["FLOPs"] or 1.0
    rows = [
        (_kept(f"{100 * flops / total:.1f} %"), _amount(flops, "F"), _amount(size, "B"), name)
        for name, (flops, size) in list(found.by(key).items())[:ROWS]
    ]
    page.heading(title).table(rows, ("share", "FLOPs", "bytes", title.lower().removeprefix("by ")))


def _differences(page: Page, found: Explanation, other: Explanation) -> None:
    page.heading(f"Against {other.name}")
    here, there = str(found.environment.get("device")), str(other.environment.get("device"))
    if here != there:
        page.text(f"That was on {there}, this on {here}: counts compare, seconds and executables do not.")
    rows = []
    for figures, olds in ((found.totals, other.totals), (found.memory, other.memory), (found.compile, other.compile)):
        rows += [(k, _whole(olds.get(k, 0.0)), _whole(v), _change(olds.get(k, 0.0), v)) for k, v in figures.items()]
    page.table(rows, ("figure", "before", "now", "change"))
    new, old = found.by(_place), other.by(_place)
    changed = _changed(new, old)
    if not changed:
        page.text("Every layer and stage does the same work.")
        return
    page.text("Work that changed, by layer or stage, the largest difference first.")
    page.table(changed[:ROWS], ("where", "FLOPs before", "FLOPs now", "bytes before", "bytes now"))
    if found.collectives != other.collectives:
        page.text("Collectives before:", *(other.collectives or ("none",)))


def _whole(value: float) -> float:
    """Counts without a decimal point."""
    return int(value) if value == int(value) else value


def _place(part: Part) -> str:
    return f"{part.where} ({part.phase})"


def _changed(new: Mapping[str, tuple[float, float]], old: Mapping[str, tuple[float, float]]) -> list[tuple]:
    rows = []
    for name in [*new, *(n for n in old if n not in new)]:
        before, now = old.get(name, (0.0, 0.0)), new.get(name, (0.0, 0.0))
        if before != now:
            rows.append((name, before[0], now[0], before[1], now[1]))
    return sorted(rows, key=lambda row: (-abs(row[2] - row[1]), -abs(row[4] - row[3])))


def _change(before: float, now: float) -> str:
    return "same" if before == now else f"{100 * (now / before - 1):+.1f} %" if before else "new"
