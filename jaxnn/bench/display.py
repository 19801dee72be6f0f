"""Figures as people read them: four characters that matter, units that fit, colour only on a terminal."""

import contextlib
import html
import math
import sys
from collections.abc import Callable, Iterator

from jaxnn.bench.statistics import Interval

_COLOURS = {"ok": "32", "improve": "36", "regress": "31", "inconclusive": "33"}


def seconds(value: float) -> tuple[float, str]:
    """The factor and the unit in which a duration reads well."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if value * factor >= 1:
            return factor, unit
    return 1e9, "ns"


def digits(value: float) -> str:
    """A number with three significant digits and no exponent; "?" where there is none."""
    if not math.isfinite(value):
        return "?"
    magnitude = abs(value)
    places = 0 if magnitude >= 100 else 1 if magnitude >= 10 else 2 if magnitude >= 1 else 3
    return f"{value:.{places}f}"


def duration(value: float) -> str:
    """`8.91 ms`."""
    factor, unit = seconds(value)
    return f"{digits(value * factor)} {unit}"


def duration_interval(value: float, interval: Interval) -> str:
    """`8.91 ms [8.83, 9.02]`."""
    factor, unit = seconds(value)
    low, high = interval.low * factor, interval.high * factor
    return f"{digits(value * factor)} {unit} [{digits(low)}, {digits(high)}]"


def percent(ratio: float, interval: Interval) -> str:
    """A ratio as a change: `+4.3% [+2.9, +5.6]`."""
    low, high = (f"{100 * (x - 1):+.1f}" if math.isfinite(x) and x else "?" for x in (interval.low, interval.high))
    return f"{100 * (ratio - 1):+.1f}% [{low}, {high}]"


def amount(value: float, unit: str, base: int = 1000) -> str:
    """`1.38 GF`, `23.1 MB`: a count with a prefix; "?" where there is none."""
    if not math.isfinite(value):
        return "?"
    prefixes = ("", "k", "M", "G", "T", "P") if base == 1000 else ("", "Ki", "Mi", "Gi", "Ti", "Pi")
    index = 0
    while abs(value) >= base and index < len(prefixes) - 1:
        value, index = value / base, index + 1
    return f"{digits(value) if value % 1 else f'{value:.0f}'} {prefixes[index]}{unit}"


def verdict(name: str, colour: bool) -> str:
    """A verdict in capitals, coloured where that is wanted."""
    return f"\x1b[{_COLOURS[name]}m{name.upper()}\x1b[0m" if colour and name in _COLOURS else name.upper()


def is_terminal() -> bool:
    """Whether standard output is a terminal that a person looks at."""
    return sys.stdout.isatty()


def as_html(text: str) -> str:
    """A block of text for a notebook."""
    return f'<pre style="line-height:1.4">{html.escape(text)}</pre>'


@contextlib.contextmanager
def live(title: str, wanted: bool | None = None) -> Iterator[Callable[[str], None]]:
    """Gives a function that shows where a measurement stands, on a terminal; elsewhere it shows nothing.

    No thread redraws it: that would run inside the blocks.
    """
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield lambda text: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as shown:
        yield lambda text: shown.update(Text(f"{title}  {text}"), refresh=True)
